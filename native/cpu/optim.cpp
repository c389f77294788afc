// The optimiser's update and the gradient clip before it. Step-dependent values live in step_scalars (docs/kernels.md),
// device memory, so that a captured step can be replayed.
#include <cmath>

#include "elementwise_math.h"

namespace ansatz {
namespace {

enum StepScalar { RATE, GRADIENT_SCALE, CORRECTION1, CORRECTION2, FINITE, NORM, SKIPPED };

// P = scalars, sumsqs; I = n; F = maxnorm, extra
void clip_scale(const Call& c) {
  float* scalars = c.ptr<float>(0);
  const float* squares = c.ptr<float>(1);
  const double maxnorm = c.f[0], extra = c.f[1];
  double total = 0;
  for (int64_t k = 0; k < c.i[0]; k++) total += static_cast<double>(squares[k]);
  const float norm = static_cast<float>(extra * ::sqrt(total));
  const double ratio = maxnorm > 0 && maxnorm < norm ? maxnorm / static_cast<double>(norm) : 1.0;
  const bool finite = norm - norm == 0.0f;
  scalars[NORM] = norm;
  scalars[GRADIENT_SCALE] = static_cast<float>(extra * ratio);
  scalars[FINITE] = finite ? 1.0f : 0.0f;
  if (!finite) scalars[SKIPPED] += 1.0f;
}

struct AdamW {
  float scale, beta1, gain1, beta2, gain2, inverse1, inverse2, eps, rate, decay;

  ANSATZ_INLINE void step(vf& p, vf& m, vf& v, vf g) const {
    g = g * scale;
    m = beta1 * m + gain1 * g;
    v = beta2 * v + gain2 * (g * g);
    p = p - rate * (m * inverse1 / (vsqrt(v * inverse2) + eps) + decay * p);
  }
};

template <class G> void adamw_range(const AdamW& a, float* p, float* m, float* v, const G* g, bf16* shadow, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) {
    vf pk = load(p + k), mk = load(m + k), vk = load(v + k);
    a.step(pk, mk, vk, load(g + k));
    store(p + k, pk);
    store(m + k, mk);
    store(v + k, vk);
    if (shadow) store(shadow + k, pk);
  }
  if (const int64_t rest = n - k) {
    vf pk = load_n(p + k, rest), mk = load_n(m + k, rest), vk = load_n(v + k, rest);
    a.step(pk, mk, vk, load_n(g + k, rest));
    store_n(p + k, pk, rest);
    store_n(m + k, mk, rest);
    store_n(v + k, vk, rest);
    if (shadow) store_n(shadow + k, pk, rest);
  }
}

// Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).
// P = p, m, v, g, scalars, shadow?; I = n; F = lrmult, beta1, beta2, eps, decay
void adamw(const Call& c) {
  const float* scalars = c.ptr<float>(4);
  if (scalars[FINITE] == 0.0f) return;
  const double beta1 = c.f[1], beta2 = c.f[2];
  const AdamW a = {scalars[GRADIENT_SCALE],
                   static_cast<float>(beta1), static_cast<float>(1.0 - beta1),
                   static_cast<float>(beta2), static_cast<float>(1.0 - beta2),
                   static_cast<float>(1.0 / static_cast<double>(scalars[CORRECTION1])),
                   static_cast<float>(1.0 / static_cast<double>(scalars[CORRECTION2])),
                   static_cast<float>(c.f[3]), static_cast<float>(c.f[0] * static_cast<double>(scalars[RATE])),
                   static_cast<float>(c.f[4])};
  float *p = c.ptr<float>(0), *m = c.ptr<float>(1), *v = c.ptr<float>(2);
  bf16* shadow = c.ptr<bf16>(5);
  parallel_range(c.i[0], kGrain / 2, [&](int64_t begin, int64_t end, int) {
    bf16* s = shadow ? shadow + begin : nullptr;
    if (c.t[3] == F32) adamw_range(a, p + begin, m + begin, v + begin, c.ptr<float>(3) + begin, s, end - begin);
    else adamw_range(a, p + begin, m + begin, v + begin, c.ptr<bf16>(3) + begin, s, end - begin);
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(optim, {"clip_scale", clip_scale}, {"adamw", adamw})
