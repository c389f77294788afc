// Elementary functions beyond simd.h's exp, log, tanh: square root, sine and cosine, the normal tail, log(1+y), powers.
#pragma once
#include <cmath>

#include "block.h"

namespace ansatz {
namespace {

ANSATZ_INLINE vf vsqrt(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#else
  vf y;
  for (int k = 0; k < W; k++) y[k] = __builtin_sqrtf(x[k]);
  return y;
#endif
}

// exp for the kernels that are bound by it. AVX-512 has rounding and scaling by 2^n as instructions, which also give
// 0, denormals and inf their due; the clamps only keep n finite.
ANSATZ_INLINE vf vexp_fast(vf x) {
#if defined(__AVX512F__)
  // The maskz forms: GCC 12 warns falsely of uninitialised values on the plain ones. min and max return the second
  // operand when one is NaN.
  const __m512 high = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-105.0f), (__m512)x);
  const __m512 c = _mm512_maskz_min_ps(0xffff, _mm512_set1_ps(100.0f), high);
  const __m512 n = _mm512_maskz_roundscale_ps(0xffff, _mm512_mul_ps(c, _mm512_set1_ps(1.44269504088896341f)), 0);
  const vf r = ((vf)c - (vf)n * 0.693359375f) - (vf)n * -2.12194440e-4f;
  vf p = splat(1.3981999507e-3f);
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)p, n);
#else
  return vexp(x);
#endif
}
ANSATZ_INLINE vf sigmoid_fast(vf x) { return 1.0f / (1.0f + vexp_fast(-x)); }

// sin r and cos r for |r| <= pi/4 (minimax fits, relative error 2e-10 and 7e-8 of the correction term).
ANSATZ_INLINE vf sin_poly(vf r) {
  const vf z = r * r;
  vf s = splat(2.7246343240e-6f);
  s = s * z + -1.9840058123e-4f;
  s = s * z + 8.3333318191e-3f;
  s = s * z + -1.6666666664e-1f;
  return r + r * z * s;
}
ANSATZ_INLINE vf cos_poly(vf r) {
  const vf z = r * r;
  vf s = splat(2.4580680383e-5f);
  s = s * z + -1.3888555596e-3f;
  s = s * z + 4.1666668340e-2f;
  return 1.0f - 0.5f * z + z * z * s;
}
// Quadrant q turns (sin r, cos r) into the function of r + q pi/2.
ANSATZ_INLINE vf quadrant(vi q, vf s, vf c) {
  const vf y = select((q & 1) != 0, c, s);
  return (vf)((vi)y ^ ((q & 2) << 30));
}

// sin(x + shift pi/2). Cody-Waite reduction: pi/2 in three parts of 11 bits, so that n times each is exact for
// n < 2^13 even without FMA, and a rest. Larger arguments (and inf, NaN) take the C library's double-precision sine.
template <int shift> ANSATZ_INLINE vf vsin_shifted(vf x) {
  const vf magic = splat(12582912.0f);   // 1.5 * 2^23 rounds to an integer kept in the low mantissa bits
  const vf shifted = x * 0.636619772367581343f + magic;
  const vf n = shifted - magic;
  const vi q = (vi)shifted + shift;
  vf r = x - n * 1.5703125f;
  r = r - n * 4.8375129699707031e-4f;
  r = r - n * 7.5495336204767227e-8f;
  r = r - n * 2.5633440682570896e-12f;
  vf y = quadrant(q, sin_poly(r), cos_poly(r));
  if (shift == 0) y = select(x == 0.0f, x, y);   // keeps the sign of zero
  const vi large = ~(vi)(vabs(x) < 12800.0f);
  if (__builtin_expect(any(large), 0))
    for (int k = 0; k < W; k++) {
      const double xk = static_cast<double>(x[k]);
      if (large[k]) y[k] = static_cast<float>(shift ? ::cos(xk) : ::sin(xk));
    }
  return y;
}
ANSATZ_INLINE vf vsin(vf x) { return vsin_shifted<0>(x); }
ANSATZ_INLINE vf vcos(vf x) { return vsin_shifted<1>(x); }

// The normal tail Q(a) = P(Z > a) = erfc(a / sqrt 2) / 2 for a >= 0, given e = exp(-a^2/2): e t P(t), t = 1/(1 + a/4)
// (weighted minimax fit on [0, 15], relative error 7e-8). Phi(x) = Q(-x) keeps its relative accuracy for x < 0.
ANSATZ_INLINE vf normal_tail(vf a, vf e) {
  const vf t = 1.0f / (1.0f + 0.25f * a);
  vf p = splat(2.4649622372e-2f);
  p = p * t + -1.4753952415e-1f;
  p = p * t + 2.8511368296e-1f;
  p = p * t + -1.9302733037e-1f;
  p = p * t + 1.9281090951e-1f;
  p = p * t + 3.6809216913e-2f;
  p = p * t + 1.0273197243e-1f;
  p = p * t + 9.8662760587e-2f;
  p = p * t + 9.9788655790e-2f;
  return e * t * p;
}

// log(1 + y) for y in [0, 1]: the rounding error of 1 + y is put back to first order.
ANSATZ_INLINE vf vlog1p(vf y) {
  const vf u = 1.0f + y;
  return vlog(u) + (y - (u - 1.0f)) / u;
}

// ---- powers in double: log2 of x times y reaches 128, so f32 would lose seven bits ---------------------------------
typedef double vd __attribute__((vector_size(W * 4)));
typedef int64_t vl __attribute__((vector_size(W * 4)));
typedef float vf_half __attribute__((vector_size(W * 2)));

// a^y for finite a >= 0 and finite y. log2 m = 2/ln2 atanh(s), s = (m-1)/(m+1); 2^f by its Taylor series; both are
// cut at a relative error below 1e-9.
ANSATZ_INLINE vd power_double(vd a, vd y) {
  const vl bits = (vl)a;
  vl e = ((vl)bits >> 52) - 1023;
  vd m = (vd)((bits & 0x000fffffffffffffLL) | 0x3ff0000000000000LL);
  const vl high = m > 1.4142135623730951;
  m = high ? m * 0.5 : m;
  e = e - high;
  const vd magic = (vd){} + 6755399441055744.0;   // 1.5 * 2^52: integers of 32 bits to double and back
  const vd ed = (vd)((vl)magic + e) - magic;
  const vd s = (m - 1.0) / (m + 1.0), z = s * s;
  vd p = (vd){} + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  p = p * z + 1.0;
  const vd log2a = ed + s * p * 2.8853900817779268;
  vd w = log2a * y;
  w = w > 1000.0 ? (vd){} + 1000.0 : w;
  w = w < -1000.0 ? (vd){} - 1000.0 : w;
  const vd shifted = w + magic;
  const vd f = (w - (shifted - magic)) * 0.69314718055994531;
  vd g = (vd){} + 1.0 / 40320;
  g = g * f + 1.0 / 5040;
  g = g * f + 1.0 / 720;
  g = g * f + 1.0 / 120;
  g = g * f + 1.0 / 24;
  g = g * f + 1.0 / 6;
  g = g * f + 0.5;
  g = g * f + 1.0;
  g = g * f + 1.0;
  return g * (vd)(((vl)shifted - (vl)magic + 1023) << 52);
}

// x^y with C's special cases.
inline vf vpow(vf x, vf y) {
  const vf a = vabs(x);
  float af[W], yf[W], rf[W];
  store(af, a);
  store(yf, y);
  for (int h = 0; h < 2; h++) {
    vf_half ah, yh;
    std::memcpy(&ah, af + h * (W / 2), sizeof ah);
    std::memcpy(&yh, yf + h * (W / 2), sizeof yh);
    const vd r = power_double(__builtin_convertvector(ah, vd), __builtin_convertvector(yh, vd));
    const vf_half rh = __builtin_convertvector(r, vf_half);
    std::memcpy(rf + h * (W / 2), &rh, sizeof rh);
  }
  vf r = load(rf);
  r = select(a == 0.0f, select(y > 0.0f, splat(0.0f), select(y < 0.0f, splat(__builtin_inff()), splat(1.0f))), r);
  // A negative base: NaN unless y is an integer, the sign of x for an odd one. Floats from 2^24 on are even integers.
  const vi big = vabs(y) >= 16777216.0f;
  const vi yi = __builtin_convertvector(select(big, splat(0.0f), y), vi);
  const vi whole = big | (__builtin_convertvector(yi, vf) == y);
  const vi odd = ((yi & 1) != 0) & ~big & whole;
  r = (vf)((vi)r | (odd & (vi)x & (int32_t)0x80000000));
  r = select((x < 0.0f) & ~whole, splat(__builtin_nanf("")), r);
  const vi special = ~((vi)(a < __builtin_inff()) & (vi)(vabs(y) < __builtin_inff()));
  if (__builtin_expect(any(special), 0))
    for (int k = 0; k < W; k++)
      if (special[k]) r[k] = static_cast<float>(::pow(static_cast<double>(x[k]), static_cast<double>(y[k])));
  return r;
}

}  // namespace
}  // namespace ansatz
