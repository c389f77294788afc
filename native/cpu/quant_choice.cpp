// The controller of a layer that uses one unit of every block: t = low x, z = logits t + bias, and the first largest z of
// each block. All in f32, whatever the weights are stored as: a rounded logit is another choice.
#include "../core/pool.h"
#include "quant_dot.h"

namespace ansatz {
namespace {

constexpr int64_t TASK_BYTES = 64 << 10;

ANSATZ_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ANSATZ_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// <a, b> over n floats; a is padded with zeros to a multiple of 4 W.
template <class T> ANSATZ_INLINE float dot(const float* a, const T* b, int64_t n) {
  vf s[4] = {};
  int64_t k = 0;
  for (; k + 4 * W <= n; k += 4 * W)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) s[j] = fused(load(b + k + j * W), load(a + k + j * W), s[j]);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const int64_t left = n - k - j * W;
    if (left > 0) s[j] = fused(left >= W ? load(b + k + j * W) : load_n(b + k + j * W, left), load(a + k + j * W), s[j]);
  }
  return hsum((s[0] + s[1]) + (s[2] + s[3]));
}

template <class F> void typed(const void* p, int32_t t, const F& f) {
  if (t == BF16) f(static_cast<const bf16*>(p));
  else f(static_cast<const float*>(p));
}

// P = choice i32[rows, A], x[rows, d], low[r, d], logits[F, r], bias f32[F]?; I = rows, d, r, F, N
void unit_choice(const Call& c) {
  const int64_t rows = c.i[0], d = c.i[1], r = c.i[2], F = c.i[3], N = c.i[4], A = F / N;
  int32_t* const choice = c.ptr<int32_t>(0);
  const float* const bias = c.ptr<const float>(4);
  const int64_t xd = ceil_div(d, 4 * W) * 4 * W, td = ceil_div(r, 4 * W) * 4 * W;
  float* const x = static_cast<float*>(pool_scratch(0, 2, rows * (xd + td) * 4));
  float* const t = x + rows * xd;
  std::memset(x, 0, static_cast<size_t>(rows * (xd + td)) * 4);
  typed(c.p[1], c.t[1], [&](const auto* from) {
    for (int64_t row = 0; row < rows; row++)
      for (int64_t k = 0; k < d; k++) x[row * xd + k] = to_float(from[row * d + k]);
  });
  typed(c.p[2], c.t[2], [&](const auto* low) {
    const int64_t grain = ceil_div(TASK_BYTES, d * int64_t(sizeof(*low)));
    parallel_range(r, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; k++)
        for (int64_t row = 0; row < rows; row++) t[row * td + k] = dot(x + row * xd, low + k * d, d);
    });
  });
  typed(c.p[3], c.t[3], [&](const auto* logits) {
    const int64_t grain = ceil_div(TASK_BYTES, N * r * int64_t(sizeof(*logits)));
    parallel_range(A, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t a = begin; a < end; a++)
        for (int64_t row = 0; row < rows; row++) {
          float best = -__builtin_inff();
          int32_t at = 0;
          for (int64_t n = 0; n < N; n++) {
            const int64_t j = a * N + n;
            const float z = dot(t + row * td, logits + j * r, r) + (bias ? bias[j] : 0.0f);
            if (z > best) {
              best = z;
              at = static_cast<int32_t>(n);
            }
          }
          choice[row * A + a] = at;
        }
    });
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(quant_choice, {"unit_choice", unit_choice})
