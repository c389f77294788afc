// Attention to chosen blocks of keys over pages: `paged_block_*` in docs/kernels.md (Yuan et al. 2025, equations 7-12).
// A compressed block lies in the page of its last token, in a cell of its own: stale cells are of blocks that end later
// than any row looks.
#include "paged_attention.h"

namespace ansatz {
namespace {

struct Cells {
  int64_t length, stride, page, count;   // of a compressed block; cells of a page
  Cells(int64_t length, int64_t stride, int64_t page)
      : length(length), stride(stride), page(page), count((page + stride - 1) / stride) {}
  // The block that ends at token t, or -1.
  int64_t ends_at(int64_t t) const {
    const int64_t first = t + 1 - length;
    return first < 0 || first % stride ? -1 : first / stride;
  }
  // Blocks that lie wholly at or before token t.
  int64_t whole(int64_t t) const { return t + 1 < length ? 0 : (t + 1 - length) / stride + 1; }
  // Page of block c, and its cell there.
  void place(int64_t c, int64_t* n, int64_t* cell) const {
    const int64_t before = length - 1;   // block 0 ends there
    *n = (c * stride + before) / page;
    const int64_t start = *n * page - before, first = start <= 0 ? 0 : (start + stride - 1) / stride;
    *cell = c - first;
  }
};

// pick: the rows at which a compressed block ends, -1 behind the last one. offsets: 0, and `heads` times their number.
void paged_block_rows(const Call& c) {
  const int64_t R = c.i[0], heads = c.i[3];
  const Cells cells(c.i[1], c.i[2], 1);
  int32_t *pick = c.ptr<int32_t>(0), *offsets = c.ptr<int32_t>(1);
  const int32_t *sequence = c.ptr<const int32_t>(2), *position = c.ptr<const int32_t>(3);
  int64_t n = 0;
  for (int64_t r = 0; r < R; r++)
    if (sequence[r] >= 0 && cells.ends_at(position[r]) >= 0) pick[n++] = static_cast<int32_t>(r);
  offsets[0] = 0, offsets[1] = static_cast<int32_t>(n * heads);
  for (; n < R; n++) pick[n] = -1;
}

// out[k][head][length][D]: the vectors of the tokens of the block that ends at row pick[k].
template <class Out> void gather(const Call& c, Out* out) {
  const int64_t R = c.i[0], heads = c.i[1], D = c.i[2], length = c.i[3], page = c.i[4], max_pages = c.i[5];
  const float* pool = c.ptr<const float>(1);
  const int32_t *pick = c.ptr<const int32_t>(2), *table = c.ptr<const int32_t>(3);
  const int32_t *sequence = c.ptr<const int32_t>(4), *position = c.ptr<const int32_t>(5);
  parallel(R, [&](int64_t k, int) {
    const int64_t r = pick[k];
    if (r < 0) return;
    for (int64_t j = 0; j < length; j++) {
      const int64_t t = position[r] - length + 1 + j, n = page_of(table, max_pages, sequence[r], t, page);
      if (n < 0) return;
      const float* from = pool + (n * page + t % page) * heads * D;
      for (int64_t head = 0; head < heads; head++)
        for (int64_t d = 0; d < D; d++) store_one(out + ((k * heads + head) * length + j) * D + d, from[head * D + d]);
    }
  });
}

void paged_block_gather(const Call& c) {
  if (c.t[0] == BF16) gather(c, c.ptr<bf16>(0));
  else gather(c, c.ptr<float>(0));
}

// Keys and values [R][heads][D] of the blocks that end at rows pick[k], into their cells f32 [2][heads][D].
void paged_block_write(const Call& c) {
  const int64_t R = c.i[0], width = c.i[1] * c.i[2], page = c.i[5], max_pages = c.i[6];
  const Cells cells(c.i[3], c.i[4], page);
  float* pool = c.ptr<float>(0);
  const int32_t *pick = c.ptr<const int32_t>(3), *table = c.ptr<const int32_t>(4);
  const int32_t *sequence = c.ptr<const int32_t>(5), *position = c.ptr<const int32_t>(6);
  for (int64_t k = 0; k < R && pick[k] >= 0; k++) {
    const int64_t r = pick[k], n = page_of(table, max_pages, sequence[r], position[r], page);
    if (n < 0) return;
    int64_t at, cell;
    cells.place(cells.ends_at(position[r]), &at, &cell);
    for (int side = 0; side < 2; side++) {
      float* to = pool + ((n * cells.count + cell) * 2 + side) * width;
      for (int64_t d = 0; d < width; d++)
        to[d] = c.t[1 + side] == BF16 ? to_float(c.ptr<const bf16>(1 + side)[k * width + d])
                                      : c.ptr<const float>(1 + side)[k * width + d];
    }
  }
}

struct Choice {
  int64_t R, H, Hkv, D, Dp, group, max_pages, size, n, initial, local;
  float scale;
  const float* pool;
  const int32_t *table, *sequence, *position;
  int32_t* index;
};

// Vectors of n floats: whole ones, and a tail.
template <class Fn> ANSATZ_INLINE void vectors(int64_t n, const Fn& f) {
  int64_t d = 0;
  for (; d + W <= n; d += W) f(d, [](const float* x) { return load(x); });
  if (d < n) f(d, [&](const float* x) { return load_n(x, n - d); });
}

// scores[MR][count] = query[MR][Dp] keys[count][D].
template <int MR>
void score_keys(const float* query, const float* const* keys, int64_t count, int64_t D, int64_t Dp, float* scores) {
  for (int64_t c = 0; c < count; c++) {
    vf acc[MR] = {};
    vectors(D, [&](int64_t d, const auto& get) {
      const vf k = get(keys[c] + d);
#pragma GCC unroll 4
      for (int m = 0; m < MR; m++) acc[m] = acc[m] + get(query + m * Dp + d) * k;
    });
#pragma GCC unroll 4
    for (int m = 0; m < MR; m++) scores[m * count + c] = hsum(acc[m]);
  }
}

// mixed[MR][Dp] = probabilities[MR][count] values[count][D], which lie `value` elements behind the keys.
template <int MR>
void mix_values(const float* P, const float* const* keys, int64_t value, int64_t count, int64_t D, int64_t Dp,
                float* mixed) {
  vectors(D, [&](int64_t d, const auto& get) {
    vf acc[MR] = {};
    for (int64_t c = 0; c < count; c++) {
      const vf v = get(keys[c] + value + d);
#pragma GCC unroll 4
      for (int m = 0; m < MR; m++) acc[m] = acc[m] + v * P[m * count + c];
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; m++) store(mixed + m * Dp + d, acc[m]);
  });
}

// scores[group][count] -> probabilities.
void soften_row(float* s, int64_t count) {
  float top = -__builtin_inff(), sum = 0.0f;
  for (int64_t k = 0; k < count; k++) top = s[k] > top ? s[k] : top;
  int64_t k = 0;
  for (; k + W <= count; k += W) {
    const vf e = vexp(load(s + k) - top);
    store(s + k, e);
    sum += hsum(e);
  }
  for (; k < count; k++) s[k] = vexp(splat(s[k] - top))[0], sum += s[k];
  const float scale = 1.0f / sum;
  for (k = 0; k < count; k++) s[k] *= scale;
}

// The `n` blocks of keys that a row reads: the last `local`, the first `initial`, and the most important of the others,
// of equals the first. value is used up.
void choose_blocks(const Choice& p, int64_t own, float* value, int32_t* out) {
  int64_t taken = 0;
  const auto take = [&](int64_t j) {
    if (j < 0 || value[j] < 0.0f) return;
    value[j] = -1.0f;
    int64_t at = taken++;
    for (; at > 0 && out[at - 1] > j; at--) out[at] = out[at - 1];
    out[at] = static_cast<int32_t>(j);
  };
  for (int64_t k = 0; k < p.local; k++) take(own - k);
  for (int64_t k = 0; k < p.initial && k <= own; k++) take(k);
  while (taken < p.n) {
    float best = -1.0f;
    int64_t where = -1;
    for (int64_t j = 0; j <= own; j++)
      if (value[j] > best) best = value[j], where = j;
    if (where < 0) break;
    take(where);
  }
  for (int64_t k = taken; k < p.n; k++) out[k] = -1;
}

// Attention of one row and key head to compressed blocks, and what it chooses by it.
template <class In, class Out>
void attend_cells(const Choice& p, const Cells& cells, int64_t r, int64_t g, int thread, const In* q, Out* out) {
  const int64_t t = p.position[r], count = cells.whole(t), own = t / p.size, G = p.group, D = p.D, Dp = p.Dp;
  const int64_t bytes = (G * (2 * Dp + count) + own + 1) * 4 + (count + 1) * 8 + 64;
  const float** keys = static_cast<const float**>(pool_scratch(thread, 0, bytes));
  float *query = reinterpret_cast<float*>(keys + count + 1), *mixed = query + G * Dp, *S = mixed + G * Dp;
  float* value = S + G * count;
  const int64_t width = p.Hkv * D;
  for (int64_t c = 0; c < count; c++) {
    int64_t n, cell;
    cells.place(c, &n, &cell);
    keys[c] = p.pool + (p.table[p.sequence[r] * p.max_pages + n] * cells.count + cell) * 2 * width + g * D;
  }
  for (int64_t k = 0; k < G; k++)
    for (int64_t d = 0; d < D; d++) query[k * Dp + d] = to_float(q[(r * p.H + g * G + k) * D + d]) * p.scale;
  int64_t m = 0;
  for (; m + 4 <= G; m += 4) score_keys<4>(query + m * Dp, keys, count, D, Dp, S + m * count);
  for (; m < G; m++) score_keys<1>(query + m * Dp, keys, count, D, Dp, S + m * count);
  for (m = 0; m < G && count > 0; m++) soften_row(S + m * count, count);
  for (m = 0; m + 4 <= G; m += 4) mix_values<4>(S + m * count, keys, width, count, D, Dp, mixed + m * Dp);
  for (; m < G; m++) mix_values<1>(S + m * count, keys, width, count, D, Dp, mixed + m * Dp);
  for (m = 0; m < G; m++)
    for (int64_t d = 0; d < D; d++) store_one(out + (r * p.H + g * G + m) * D + d, mixed[m * Dp + d]);
  // The importance of a block of keys: of each of its cells, what the compressed blocks that hold the cell got.
  std::memset(value, 0, static_cast<size_t>(own + 1) * 4);
  const int64_t per = p.size / cells.stride, spread = cells.length / cells.stride;
  if (own + 1 > p.n) {
    for (m = 1; m < G; m++)
      for (int64_t c = 0; c < count; c++) S[c] += S[m * count + c];
    for (int64_t j = 0; j <= own; j++)
      for (int64_t e = j * per; e < (j + 1) * per; e++)
        for (int64_t c = e < spread ? 0 : e - spread + 1; c <= e && c < count; c++) value[j] += S[c];
  }
  choose_blocks(p, own, value, p.index + (r * p.Hkv + g) * p.n);
}

template <class In, class Out> void choose_all(const Choice& p, const Cells& cells, const In* q, Out* out) {
  if (!rows_fit(p.R, p.sequence, p.position, p.max_pages * cells.page)) return;
  parallel(p.R * p.Hkv, [&](int64_t task, int thread) {
    const int64_t r = task / p.Hkv, g = task % p.Hkv;
    if (p.sequence[r] >= 0) return attend_cells(p, cells, r, g, thread, q, out);
    const float zero[1] = {0.0f};
    for (int64_t d = 0; d < p.group * p.D; d++) store_one(out + (r * p.H + g * p.group) * p.D + d, zero[0]);
    for (int64_t k = 0; k < p.n; k++) p.index[(r * p.Hkv + g) * p.n + k] = -1;
  });
}

void paged_block_choose(const Call& c) {
  Choice p;
  p.R = c.i[0], p.H = c.i[1], p.Hkv = c.i[2], p.D = c.i[3], p.Dp = (p.D + W - 1) / W * W, p.group = p.H / p.Hkv;
  p.max_pages = c.i[5], p.size = c.i[8], p.n = c.i[9], p.initial = c.i[10], p.local = c.i[11];
  const Cells cells(c.i[6], c.i[7], c.i[4]);
  p.scale = static_cast<float>(c.f[0]);
  p.index = c.ptr<int32_t>(1), p.pool = c.ptr<const float>(3);
  p.table = c.ptr<const int32_t>(4), p.sequence = c.ptr<const int32_t>(5), p.position = c.ptr<const int32_t>(6);
  if (c.t[2] == BF16) {
    if (c.t[0] == BF16) choose_all(p, cells, c.ptr<const bf16>(2), c.ptr<bf16>(0));
    else choose_all(p, cells, c.ptr<const bf16>(2), c.ptr<float>(0));
  } else if (c.t[0] == BF16) choose_all(p, cells, c.ptr<const float>(2), c.ptr<bf16>(0));
  else choose_all(p, cells, c.ptr<const float>(2), c.ptr<float>(0));
}

// The keys of the blocks on a list, page by page: what of a page is on none of them is hidden.
template <class F>
void attend_blocks(const PagedProblem& p, Tile& t, const int32_t* list, int64_t n, int64_t size, float* hide,
                   float* alpha) {
  const int64_t page = p.shape.page, last = p.position[t.row];
  begin_part(t, p.shape.Dp);
  t.hide = hide;
  int64_t at = -1, count = 0;   // the page that `hide` is for, and how many of its keys are to be looked at
  const auto flush = [&] {
    if (at >= 0) attend_keys<F>(p, t, at, count, alpha);
  };
  for (int64_t k = 0; k < n && list[k] >= 0; k++) {
    if (list[k] > last / size || (k > 0 && list[k] <= list[k - 1]))
      return raise(INDEX_OUT_OF_RANGE, list[k], last / size + 1);
    const int64_t end = (list[k] + 1) * size - 1 < last ? (list[k] + 1) * size : last + 1;
    for (int64_t j = list[k] * size; j < end;) {
      if (j / page != at) {
        flush();
        at = j / page;
        for (int64_t i = 0; i < page; i++) hide[i] = -__builtin_inff();
      }
      const int64_t stop = (at + 1) * page < end ? (at + 1) * page : end;
      for (; j < stop; j++) hide[j - at * page] = 0.0f;
      count = stop - at * page;
    }
  }
  flush();
}

void paged_block_attention(const Call& c) {
  PagedProblem p = {};
  p.R = c.i[0], p.H = c.i[1], p.group = c.i[1] / c.i[2], p.max_pages = c.i[5];
  p.shape = page_shape(c.i[2], c.i[3], c.i[4], c.i[6]);
  p.tok_q = p.tok_out = p.H * p.shape.D;
  p.scale = static_cast<float>(c.f[0]);
  p.pool = c.ptr<uint8_t>(2);
  p.table = c.ptr<const int32_t>(4), p.sequence = c.ptr<const int32_t>(5);
  p.position = p.reach = c.ptr<const int32_t>(6);
  const int64_t size = c.i[7], n = c.i[8];
  const int32_t* index = c.ptr<const int32_t>(3);
  if (!rows_fit(p.R, p.sequence, p.position, p.max_pages * p.shape.page)) return;
  with_format(c.i[6], [&](auto f) {
    typedef decltype(f) F;
    parallel(p.R * p.shape.heads, [&](int64_t task, int thread) {
      Tile t = {};
      t.row = task / p.shape.heads, t.rows = 1, t.head = task % p.shape.heads, t.M = p.group;
      carve(p, t, thread, t.M);
      float* alpha = static_cast<float*>(pool_scratch(thread, 3, (t.M + p.shape.page) * 4));
      begin_part(t, p.shape.Dp);
      if (p.sequence[t.row] >= 0) {
        t.pages = p.table + p.sequence[t.row] * p.max_pages;
        if (c.t[1] == BF16) read_queries(p, t, c.ptr<const bf16>(1));
        else read_queries(p, t, c.ptr<const float>(1));
        attend_blocks<F>(p, t, index + task * n, n, size, alpha + t.M, alpha);
      }
      for (int64_t m = 0; m < t.M; m++) {
        if (c.t[0] == BF16) write_out(p, t, m, t.part + m * p.shape.Dp, t.part_max[m], t.part_sum[m], c.ptr<bf16>(0));
        else write_out(p, t, m, t.part + m * p.shape.Dp, t.part_max[m], t.part_sum[m], c.ptr<float>(0));
      }
    });
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(paged_blocks, {"paged_block_rows", paged_block_rows}, {"paged_block_gather", paged_block_gather},
               {"paged_block_write", paged_block_write}, {"paged_block_choose", paged_block_choose},
               {"paged_block_attention", paged_block_attention})
