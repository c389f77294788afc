// Products of bytes: each of W lanes adds those of its four bytes to a 32-bit sum. They are exact, so every
// instruction-set level gets the same integers.
#pragma once
#include "quant.h"

namespace ansatz {
namespace {

#if defined(__AVX512VNNI__)
// vpdpbusd multiplies unsigned by signed bytes: codes keep their bias of 128, and sums start at -128 sum(activations).
constexpr bool BIASED = true;
struct Codes { __m512i u; };
ANSATZ_INLINE Codes codes_from(__m512i u) { return {u}; }
ANSATZ_INLINE Codes q8_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
ANSATZ_INLINE vi dot4(vi sum, Codes w, vi a) { return (vi)_mm512_dpbusd_epi32((__m512i)sum, w.u, (__m512i)a); }
#elif defined(__AVX2__)
// vpmaddubsw saturates at 16 bits: with |w| <= 127 and the signs moved to the activations, two products reach 32258.
constexpr bool BIASED = false;
struct Codes { __m256i w, size; };
ANSATZ_INLINE Codes codes_from(__m256i w) { return {w, _mm256_abs_epi8(w)}; }
ANSATZ_INLINE Codes q8_codes(const uint8_t* p) {
  return codes_from(_mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi8(-128)));
}
ANSATZ_INLINE vi dot4(vi sum, Codes w, vi a) {
  const __m256i pairs = _mm256_maddubs_epi16(w.size, _mm256_sign_epi8((__m256i)a, w.w));
  return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
// Four rows, sixteen bytes.
constexpr bool BIASED = false;
typedef int8_t bytes16 __attribute__((vector_size(16)));
typedef int8_t bytes16_u __attribute__((vector_size(16), aligned(1), may_alias));
struct Codes { bytes16 w; };
ANSATZ_INLINE Codes q8_codes(const uint8_t* p) { return {*reinterpret_cast<const bytes16_u*>(p) ^ int8_t(-128)}; }
#if defined(__aarch64__)
ANSATZ_INLINE vi dot4(vi sum, Codes w, vi a) {
  const int8x16_t x = (int8x16_t)w.w, y = (int8x16_t)a;
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y))), high = vpaddlq_s16(vmull_high_s8(x, y));
  return sum + (vi)vpaddq_s32(low, high);
}
#elif defined(__SSE2__)
ANSATZ_INLINE __m128i low_words(__m128i x) { return _mm_srai_epi16(_mm_unpacklo_epi8(x, x), 8); }
ANSATZ_INLINE __m128i high_words(__m128i x) { return _mm_srai_epi16(_mm_unpackhi_epi8(x, x), 8); }
ANSATZ_INLINE vi dot4(vi sum, Codes w, vi a) {
  const __m128i x = (__m128i)w.w, y = (__m128i)a;
  const __m128 low = (__m128)_mm_madd_epi16(low_words(x), low_words(y)),
               high = (__m128)_mm_madd_epi16(high_words(x), high_words(y));
  return sum + (vi)_mm_shuffle_ps(low, high, 0x88) + (vi)_mm_shuffle_ps(low, high, 0xdd);
}
#else
ANSATZ_INLINE vi dot4(vi sum, Codes w, vi a) {
  const bytes16 y = (bytes16)a;
  for (int k = 0; k < 16; k++) sum[k / 4] += int32_t(w.w[k]) * int32_t(y[k]);
  return sum;
}
#endif
#endif

// Codes as Q8 stores them.
ANSATZ_INLINE void store_q8(char* p, Codes x) {
#if defined(__AVX512VNNI__)
  _mm512_storeu_si512(p, x.u);
#elif defined(__AVX2__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_xor_si256(x.w, _mm256_set1_epi8(-128)));
#else
  *reinterpret_cast<bytes16_u*>(p) = x.w ^ int8_t(-128);
#endif
}

// The table of Q4 levels in the form of this level's codes.
struct Q4Table {
#if defined(__AVX512VNNI__)
  __m512i t;
  ANSATZ_INLINE Q4Table() {
    const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(Q4_LEVEL));
    t = _mm512_xor_si512(_mm512_maskz_broadcast_i32x4(0xffff, levels), _mm512_set1_epi8(-128));
  }
  // vpermb looks at six bits; the table repeats every 16 bytes, so the upper two do not matter.
  ANSATZ_INLINE void decode(const uint8_t* p, Codes& low, Codes& high) const {
    const __m512i x = _mm512_loadu_si512(p);
    low = codes_from(_mm512_permutexvar_epi8(x, t));
    high = codes_from(_mm512_permutexvar_epi8(_mm512_srli_epi16(x, 4), t));
  }
#elif defined(__AVX2__)
  __m256i t;
  ANSATZ_INLINE Q4Table() {
    t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(Q4_LEVEL)));
  }
  ANSATZ_INLINE void decode(const uint8_t* p, Codes& low, Codes& high) const {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), half = _mm256_set1_epi8(15);
    low = codes_from(_mm256_shuffle_epi8(t, _mm256_and_si256(x, half)));
    high = codes_from(_mm256_shuffle_epi8(t, _mm256_and_si256(_mm256_srli_epi16(x, 4), half)));
  }
#elif defined(__aarch64__)
  int8x16_t t;
  ANSATZ_INLINE Q4Table() { t = vld1q_s8(Q4_LEVEL); }
  ANSATZ_INLINE void decode(const uint8_t* p, Codes& low, Codes& high) const {
    const uint8x16_t x = vld1q_u8(p);
    low.w = (bytes16)vqtbl1q_s8(t, vandq_u8(x, vdupq_n_u8(15)));
    high.w = (bytes16)vqtbl1q_s8(t, vshrq_n_u8(x, 4));
  }
#else
  ANSATZ_INLINE void decode(const uint8_t* p, Codes& low, Codes& high) const {
    for (int k = 0; k < 16; k++) {
      low.w[k] = Q4_LEVEL[p[k] & 15];
      high.w[k] = Q4_LEVEL[p[k] >> 4];
    }
  }
#endif
};

// sum + a b in one rounding where the CPU has it. Written out, so that every copy of a loop rounds alike.
ANSATZ_INLINE vf fused(vf a, vf b, vf sum) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + sum;
#endif
}

// The nearest integers, ties to even, in one rounding.
ANSATZ_INLINE vi nearest(vf x) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(__aarch64__)
  return (vi)vcvtnq_s32_f32((float32x4_t)x);
#elif defined(__SSE2__)
  return (vi)_mm_cvtps_epi32((__m128)x);
#else
  vi y;
  for (int k = 0; k < W; k++) y[k] = static_cast<int32_t>(__builtin_rintf(x[k]));
  return y;
#endif
}

// 16 bf16 scales of a strip: vector v of 16 / W.
ANSATZ_INLINE vf load_scales(const char* p, int v) { return load(reinterpret_cast<const bf16*>(p) + v * W); }

}  // namespace
}  // namespace ansatz
