// Attention of rows to the pages of their sequences. Keys are taken in splits of fixed size at fixed places, each split
// with a running maximum over its pages, and splits are merged in order: what a row gets depends on nothing but its own
// sequence, neither on the rows beside it nor on threads (inference specification, batch invariance).
#pragma once
#include "../core/pool.h"
#include "paged_format.h"

namespace ansatz {
namespace {

constexpr int64_t SPLIT_PAGES = 8;

struct PagedProblem {
  int64_t R, H, group, max_pages, tok_q, tok_out, window, bias_length;
  int64_t block, back;   // block > 0: keys of the block of that size which lies `back` before the row's own
  float scale;
  PageShape shape;
  uint8_t* pool;
  const float* bias;   // [H, bias_length]: by distance, the last entry is distance 0
  const int32_t *table, *sequence, *position, *reach;
  float* lse;          // [R, H], or null
};

// Consecutive rows of one sequence, and a key head: M = rows * group queries.
struct Tile {
  int64_t row, rows, head, M;
  const int32_t* pages;
  float *q, *scores, *part, *total;             // [M][D], [M][page], [M][Dp], [M][Dp]
  float *part_max, *part_sum, *max, *sum;       // [M]
  float *keys, *values;                         // a page widened to f32, for tiles of many queries
  const float* hide;                            // [page], added to scores: -inf hides a key; or null
};

// First and last key that a row sees; 0 and -1 for none.
ANSATZ_INLINE int64_t first_key(const PagedProblem& p, int64_t row) {
  const int64_t own = p.block ? p.position[row] / p.block - p.back : 0;
  if (p.block) return own > 0 ? own * p.block : 0;
  const int64_t low = p.window ? p.position[row] - p.window + 1 : 0;
  return low > 0 ? low : 0;
}
ANSATZ_INLINE int64_t last_key(const PagedProblem& p, int64_t row) {
  const int64_t end = p.block ? (p.position[row] / p.block - p.back + 1) * p.block - 1 : p.reach[row];
  return end < 0 ? -1 : (end < p.reach[row] ? end : p.reach[row]);
}

// S[MR][page] = q[MR][D] keys[D][page]. Sums run over d in order, whatever MR is.
template <class F, int MR>
void score_rows(const float* q, const typename F::cell* keys, const PageShape& s, float* scores) {
  for (int64_t j = 0; j < s.page; j += 2 * W) {
    vf acc[MR][2] = {};
    for (int64_t d = 0; d < s.D; d++) {
      const vf k0 = F::read(keys + d * s.page + j), k1 = F::read(keys + d * s.page + j + W);
#pragma GCC unroll 8
      for (int i = 0; i < MR; i++) {
        const vf a = splat(q[i * s.D + d]);
        acc[i][0] = acc[i][0] + a * k0;
        acc[i][1] = acc[i][1] + a * k1;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) store(scores + i * s.page + j, acc[i][0]), store(scores + i * s.page + j + W, acc[i][1]);
  }
}

template <int N> struct Count { static constexpr int value = N; };

// O[MR][Dp] = alpha O + P[MR][count] values[count][Dp].
template <class F, int MR>
void mix_rows(const float* probabilities, const float* alpha, const typename F::cell* values, const PageShape& s,
              int64_t count, float* out) {
  int64_t d = 0;
  const auto span = [&](auto vectors) {
    constexpr int NV = decltype(vectors)::value;
    vf acc[MR][NV];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) acc[i][n] = load(out + i * s.Dp + d + n * W) * alpha[i];
    for (int64_t j = 0; j < count; j++) {
      vf v[NV];
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) v[n] = F::read(values + j * s.Dp + d + n * W);
#pragma GCC unroll 8
      for (int i = 0; i < MR; i++) {
        const vf a = splat(probabilities[i * s.page + j]);
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) acc[i][n] = acc[i][n] + a * v[n];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) store(out + i * s.Dp + d + n * W, acc[i][n]);
  };
  for (; d + 2 * W <= s.Dp; d += 2 * W) span(Count<2>{});
  for (; d < s.Dp; d += W) span(Count<1>{});
}

// Scores of one query over a page become exp(score - maximum); the sums so far are rescaled by alpha.
template <class F>
void soften(const PagedProblem& p, const Tile& t, const PageHead<F>& h, int64_t m, int64_t base, float* alpha) {
  const int64_t row = t.row + m / p.group, head = t.head * p.group + m % p.group, page = p.shape.page;
  const int64_t low = first_key(p, row) - base, high = last_key(p, row) - base;   // within the page
  float* S = t.scores + m * page;
  alpha[m] = 1.0f;
  if (high < 0 || low >= page) {
    std::memset(S, 0, static_cast<size_t>(page) * 4);
    return;
  }
  if (F::scaled)
    for (int64_t j = 0; j < page; j += W) store(S + j, load(S + j) * load(h.scales + j));
  if (p.bias) {
    const float* bias = p.bias + head * p.bias_length;
    const int64_t shift = p.bias_length - 1 - p.position[row] + base;   // of key 0 of the page
    for (int64_t j = 0; j < page && j <= high; j++) {
      const int64_t at = shift + j;
      S[j] += bias[at < 0 ? 0 : (at >= p.bias_length ? p.bias_length - 1 : at)];
    }
  }
  if (t.hide)
    for (int64_t j = 0; j < page; j += W) store(S + j, load(S + j) + load(t.hide + j));
  const float none = -__builtin_inff();
  for (int64_t j = 0; j < page && j < low; j++) S[j] = none;
  for (int64_t j = high + 1; j < page; j++) S[j] = none;
  vf top = splat(none);
  for (int64_t j = 0; j < page; j += W) top = vmax(load(S + j), top);
  const float before = t.part_max[m], now = hmax(top) > before ? hmax(top) : before;
  vf sum = {};
  for (int64_t j = 0; j < page; j += W) {
    const vf e = vexp(load(S + j) - now);
    sum = sum + e;
    store(S + j, F::scaled ? e * load(h.scales + page + j) : e);
  }
  alpha[m] = vexp(splat(before - now))[0];
  t.part_max[m] = now;
  t.part_sum[m] = t.part_sum[m] * alpha[m] + hsum(sum);
}

// int8 values of tokens that a query does not see have a scale all the same: 0 times it is 0.
template <class F, class Plain>
void attend_page(const PagedProblem& p, const Tile& t, const PageHead<F>& h, const typename Plain::cell* keys,
                 const typename Plain::cell* values, int64_t base, int64_t count, float* alpha) {
  const PageShape& s = p.shape;
  int64_t m = 0;
  for (; m + 4 <= t.M; m += 4) score_rows<Plain, 4>(t.q + m * s.D, keys, s, t.scores + m * s.page);
  for (; m < t.M; m++) score_rows<Plain, 1>(t.q + m * s.D, keys, s, t.scores + m * s.page);
  for (m = 0; m < t.M; m++) soften<F>(p, t, h, m, base, alpha);
  m = 0;
  for (; m + 4 <= t.M; m += 4)
    mix_rows<Plain, 4>(t.scores + m * s.page, alpha + m, values, s, count, t.part + m * s.Dp);
  for (; m < t.M; m++) mix_rows<Plain, 1>(t.scores + m * s.page, alpha + m, values, s, count, t.part + m * s.Dp);
}

// The first `count` keys of page n of the sequence.
template <class F> void attend_keys(const PagedProblem& p, const Tile& t, int64_t n, int64_t count, float* alpha) {
  const PageShape& s = p.shape;
  const PageHead<F> h = page_head<F>(p.pool, s, t.pages[n], t.head);
  if (t.M <= 4 || sizeof(typename F::cell) == 4)
    return attend_page<F, F>(p, t, h, h.keys, h.values, n * s.page, count, alpha);
  for (int64_t k = 0; k < s.D * s.page; k += W) store(t.keys + k, F::read(h.keys + k));
  for (int64_t k = 0; k < count * s.Dp; k += W) store(t.values + k, F::read(h.values + k));
  attend_page<F, KvF32>(p, t, h, t.keys, t.values, n * s.page, count, alpha);
}

// Sums of a tile before its first key.
inline void begin_part(const Tile& t, int64_t Dp) {
  std::memset(t.part, 0, static_cast<size_t>(t.M * Dp) * 4);
  for (int64_t m = 0; m < t.M; m++) t.part_max[m] = -__builtin_inff(), t.part_sum[m] = 0.0f;
}

// The keys of pages [first, last] that any row of the tile sees, into t.part.
template <class F> void attend_split(const PagedProblem& p, const Tile& t, int64_t first, int64_t last, float* alpha) {
  const PageShape& s = p.shape;
  begin_part(t, s.Dp);
  int64_t low = INT64_MAX, high = -1;
  for (int64_t r = t.row; r < t.row + t.rows; r++) {
    const int64_t a = first_key(p, r), b = last_key(p, r);
    low = a < low ? a : low, high = b > high ? b : high;
  }
  for (int64_t n = first; n <= last; n++) {
    const int64_t base = n * s.page;
    if (base > high || base + s.page <= low) continue;
    attend_keys<F>(p, t, n, high - base + 1 < s.page ? high - base + 1 : s.page, alpha);
  }
}

template <class In> void read_queries(const PagedProblem& p, const Tile& t, const In* q) {
  for (int64_t m = 0; m < t.M; m++) {
    const In* from = q + (t.row + m / p.group) * p.tok_q + (t.head * p.group + m % p.group) * p.shape.D;
    for (int64_t d = 0; d < p.shape.D; d++) t.q[m * p.shape.D + d] = to_float(from[d]) * p.scale;
  }
}

// A tile's memory: queries, scores, sums; widened pages.
inline void carve(const PagedProblem& p, Tile& t, int thread, int64_t most) {
  const PageShape& s = p.shape;
  float* at = static_cast<float*>(pool_scratch(thread, 1, (most * (s.D + s.page + 2 * s.Dp + 5) + 64) * 4));
  t.part = at, at += most * s.Dp;
  t.total = at, at += most * s.Dp;
  t.scores = at, at += most * s.page;
  t.q = at, at += most * s.D;
  t.part_max = at, at += most;
  t.part_sum = at, at += most;
  t.max = at, at += most;
  t.sum = at;
  float* wide = static_cast<float*>(pool_scratch(thread, 2, (s.D + s.Dp) * s.page * 4));
  t.keys = wide, t.values = wide + s.D * s.page;
}

template <class Out>
void write_out(const PagedProblem& p, const Tile& t, int64_t m, const float* total, float max, float sum, Out* out) {
  const int64_t row = t.row + m / p.group, head = t.head * p.group + m % p.group;
  Out* to = out + row * p.tok_out + head * p.shape.D;
  const float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
  if (p.lse) p.lse[row * p.H + head] = sum > 0.0f ? max + vlog(splat(sum))[0] : -__builtin_inff();
  for (int64_t d = 0; d < p.shape.D; d++) store_one(to + d, total[d] * scale);
}

// total += part, both being (maximum, sum, weighted values). `fresh`: nothing has been added yet.
inline void merge_part(float* total, float* max, float* sum, const float* part, float part_max, float part_sum,
                       int64_t Dp, bool fresh) {
  if (fresh) {
    *max = part_max, *sum = part_sum;
    std::memcpy(total, part, static_cast<size_t>(Dp) * 4);
    return;
  }
  if (part_sum == 0.0f) return;
  const float now = part_max > *max ? part_max : *max;
  const float a = vexp(splat(*max - now))[0], b = vexp(splat(part_max - now))[0];
  for (int64_t d = 0; d < Dp; d += W) store(total + d, load(total + d) * a + load(part + d) * b);
  *sum = *sum * a + part_sum * b;
  *max = now;
}

}  // namespace
}  // namespace ansatz
