// Transposing square tiles in registers. zip(a, b) interleaves two vectors; L rows of L lanes are transposed by log2(L)
// rounds of zipping row i with row i + L/2 into rows 2i and 2i + 1 (a perfect shuffle of the index bits).
#pragma once
#include "simd.h"

namespace ansatz {
namespace {

// Elements are moved as bits, so one unsigned type a size serves every dtype.
template <class E> struct Lanes;
template <> struct Lanes<uint32_t> { typedef vu type; };
template <> struct Lanes<uint16_t> { typedef vh type; };

ANSATZ_INLINE void zip(vu a, vu b, vu& low, vu& high) {
#if defined(__AVX512F__)
  low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}
ANSATZ_INLINE void zip(vh a, vh b, vh& low, vh& high) {
#if defined(__AVX512F__)
  low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// dst[c * dst_step + r] = src[r * src_step + c] for r, c in [0, W).
template <class E> inline void transpose_tile(E* dst, int64_t dst_step, const E* src, int64_t src_step) {
  typedef typename Lanes<E>::type V;
  V a[W], b[W];
  for (int r = 0; r < W; r++) std::memcpy(&a[r], src + r * src_step, sizeof(V));
  for (int round = 1; round < W; round *= 2) {
#pragma GCC unroll 16
    for (int r = 0; r < W / 2; r++) zip(a[r], a[r + W / 2], b[2 * r], b[2 * r + 1]);
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) a[r] = b[r];
  }
  for (int r = 0; r < W; r++) std::memcpy(dst + r * dst_step, &a[r], sizeof(V));
}

}  // namespace
}  // namespace ansatz
