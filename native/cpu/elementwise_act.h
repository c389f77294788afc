// Activation functions and their derivatives: value(x), and both(x, f, d) with f the value and d the derivative.
#pragma once
#include "elementwise_math.h"

namespace ansatz {
namespace {

// s = sigmoid(x) and 1 - s, neither by a subtraction that cancels (for large x, x (1 - s) would magnify the error).
ANSATZ_INLINE void sigmoid_pair(vf x, vf& s, vf& rest) {
  const vf e = vexp_fast(-x);
  s = 1.0f / (1.0f + e);
  rest = select(x > 0.0f, e * s, 1.0f - s);
}

ANSATZ_INLINE vf vrelu(vf x) { return select(x < 0.0f, splat(0.0f), x); }   // NaN stays NaN

// 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks and Gimpel, arXiv 1606.08415). The
// sigmoid form keeps the relative accuracy for x < 0, where 1 + tanh(u) would cancel.
struct Gelu {
  static constexpr float c1 = 1.5957691216057308f, c3 = 0.071354816272600f;   // 2 sqrt(2/pi), and that times 0.044715
  static ANSATZ_INLINE vf value(vf x) { return x * sigmoid_fast(x * (c1 + c3 * x * x)); }
  static ANSATZ_INLINE void both(vf x, vf& f, vf& d) {
    // Beyond 15 the sigmoid is exactly 0 or 1; the clamp keeps x^2 from overflowing into 0 * inf.
    const vf xc = select(x > 15.0f, splat(15.0f), select(x < -15.0f, splat(-15.0f), x)), z = xc * xc;
    vf s, rest;
    sigmoid_pair(xc * (c1 + c3 * z), s, rest);
    f = x * s;
    d = s + s * rest * xc * (c1 + 3.0f * c3 * z);
  }
};

// x Phi(x), Phi the normal distribution function.
struct GeluErf {
  static ANSATZ_INLINE vf phi(vf x, vf e) {
    const vf q = normal_tail(vabs(x), e);
    return select(x > 0.0f, 1.0f - q, q);
  }
  static ANSATZ_INLINE vf value(vf x) { return x * phi(x, vexp_fast(-0.5f * x * x)); }
  static ANSATZ_INLINE void both(vf x, vf& f, vf& d) {
    const vf e = vexp_fast(-0.5f * x * x), p = phi(x, e);
    f = x * p;
    d = p + x * (e * 0.3989422804014327f);
  }
};

struct Silu {
  static ANSATZ_INLINE vf value(vf x) { return x * sigmoid_fast(x); }
  static ANSATZ_INLINE void both(vf x, vf& f, vf& d) {
    vf s, rest;
    sigmoid_pair(x, s, rest);
    f = x * s;
    d = s + f * rest;
  }
};

struct Relu {
  static ANSATZ_INLINE vf value(vf x) { return vrelu(x); }
  static ANSATZ_INLINE void both(vf x, vf& f, vf& d) {
    f = vrelu(x);
    d = select(x > 0.0f, splat(1.0f), splat(0.0f));
  }
};

struct Sigmoid {
  static ANSATZ_INLINE vf value(vf x) { return sigmoid_fast(x); }
  static ANSATZ_INLINE void both(vf x, vf& f, vf& d) {
    f = sigmoid_fast(x);
    d = f * (1.0f - f);
  }
};

struct Identity {
  static ANSATZ_INLINE vf value(vf x) { return x; }
  static ANSATZ_INLINE void both(vf x, vf& f, vf& d) {
    f = x;
    d = splat(1.0f);
  }
};

}  // namespace
}  // namespace ansatz
