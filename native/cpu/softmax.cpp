// Softmax, its logarithm and normaliser over rows, and their gradients.
#include "elementwise_math.h"
#include "reduce_rows.h"

namespace ansatz {
namespace {

constexpr int64_t kRowGrain = 16384;

// Calls f(out, in, columns) for every row as f32: P[0] is written, the `inputs` tensors after it are read.
template <class F> void for_rows(const Call& c, int inputs, const F& f) {
  const int64_t rows = c.i[0], n = c.i[1];
  parallel_range(rows, rows_a_task(n, kRowGrain), [&](int64_t begin, int64_t end, int thread) {
    float* s = static_cast<float*>(pool_scratch(thread, 0, n * 4 * 3));   // for rows that are not f32
    for (int64_t r = begin; r < end; r++) {
      const float* in[2] = {nullptr, nullptr};
      for (int k = 0; k < inputs; k++) in[k] = fetch(c.p[k + 1], c.t[k + 1], r * n, n, s + (k + 1) * n);
      float* out = target(c.p[0], c.t[0], r * n, s);
      f(out, in, n);
      finish(c.p[0], c.t[0], r * n, n, out);
    }
  });
}

// The sum of exp(x - m), m the row's maximum; writes the exponentials to y when given.
ANSATZ_INLINE double sum_exp(float* y, const float* x, int64_t n, float m) {
  return sum_vectors(n, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
    vf e = vexp_fast(part(x + k, lanes) - m);
    if (lanes != W) e = (vf)((vi)e & first_lanes(lanes));
    if (y) put_part(y + k, e, lanes);
    return e;
  });
}

void softmax(const Call& c) {
  for_rows(c, 1, [](float* y, const float* const* in, int64_t n) {
    const float m = reduce_run<Max>(in[0], n);
    if (m == -__builtin_inff()) {   // nothing to attend to
      std::memset(y, 0, static_cast<size_t>(n) * 4);
      return;
    }
    const float scale = static_cast<float>(1.0 / sum_exp(y, in[0], n, m));
    for_vectors(n, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA { put_part(y + k, part(y + k, lanes) * scale, lanes); });
  });
}

void log_softmax(const Call& c) {
  for_rows(c, 1, [](float* y, const float* const* in, int64_t n) {
    const float* x = in[0];
    const float m = reduce_run<Max>(x, n);
    const float log_sum = static_cast<float>(::log(sum_exp(nullptr, x, n, m)));
    for_vectors(n, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
      put_part(y + k, (part(x + k, lanes) - m) - log_sum, lanes);
    });
  });
}

void softmax_bwd(const Call& c) {
  for_rows(c, 2, [](float* dx, const float* const* in, int64_t n) {
    const float *y = in[0], *dy = in[1];
    const float dot = static_cast<float>(sum_vectors(n, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
      return part(y + k, lanes) * part(dy + k, lanes);
    }));
    for_vectors(n, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
      put_part(dx + k, part(y + k, lanes) * (part(dy + k, lanes) - dot), lanes);
    });
  });
}

void log_softmax_bwd(const Call& c) {
  for_rows(c, 2, [](float* dx, const float* const* in, int64_t n) {
    const float *y = in[0], *dy = in[1];
    const float total = static_cast<float>(
        sum_vectors(n, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA { return part(dy + k, lanes); }));
    for_vectors(n, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
      put_part(dx + k, part(dy + k, lanes) - vexp_fast(part(y + k, lanes)) * total, lanes);
    });
  });
}

void logsumexp(const Call& c) {
  const int64_t rows = c.i[0], n = c.i[1];
  parallel_range(rows, rows_a_task(n, kRowGrain), [&](int64_t begin, int64_t end, int thread) {
    float* s = c.t[1] == F32 ? nullptr : static_cast<float*>(pool_scratch(thread, 0, n * 4));
    for (int64_t r = begin; r < end; r++) {
      const float* x = fetch(c.p[1], c.t[1], r * n, n, s);
      const float m = reduce_run<Max>(x, n);
      const bool finite = m - m == 0.0f;   // otherwise m (-inf, inf or NaN) is the answer itself
      write_one(c.p[0], c.t[0], r, finite ? static_cast<float>(m + ::log(sum_exp(nullptr, x, n, m))) : m);
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(softmax, {"softmax", softmax}, {"log_softmax", log_softmax}, {"softmax_bwd", softmax_bwd},
  {"log_softmax_bwd", log_softmax_bwd}, {"logsumexp", logsumexp})
