// Fast Fourier transforms for convolutions, of W channels at a time: one vector holds the same element of W signals, so
// that every lane runs the same scalar algorithm and no shuffles are needed. Element k of a block lies at x + k STEP: W
// real parts, then W imaginary parts.
//
// Forward transforms decimate in frequency (natural order in, digit-reversed out), inverse ones undo exactly these
// passes: products of spectra never need the order restored (Gentleman and Sande 1966). Blocks are visited depth first,
// so that all passes below a block's size run inside the cache that holds it.
//
// Causal convolutions of T real values use complex transforms of M >= T points: real polynomials modulo x^(2M) + 1 are
// complex ones modulo x^M - i, and with x = w y, w = exp(i pi / 2M), the product modulo y^M - 1 is a cyclic convolution.
// The first M coefficients of the product are its real parts ("right-angle" convolution; Crandall and Fagin 1994).
#pragma once
#include "../core/pool.h"
#include "fft_plan.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t STEP = 2 * W;

struct cv { vf re, im; };
ANSATZ_INLINE cv operator+(cv a, cv b) { return {a.re + b.re, a.im + b.im}; }
ANSATZ_INLINE cv operator-(cv a, cv b) { return {a.re - b.re, a.im - b.im}; }
ANSATZ_INLINE cv operator*(cv a, float s) { return {a.re * splat(s), a.im * splat(s)}; }
ANSATZ_INLINE cv times(cv a, cv b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
ANSATZ_INLINE cv times_conj(cv a, cv b) { return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im}; }
ANSATZ_INLINE cv factor(const float* w) { return {splat(w[0]), splat(w[1])}; }
ANSATZ_INLINE cv load_cv(const float* x) { return {load(x), load(x + W)}; }
ANSATZ_INLINE void store_cv(float* x, cv a) { store(x, a.re); store(x + W, a.im); }

// exp(-i pi/2) a forward, exp(i pi/2) a in the inverse.
template <bool INVERSE> ANSATZ_INLINE cv quarter(cv a) {
  return INVERSE ? cv{-a.im, a.re} : cv{a.im, -a.re};
}

template <int R, bool INVERSE> struct Dft;
template <bool INVERSE> struct Dft<3, INVERSE> {
  static ANSATZ_INLINE void run(cv* a) {
    const cv s = a[1] + a[2], d = quarter<INVERSE>(a[1] - a[2]) * 0.866025403784438647f, m = a[0] - s * 0.5f;
    a[0] = a[0] + s;
    a[1] = m + d;
    a[2] = m - d;
  }
};
template <bool INVERSE> struct Dft<4, INVERSE> {
  static ANSATZ_INLINE void run(cv* a) {
    const cv s = a[0] + a[2], d = a[0] - a[2], t = a[1] + a[3], u = quarter<INVERSE>(a[1] - a[3]);
    a[0] = s + t;
    a[1] = d + u;
    a[2] = s - t;
    a[3] = d - u;
  }
};
template <bool INVERSE> struct Dft<5, INVERSE> {
  static ANSATZ_INLINE void run(cv* a) {
    const float c1 = 0.309016994374947424f, c2 = -0.809016994374947424f;   // cos 2 pi/5, cos 4 pi/5
    const float s1 = 0.951056516295153572f, s2 = 0.587785252292473129f;    // sin 2 pi/5, sin 4 pi/5
    const cv s = a[1] + a[4], t = a[2] + a[3];
    const cv d = quarter<INVERSE>(a[1] - a[4]), e = quarter<INVERSE>(a[2] - a[3]);
    const cv p = a[0] + s * c1 + t * c2, q = a[0] + s * c2 + t * c1;
    const cv u = d * s1 + e * s2, v = d * s2 - e * s1;
    a[0] = a[0] + s + t;
    a[1] = p + u;
    a[2] = q + v;
    a[3] = q - v;
    a[4] = p - u;
  }
};

// One pass over a block of R q elements. The forward one multiplies output k of butterfly j by exp(-2 pi i j k / (R q)),
// which the table holds at [j][k - 1]; the inverse one takes that back first. `in` gives an element, `out` takes one.
template <int R, class In, class Out> void forward_pass(int64_t q, const float* tw, const In& in, const Out& out) {
  for (int64_t j = 0; j < q; j++, tw += 2 * (R - 1)) {
    cv a[R];
#pragma GCC unroll 8
    for (int k = 0; k < R; k++) a[k] = in(j + k * q);
    Dft<R, false>::run(a);
    out(j, a[0]);
#pragma GCC unroll 8
    for (int k = 1; k < R; k++) out(j + k * q, times(a[k], factor(tw + 2 * (k - 1))));
  }
}
template <int R, class In, class Out> void inverse_pass(int64_t q, const float* tw, const In& in, const Out& out) {
  for (int64_t j = 0; j < q; j++, tw += 2 * (R - 1)) {
    cv a[R];
    a[0] = in(j);
#pragma GCC unroll 8
    for (int k = 1; k < R; k++) a[k] = times_conj(in(j + k * q), factor(tw + 2 * (k - 1)));
    Dft<R, true>::run(a);
#pragma GCC unroll 8
    for (int k = 0; k < R; k++) out(j + k * q, a[k]);
  }
}

struct Block {   // elements in scratch memory, as source and as target
  float* x;
  ANSATZ_INLINE cv operator()(int64_t k) const { return load_cv(x + k * STEP); }
  ANSATZ_INLINE void operator()(int64_t k, cv a) const { store_cv(x + k * STEP, a); }
};

// ---- the smallest blocks, in registers ------------------------------------------------------------------------------
constexpr float HALF_ROOT = 0.707106781186547524f;   // sqrt(1/2)

template <int N> struct Leaf;
template <> struct Leaf<4> {
  static ANSATZ_INLINE void forward(cv* a) { Dft<4, false>::run(a); }
  static ANSATZ_INLINE void inverse(cv* a) { Dft<4, true>::run(a); }
};
template <> struct Leaf<8> {   // even frequencies first, then odd ones
  static ANSATZ_INLINE cv eighth(cv a) { return cv{a.re + a.im, a.im - a.re} * HALF_ROOT; }        // exp(-i pi/4) a
  static ANSATZ_INLINE cv eighth_back(cv a) { return cv{a.re - a.im, a.re + a.im} * HALF_ROOT; }   // exp(i pi/4) a
  static ANSATZ_INLINE void forward(cv* a) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      const cv d = a[k] - a[k + 4];
      a[k] = a[k] + a[k + 4];
      a[k + 4] = d;
    }
    a[5] = eighth(a[5]);
    a[6] = quarter<false>(a[6]);
    a[7] = eighth(quarter<false>(a[7]));
    Dft<4, false>::run(a);
    Dft<4, false>::run(a + 4);
  }
  static ANSATZ_INLINE void inverse(cv* a) {
    Dft<4, true>::run(a);
    Dft<4, true>::run(a + 4);
    a[5] = eighth_back(a[5]);
    a[6] = quarter<true>(a[6]);
    a[7] = eighth_back(quarter<true>(a[7]));
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      const cv d = a[k] - a[k + 4];
      a[k] = a[k] + a[k + 4];
      a[k + 4] = d;
    }
  }
};

template <int N> ANSATZ_INLINE void load_leaf(cv* a, const float* x) {
#pragma GCC unroll 8
  for (int k = 0; k < N; k++) a[k] = load_cv(x + k * STEP);
}
template <int N> ANSATZ_INLINE void store_leaf(float* x, const cv* a) {
#pragma GCC unroll 8
  for (int k = 0; k < N; k++) store_cv(x + k * STEP, a[k]);
}

// ---- whole transforms below a level ---------------------------------------------------------------------------------
inline void forward_level(const Level& l, float* x) {
  const int64_t q = l.n / l.radix;
  const Block b{x};
  if (l.radix == 4) forward_pass<4>(q, l.tw, b, b);
  else if (l.radix == 3) forward_pass<3>(q, l.tw, b, b);
  else forward_pass<5>(q, l.tw, b, b);
}
inline void inverse_level(const Level& l, float* x) {
  const int64_t q = l.n / l.radix;
  const Block b{x};
  if (l.radix == 4) inverse_pass<4>(q, l.tw, b, b);
  else if (l.radix == 3) inverse_pass<3>(q, l.tw, b, b);
  else inverse_pass<5>(q, l.tw, b, b);
}

// Spectrum of the block x of level `at`, in place.
inline void spectrum(const Plan& p, int at, float* x) {
  if (at == p.levels) {
    cv a[8];
    if (p.leaf == 4) load_leaf<4>(a, x), Leaf<4>::forward(a), store_leaf<4>(x, a);
    else load_leaf<8>(a, x), Leaf<8>::forward(a), store_leaf<8>(x, a);
    return;
  }
  const Level& l = p.level[at];
  forward_level(l, x);
  for (int r = 0; r < l.radix; r++) spectrum(p, at + 1, x + r * (l.n / l.radix) * STEP);
}
// Back from a spectrum, M times too large.
inline void from_spectrum(const Plan& p, int at, float* x) {
  if (at == p.levels) {
    cv a[8];
    if (p.leaf == 4) load_leaf<4>(a, x), Leaf<4>::inverse(a), store_leaf<4>(x, a);
    else load_leaf<8>(a, x), Leaf<8>::inverse(a), store_leaf<8>(x, a);
    return;
  }
  const Level& l = p.level[at];
  for (int r = 0; r < l.radix; r++) from_spectrum(p, at + 1, x + r * (l.n / l.radix) * STEP);
  inverse_level(l, x);
}

template <int N> ANSATZ_INLINE void multiply_leaf(float* x, const float* h) {
  cv a[N];
  load_leaf<N>(a, x);
  Leaf<N>::forward(a);
#pragma GCC unroll 8
  for (int k = 0; k < N; k++) a[k] = times(a[k], load_cv(h + k * STEP));
  Leaf<N>::inverse(a);
  store_leaf<N>(x, a);
}
// x becomes the cyclic convolution with the signal whose spectrum is h: there and back, block by block.
inline void multiply(const Plan& p, int at, float* x, const float* h) {
  if (at == p.levels) {
    if (p.leaf == 4) multiply_leaf<4>(x, h);
    else multiply_leaf<8>(x, h);
    return;
  }
  const Level& l = p.level[at];
  const int64_t part = l.n / l.radix * STEP;
  forward_level(l, x);
  for (int r = 0; r < l.radix; r++) multiply(p, at + 1, x + r * part, h + r * part);
  inverse_level(l, x);
}

template <int N> ANSATZ_INLINE void correlate_leaf(float* dy, float* v, const float* h, float* g) {
  cv a[N], b[N];
  load_leaf<N>(a, v);
  Leaf<N>::forward(a);
  load_leaf<N>(b, dy);
  Leaf<N>::forward(b);
#pragma GCC unroll 8
  for (int k = 0; k < N; k++) {
    store_cv(g + k * STEP, load_cv(g + k * STEP) + times_conj(b[k], a[k]));
    b[k] = times_conj(b[k], load_cv(h + k * STEP));
  }
  Leaf<N>::inverse(b);
  store_leaf<N>(dy, b);
}
// The adjoint: dy becomes its correlation with h; the spectrum of its correlation with v is added to g. v is used up.
inline void correlate(const Plan& p, int at, float* dy, float* v, const float* h, float* g) {
  if (at == p.levels) {
    if (p.leaf == 4) correlate_leaf<4>(dy, v, h, g);
    else correlate_leaf<8>(dy, v, h, g);
    return;
  }
  const Level& l = p.level[at];
  const int64_t part = l.n / l.radix * STEP;
  forward_level(l, v);
  forward_level(l, dy);
  for (int r = 0; r < l.radix; r++) correlate(p, at + 1, dy + r * part, v + r * part, h + r * part, g + r * part);
  inverse_level(l, dy);
}

}  // namespace
}  // namespace ansatz
