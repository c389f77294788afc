// Softmax cross-entropy of a chunk of logits whose gradient takes their place; see linear_loss.cpp.
#pragma once
#include "../core/pool.h"
#include "gemm.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t CHUNK_ROWS = 512;
constexpr int64_t CHUNK_FLOATS = 16 << 20;   // 64 MB of logits at most: fewer rows would read and write dw too often
constexpr int64_t MIN_ROWS = 56;
constexpr int64_t ROWS_PER_TASK = 4;

struct Loss {
  int64_t V, ignore;
  int64_t columns;        // of a chunk's row, V or more: the gradient of what lies beyond V is 0
  float zcoef, logit_scale;
  bool bf16_products, gradient;
  int64_t ld;             // floats between the rows of a chunk; a gradient row starts where its logits did
  float* chunk;
  const int32_t* target;
  const float* rowscale;
  float* loss;
};

// exp for x <= 0, where vexp's guards against overflow and its second scale factor are not needed (the same
// polynomial). Below -87.3 the result is about 1e-38, which vanishes in the sum; NaN stays NaN.
ANSATZ_INLINE vf exp_nonpositive(vf x) {
  const vf xc = vmax(splat(-87.33654f), x);
  const vf magic = splat(12582912.0f);
  const vf shifted = xc * 1.44269504088896341f + magic;
  const vf n = shifted - magic;
  const vf r = (xc - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = splat(1.3981999507e-3f);
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (vf)(((vi)shifted - (0x4b400000 - 127)) << 23);
}

inline float row_max(const float* x, int64_t n) {
  constexpr int LANES = 4;
  vf top[LANES];
  for (int k = 0; k < LANES; k++) top[k] = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + LANES * W <= n; i += LANES * W)
#pragma GCC unroll 4
    for (int k = 0; k < LANES; k++) top[k] = vmax(load(x + i + k * W), top[k]);
  float m = hmax(vmax(vmax(top[0], top[1]), vmax(top[2], top[3])));
  for (; i < n; i++) m = x[i] > m ? x[i] : m;
  return m;
}

// Sum of exp(x - m); with KEEP the exponentials replace x. (Values below the clamp of exp_nonpositive, -inf too, count
// as 1e-38, which no sum with a term of 1 in it can notice.)
template <bool KEEP> float exp_sum(float* x, int64_t n, float m) {
  constexpr int LANES = 4;
  vf sum[LANES] = {};
  int64_t i = 0;
  for (; i + LANES * W <= n; i += LANES * W)
#pragma GCC unroll 4
    for (int k = 0; k < LANES; k++) {
      const vf e = exp_nonpositive(load(x + i + k * W) - m);
      if (KEEP) store(x + i + k * W, e);
      sum[k] += e;
    }
  for (; i < n; i += W) {
    const int64_t left = n - i < W ? n - i : W;
    vf lane = splat(-__builtin_inff());
    std::memcpy(&lane, x + i, static_cast<size_t>(left) * 4);
    const vf e = exp_nonpositive(lane - m);
    if (KEEP) store_n(x + i, e, left);
    sum[0] += e;
  }
  return hsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// out[j] = scale x[j]; out may start where x starts (T is no wider than float).
template <class T> void scale_row(T* out, const float* x, int64_t n, float scale) {
  int64_t j = 0;
  for (; j + W <= n; j += W) store(out + j, load(x + j) * scale);
  if (j < n) store_n(out + j, load_n(x + j, n - j) * scale, n - j);
}

inline void finish_row(const Loss& a, int64_t row, int64_t in_chunk) {
  float* x = a.chunk + in_chunk * a.ld;
  const int64_t t = a.target[row];
  bool counts = t != a.ignore;
  if (counts && (t < 0 || t >= a.V)) {
    raise(INDEX_OUT_OF_RANGE, t, a.V);
    counts = false;
  }
  if (!counts) {
    a.loss[row] = 0;
    if (a.gradient) std::memset(x, 0, static_cast<size_t>(a.columns) * (a.bf16_products ? 2 : 4));
    return;
  }
  const float m = row_max(x, a.V), at_target = x[t];
  const float sum = a.gradient ? exp_sum<true>(x, a.V, m) : exp_sum<false>(x, a.V, m);
  const float lse = m + vlog(splat(sum))[0];
  a.loss[row] = lse - at_target + a.zcoef * lse * lse;
  if (!a.gradient) return;
  const float scale = (a.rowscale ? a.rowscale[row] : 1.0f) * a.logit_scale;
  const float grow = scale * (1.0f + 2.0f * a.zcoef * lse) / sum;
  const float corrected = x[t] * grow - scale;
  if (a.bf16_products) {
    bf16* g = reinterpret_cast<bf16*>(x);
    scale_row(g, x, a.V, grow);
    store_one(g + t, corrected);
    std::memset(g + a.V, 0, static_cast<size_t>(a.columns - a.V) * 2);
  } else {
    scale_row(x, x, a.V, grow);
    x[t] = corrected;
    std::memset(x + a.V, 0, static_cast<size_t>(a.columns - a.V) * 4);
  }
}

// Rows of a chunk for `width` floats each.
inline int64_t loss_chunk_rows(int64_t rows, int64_t width) {
  const int64_t fit = CHUNK_FLOATS / width, most = fit < MIN_ROWS ? MIN_ROWS : (fit < CHUNK_ROWS ? fit : CHUNK_ROWS);
  const int64_t chunks = rows > most ? (rows + most - 1) / most : 1;
  return (rows + chunks - 1) / chunks;
}

}  // namespace
}  // namespace ansatz
