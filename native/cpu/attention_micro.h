// Register-tile matrix products for attention: C[M,N] (+)= A[M,K] B[K,N] on small packed tiles.
//
// Everything is counted in 32-bit words. In float32 mode a word is one element of the reduction; in bfloat16 mode it
// is a pair of them, adjacent along the reduction, which is what vdpbf16ps multiplies and adds at once. So one driver
// serves both: B holds words [K][N] (row k is N consecutive columns), A's word (i, k) is broadcast. A is read in two
// layouts, because attention produces both: rows ([M][K], as tokens lie in memory) and columns ([K][M], as the packed
// probabilities come out of the softmax).
#pragma once
#include "simd.h"

namespace ansatz {
namespace {

#if defined(__AVX512BF16__)
constexpr bool has_bf16_dot = true;
#else
constexpr bool has_bf16_dot = false;
#endif

template <bool Pair> ANSATZ_INLINE vf multiply_add(vf acc, vf a, vf b) {
#if defined(__AVX512BF16__)
  if (Pair) return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512i)(vi)a, (__m512bh)(__m512i)(vi)b);
#endif
  return acc + a * b;
}

// Broadcast of a word. Through memory semantics only: a bf16 pair must not pass through float arithmetic.
ANSATZ_INLINE vf broadcast(const float* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_set1_ps(*p);
#elif defined(__AVX2__)
  return (vf)_mm256_broadcast_ss(p);
#else
  return vf{*p, *p, *p, *p};   // not splat, which adds to zero
#endif
}

enum class ALayout { rows, columns };

// One register tile: MR rows by NV vectors. lda is the distance between A's rows (rows) or between its k (columns).
template <bool Pair, ALayout L, int MR, int NV>
ANSATZ_INLINE void micro_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t K, float* c,
                              int64_t ldc, bool accumulate) {
  vf acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int n = 0; n < NV; n++) acc[i][n] = accumulate ? load(c + i * ldc + n * W) : vf{};
  for (int64_t k = 0; k < K; k++) {
    vf bv[NV];
#pragma GCC unroll 8
    for (int n = 0; n < NV; n++) bv[n] = load(b + k * ldb + n * W);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      const vf av = broadcast(L == ALayout::rows ? a + i * lda + k : a + k * lda + i);
#pragma GCC unroll 8
      for (int n = 0; n < NV; n++) acc[i][n] = multiply_add<Pair>(acc[i][n], av, bv[n]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int n = 0; n < NV; n++) store(c + i * ldc + n * W, acc[i][n]);
}

// Widest tile that keeps accumulators, one row of B and a broadcast in registers: 32 for AVX-512 and NEON, else 16.
#if defined(__AVX512F__)
constexpr int tile_rows = 6, tile_vectors = 4;
#elif defined(__aarch64__)
constexpr int tile_rows = 6, tile_vectors = 4;
#else
constexpr int tile_rows = 6, tile_vectors = 2;
#endif

template <bool Pair, ALayout L, int NV>
__attribute__((noinline)) void column_strip(int64_t M, int64_t K, const float* a, int64_t lda, const float* b,
                                            int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  const int64_t step = L == ALayout::rows ? lda : 1;
  int64_t i = 0;
  for (; i + tile_rows <= M; i += tile_rows)
    micro_tile<Pair, L, tile_rows, NV>(a + i * step, lda, b, ldb, K, c + i * ldc, ldc, accumulate);
  if (i + 4 <= M) {
    micro_tile<Pair, L, 4, NV>(a + i * step, lda, b, ldb, K, c + i * ldc, ldc, accumulate);
    i += 4;
  }
  for (; i < M; i += 2) micro_tile<Pair, L, 2, NV>(a + i * step, lda, b, ldb, K, c + i * ldc, ldc, accumulate);
}

// M even, N a multiple of W; K in words. Rows and columns beyond the real ones are padding that the packers zeroed.
template <bool Pair, ALayout L>
void tile_product(int64_t M, int64_t N, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                  int64_t ldc, bool accumulate) {
  int64_t n = 0;
  for (; n + tile_vectors * W <= N; n += tile_vectors * W)
    column_strip<Pair, L, tile_vectors>(M, K, a, lda, b + n, ldb, c + n, ldc, accumulate);
  const int64_t left = (N - n) / W;
  if (tile_vectors == 4 && left == 3) column_strip<Pair, L, 3>(M, K, a, lda, b + n, ldb, c + n, ldc, accumulate);
  else if (tile_vectors == 4 && left == 2) column_strip<Pair, L, 2>(M, K, a, lda, b + n, ldb, c + n, ldc, accumulate);
  else if (left) column_strip<Pair, L, 1>(M, K, a, lda, b + n, ldb, c + n, ldc, accumulate);
}

// 2^x for x <= 0 (a hair above is fine): exactly 0 below -126, NaN stays NaN. Round to the nearest integer n, then a
// degree-5 minimax polynomial for 2^(x-n) (relative error 9e-8), scaled by the exponent. Softmax needs neither the
// upper range checks nor the two-step scaling of vexp, which would double its cost.
ANSATZ_INLINE vf exp2_nonpositive(vf x) {
  const vi under = x < -126.0f;
  const vf xc = under ? splat(-126.0f) : x;
  const vf magic = splat(12582912.0f);   // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const vf shifted = xc + magic;
  const vf r = xc - (shifted - magic);
  vf p = splat(1.3264727124e-3f);
  p = p * r + 9.6715126448e-3f;
  p = p * r + 5.5507337435e-2f;
  p = p * r + 2.4022242085e-1f;
  p = p * r + 6.9314697760e-1f;
  p = p * r + 1.0f;
  const vf y = (vf)((vi)p + ((vi)shifted << 23));
  return under ? splat(0.0f) : y;
}

}  // namespace
}  // namespace ansatz
