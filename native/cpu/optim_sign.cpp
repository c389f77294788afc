// Updates with one state tensor: Lion, the momentum that Muon orthogonalises, and the step along a given direction.
// Step-dependent values live in step_scalars (docs/kernels.md).
#include "optim.h"

namespace ansatz {
namespace {

ANSATZ_INLINE vf sign_of(vf x) {
  return select(x > 0.0f, splat(1.0f), select(x < 0.0f, splat(-1.0f), splat(0.0f)));
}

// Lion (Chen et al. 2023, arXiv 2302.06675). P = p, m, g, scalars; I = n; F = lrmult, beta1, beta2, decay
void lion(const Call& c) {
  const float* scalars = c.ptr<float>(3);
  if (scalars[FINITE] == 0.0f) return;
  const float scale = scalars[GRADIENT_SCALE], rate = static_cast<float>(c.f[0] * static_cast<double>(scalars[RATE]));
  const float beta1 = static_cast<float>(c.f[1]), gain1 = static_cast<float>(1.0 - c.f[1]);
  const float beta2 = static_cast<float>(c.f[2]), gain2 = static_cast<float>(1.0 - c.f[2]);
  const float decay = static_cast<float>(c.f[3]);
  float *p = c.ptr<float>(0), *m = c.ptr<float>(1);
  parallel_range(c.i[0], kGrain / 2, [&](int64_t begin, int64_t end, int) {
    with_float(c.p[2], c.t[2], [&](const auto* g) {
      for_vectors(end - begin, [&](int64_t at, int64_t lanes) ANSATZ_LAMBDA {
        const int64_t k = begin + at;
        const vf pk = part(p + k, lanes), mk = part(m + k, lanes), gk = part(g + k, lanes) * scale;
        put_part(p + k, pk - rate * (sign_of(beta1 * mk + gain1 * gk) + decay * pk), lanes);
        put_part(m + k, beta2 * mk + gain2 * gk, lanes);
      });
    });
  });
}

// Nesterov momentum as an average: m = mu m + (1 - mu) g', u = (1 - mu) g' + mu m. A step that is skipped gives zeros.
// P = u, m, g, scalars; I = n
void momentum(const Call& c) {
  const float* scalars = c.ptr<float>(3);
  const bool finite = scalars[FINITE] != 0.0f;
  const float scale = scalars[GRADIENT_SCALE], mu = scalars[MOMENTUM], gain = 1.0f - mu;
  float* m = c.ptr<float>(1);
  parallel_range(c.i[0], kGrain / 2, [&](int64_t begin, int64_t end, int) {
    with_float(c.p[0], c.t[0], [&](auto* u) {
      with_float(c.p[2], c.t[2], [&](const auto* g) {
        for_vectors(end - begin, [&](int64_t at, int64_t lanes) ANSATZ_LAMBDA {
          const int64_t k = begin + at;
          if (!finite) return put_part(u + k, splat(0.0f), lanes);
          const vf gk = gain * (part(g + k, lanes) * scale);
          const vf mk = mu * part(m + k, lanes) + gk;
          put_part(m + k, mk, lanes);
          put_part(u + k, gk + mu * mk, lanes);
        });
      });
    });
  });
}

// p -= lr lrmult (scale u + decay p). P = p, u, scalars; I = n; F = lrmult, scale, decay
void apply_update(const Call& c) {
  const float* scalars = c.ptr<float>(2);
  if (scalars[FINITE] == 0.0f) return;
  const float rate = static_cast<float>(c.f[0] * static_cast<double>(scalars[RATE]));
  const float scale = static_cast<float>(c.f[1]), decay = static_cast<float>(c.f[2]);
  float* p = c.ptr<float>(0);
  parallel_range(c.i[0], kGrain / 2, [&](int64_t begin, int64_t end, int) {
    with_float(c.p[1], c.t[1], [&](const auto* u) {
      for_vectors(end - begin, [&](int64_t at, int64_t lanes) ANSATZ_LAMBDA {
        const int64_t k = begin + at;
        const vf pk = part(p + k, lanes);
        put_part(p + k, pk - rate * (scale * part(u + k, lanes) + decay * pk), lanes);
      });
    });
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(optim_sign, {"lion", lion}, {"momentum", momentum}, {"apply_update", apply_update})
