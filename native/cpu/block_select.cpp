// `block_select` (docs/kernels.md): which blocks of keys a query attends to, by the probabilities p of its attention
// to compressed blocks (Yuan et al. 2025, equations 8 to 12). Compressed block i covers cells (`stride` tokens) i to
// i + length/stride - 1, and a block of keys holds size/stride cells, so that (counting from 0)
//   importance[j] = sum over heads of the group, cells m of j, n < length/stride of p[j size/stride + m - n].
// Scores are computed again from their log-sum-exp, tile by tile; a tile of 64 queries keeps its importances, no more.
#include "block_attention.h"

namespace ansatz {
namespace {

struct Selection {
  Problem p;               // queries against compressed keys: Tq tokens, Tk compressed blocks
  int64_t length, stride, size, n, initial, local;
  int64_t blocks;          // of keys
  int32_t* index;
  float* importance;       // [B,T,Hkv,blocks] or null
  const int32_t *seg, *compressed_seg;   // of tokens and of compressed blocks, or null
  const MinMax* segments;  // of the tokens of every block of keys, or null
};

struct SelectScratch {
  float *rows, *q_t, *S, *value;
  int32_t* picks;          // [lane][n]
  static int64_t floats(const Selection& s) {
    return 2 * lanes * s.p.Dp + key_tile * lanes + s.blocks * lanes + lanes * s.n + 64;
  }
  SelectScratch(const Selection& s, float* at) {
    rows = at, q_t = rows + lanes * s.p.Dp, S = q_t + lanes * s.p.Dp, value = S + key_tile * lanes;
    picks = reinterpret_cast<int32_t*>(value + s.blocks * lanes);
  }
};

// Queries q0 .. q0 + nq - 1 of one row; reach is the last compressed block that a lane sees.
void set_queries(const Selection& s, QueryBlock& q, int64_t b, int64_t q0) {
  q.b = b, q.q0 = q0, q.nq = smaller(lanes, s.p.Tq - q0), q.width = round_up(q.nq, 2 * W);
  for (int64_t l = 0; l < lanes; l++) {
    const int64_t whole = q0 + l + 1 - s.length;
    q.position[l] = static_cast<int32_t>(q0 + l);
    q.reach[l] = l < q.nq && whole >= 0 ? static_cast<int32_t>(whole / s.stride) : -1;
    q.segment[l] = s.seg && l < q.nq ? s.seg[b * s.p.Tq + q0 + l] : 0;
  }
}

// Adds the probabilities of one head to the importances.
template <bool Pair>
void add_head(const Selection& s, const SelectScratch& x, const QueryBlock& q, int64_t h) {
  const Problem& p = s.p;
  const int64_t Dp = p.Dp, Dw = Pair ? Dp / 2 : Dp, end = smaller(q.reach[q.nq - 1] + 1, p.Tk);
  stage_rows<Pair>(x.rows, p.tokens(p.q, q.b, p.Tq, q.q0, h), p.q.dtype, p.q.token, q.nq, q.width, p.D, Dp);
  transpose_words(x.q_t, lanes, x.rows, Dw, q.width, Dw);
  alignas(64) float lse[lanes];
  for (int64_t l = 0; l < lanes; l++) {
    const float y = l < q.nq ? p.lse[(q.b * p.H + h) * p.Tq + q.q0 + l] : -infinity;
    lse[l] = y != -infinity ? y * log2e : infinity;
  }
  const float c = p.scale * log2e;
  const int64_t cells = s.size / s.stride, spread = s.length / s.stride;
  for (int64_t k0 = 0; k0 < end; k0 += key_tile) {
    const int64_t nk = smaller(key_tile, end - k0), even = round_up(nk, 2);
    stage_rows<Pair>(x.rows, p.tokens(p.k, q.b, p.Tk, k0, h / p.group), p.k.dtype, p.k.token, nk, even, p.D, Dp);
    product_over_dims<Pair>(false, even, q.width, Dw, x.rows, x.q_t, x.S);
    for (int64_t i = k0; i < k0 + nk; i++) {
      const vi segment = splat_i(s.seg ? s.compressed_seg[q.b * p.Tk + i] : 0);
      for (int64_t l = 0; l < q.width; l += W) {
        vi seen = *reinterpret_cast<const vi_u*>(q.reach + l) >= splat_i(static_cast<int32_t>(i));
        if (s.seg) seen &= *reinterpret_cast<const vi_u*>(q.segment + l) == segment;
        const vf e = exp2_nonpositive(load(x.S + (i - k0) * lanes + l) * c - load(lse + l));
        const vf prob = seen ? e : splat(0.0f);
        for (int64_t m = 0; m < spread; m++) {
          float* to = x.value + (i + m) / cells * lanes + l;
          store(to, load(to) + prob);
        }
      }
    }
  }
}

// Whether block j may hold a token of a lane's segment.
inline bool is_candidate(const Selection& s, const QueryBlock& q, int64_t l, int64_t j) {
  if (!s.seg) return true;
  const MinMax of = s.segments[q.b * s.blocks + j];
  return of.lo <= q.segment[l] && q.segment[l] <= of.hi;
}

// Marks what a lane cannot choose with -1, and takes its fixed choices: the last `local` and the first `initial` of its
// candidates. Gives how many places they fill.
int64_t take_fixed(const Selection& s, const SelectScratch& x, const QueryBlock& q, int64_t l, int64_t rows) {
  const int64_t own = q.position[l] / s.size;
  int64_t taken = 0;
  for (int64_t j = s.seg ? 0 : own + 1; j < rows; j++)
    if (j > own || !is_candidate(s, q, l, j)) x.value[j * lanes + l] = -1.0f;
  const auto take = [&](int64_t j) {
    if (x.value[j * lanes + l] == -1.0f) return;
    x.value[j * lanes + l] = -1.0f;
    x.picks[l * s.n + taken++] = static_cast<int32_t>(j);
  };
  for (int64_t j = own, k = 0; j >= 0 && k < s.local; j--)
    if (is_candidate(s, q, l, j)) take(j), k++;
  for (int64_t j = 0, k = 0; j <= own && k < s.initial; j++)
    if (is_candidate(s, q, l, j)) take(j), k++;
  return taken;
}

// The largest remaining values of 64 lanes, ties to the lowest block: one sweep over the blocks for each place.
void take_largest(const Selection& s, const SelectScratch& x, const QueryBlock& q, int64_t rows, int64_t* taken) {
  alignas(64) int32_t at[lanes];
  for (int64_t k = 0; k < s.n; k++) {
    bool more = false;
    for (int64_t l = 0; l < q.nq; l++) more |= taken[l] < s.n;
    if (!more) return;
    for (int64_t l = 0; l < q.width; l += W) {
      vf best = splat(-1.0f);
      vi where = splat_i(-1);
      for (int64_t j = 0; j < rows; j++) {
        const vf value = load(x.value + j * lanes + l);
        const vi larger_one = value > best;
        best = larger_one ? value : best;
        where = larger_one ? splat_i(static_cast<int32_t>(j)) : where;
      }
      *reinterpret_cast<vi_u*>(at + l) = where;
    }
    bool found = false;
    for (int64_t l = 0; l < q.nq; l++) {
      if (taken[l] >= s.n || at[l] < 0) continue;
      found = true;
      x.value[at[l] * lanes + l] = -1.0f;
      x.picks[l * s.n + taken[l]++] = at[l];
    }
    if (!found) return;
  }
}

// Ascending; places that stayed empty hold -1.
inline void write_list(const Selection& s, int32_t* out, const int32_t* picks, int64_t count) {
  for (int64_t k = 0; k < count; k++) {
    int64_t at = k;
    for (; at > 0 && out[at - 1] > picks[k]; at--) out[at] = out[at - 1];
    out[at] = picks[k];
  }
  for (int64_t k = count; k < s.n; k++) out[k] = -1;
}

template <bool Pair>
void select_queries(const Selection& s, int64_t b, int64_t kv_head, int64_t q0, const SelectScratch& x) {
  const Problem& p = s.p;
  QueryBlock q;
  set_queries(s, q, b, q0);
  const int64_t rows = q.position[q.nq - 1] / s.size + 1;   // blocks that somebody can choose
  std::memset(x.value, 0, static_cast<size_t>(s.blocks * lanes) * sizeof(float));
  // Where there are no more blocks than places, all are chosen whatever their importance.
  if (rows > s.n || s.importance)
    for (int64_t h = kv_head * p.group; h < (kv_head + 1) * p.group; h++) add_head<Pair>(s, x, q, h);
  if (s.importance)
    for (int64_t l = 0; l < q.nq; l++)
      for (int64_t j = 0; j < s.blocks; j++)
        s.importance[((b * p.Tq + q0 + l) * p.Hkv + kv_head) * s.blocks + j] = x.value[j * lanes + l];
  int64_t taken[lanes];
  for (int64_t l = 0; l < q.nq; l++) taken[l] = take_fixed(s, x, q, l, rows);
  take_largest(s, x, q, rows, taken);
  for (int64_t l = 0; l < q.nq; l++)
    write_list(s, s.index + ((b * p.Tq + q0 + l) * p.Hkv + kv_head) * s.n, x.picks + l * s.n, taken[l]);
}

void block_select(const Call& c) {
  Selection s = {};
  Problem& p = s.p;
  p.B = c.i[0], p.Tq = c.i[1], p.H = c.i[2], p.Hkv = c.i[3], p.D = c.i[4], p.Tk = c.i[5];
  s.length = c.i[6], s.stride = c.i[7], s.size = c.i[8], s.n = c.i[9], s.initial = c.i[10], s.local = c.i[11];
  p.scale = static_cast<float>(c.f[0]);
  p.Dp = round_up(larger(p.D, 1), W);
  p.group = p.Hkv ? p.H / p.Hkv : 0;
  s.blocks = (p.Tq + s.size - 1) / s.size;
  s.index = c.ptr<int32_t>(0), s.importance = c.ptr<float>(1);
  p.q = rows_of(c, 2, p.H * p.D), p.k = rows_of(c, 3, p.Hkv * p.D);
  p.lse = c.ptr<float>(4);
  s.seg = c.ptr<const int32_t>(5), s.compressed_seg = c.ptr<const int32_t>(6);
  if (s.seg) {
    MinMax* segments = static_cast<MinMax*>(pool_scratch(0, 1, (p.B * s.blocks + 1) * 8));
    block_segments(segments, s.seg, p.B, p.Tq, s.size);
    s.segments = segments;
  }
  const bool pair = has_bf16_dot && p.q.dtype == BF16;
  const int64_t heads = p.B * p.Hkv, steps = (p.Tq + lanes - 1) / lanes;
  // Late queries have the most to look at: they go first.
  parallel(heads * steps, [&](int64_t task, int thread) {
    const SelectScratch x(s, static_cast<float*>(pool_scratch(thread, 0, SelectScratch::floats(s) * 4)));
    const int64_t q0 = (steps - 1 - task / heads) * lanes, b = task % heads / p.Hkv, kv_head = task % p.Hkv;
    if (pair) select_queries<has_bf16_dot>(s, b, kv_head, q0, x);
    else select_queries<false>(s, b, kv_head, q0, x);
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(block_select, {"block_select", block_select})
