// Simple recurrent unit (Lei et al. 2018; Jaszczur et al. 2021 use it beside their feed-forward layers). Of each token,
// z holds three rows of n: r, f (before the sigmoid) and y,
//   c_t = f_t c_{t-1} + (1 - f_t) y_t,      out_t = r_t c_t + sqrt(3) (1 - r_t) x_t.
// Before the first token c is `initial` (or 0), and where a segment begins 0; or, with a state for every token, that of
// the token at which a sequence or a segment begins.
// Units do not mix, so W of them walk down a sequence together, one task each.
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr float SQRT3 = 1.7320508075688772f;

template <class T> ANSATZ_INLINE vf get(const T* p, int64_t n) { return n >= W ? load(p) : load_n(p, n); }
template <class T> ANSATZ_INLINE void put(T* p, vf x, int64_t n) {
  if (n >= W) store(p, x);
  else store_n(p, x, n);
}

// A group of units of one sequence: where its first token lies, and how many units it has.
struct Lanes {
  int64_t b, T, n, j, count;
  const int32_t* seg;
  const float* initial;   // of this sequence
  bool each;              // initial has a row a token

  Lanes(int64_t task, int64_t T_, int64_t n_, const int32_t* segments, const float* start, bool each_)
      : b(task / ((n_ + W - 1) / W)), T(T_), n(n_), j(task % ((n_ + W - 1) / W) * W), count(n_ - j),
        seg(segments ? segments + b * T_ : nullptr), initial(start ? start + b * (each_ ? T_ : 1) * n_ + j : nullptr),
        each(each_) {}

  int64_t row(int64_t t) const { return b * T + t; }
  // Whether the state before token t is that of the token before it.
  bool goes_on(int64_t t) const { return t > 0 && (!seg || seg[t] == seg[t - 1]); }
  // Where in `initial` the state before token t is, when it does not go on from the token before.
  int64_t start(int64_t t) const { return each ? t * n : t == 0 ? 0 : -1; }
  vf started(int64_t t) const {
    const int64_t at = initial ? start(t) : -1;
    return at < 0 ? splat(0.0f) : get(initial + at, count);
  }
};

// P = out[B,T,n], state f32[B,T,n], x[B,T,n], z[B,T,3n], initial? f32[B,n] or [B,T,n], seg? i32[B,T]; I = B, T, n, each
template <class T> void sru_of(const Call& c) {
  const int64_t B = c.i[0], length = c.i[1], n = c.i[2];
  T* out = c.ptr<T>(0);
  float* state = c.ptr<float>(1);
  const T *x = c.ptr<const T>(2), *z = c.ptr<const T>(3);
  parallel(B * ((n + W - 1) / W), [&](int64_t task, int) {
    const Lanes l(task, length, n, c.ptr<const int32_t>(5), c.ptr<const float>(4), c.i[3] != 0);
    vf h = {};
    for (int64_t t = 0; t < length; t++) {
      const int64_t at = l.row(t) * n + l.j;
      const T* p = z + l.row(t) * 3 * n + l.j;
      if (!l.goes_on(t)) h = l.started(t);
      const vf r = vsigmoid(get(p, l.count)), f = vsigmoid(get(p + n, l.count)), y = get(p + 2 * n, l.count);
      h = f * h + (1.0f - f) * y;
      put(state + at, h, l.count);
      put(out + at, r * h + SQRT3 * (1.0f - r) * get(x + at, l.count), l.count);
    }
  });
}

// P = dx[B,T,n], dz[B,T,3n], dinitial?, dout?[B,T,n], dstate? f32[B,T,n], x, z, state, initial?, seg?;
// I = B, T, n, each. dstate is the gradient that the states have from elsewhere.
template <class T> void sru_bwd_of(const Call& c) {
  const int64_t B = c.i[0], length = c.i[1], n = c.i[2];
  T *dx = c.ptr<T>(0), *dz = c.ptr<T>(1);
  float* dinitial = c.ptr<float>(2);
  const T* dout = c.ptr<const T>(3);
  const float* dstate = c.ptr<const float>(4);
  const T *x = c.ptr<const T>(5), *z = c.ptr<const T>(6);
  const float* state = c.ptr<const float>(7);
  parallel(B * ((n + W - 1) / W), [&](int64_t task, int) {
    const Lanes l(task, length, n, c.ptr<const int32_t>(9), c.ptr<const float>(8), c.i[3] != 0);
    float* const dstart = dinitial ? dinitial + l.b * (l.each ? length : 1) * n + l.j : nullptr;
    vf dh = {};   // of the state of token t, from the tokens after it
    for (int64_t t = length - 1; t >= 0; t--) {
      const int64_t at = l.row(t) * n + l.j, zat = l.row(t) * 3 * n + l.j;
      const T* p = z + zat;
      const vf r = vsigmoid(get(p, l.count)), f = vsigmoid(get(p + n, l.count)), y = get(p + 2 * n, l.count);
      const vf h = get(state + at, l.count), g = dout ? get(dout + at, l.count) : splat(0.0f);
      const vf before = l.goes_on(t) ? get(state + at - n, l.count) : l.started(t);
      put(dx + at, SQRT3 * (1.0f - r) * g, l.count);
      put(dz + zat, g * (h - SQRT3 * get(x + at, l.count)) * r * (1.0f - r), l.count);
      dh += g * r;
      if (dstate) dh += get(dstate + at, l.count);
      put(dz + zat + n, dh * (before - y) * f * (1.0f - f), l.count);
      put(dz + zat + 2 * n, dh * (1.0f - f), l.count);
      dh = dh * f;
      const bool goes_on = l.goes_on(t);
      if (dstart && l.start(t) >= 0) put(dstart + l.start(t), goes_on ? splat(0.0f) : dh, l.count);
      if (!goes_on) dh = splat(0.0f);
    }
    if (length == 0 && dstart && !l.each) put(dstart, splat(0.0f), l.count);
  });
}

void sru(const Call& c) { c.t[0] == BF16 ? sru_of<bf16>(c) : sru_of<float>(c); }
void sru_bwd(const Call& c) { c.t[0] == BF16 ? sru_bwd_of<bf16>(c) : sru_bwd_of<float>(c); }

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(scan, {"sru", sru}, {"sru_bwd", sru_bwd})
