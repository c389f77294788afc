// Hashed attention over pages: `paged_lsh_*` in docs/kernels.md. A row looks at tokens that share a bucket with it in
// some round, the latest first, and then at the latest others, up to a fixed number (Kitaev et al. 2020; trax efficient
// attention, incremental). Which ones depends on its own past alone.
#include "../core/pool.h"
#include "paged_format.h"

namespace ansatz {
namespace {

ANSATZ_INLINE float square_of(const float* x, int64_t n) {
  float sum = 0.0f;
  for (int64_t d = 0; d < n; d++) sum += x[d] * x[d];
  return sum;
}

// Query-keys and values x [R][2][H][D] of the rows into a pool f32 [pages][page][2][H][D], keys at unit length; buckets
// i32 [H][rounds][R], if any, into a pool f32 [pages][H][rounds][page].
template <class In> void write_rows(const Call& c, const In* x) {
  const int64_t R = c.i[0], H = c.i[1], D = c.i[2], page = c.i[3], max_pages = c.i[4], lists = H * c.i[5];
  const int32_t *buckets = c.ptr<const int32_t>(3), *table = c.ptr<const int32_t>(4);
  const int32_t *sequence = c.ptr<const int32_t>(5), *position = c.ptr<const int32_t>(6);
  parallel_range(R, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t n = page_of(table, max_pages, sequence[r], position[r], page), slot = position[r] % page;
      if (n < 0) continue;
      float* to = c.ptr<float>(0) + (n * page + slot) * 2 * H * D;
      for (int64_t k = 0; k < 2 * H * D; k++) to[k] = to_float(x[r * 2 * H * D + k]);
      for (int64_t h = 0; h < H; h++) {
        const float scale = 1.0f / __builtin_sqrtf(square_of(to + h * D, D) + 1e-12f);
        for (int64_t d = 0; d < D; d++) to[h * D + d] *= scale;
      }
      for (int64_t k = 0; buckets && k < lists; k++)
        c.ptr<float>(1)[(n * lists + k) * page + slot] = static_cast<float>(buckets[k * R + r]);
    }
  });
}

void paged_lsh_write(const Call& c) {
  if (c.t[2] == BF16) write_rows(c, c.ptr<const bf16>(2));
  else write_rows(c, c.ptr<const float>(2));
}

struct PagedLsh {
  int64_t R, H, D, page, max_pages, rounds, most, chunk, back;
  bool fill, dedupe;
  float scale;
  const float *pool, *buckets;   // [pages][page][2][H][D], keys, then values; [pages][H][rounds][page] or null
  const int32_t *table, *sequence, *position;
};

// A token that a row looks at, and how many rounds see it.
struct Seen {
  int32_t at, rounds;
};

ANSATZ_INLINE const float* key_at(const PagedLsh& p, int64_t r, int64_t t, int64_t h) {
  const int64_t n = p.table[p.sequence[r] * p.max_pages + t / p.page];
  return p.pool + ((n * p.page + t % p.page) * 2 * p.H + h) * p.D;
}

// Tokens before the row that share a bucket with it, the latest first, `most` of them.
int64_t sharing(const PagedLsh& p, int64_t r, int64_t h, Seen* out) {
  const int64_t own = p.position[r], lists = p.H * p.rounds;
  const auto page_at = [&](int64_t n) {
    return p.buckets + (p.table[p.sequence[r] * p.max_pages + n] * lists + h * p.rounds) * p.page;
  };
  const float* mine = page_at(own / p.page) + own % p.page;
  int64_t count = 0;
  for (int64_t n = own / p.page; n >= 0; n--) {
    const float* theirs = page_at(n);
    const int64_t end = own - n * p.page < p.page ? own - n * p.page : p.page;   // tokens before the row
    for (int64_t j = (end - 1) / W * W; j >= 0 && end > 0; j -= W) {
      vi same = {};
      for (int64_t k = 0; k < p.rounds; k++) same -= load(theirs + k * p.page + j) == splat(mine[k * p.page]);
      alignas(64) int32_t rounds[W];
      *reinterpret_cast<vi_u*>(rounds) = same;
      for (int64_t l = (end - j < W ? end - j : W) - 1; l >= 0; l--) {
        if (rounds[l] == 0) continue;
        out[count++] = Seen{static_cast<int32_t>(n * p.page + j + l), rounds[l]};
        if (count == p.most) return count;
      }
    }
  }
  return count;
}

// All that a row looks at, in a fixed order.
int64_t candidates(const PagedLsh& p, int64_t r, int64_t h, Seen* out) {
  const int64_t own = p.position[r];
  int64_t count = 0;
  if (!p.buckets) {   // without hashing, chunks are stretches of the text
    const int64_t first = own / p.chunk - p.back;
    for (int64_t t = own - 1; t >= 0 && t >= first * p.chunk; t--) out[count++] = Seen{static_cast<int32_t>(t), 1};
    return count;
  }
  const int64_t shared = count = sharing(p, r, h, out);
  for (int64_t t = own - 1, k = 0; p.fill && t >= 0 && count < p.most; t--) {
    if (k < shared && out[k].at == t) k++;
    else out[count++] = Seen{static_cast<int32_t>(t), 1};
  }
  return count;
}

ANSATZ_INLINE float dot(const float* a, const float* b, int64_t n) {
  vf sum = {};
  int64_t d = 0;
  for (; d + W <= n; d += W) sum = sum + load(a + d) * load(b + d);
  if (d < n) sum = sum + load_n(a + d, n - d) * load_n(b + d, n - d);
  return hsum(sum);
}

// mixed[NV vectors from d on] = sum over k of weights[k] times the values; a tail has `width` elements.
template <int NV, bool Tail>
ANSATZ_INLINE void mix(const float* const* keys, const float* weights, int64_t count, int64_t at, int64_t width,
                       float* mixed) {
  vf acc[NV] = {};
  for (int64_t k = 0; k < count; k++) {
    const vf w = splat(weights[k]);
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      const float* v = keys[k] + at + n * W;
      acc[n] = acc[n] + (Tail ? load_n(v, width) : load(v)) * w;
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < NV; n++) store(mixed + n * W, acc[n]);
}

// x: the row's query, of which value is `value` elements on.
template <class In, class Out>
void attend_row(const PagedLsh& p, int64_t r, int64_t h, int thread, const In* x, Out* out) {
  const int64_t limit = p.buckets ? p.most : (p.back + 1) * p.chunk, Dp = (p.D + W - 1) / W * W, value = p.H * p.D;
  const int64_t most = ((limit < p.position[r] ? limit : p.position[r]) + W) / W * W;
  float* weights = static_cast<float*>(pool_scratch(thread, 0, (most + 2 * Dp) * 4 + most * 16));
  float *query = weights + most, *mixed = query + Dp;
  const float** keys = reinterpret_cast<const float**>(mixed + Dp);
  Seen* seen = reinterpret_cast<Seen*>(keys + most);
  const int64_t count = candidates(p, r, h, seen);
  if (count == 0) {
    for (int64_t d = 0; d < p.D; d++) store_one(out + d, to_float(x[value + d]));
    return;
  }
  for (int64_t d = 0; d < p.D; d++) query[d] = to_float(x[d]) * p.scale;
  const float none = -__builtin_inff();
  for (int64_t k = 0; k < count; k++) {
    keys[k] = key_at(p, r, seen[k].at, h);
    weights[k] = dot(query, keys[k], p.D);
    if (!p.dedupe && seen[k].rounds > 1) weights[k] += vlog(splat(static_cast<float>(seen[k].rounds)))[0];
  }
  for (int64_t k = count; k % W; k++) weights[k] = none;
  vf tops = splat(none), sums = {};
  for (int64_t k = 0; k < count; k += W) tops = vmax(load(weights + k), tops);
  const float top = hmax(tops);
  for (int64_t k = 0; k < count; k += W) {
    const vf e = vexp(load(weights + k) - top);
    store(weights + k, e);
    sums = sums + e;
  }
  int64_t d = 0;
  for (; d + 4 * W <= p.D; d += 4 * W) mix<4, false>(keys, weights, count, value + d, W, mixed + d);
  for (; d + W <= p.D; d += W) mix<1, false>(keys, weights, count, value + d, W, mixed + d);
  if (d < p.D) mix<1, true>(keys, weights, count, value + d, p.D - d, mixed + d);
  const float scale = 1.0f / hsum(sums);
  for (d = 0; d < p.D; d++) store_one(out + d, mixed[d] * scale);
}

template <class In, class Out> void attend_all(const PagedLsh& p, const In* x, Out* out) {
  if (!rows_fit(p.R, p.sequence, p.position, p.max_pages * p.page)) return;
  parallel(p.R * p.H, [&](int64_t task, int thread) {
    const int64_t r = task / p.H, h = task % p.H;
    if (p.sequence[r] >= 0) return attend_row(p, r, h, thread, x + (r * 2 * p.H + h) * p.D, out + task * p.D);
    const float zero[1] = {0.0f};
    for (int64_t d = 0; d < p.D; d++) store_one(out + task * p.D + d, zero[0]);
  });
}

void paged_lsh_attention(const Call& c) {
  PagedLsh p;
  p.R = c.i[0], p.H = c.i[1], p.D = c.i[2], p.page = c.i[3], p.max_pages = c.i[4], p.rounds = c.i[5], p.most = c.i[6];
  p.chunk = c.i[7], p.back = c.i[8], p.fill = c.i[9] != 0, p.dedupe = c.i[10] != 0;
  p.scale = static_cast<float>(c.f[0]);
  p.pool = c.ptr<const float>(2), p.buckets = c.ptr<const float>(3);
  p.table = c.ptr<const int32_t>(4), p.sequence = c.ptr<const int32_t>(5), p.position = c.ptr<const int32_t>(6);
  if (c.t[1] == BF16) {
    if (c.t[0] == BF16) attend_all(p, c.ptr<const bf16>(1), c.ptr<bf16>(0));
    else attend_all(p, c.ptr<const bf16>(1), c.ptr<float>(0));
  } else if (c.t[0] == BF16) attend_all(p, c.ptr<const float>(1), c.ptr<bf16>(0));
  else attend_all(p, c.ptr<const float>(1), c.ptr<float>(0));
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(paged_lsh, {"paged_lsh_write", paged_lsh_write}, {"paged_lsh_attention", paged_lsh_attention})
