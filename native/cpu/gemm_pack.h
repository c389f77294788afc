// Packing for the matrix product. A panel holds P lanes (rows of A or columns of B): for each step along K, P words of
// 32 bits stand side by side. A word is one f32, or a pair of bf16 (k, k+1) where the CPU multiplies such pairs.
#pragma once
#include "gemm.h"
#include "simd.h"

namespace ansatz {
namespace {

// FLOATS: f32 words. ROUNDED: f32 words rounded to bf16 (bf16 products on a CPU without them). PAIRS: two bf16.
enum WordKind { FLOATS, ROUNDED, PAIRS };

constexpr int64_t PANEL_PAD = 16;   // words after a panel: a store of W lanes may run past the last step's P

ANSATZ_INLINE int64_t step_count(WordKind kind, int64_t k) { return kind == PAIRS ? (k + 1) / 2 : k; }
ANSATZ_INLINE int64_t panel_words(int64_t steps, int lanes) { return steps * lanes + PANEL_PAD; }

typedef uint32_t vu_u __attribute__((vector_size(W * 4), aligned(4), may_alias));
ANSATZ_INLINE void store_words(uint32_t* p, vu x) { *reinterpret_cast<vu_u*>(p) = x; }

// The first n elements (n may exceed W), the rest zero.
template <class T> ANSATZ_INLINE vf load_upto(const T* p, int64_t n) {
  if (n >= W) return load(p);
  if (n <= 0) return vf{};
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (sizeof(T) == 4) return (vf)_mm512_maskz_loadu_ps(mask, p);
  else return widen((vh)_mm256_maskz_loadu_epi16(mask, p));
#else
  return load_n(p, n);
#endif
}

ANSATZ_INLINE vf round_to_bf16(vf x) { return widen(narrow(x)); }

// W words along K of one lane, from the n elements at p (missing ones read as zero).
template <WordKind KIND, class T> ANSATZ_INLINE vu words_along_k(const T* p, int64_t n) {
  if constexpr (KIND == PAIRS) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(T) == 2) {
      if (n >= 2 * W) return (vu)_mm512_loadu_si512(p);
      return (vu)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p);
    } else {
      return (vu)_mm512_cvtne2ps_pbh((__m512)load_upto(p + W, n - W), (__m512)load_upto(p, n));
    }
#else
    return vu{};
#endif
  } else {
    const vf x = load_upto(p, n);
    return (vu)(KIND == ROUNDED && sizeof(T) == 4 ? round_to_bf16(x) : x);
  }
}

// One word for each of W lanes: rows lo and hi are K positions 2s and 2s+1 (hi only for pairs; null reads as zero).
template <WordKind KIND, class T> ANSATZ_INLINE vu words_across(const T* lo, const T* hi, int64_t n) {
  const vf x = load_upto(lo, n);
  if constexpr (KIND == PAIRS) {
    const vf y = hi ? load_upto(hi, n) : vf{};
    if constexpr (sizeof(T) == 2) return ((vu)x >> 16) | (vu)y;
    else return ((vu)round_to_bf16(x) >> 16) | (vu)round_to_bf16(y);
  } else {
    return (vu)(KIND == ROUNDED && sizeof(T) == 4 ? round_to_bf16(x) : x);
  }
}

#if defined(__AVX512F__)
ANSATZ_INLINE vu zip_low(vu a, vu b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
ANSATZ_INLINE vu zip_high(vu a, vu b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif defined(__AVX2__)
ANSATZ_INLINE vu zip_low(vu a, vu b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
ANSATZ_INLINE vu zip_high(vu a, vu b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
ANSATZ_INLINE vu zip_low(vu a, vu b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
ANSATZ_INLINE vu zip_high(vu a, vu b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

// W x W transpose: zipping rows i and i + W/2 rotates the bits of (row, column) left by one, and log2 W rotations swap
// the two halves.
ANSATZ_INLINE void transpose(vu (&x)[W]) {
#pragma GCC unroll 4
  for (int pass = 1; pass < W; pass *= 2) {
    vu y[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; i++) {
      y[2 * i] = zip_low(x[i], x[i + W / 2]);
      y[2 * i + 1] = zip_high(x[i], x[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) x[i] = y[i];
  }
}

// Panels [panel0, panel1) of an operand with `lanes` lanes, K positions [k0, k1), to dst (panel0 first). P lanes a
// panel; where P is not a multiple of W there is one group of W > P lanes, whose surplus the next step overwrites.
template <WordKind KIND, class T, int P>
inline __attribute__((noinline)) void pack_typed(uint32_t* dst, const T* data, int64_t ld, bool k_contiguous,
                                                 int64_t lanes, int64_t panel0, int64_t panel1, int64_t k0,
                                                 int64_t k1) {
  static_assert(P % W == 0 || P < W, "lane groups must not overlap");
  constexpr int PER_WORD = KIND == PAIRS ? 2 : 1;
  const int64_t steps = step_count(KIND, k1 - k0), stride = panel_words(steps, P);
  if (k_contiguous) {
    for (int64_t panel = panel0; panel < panel1; panel++, dst += stride) {
      for (int64_t s = 0; s < steps; s += W) {
        const int64_t k = k0 + s * PER_WORD, rows = steps - s < W ? steps - s : W;
        for (int g = 0; g < P; g += W) {
          const int64_t lane = panel * P + g, have = lanes - lane < P - g ? lanes - lane : P - g;
          if (have <= 0) break;
          const T* src = data + lane * ld + k;
          vu x[W];
          if (have >= (P < W ? P : W) && k1 - k >= W * PER_WORD) {
#pragma GCC unroll 16
            for (int r = 0; r < W; r++)
              x[r] = r < P ? words_along_k<KIND>(src + (r < P ? r : 0) * ld, int64_t(W * PER_WORD)) : vu{};
          } else {
            vu edge[W];   // only this copy is indexed by a variable, so x stays in registers
            for (int r = 0; r < W; r++) edge[r] = r < have ? words_along_k<KIND>(src + r * ld, k1 - k) : vu{};
#pragma GCC unroll 16
            for (int r = 0; r < W; r++) x[r] = edge[r];
          }
          transpose(x);
          uint32_t* out = dst + s * P + g;
          if (rows == W) {
#pragma GCC unroll 16
            for (int r = 0; r < W; r++) store_words(out + r * P, x[r]);
          } else {
            vu edge[W];
#pragma GCC unroll 16
            for (int r = 0; r < W; r++) edge[r] = x[r];
            for (int64_t r = 0; r < rows; r++) store_words(out + r * P, edge[r]);
          }
        }
      }
    }
    return;
  }
  // Lanes are contiguous: walk all panels for a few steps at a time, so that memory is read in long runs.
  // Short enough that rows a power of two apart do not push each other out of the L1 cache.
  constexpr int64_t CHUNK = sizeof(T) == 2 ? 4 : 2;
  for (int64_t s0 = 0; s0 < steps; s0 += CHUNK) {
    const int64_t s1 = s0 + CHUNK < steps ? s0 + CHUNK : steps;
    uint32_t* panel_dst = dst;
    for (int64_t panel = panel0; panel < panel1; panel++, panel_dst += stride) {
      for (int64_t s = s0; s < s1; s++) {
        const int64_t k = k0 + s * PER_WORD;
        const T* row = data + k * ld + panel * P;
        __builtin_prefetch(row + CHUNK * PER_WORD * ld);
        if (KIND == PAIRS) __builtin_prefetch(row + (CHUNK * PER_WORD + 1) * ld);
#pragma GCC unroll 4
        for (int g = 0; g < P; g += W) {
          const T* hi = k + 1 < k1 ? row + ld + g : nullptr;
          store_words(panel_dst + s * P + g, words_across<KIND>(row + g, hi, lanes - panel * P - g));
        }
      }
    }
  }
}

template <WordKind KIND, int P>
inline void pack(uint32_t* dst, const GemmOperand& x, int64_t lanes, int64_t panel0, int64_t panel1, int64_t k0,
                 int64_t k1) {
  if (x.dtype == BF16)
    pack_typed<KIND, bf16, P>(dst, static_cast<const bf16*>(x.data), x.ld, x.k_contiguous, lanes, panel0, panel1, k0, k1);
  else
    pack_typed<KIND, float, P>(dst, static_cast<const float*>(x.data), x.ld, x.k_contiguous, lanes, panel0, panel1, k0,
                               k1);
}

}  // namespace
}  // namespace ansatz
