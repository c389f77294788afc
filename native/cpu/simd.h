// Vectors of float for one instruction-set level, written with the compiler's vector extension so that one source
// serves AVX-512 (16 lanes), AVX2 (8) and portable C++ / NEON (4). Contraction (-ffp-contract=fast) makes FMAs.
// Include inside kernel files only; everything is in an unnamed namespace (see kernel.h on why).
#pragma once
#include <cstdint>
#include <cstring>

#include "../core/kernel.h"
#include "shuffle.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ansatz {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef float vf_u __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t vi_u __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint16_t vh_u __attribute__((vector_size(W * 2), aligned(2), may_alias));

#define ANSATZ_INLINE inline __attribute__((always_inline))

// Counts. (Headers of the standard library would bring functions that are shared between levels: see kernel.h.)
ANSATZ_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ANSATZ_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
ANSATZ_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ANSATZ_INLINE vf splat(float x) {   // vf{} + x would be an addition, and lose the sign of -0
#if defined(__AVX512F__)
  return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (vf)_mm256_set1_ps(x);
#else
  return vf{x, x, x, x};
#endif
}
ANSATZ_INLINE vi splat_i(int32_t x) { return vi{} + x; }
ANSATZ_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }   // mask lanes are 0 or -1
ANSATZ_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }             // b where a is NaN
ANSATZ_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
ANSATZ_INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

// ---- bfloat16: widening is exact; narrowing rounds to nearest even and keeps NaN a NaN --------------------------
ANSATZ_INLINE float to_float(bf16 x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
ANSATZ_INLINE float to_float(float x) { return x; }
ANSATZ_INLINE bf16 to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  return bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
ANSATZ_INLINE void store_one(float* p, float x) { *p = x; }
ANSATZ_INLINE void store_one(bf16* p, float x) { *p = to_bf16(x); }

// GCC 12 compiles the generic widening to six instructions instead of two. (The maskz forms of intrinsics with a full
// mask: GCC 12 warns falsely of uninitialised values on the plain ones.)
ANSATZ_INLINE vf widen(vh h) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h), 16);
#elif defined(__AVX2__)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
  return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}
ANSATZ_INLINE vh narrow(vf x) {
#if defined(__AVX512BF16__)
  return (vh)_mm512_cvtneps_pbh((__m512)x);   // flushes denormals; they are below bf16's useful range
#else
  const vu u = (vu)x;
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vi nan = x != x;
  return __builtin_convertvector((vu)((vi)rounded & ~nan) | ((vu)nan & ((u >> 16) | 0x40u)), vh);
#endif
}

// ---- loads and stores: full vectors, and the first n lanes (the others read as zero) -----------------------------
ANSATZ_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_u*>(p); }
ANSATZ_INLINE vf load(const bf16* p) { return widen(*reinterpret_cast<const vh_u*>(p)); }
ANSATZ_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_u*>(p) = x; }
ANSATZ_INLINE void store(bf16* p, vf x) { *reinterpret_cast<vh_u*>(p) = narrow(x); }
#if defined(__AVX512F__)
ANSATZ_INLINE __mmask16 first_mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
ANSATZ_INLINE vf load_n(const float* p, int64_t n) { return (vf)_mm512_maskz_loadu_ps(first_mask(n), p); }
ANSATZ_INLINE vf load_n(const bf16* p, int64_t n) { return widen((vh)_mm256_maskz_loadu_epi16(first_mask(n), p)); }
ANSATZ_INLINE void store_n(float* p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, first_mask(n), (__m512)x); }
ANSATZ_INLINE void store_n(bf16* p, vf x, int64_t n) { _mm256_mask_storeu_epi16(p, first_mask(n), (__m256i)narrow(x)); }
#else
#if defined(__AVX2__)
ANSATZ_INLINE __m256i first_mask(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ANSATZ_INLINE vf load_n(const float* p, int64_t n) { return (vf)_mm256_maskload_ps(p, first_mask(n)); }
ANSATZ_INLINE void store_n(float* p, vf x, int64_t n) { _mm256_maskstore_ps(p, first_mask(n), (__m256)x); }
#else
ANSATZ_INLINE vf load_n(const float* p, int64_t n) {
  vf x = {};
  std::memcpy(&x, p, static_cast<size_t>(n) * 4);
  return x;
}
ANSATZ_INLINE void store_n(float* p, vf x, int64_t n) { std::memcpy(p, &x, static_cast<size_t>(n) * 4); }
#endif
ANSATZ_INLINE vf load_n(const bf16* p, int64_t n) {
  vh h = {};
  std::memcpy(&h, p, static_cast<size_t>(n) * 2);
  return widen(h);
}
ANSATZ_INLINE void store_n(bf16* p, vf x, int64_t n) {
  const vh h = narrow(x);
  std::memcpy(p, &h, static_cast<size_t>(n) * 2);
}
#endif

// n values of one type as another.
template <class From, class To> ANSATZ_INLINE void convert_run(To* to, const From* from, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) store(to + k, load(from + k));
  if (k < n) store_n(to + k, load_n(from + k, n - k), n - k);
}

// ---- horizontal: fixed pairwise order, the same on every run ------------------------------------------------------
typedef float vf4 __attribute__((vector_size(16)));
ANSATZ_INLINE float hsum(vf4 x) {
  const vf4 y = x + __builtin_shufflevector(x, x, 2, 3, 0, 1);
  return y[0] + y[1];
}
ANSATZ_INLINE float hmax(vf4 x) {
  const vf4 z = __builtin_shufflevector(x, x, 2, 3, 0, 1), y = x > z ? x : z;
  return y[0] > y[1] ? y[0] : y[1];
}
#if defined(__AVX2__)
typedef float vf8 __attribute__((vector_size(32)));
ANSATZ_INLINE float hsum(vf8 x) {
  return hsum(__builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7));
}
ANSATZ_INLINE float hmax(vf8 x) {
  const vf4 y = __builtin_shufflevector(x, x, 0, 1, 2, 3), z = __builtin_shufflevector(x, x, 4, 5, 6, 7);
  return hmax(y > z ? y : z);
}
#endif
#if defined(__AVX512F__)
ANSATZ_INLINE float hsum(vf x) {
  return hsum(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
}
ANSATZ_INLINE float hmax(vf x) {
  const vf8 y = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
            z = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  return hmax(y > z ? y : z);
}
#endif

// ---- elementary functions (about 1 to 2 ulp of float32) ------------------------------------------------------------
// exp by range reduction x = n ln2 + r, |r| <= ln2/2, and a degree-6 polynomial; 0 below -87.3 (so exp(-inf) = 0),
// inf above 88.72, NaN stays NaN.
ANSATZ_INLINE vf vexp(vf x) {
  const vi under = x < -87.33654f, over = x > 88.72283f;
  const vf xc = under ? splat(-87.33654f) : (over ? splat(88.72283f) : x);
  const vf magic = splat(12582912.0f);   // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const vf shifted = xc * 1.44269504088896341f + magic;
  const vf n = shifted - magic;
  const vf r = (xc - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = splat(1.3981999507e-3f);
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors: n reaches 128 at the top, which one exponent field cannot hold.
  const vi ni = (vi)shifted - 0x4b400000;
  const vi half = ni >> 1;
  const vf s1 = (vf)((half + 127) << 23), s2 = (vf)((ni - half + 127) << 23);
  const vf y = p * s1 * s2;
  return under ? splat(0.0f) : (over ? splat(__builtin_inff()) : y);
}

// log: x = 2^e m, m in [sqrt(1/2), sqrt(2)); -inf at 0, NaN below 0.
ANSATZ_INLINE vf vlog(vf x) {
  const vi tiny = x < 1.17549435e-38f;
  const vf xs = tiny ? x * 8388608.0f : x;            // denormals
  vi bits = (vi)xs;
  vi e = ((bits >> 23) & 0xff) - 126 - (tiny & 23);
  vf m = (vf)((bits & 0x007fffff) | 0x3f000000);      // [0.5, 1)
  const vi small = m < 0.707106781186547524f;
  e = e + small;                                      // small is -1 where true
  m = (small ? m + m : m) - 1.0f;
  const vf z = m * m;
  vf y = splat(7.0376836292e-2f);
  y = y * m + -1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m + -1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m + -1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m + -2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  const vf ef = __builtin_convertvector(e, vf);
  y = y * m * z + ef * -2.12194440e-4f - 0.5f * z;
  vf result = m + y + ef * 0.693359375f;
  result = (x == 0.0f) ? splat(-__builtin_inff()) : result;
  result = ((x < 0.0f) | (x != x)) ? splat(__builtin_nanf("")) : result;
  return (x == __builtin_inff()) ? splat(__builtin_inff()) : result;
}

ANSATZ_INLINE vf vsigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

// tanh: odd polynomial near 0 (where 1 - 2/(e^2x+1) would cancel), exponential form elsewhere.
ANSATZ_INLINE vf vtanh(vf x) {
  const vf a = vabs(x), z = x * x;
  vf p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z + -5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z + -3.33332819422e-1f;
  const vf small = p * z * x + x;
  const vf big = 1.0f - 2.0f / (vexp(a + a) + 1.0f);
  const vf sign_big = (vf)((vi)big | ((vi)x & (int32_t)0x80000000));
  return select(a < 0.625f, small, sign_big);
}

}  // namespace
}  // namespace ansatz
