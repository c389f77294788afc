// `block_attention` (docs/kernels.md): each query attends to the blocks of keys on its list.
//
// Keys and values of every block are packed once: keys transposed ([dims][keys], so that scores of a block come out
// with the keys along a vector), values as the B operand of P V. A task then takes queries one by one: the heads that
// share keys are the rows of small products over the blocks of the list, and because a list is short, one softmax over
// all its scores does; nothing is rescaled and O is written once.
#include "block_attention.h"

namespace ansatz {
namespace {

struct PackedBlocks {
  float* memory;
  int64_t keys;            // of a block, padded to whole vectors
  int64_t k_words, v_words;
  MinMax* segments;        // of every block's tokens, [B][blocks]; null without segments

  PackedBlocks(const Selected& s, bool pair) {
    keys = round_up(s.size, W);
    const int64_t word = pair ? 2 : 1;
    k_words = s.p.Dp / word * keys, v_words = keys / word * s.p.Dp;
    const int64_t words = s.p.B * s.p.Hkv * s.blocks * (k_words + v_words) + 64;
    memory = static_cast<float*>(pool_scratch(0, 1, (words + 2 * s.p.B * s.blocks) * 4));
    segments = s.p.seg_k ? reinterpret_cast<MinMax*>(memory + words) : nullptr;
    if (segments) block_segments(segments, s.p.seg_k, s.p.B, s.p.Tk, s.size);
  }
  float* k(int64_t block) const { return memory + block * (k_words + v_words); }
  float* v(int64_t block) const { return k(block) + k_words; }
};

template <bool Pair> void pack_block(const Selected& s, const PackedBlocks& packed, int64_t block, float* room) {
  const Problem& p = s.p;
  const int64_t row = block / s.blocks, j0 = block % s.blocks * s.size, n = smaller(s.size, p.Tk - j0);
  const int64_t b = row / p.Hkv, kv_head = row % p.Hkv, Dw = Pair ? p.Dp / 2 : p.Dp;
  const char *key = p.tokens(p.k, b, p.Tk, j0, kv_head), *value = p.tokens(p.v, b, p.Tk, j0, kv_head);
  stage_rows<Pair>(room, key, p.k.dtype, p.k.token, n, packed.keys, p.D, p.Dp);
  transpose_words(packed.k(block), packed.keys, room, Dw, packed.keys, Dw);
  float* v = packed.v(block);
  if (Pair) {
    interleave_rows(v, value, p.v.token, n, p.D, p.Dp);
    const int64_t done = (n + 1) / 2 * p.Dp;
    std::memset(v + done, 0, static_cast<size_t>(packed.v_words - done) * sizeof(float));
  } else {
    stage_rows<Pair>(v, value, p.v.dtype, p.v.token, n, packed.keys, p.D, p.Dp);
  }
}

// -inf for the keys of a block that query t does not see: those after it, those of other segments, and padding.
inline void hide_keys(const Selected& s, const PackedBlocks& packed, int64_t b, int64_t t, int64_t block, int64_t rows,
                      int64_t step, float* S) {
  const Problem& p = s.p;
  const int64_t keys = packed.keys, j0 = block * s.size, n = smaller(s.size, t + 1 - j0);   // t < Tk
  bool mixed = false;
  if (packed.segments) {
    const MinMax seen = packed.segments[b * s.blocks + block];
    mixed = seen.lo != seen.hi || seen.lo != p.seg_q[b * p.Tq + t];
  }
  if (n == keys && !mixed) return;
  for (int64_t r = 0; r < rows; r++) {
    float* x = S + r * step;
    if (mixed)
      for (int64_t j = 0; j < n; j++)
        if (p.seg_k[b * p.Tk + j0 + j] != p.seg_q[b * p.Tq + t]) x[j] = -infinity;
    for (int64_t j = n; j < keys; j++) x[j] = -infinity;
  }
}

// Probabilities of one row of m scores, unnormalised, in place of the scores (bfloat16 in pair mode). Gives the row's
// maximum (times log2 e) and sum.
template <bool Pair> ANSATZ_INLINE void softmax_row(float* S, int64_t m, float c, float* max, float* sum) {
  vf m0 = splat(-infinity), m1 = m0;
  int64_t j = 0;
  for (; j + 2 * W <= m; j += 2 * W) m0 = vmax(load(S + j) * c, m0), m1 = vmax(load(S + j + W) * c, m1);
  if (j < m) m0 = vmax(load(S + j) * c, m0);
  const float top = hmax(vmax(m0, m1));
  const vf base = splat(top == -infinity ? 0.0f : top);
  vf s0 = {}, s1 = {};
  bf16* low = reinterpret_cast<bf16*>(S);   // word j is written after score 2j was read
  for (j = 0; j + 2 * W <= m; j += 2 * W) {
    const vf p0 = exp2_nonpositive(load(S + j) * c - base), p1 = exp2_nonpositive(load(S + j + W) * c - base);
    s0 += p0, s1 += p1;
    if (Pair) store(low + j, p0), store(low + j + W, p1);
    else store(S + j, p0), store(S + j + W, p1);
  }
  if (j < m) {
    const vf p0 = exp2_nonpositive(load(S + j) * c - base);
    s0 += p0;
    if (Pair) store(low + j, p0);
    else store(S + j, p0);
  }
  *max = top, *sum = hsum(s0 + s1);
}

struct QueryScratch {
  float *q, *S, *O;
  static int64_t floats(const Selected& s, int64_t keys) {
    const int64_t rows = round_up(s.p.group, 2);
    return rows * (2 * s.p.Dp + s.n * keys) + 64;
  }
  QueryScratch(const Selected& s, float* at) {
    const int64_t rows = round_up(s.p.group, 2);
    q = at, O = q + rows * s.p.Dp, S = O + rows * s.p.Dp;
  }
};

template <bool Pair>
void attend(const Selected& s, const PackedBlocks& packed, const QueryScratch& x, int64_t b, int64_t t,
            int64_t kv_head) {
  const Problem& p = s.p;
  const int64_t Dp = p.Dp, Dw = Pair ? Dp / 2 : Dp, rows = round_up(p.group, 2), keys = packed.keys;
  const int64_t h0 = kv_head * p.group, word = Pair ? 2 : 1, first = (b * p.Hkv + kv_head) * s.blocks;
  const BlockList list = s.list(b, t, kv_head);
  const int64_t m = list.count * keys;
  stage_rows<Pair>(x.q, p.tokens(p.q, b, p.Tq, t, h0), p.q.dtype, p.D, p.group, rows, p.D, Dp);
  for (int64_t k = 0; k < list.count; k++) {
    tile_product<Pair, ALayout::rows>(rows, keys, Dw, x.q, Dw, packed.k(first + list.block[k]), keys, x.S + k * keys, m,
                                      false);
    hide_keys(s, packed, b, t, list.block[k], rows, m, x.S + k * keys);
  }
  float max[lanes], sum[lanes];
  for (int64_t g = 0; g < rows; g++) softmax_row<Pair>(x.S + g * m, m, p.scale * log2e, max + g, sum + g);
  for (int64_t k = 0; k < list.count; k++)
    tile_product<Pair, ALayout::rows>(rows, Dp, keys / word, x.S + k * keys / word, m, packed.v(first + list.block[k]),
                                      Dp, x.O, Dp, k > 0);
  if (list.count == 0) std::memset(x.O, 0, static_cast<size_t>(rows * Dp) * sizeof(float));
  for (int64_t g = 0; g < p.group; g++) {
    const bool blind = list.count == 0 || sum[g] == 0.0f;
    char* out = const_cast<char*>(p.tokens(p.out, b, p.Tq, t, h0 + g));
    store_row(out, p.out.dtype, x.O + g * Dp, p.D, blind ? 0.0f : 1.0f / sum[g]);
    p.lse[(b * p.H + h0 + g) * p.Tq + t] = blind ? -infinity : max[g] * ln2 + vlog(splat(sum[g]))[0];
  }
}

constexpr int64_t queries_of_task = 16;

template <bool Pair> void forward(const Selected& s) {
  const Problem& p = s.p;
  const PackedBlocks packed(s, Pair);
  const int64_t heads = p.B * p.Hkv, steps = (p.Tq + queries_of_task - 1) / queries_of_task;
  parallel(heads * s.blocks, [&](int64_t block, int thread) {
    float* room = static_cast<float*>(pool_scratch(thread, 0, (packed.keys * p.Dp + 64) * 4));
    pack_block<Pair>(s, packed, block, room);
  });
  parallel(heads * steps, [&](int64_t task, int thread) {
    float* memory = static_cast<float*>(pool_scratch(thread, 0, QueryScratch::floats(s, packed.keys) * 4));
    const QueryScratch x(s, memory);
    const int64_t row = task / steps, t0 = task % steps * queries_of_task, t1 = smaller(p.Tq, t0 + queries_of_task);
    for (int64_t t = t0; t < t1; t++) attend<Pair>(s, packed, x, row / p.Hkv, t, row % p.Hkv);
  });
}

void block_attention(const Call& c) {
  Selected s = read_selected(c);
  Problem& p = s.p;
  p.out = rows_of(c, 0, p.H * p.D), p.lse = c.ptr<float>(1);
  p.q = rows_of(c, 2, p.H * p.D), p.k = rows_of(c, 3, p.Hkv * p.D), p.v = rows_of(c, 4, p.Hkv * p.D);
  s.index = c.ptr<const int32_t>(5);
  p.seg_q = p.seg_k = c.ptr<const int32_t>(6);
  if (has_bf16_dot && p.q.dtype == BF16) forward<has_bf16_dot>(s);
  else forward<false>(s);
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(block_attention, {"block_attention", block_attention})
