// What sort and top-k share. An element becomes a 64-bit pair (order key << 32 | index): the order of pairs is total,
// so ties go to the lowest index and every method gives the same answer. Kernel files only.
#pragma once
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t GRAIN = 16384;                // elements a task
constexpr int64_t SMALL = W == 16 ? 128 : 64;   // rows up to here are sorted by counting ranks

ANSATZ_INLINE uint32_t low_word(uint64_t p) { return static_cast<uint32_t>(p); }

// ---- order keys --------------------------------------------------------------------------------------------------
// Unsigned keys that ascend with the value (flip = 0) or descend (flip = ~0). -0 counts as +0; NaN is last either way.
ANSATZ_INLINE uint32_t float_key(uint32_t bits, uint32_t flip) {
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
  if (bits == 0x80000000u) bits = 0;
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u) ^ flip;   // no branch on sign
}
ANSATZ_INLINE uint32_t order_key(float x, uint32_t flip) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return float_key(bits, flip);
}
ANSATZ_INLINE uint32_t order_key(bf16 x, uint32_t flip) {
  return float_key(static_cast<uint32_t>(x.bits) << 16, flip) >> 16;
}
ANSATZ_INLINE uint32_t order_key(int32_t x, uint32_t flip) { return (static_cast<uint32_t>(x) ^ 0x80000000u) ^ flip; }
template <class T> ANSATZ_INLINE uint64_t make_pair(const T* x, int64_t k, uint32_t flip) {
  return static_cast<uint64_t>(order_key(x[k], flip)) << 32 | static_cast<uint32_t>(k);
}

ANSATZ_INLINE void put(float* o, float x) { *o = x; }
ANSATZ_INLINE void put(bf16* o, bf16 x) { *o = x; }
ANSATZ_INLINE void put(int32_t* o, int32_t x) { *o = x; }
ANSATZ_INLINE void put(bf16* o, float x) { *o = to_bf16(x); }
ANSATZ_INLINE void put(float* o, bf16 x) { *o = to_float(x); }

template <class O, class T>
void emit(O* values, int32_t* idx, const T* x, const uint64_t* sorted, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; k++) {
    const uint32_t from = low_word(sorted[k]);
    idx[k] = static_cast<int32_t>(from);
    put(values + k, x[from]);
  }
}

// ---- sorting pairs whose indices ascend ----------------------------------------------------------------------------
// rank[i] = number of keys that come before key i: O(n^2 / W), the fastest way for short rows (no branches).
void sort_small(uint64_t* to, const uint64_t* pairs, int64_t n) {
  alignas(64) int32_t key[SMALL] = {}, rank[SMALL];
  vi lane;
  for (int k = 0; k < W; k++) lane[k] = k;
  for (int64_t k = 0; k < n; k++) key[k] = static_cast<int32_t>(static_cast<uint32_t>(pairs[k] >> 32) ^ 0x80000000u);
  for (int64_t i = 0; i < n; i += W) {
    const vi mine = *reinterpret_cast<const vi_u*>(key + i);
    const int64_t mid = i + W < n ? i + W : n;
    vi count = {};
    for (int64_t j = 0; j < i; j++) count -= (vi)(key[j] <= mine);   // an earlier equal key goes first
    for (int64_t j = i; j < mid; j++)
      count -= (key[j] < mine) | ((key[j] == mine) & (lane > static_cast<int32_t>(j - i)));
    for (int64_t j = mid; j < n; j++) count -= (vi)(key[j] < mine);
    *reinterpret_cast<vi_u*>(rank + i) = count;
  }
  for (int64_t k = 0; k < n; k++) to[rank[k]] = pairs[k];
}

// Least-significant-digit radix sort with 8-bit digits; a digit that all keys share is skipped. a and b hold n pairs
// each; returns the one that has the result.
uint64_t* sort_pairs(uint64_t* a, uint64_t* b, int64_t n, int digits) {
  if (n <= SMALL) {
    sort_small(b, a, n);
    return b;
  }
  uint32_t count[4][256];
  std::memset(count, 0, sizeof count);
  for (int64_t k = 0; k < n; k++)
    for (int d = 0; d < digits; d++) count[d][a[k] >> (32 + 8 * d) & 255]++;
  for (int d = 0; d < digits; d++) {
    const int shift = 32 + 8 * d;
    uint32_t* at = count[d];
    if (at[a[0] >> shift & 255] == n) continue;
    uint32_t sum = 0;
    for (int v = 0; v < 256; v++) {
      const uint32_t c = at[v];
      at[v] = sum;
      sum += c;
    }
    for (int64_t k = 0; k < n; k++) b[at[a[k] >> shift & 255]++] = a[k];
    uint64_t* const t = a;
    a = b;
    b = t;
  }
  return a;
}

// f(values, x) for the dtypes of P[0] and P[2]: any floats, or both i32.
template <class F> void typed(const Call& c, const F& f) {
  if (c.t[2] == I32) return f(c.ptr<int32_t>(0), c.ptr<const int32_t>(2));
  if (c.t[0] == BF16 && c.t[2] == BF16) return f(c.ptr<bf16>(0), c.ptr<const bf16>(2));
  if (c.t[0] == BF16) return f(c.ptr<bf16>(0), c.ptr<const float>(2));
  if (c.t[2] == BF16) return f(c.ptr<float>(0), c.ptr<const bf16>(2));
  return f(c.ptr<float>(0), c.ptr<const float>(2));
}

}  // namespace
}  // namespace ansatz
