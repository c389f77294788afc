// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on vectors: lane j of the four
// vectors holds the four words of counter block first + j. A value depends on (seed, step, stream, index) alone.
#pragma once
#include "elementwise_math.h"
#include "elementwise_shuffle.h"

namespace ansatz {
namespace {

struct Stream { uint32_t key0, key1, stream, step; };

Stream stream_of(const int32_t* state, int64_t stream) {
  return {static_cast<uint32_t>(state[0]), static_cast<uint32_t>(state[1]) ^ static_cast<uint32_t>(state[3]),
          static_cast<uint32_t>(stream), static_cast<uint32_t>(state[2])};
}

typedef uint64_t vw __attribute__((vector_size(W * 4)));

// The 64-bit products of the even lanes of x with m (upper halves of the 64-bit lanes do not matter).
ANSATZ_INLINE vw multiply_even(vw x, uint32_t m) {
#if defined(__AVX512F__)
  return (vw)_mm512_maskz_mul_epu32(0xff, (__m512i)x, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  return (vw)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
#else
  return (x & 0xffffffffull) * static_cast<uint64_t>(m);
#endif
}
// Little-endian lanes, as everywhere this code runs: even 32-bit lanes are the low halves.
ANSATZ_INLINE void multiply(vu x, uint32_t m, vu& high, vu& low) {
  const vw even = multiply_even((vw)x, m), odd = multiply_even((vw)x >> 32, m);
  high = (vu)((even >> 32) | (odd & ~0xffffffffull));
  low = (vu)((even & 0xffffffffull) | (odd << 32));
}

ANSATZ_INLINE void philox(const Stream& s, int64_t first, vu w[4]) {
  vu lane;
  for (int j = 0; j < W; j++) lane[j] = static_cast<uint32_t>(j);
  w[0] = static_cast<uint32_t>(first) + lane;
  w[1] = static_cast<uint32_t>(first >> 32) - (vu)(w[0] < lane);   // the mask is -1 where the low half wrapped
  w[2] = vu{} + s.stream;
  w[3] = vu{} + s.step;
  uint32_t k0 = s.key0, k1 = s.key1;
  for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
    vu high0, low0, high1, low1;
    multiply(w[0], 0xd2511f53u, high0, low0);
    multiply(w[2], 0xcd9e8d57u, high1, low1);
    const vu w1 = w[1], w3 = w[3];
    w[0] = high1 ^ w1 ^ k0;
    w[1] = low1;
    w[2] = high0 ^ w3 ^ k1;
    w[3] = low0;
  }
}

// Word j of block b is element 4b + j: interleaves the four vectors.
ANSATZ_INLINE void interleave(vf w[4]) {
  vu a0, a1, b0, b1, r[4];
  zip((vu)w[0], (vu)w[2], a0, a1);   // lanes 0,2,0,2,...
  zip((vu)w[1], (vu)w[3], b0, b1);   // lanes 1,3,1,3,...
  zip(a0, b0, r[0], r[1]);
  zip(a1, b1, r[2], r[3]);
  for (int k = 0; k < 4; k++) w[k] = (vf)r[k];
}

ANSATZ_INLINE vf unit(vu word) {   // [0, 1) in steps of 2^-24
  return __builtin_convertvector((vi)(word >> 8), vf) * 5.9604644775390625e-8f;
}

}  // namespace
}  // namespace ansatz
