// Packing of attention tiles into the layouts that the products in attention_micro.h read, and back.
//   rows        [n][Dw] words       a token's vector, padded with zeros to Dp elements (the A operand)
//   interleaved [n/2][Dp] words     word = (token 2j, token 2j+1) at one dimension: B operand reduced over tokens
//   transposed  [Dw][lanes] words   B operand reduced over dimensions
// In float32 mode words are elements, so "interleaved" is just "rows".
#pragma once
#include "simd.h"

namespace ansatz {
namespace {

// One side of the problem: where token t of head h begins is base + (t * token + h * D) elements.
struct Rows {
  char* base;
  int32_t dtype;
  int64_t token;

  int64_t width() const { return dtype == BF16 ? 2 : 4; }
  char* at(int64_t offset) const { return base + offset * width(); }
};

template <class To, class From> ANSATZ_INLINE void convert_row(To* out, const From* x, int64_t D, int64_t Dp) {
  int64_t d = 0;
  for (; d + W <= D; d += W) store(out + d, load(x + d));
  if (d < D) {
    store(out + d, load_n(x + d, D - d));
    d += W;
  }
  for (; d < Dp; d += W) store(out + d, vf{});
}
ANSATZ_INLINE void convert_row(bf16* out, const bf16* x, int64_t D, int64_t Dp) {   // bits as they are
  int64_t d = 0;
  for (; d + W <= D; d += W) *reinterpret_cast<vh_u*>(out + d) = *reinterpret_cast<const vh_u*>(x + d);
  for (; d < Dp; d += W) {
    vh h = {};
    if (d < D) std::memcpy(&h, x + d, static_cast<size_t>(D - d) * 2);
    *reinterpret_cast<vh_u*>(out + d) = h;
  }
}

template <bool Pair> struct Mode { using Element = float; };
template <> struct Mode<true> { using Element = bf16; };

// Copies n tokens into rows, converting to the mode's element type; rows n..padded become zero.
template <bool Pair>
void stage_rows(float* words, const char* src, int32_t dtype, int64_t token, int64_t n, int64_t padded, int64_t D,
                int64_t Dp) {
  typename Mode<Pair>::Element* out = reinterpret_cast<typename Mode<Pair>::Element*>(words);
  for (int64_t t = 0; t < padded; t++, out += Dp) {
    const int64_t have = t < n ? D : 0, at = t < n ? t * token : 0;
    if (dtype == BF16) convert_row(out, reinterpret_cast<const bf16*>(src) + at, have, Dp);
    else convert_row(out, reinterpret_cast<const float*>(src) + at, have, Dp);
  }
}

// Brings the next tokens towards the cache while this tile computes: heads lie a whole token apart, which the hardware
// prefetchers do not follow.
inline void prefetch_rows(const Rows& r, const char* src, int64_t n, int64_t D) {
  for (int64_t t = 0; t < n; t++)
    for (int64_t byte = 0; byte < D * r.width(); byte += 64)
      __builtin_prefetch(src + t * r.token * r.width() + byte, 0, 2);
}

// Tokens of bfloat16, `token` elements apart, to interleaved words; an odd last token is paired with zeros.
inline void interleave_rows(float* out, const char* src, int64_t token, int64_t n, int64_t D, int64_t Dp) {
  const uint16_t* x = reinterpret_cast<const uint16_t*>(src);
  for (int64_t t = 0; t < n; t += 2, out += Dp) {
    const uint16_t *x0 = x + t * token, *x1 = x0 + token;
    const bool both = t + 1 < n;
    int64_t d = 0;
    for (; both && d + W <= D; d += W) {
      const vu lo = __builtin_convertvector(*reinterpret_cast<const vh_u*>(x0 + d), vu);
      const vu hi = __builtin_convertvector(*reinterpret_cast<const vh_u*>(x1 + d), vu);
      store(out + d, (vf)(lo | (hi << 16)));
    }
    for (; d < Dp; d += W) {
      const size_t bytes = static_cast<size_t>(d >= D ? 0 : D - d < W ? D - d : W) * 2;
      vh lo = {}, hi = {};
      std::memcpy(&lo, x0 + d, bytes);
      if (both) std::memcpy(&hi, x1 + d, bytes);
      store(out + d, (vf)(__builtin_convertvector(lo, vu) | (__builtin_convertvector(hi, vu) << 16)));
    }
  }
}

// Words of two vectors of probabilities, for keys 2j and 2j+1: the interleaved form of their bfloat16 values.
ANSATZ_INLINE vf interleave_pair(vf even, vf odd) {
#if defined(__AVX512BF16__)
  // Both rounded at once to [even 0..15, odd 0..15], then the odd half is shifted in between.
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (vf)_mm512_permutexvar_epi16(order, both);
#else
  return (vf)(__builtin_convertvector(narrow(even), vu) | (__builtin_convertvector(narrow(odd), vu) << 16));
#endif
}
// Words of 2W neighbouring lanes of one key: pairs adjacent along the lanes.
ANSATZ_INLINE vf adjacent_pairs(vf first, vf second) {
#if defined(__AVX512BF16__)
  return (vf)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
  const vh both[2] = {narrow(first), narrow(second)};
  vf out;
  std::memcpy(&out, both, sizeof out);
  return out;
#endif
}

#if defined(__AVX512F__)
// 16 x 16 words: unpack 32-bit, unpack 64-bit, then two rounds of 128-bit blocks. Stores the first `cols` results.
ANSATZ_INLINE void transpose_block(float* out, int64_t ldo, const float* x, int64_t ldx, int64_t cols) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(x + i * ldx);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#define ANSATZ_PD(op, p, q) _mm512_castpd_ps(_mm512_##op##_pd(_mm512_castps_pd(p), _mm512_castps_pd(q)))
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {   // a[i+c]: column c of each 128-bit block, rows i..i+3
    a[i] = ANSATZ_PD(unpacklo, b[i], b[i + 2]);
    a[i + 1] = ANSATZ_PD(unpackhi, b[i], b[i + 2]);
    a[i + 2] = ANSATZ_PD(unpacklo, b[i + 1], b[i + 3]);
    a[i + 3] = ANSATZ_PD(unpackhi, b[i + 1], b[i + 3]);
  }
#undef ANSATZ_PD
#pragma GCC unroll 16
  for (int c = 0; c < 4; c++) {
    const __m512 r0 = _mm512_shuffle_f32x4(a[c], a[c + 4], 0x44), r1 = _mm512_shuffle_f32x4(a[c], a[c + 4], 0xee);
    const __m512 r2 = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0x44);
    const __m512 r3 = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0xee);
    b[c] = _mm512_shuffle_f32x4(r0, r2, 0x88);
    b[c + 4] = _mm512_shuffle_f32x4(r0, r2, 0xdd);
    b[c + 8] = _mm512_shuffle_f32x4(r1, r3, 0x88);
    b[c + 12] = _mm512_shuffle_f32x4(r1, r3, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++)
    if (i < cols) _mm512_storeu_ps(out + i * ldo, b[i]);
}
#else
ANSATZ_INLINE void transpose_block(float* out, int64_t ldo, const float* x, int64_t ldx, int64_t cols) {
  for (int64_t c = 0; c < cols && c < W; c++)
    for (int64_t r = 0; r < W; r++) out[c * ldo + r] = x[r * ldx + c];
}
#endif

// out[c][r] = x[r][c]; rows is a multiple of W. May read up to W-1 words past a row's end.
inline void transpose_words(float* out, int64_t ldo, const float* x, int64_t ldx, int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c += W)
    for (int64_t r = 0; r < rows; r += W) transpose_block(out + c * ldo + r, ldo, x + r * ldx + c, ldx, cols - c);
}

// Writes a row of float32 results, times factor.
template <class T> ANSATZ_INLINE void store_scaled(T* out, const float* x, int64_t D, float factor) {
  int64_t d = 0;
  for (; d + W <= D; d += W) store(out + d, load(x + d) * factor);
  if (d < D) store_n(out + d, load_n(x + d, D - d) * factor, D - d);
}
inline void store_row(char* out, int32_t dtype, const float* x, int64_t D, float factor) {
  if (dtype == BF16) store_scaled(reinterpret_cast<bf16*>(out), x, D, factor);
  else store_scaled(reinterpret_cast<float*>(out), x, D, factor);
}

}  // namespace
}  // namespace ansatz
