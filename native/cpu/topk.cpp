// The k largest of each row, in order.
#include "sort_pairs.h"

namespace ansatz {
namespace {

constexpr int64_t FEW = 128;   // up to here one maximum is taken after another

// Moves the k smallest of n pairs to `chosen`, equal keys in index order: one pass a digit from the top, keeping only
// the bucket that holds the k-th. `pairs` is overwritten, and `chosen` has room for k + 1.
void select_smallest(uint64_t* chosen, uint64_t* pairs, int64_t n, int64_t k, int bits) {
  int64_t taken = 0;
  uint32_t count[2048];
  for (int left = bits; left > 0 && taken < k && n > k - taken;) {
    const int most = n > 8192 ? 11 : 8, width = left < most ? left : most, shift = 32 + left - width;
    const uint32_t mask = (1u << width) - 1;
    std::memset(count, 0, (mask + 1) * sizeof count[0]);
    for (int64_t i = 0; i < n; i++) count[pairs[i] >> shift & mask]++;
    uint32_t edge = 0;
    for (int64_t below = count[0]; below < k - taken; below += count[edge]) edge++;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
      const uint64_t p = pairs[i];
      const uint32_t digit = static_cast<uint32_t>(p >> shift) & mask;
      chosen[taken] = p;   // written always, kept sometimes: the branches would be unpredictable
      taken += digit < edge;
      pairs[kept] = p;
      kept += digit == edge;
    }
    n = kept;
    left -= width;
  }
  for (int64_t i = 0; taken < k; i++) chosen[taken++] = pairs[i];
}

ANSATZ_INLINE uint32_t lane_bits(vi mask) {
#if defined(__AVX512F__)
  return static_cast<uint32_t>(_mm512_movepi32_mask((__m512i)mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
  uint64_t half[2];
  std::memcpy(half, &mask, sizeof half);
  const uint64_t low = (half[0] & 1) | (half[0] >> 32 & 1) << 1, high = (half[1] & 1) | (half[1] >> 32 & 1) << 1;
  return static_cast<uint32_t>(low | high << 2);
#endif
}

ANSATZ_INLINE vi larger(vi a, vi b) { return a > b ? a : b; }
ANSATZ_INLINE int32_t largest(vi x) {
#if defined(__AVX2__)
  __m128i q[W / 4];
  std::memcpy(q, &x, sizeof x);
  for (int k = 1; k < W / 4; k++) q[0] = _mm_max_epi32(q[0], q[k]);
  q[0] = _mm_max_epi32(q[0], _mm_shuffle_epi32(q[0], 0x4e));
  q[0] = _mm_max_epi32(q[0], _mm_shuffle_epi32(q[0], 0xb1));
  return _mm_cvtsi128_si32(q[0]);
#else
  int32_t top = x[0];
  for (int k = 1; k < W; k++) top = x[k] > top ? x[k] : top;
  return top;
#endif
}

// Signed keys that ascend with the value, NaN below every number, `gone` below all.
constexpr int32_t gone = INT32_MIN;
ANSATZ_INLINE vi signed_key(vf x) {
  const vi bits = (vi)x;
  const vi key = bits ^ ((bits >> 31) & 0x7fffffff);
  return x != x ? splat_i(gone + 1) : (x == 0.0f ? splat_i(0) : key);
}

// Lane number, counted over vectors, of the first lane that equals key; the caller knows that there is one.
ANSATZ_INLINE int64_t find(const vi* from, int32_t key) {
  for (int64_t v = 0;; v++)
    if (const uint32_t hits = lane_bits(from[v] == key)) return v * W + __builtin_ctz(hits);
}

// The k largest of a row, one after another. Groups of `group` vectors keep their maxima, lane by lane, so that finding
// one and taking it out touches about 4 sqrt(n / W) vectors. The first match in group, vector and lane order is the
// lowest index.
template <class T> void pick_largest(uint64_t* best, const T* x, int64_t n, int64_t k, vi* keys) {
  vi lane;
  for (int l = 0; l < W; l++) lane[l] = l;
  int64_t group = 1;
  while (group * group * W < n) group *= 2;
  const int64_t groups = (n + group * W - 1) / (group * W);
  vi* const tops = keys + groups * group;
  for (int64_t g = 0, at = 0; g < groups; g++) {
    vi top = splat_i(gone);
    for (int64_t v = 0; v < group; v++, at += W) {
      vi key = splat_i(gone);
      if (at + W <= n) key = signed_key(load(x + at));
      else if (at < n) key = lane < static_cast<int32_t>(n - at) ? signed_key(load_n(x + at, n - at)) : key;
      keys[at / W] = key;
      top = larger(top, key);
    }
    tops[g] = top;
  }
  for (int64_t j = 0; j < k; j++) {
    vi top = tops[0];
    for (int64_t g = 1; g < groups; g++) top = larger(top, tops[g]);
    const int32_t key = largest(top);
    const int64_t g = find(tops, key) / W;
    vi* const mine = keys + g * group;
    // An equal key in a lower lane of the group's maxima may come from a later vector: look at the vectors in order.
    const int64_t at = find(mine, key), v = at / W;
    best[j] = static_cast<uint64_t>(g * group * W + at);
    mine[v] = lane == static_cast<int32_t>(at % W) ? splat_i(gone) : mine[v];
    top = mine[0];
    for (int64_t u = 1; u < group; u++) top = larger(top, mine[u]);
    tops[g] = top;
  }
}
void pick_largest(uint64_t*, const int32_t*, int64_t, int64_t, vi*) {}   // integers always take the other way

template <class O, class T> void topk_rows(const Call& c, O* values, const T* x) {
  int32_t* idx = c.ptr<int32_t>(1);
  const int64_t rows = c.i[0], n = c.i[1], k = c.i[2];
  if (k == 0) return;
  parallel_range(rows, n < GRAIN ? GRAIN / n : 1, [&](int64_t begin, int64_t end, int thread) {
    const bool few = c.t[2] != I32 && k <= FEW;
    uint64_t* a = static_cast<uint64_t*>(pool_scratch(thread, 0, (few ? FEW : n + 2 * k + 1) * 8));
    // Keys and group maxima: at most 4 (n / W + 4) vectors together.
    vi* keys = static_cast<vi*>(pool_scratch(thread, 1, few ? (n / W + 4) * 4 * W * 4 : 0));
    for (int64_t r = begin; r < end; r++) {
      const T* row = x + r * n;
      const uint64_t* best = a;
      if (few) {
        pick_largest(a, row, n, k, keys);
      } else {
        for (int64_t j = 0; j < n; j++) a[j] = make_pair(row, j, 0xffffffffu);
        select_smallest(a + n, a, n, k, sizeof(T) * 8);
        best = sort_pairs(a + n, a + n + k + 1, k, sizeof(T));
      }
      emit(values + r * k, idx + r * k, row, best, 0, k);
    }
  });
}

void topk(const Call& c) {
  typed(c, [&](auto* values, const auto* x) { topk_rows(c, values, x); });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(topk, {"topk", topk})
