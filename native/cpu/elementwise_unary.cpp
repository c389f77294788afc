// Functions of one tensor, and the gradients of activations.
#include "elementwise_act.h"
#include "elementwise_loops.h"

namespace ansatz {
namespace {

// A functor and its kernel from an expression in x.
#define UNARY(name, run, grain, expression)                              \
  struct Op_##name {                                                     \
    ANSATZ_INLINE vf operator()(vf x) const { return expression; }       \
  };                                                                     \
  void k_##name(const Call& c) { run(c, Op_##name{}, grain); }
// A gradient: expression in x (input or output of the function) and dy.
#define GRADIENT(name, run, grain, expression)                           \
  struct Op_##name {                                                     \
    ANSATZ_INLINE vf operator()(vf x, vf dy) const { return expression; } \
  };                                                                     \
  void k_##name(const Call& c) { run(c, Op_##name{}, grain); }

ANSATZ_INLINE vf sign_of(vf x) {
  return select(x > 0.0f, splat(1.0f), select(x < 0.0f, splat(-1.0f), x));   // zero and NaN stay themselves
}
ANSATZ_INLINE vf softplus_of(vf x) { return vrelu(x) + vlog1p(vexp_fast(-vabs(x))); }
template <class Act> ANSATZ_INLINE vf derivative(vf x) {
  vf f, d;
  Act::both(x, f, d);
  return d;
}

UNARY(neg, map1, kGrain, -x)
UNARY(abs, map1, kGrain, vabs(x))
UNARY(sign, map1, kGrain, sign_of(x))
UNARY(square, map1, kGrain, x * x)
UNARY(sqrt, map1, kGrain, vsqrt(x))
UNARY(rsqrt, map1, kGrain, 1.0f / vsqrt(x))
UNARY(recip, map1, kGrain, 1.0f / x)
UNARY(exp, map1, kHeavyGrain, vexp_fast(x))
UNARY(log, map1, kHeavyGrain, vlog(x))
UNARY(sin, map1, kHeavyGrain, vsin(x))
UNARY(cos, map1, kHeavyGrain, vcos(x))
UNARY(tanh, map1, kHeavyGrain, vtanh(x))
UNARY(sigmoid, map1, kHeavyGrain, sigmoid_fast(x))
UNARY(relu, map1_hot, kGrain, vrelu(x))
UNARY(relu2, map1_hot, kGrain, vrelu(x) * vrelu(x))
UNARY(gelu, map1_hot, kHeavyGrain, Gelu::value(x))
UNARY(gelu_erf, map1_hot, kHeavyGrain, GeluErf::value(x))
UNARY(silu, map1_hot, kHeavyGrain, Silu::value(x))
UNARY(softplus, map1, kHeavyGrain, softplus_of(x))
UNARY(step, map1, kGrain, select(x > 0.0f, splat(1.0f), splat(0.0f)))

GRADIENT(relu_bwd, map2_hot, kGrain, select(x > 0.0f, dy, splat(0.0f)))
GRADIENT(relu2_bwd, map2_hot, kGrain, 2.0f * vrelu(x) * dy)
GRADIENT(gelu_bwd, map2_hot, kHeavyGrain, dy * derivative<Gelu>(x))
GRADIENT(gelu_erf_bwd, map2_hot, kHeavyGrain, dy * derivative<GeluErf>(x))
GRADIENT(silu_bwd, map2_hot, kHeavyGrain, dy * derivative<Silu>(x))
GRADIENT(softplus_bwd, map2, kHeavyGrain, dy * sigmoid_fast(x))
GRADIENT(tanh_bwd, map2, kGrain, dy * (1.0f - x * x))
GRADIENT(sigmoid_bwd, map2, kGrain, dy * x * (1.0f - x))

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(elementwise_unary,
  {"neg", k_neg}, {"abs", k_abs}, {"sign", k_sign}, {"square", k_square}, {"sqrt", k_sqrt}, {"rsqrt", k_rsqrt},
  {"recip", k_recip}, {"exp", k_exp}, {"log", k_log}, {"sin", k_sin}, {"cos", k_cos}, {"tanh", k_tanh},
  {"sigmoid", k_sigmoid}, {"relu", k_relu}, {"relu2", k_relu2}, {"gelu", k_gelu}, {"gelu_erf", k_gelu_erf},
  {"silu", k_silu}, {"softplus", k_softplus}, {"step", k_step}, {"relu_bwd", k_relu_bwd},
  {"relu2_bwd", k_relu2_bwd}, {"gelu_bwd", k_gelu_bwd}, {"gelu_erf_bwd", k_gelu_erf_bwd},
  {"silu_bwd", k_silu_bwd}, {"softplus_bwd", k_softplus_bwd}, {"tanh_bwd", k_tanh_bwd},
  {"sigmoid_bwd", k_sigmoid_bwd})
