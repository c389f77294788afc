// Products with at most THIN_ROWS rows: bound by reading B once, so B is not packed. Where K is contiguous in B, each
// result is a dot product; otherwise rows of B are scaled and added.
#pragma once
#include "../core/pool.h"
#include "gemm_tile.h"

namespace ansatz {
namespace {

constexpr int THIN_ROWS = 4;

// Row i of op(A) as `steps` words, then zeros up to a multiple of W.
template <WordKind KIND, class T>
inline void convert_row(uint32_t* dst, const T* data, int64_t ld, bool k_contiguous, int64_t row, int64_t k) {
  constexpr int64_t PER_STEP = KIND == PAIRS ? 2 : 1;
  if (k_contiguous) {
    for (int64_t at = 0; at < k; at += W * PER_STEP)
      store_words(dst + at / PER_STEP, words_along_k<KIND>(data + row * ld + at, k - at));
    return;
  }
  T line[2 * W];
  for (int64_t at = 0; at < k; at += W * PER_STEP) {
    const int64_t n = k - at < W * PER_STEP ? k - at : W * PER_STEP;
    for (int64_t e = 0; e < n; e++) line[e] = data[(at + e) * ld + row];
    store_words(dst + at / PER_STEP, words_along_k<KIND>(line, n));
  }
}

// Dot products of ROWS rows with columns [j, j + cols): four columns at a time, so that their loads overlap.
template <WordKind KIND, int ROWS, class T>
inline void thin_dots(const uint32_t* a, int64_t a_ld, const T* b, int64_t ld, int64_t k, int cols, TileSums& out) {
  constexpr int64_t PER_STEP = KIND == PAIRS ? 2 : 1;
  constexpr int COLS = 4;
  for (int c = 0; c < cols; c += COLS) {
    const T* row[COLS];
#pragma GCC unroll 4
    for (int q = 0; q < COLS; q++) row[q] = b + (c + q < cols ? c + q : cols - 1) * ld;
    vf acc[ROWS][COLS] = {};
    for (int64_t at = 0; at < k; at += W * PER_STEP) {
      vu av[ROWS];
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++) av[i] = *reinterpret_cast<const vu_u*>(a + i * a_ld + at / PER_STEP);
#pragma GCC unroll 4
      for (int q = 0; q < COLS; q++) {
        const vu bv = words_along_k<KIND>(row[q] + at, k - at);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) acc[i][q] = multiply_add<KIND == PAIRS>(acc[i][q], av[i], bv);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int q = 0; q < COLS; q++)
        if (c + q < cols) out.v[i * NR + c + q] = hsum(acc[i][q]);
  }
}

// The same where a row of B holds all columns of one K: NV vectors of columns, each with an accumulator for each row.
template <WordKind KIND, int ROWS, class T>
inline void thin_sums(const uint32_t* a, int64_t a_ld, const T* b, int64_t ld, int64_t k, int64_t cols, TileSums& out) {
  constexpr int64_t PER_STEP = KIND == PAIRS ? 2 : 1, AHEAD = 8;
  vf acc[ROWS][NV] = {};
  for (int64_t at = 0; at < k; at += PER_STEP) {
    const T* const lo = b + at * ld;
    const T* const hi = at + 1 < k ? lo + ld : nullptr;
    __builtin_prefetch(lo + AHEAD * PER_STEP * ld);
    if (PER_STEP == 2) __builtin_prefetch(lo + (AHEAD * PER_STEP + 1) * ld);
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      const vu bv = words_across<KIND>(lo + j * W, hi ? hi + j * W : nullptr, cols - j * W);
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++)
        acc[i][j] = multiply_add<KIND == PAIRS>(acc[i][j], vu{} + a[i * a_ld + at / PER_STEP], bv);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(out.v + i * NR + j * W, acc[i][j]);
}

template <WordKind KIND, int ROWS, class T>
inline __attribute__((noinline)) void thin_columns(const Gemm& g, const uint32_t* a, int64_t a_ld, int64_t j, int cols,
                                                   TileSums& out) {
  const T* const b = static_cast<const T*>(g.b.data);
  if (g.b.k_contiguous) thin_dots<KIND, ROWS>(a, a_ld, b + j * g.b.ld, g.b.ld, g.k, cols, out);
  else thin_sums<KIND, ROWS>(a, a_ld, b + j, g.b.ld, g.k, cols, out);
}

template <WordKind KIND, class T>
inline void thin_tile(const Gemm& g, const uint32_t* a, int64_t a_ld, int64_t j, int cols, TileSums& out) {
  switch (g.m) {
    case 1: return thin_columns<KIND, 1, T>(g, a, a_ld, j, cols, out);
    case 2: return thin_columns<KIND, 2, T>(g, a, a_ld, j, cols, out);
    case 3: return thin_columns<KIND, 3, T>(g, a, a_ld, j, cols, out);
    default: return thin_columns<KIND, 4, T>(g, a, a_ld, j, cols, out);
  }
}

// Column panels [j0, j1) of a product with g.m <= THIN_ROWS, on one thread.
template <WordKind KIND> void thin_block(const Gemm& g, int thread, int64_t j0, int64_t j1) {
  const int64_t a_ld = (step_count(KIND, g.k) + W - 1) / W * W;
  uint32_t* const a = static_cast<uint32_t*>(pool_scratch(thread, 0, g.m * a_ld * 4 + 64));
  for (int64_t i = 0; i < g.m; i++) {
    if (g.a.dtype == BF16)
      convert_row<KIND>(a + i * a_ld, static_cast<const bf16*>(g.a.data), g.a.ld, g.a.k_contiguous, i, g.k);
    else
      convert_row<KIND>(a + i * a_ld, static_cast<const float*>(g.a.data), g.a.ld, g.a.k_contiguous, i, g.k);
  }
  for (int64_t p = j0; p < j1; p++) {
    const int64_t j = p * NR;
    const int cols = static_cast<int>(g.n - j < NR ? g.n - j : NR);
    TileSums sums;
    if (g.b.dtype == BF16) thin_tile<KIND, bf16>(g, a, a_ld, j, cols, sums);
    else thin_tile<KIND, float>(g, a, a_ld, j, cols, sums);
    finish_edge(sums, static_cast<int>(g.m), cols, g.c_transposed, tile_out(g, 0, j));
  }
}

}  // namespace
}  // namespace ansatz
