// linear_cross_entropy: the language-model head and its loss in one kernel. With x = logit_scale h w^T,
//   loss = lse(x) - x[target] + zcoef lse(x)^2,
//   d loss / d x = softmax(x) (1 + 2 zcoef lse) - onehot(target),
// in chunks of rows: the logits of a chunk become their own gradient in place, which is multiplied into dh and dw while
// it is in the cache. [rows, V] never exists. The idea is that of the fused losses for GPUs (Hsu et al., "Liger
// Kernel", 2024); here the packed copies of w are shared by all chunks.
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
  int64_t d, V, ignore;
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

float row_max(const float* x, int64_t n) {
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

void finish_row(const Loss& a, int64_t row, int64_t in_chunk) {
  float* x = a.chunk + in_chunk * a.ld;
  const int64_t t = a.target[row];
  bool counts = t != a.ignore;
  if (counts && (t < 0 || t >= a.V)) {
    raise(INDEX_OUT_OF_RANGE, t, a.V);
    counts = false;
  }
  if (!counts) {
    a.loss[row] = 0;
    if (a.gradient) std::memset(x, 0, static_cast<size_t>(a.V) * (a.bf16_products ? 2 : 4));
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
  } else {
    scale_row(x, x, a.V, grow);
    x[t] = corrected;
  }
}

void linear_cross_entropy(const Call& call) {
  const int64_t rows = call.i[0], d = call.i[1], V = call.i[2];
  const bool half = call.i[4] != 0, want_dh = call.p[1] != nullptr, want_dw = call.p[2] != nullptr;
  Loss a;
  a.d = d;
  a.V = V;
  a.ignore = call.i[3];
  a.zcoef = static_cast<float>(call.f[0]);
  a.logit_scale = static_cast<float>(call.f[1]);
  a.bf16_products = half;
  a.gradient = want_dh || want_dw;
  a.ld = (V + 15) / 16 * 16 + 16;   // not a power of two: rows of a tile would share cache sets
  a.loss = call.ptr<float>(0);
  a.target = call.ptr<const int32_t>(5);
  a.rowscale = call.ptr<const float>(6);

  const int64_t fit = CHUNK_FLOATS / a.ld, most = fit < MIN_ROWS ? MIN_ROWS : (fit < CHUNK_ROWS ? fit : CHUNK_ROWS);
  const int64_t chunks = rows > most ? (rows + most - 1) / most : 1, step = (rows + chunks - 1) / chunks;
  const GemmOperand w_forward = {call.p[4], call.t[4], d, true};     // lanes are the vocabulary
  const GemmOperand w_backward = {call.p[4], call.t[4], d, false};   // lanes are the width
  const int64_t chunk_bytes = (step * a.ld * 4 + 63) / 64 * 64;
  const int64_t forward_bytes = ANSATZ_GEMM_PACKED_BYTES(V, d, half);
  const int64_t backward_bytes = want_dh ? ANSATZ_GEMM_PACKED_BYTES(d, V, half) : 0;
  char* memory = static_cast<char*>(pool_scratch(0, 3, chunk_bytes + forward_bytes + backward_bytes + 64));
  a.chunk = reinterpret_cast<float*>(memory);
  char* const packed_forward = memory + chunk_bytes;
  char* const packed_backward = packed_forward + (forward_bytes + 63) / 64 * 64;

  Gemm g = {};
  g.bf16_products = half;
  g.n = V;
  g.k = d;
  g.b = w_forward;
  ANSATZ_GEMM_PACK(g, packed_forward);
  if (want_dh) {
    g.n = d;
    g.k = V;
    g.b = w_backward;
    ANSATZ_GEMM_PACK(g, packed_backward);
  }
  if (want_dw && rows == 0) std::memset(call.p[2], 0, static_cast<size_t>(V * d) * 4);

  const int64_t h_size = call.t[3] == BF16 ? 2 : 4;
  for (int64_t r0 = 0; r0 < rows; r0 += step) {
    const int64_t n = rows - r0 < step ? rows - r0 : step;
    const char* const h = call.ptr<const char>(3) + r0 * d * h_size;
    g = {};
    g.bf16_products = half;
    g.alpha = a.logit_scale;
    g.m = n;
    g.n = V;
    g.k = d;
    g.a = {h, call.t[3], d, true};
    g.b_packed = packed_forward;
    g.c = a.chunk;
    g.c_dtype = F32;
    g.ldc = a.ld;
    ANSATZ_GEMM_RUN(g);
    parallel_range(n, ROWS_PER_TASK, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++) finish_row(a, r0 + r, r);
    });
    const int32_t grad_type = half ? BF16 : F32;
    const int64_t grad_ld = half ? 2 * a.ld : a.ld;
    g.alpha = 1;
    if (want_dh) {
      g.n = d;
      g.k = V;
      g.a = {a.chunk, grad_type, grad_ld, true};
      g.b_packed = packed_backward;
      g.c = call.ptr<char>(1) + r0 * d * h_size;
      g.c_dtype = call.t[1];
      g.ldc = d;
      ANSATZ_GEMM_RUN(g);
    }
    if (want_dw) {
      g.m = V;
      g.n = d;
      g.k = n;
      g.a = {a.chunk, grad_type, grad_ld, false};
      g.b = {h, call.t[3], d, false};
      g.b_packed = nullptr;
      g.c = call.p[2];
      g.c_dtype = F32;
      g.ldc = d;
      g.addend = r0 ? call.p[2] : nullptr;
      g.addend_dtype = F32;
      ANSATZ_GEMM_RUN(g);
    }
  }
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(linear_loss, {"linear_cross_entropy", linear_cross_entropy})
