// factored_cross_entropy: linear_cross_entropy with the output matrix in the factored form of factored.cpp. For a chunk
// of rows the logits of module s are (h D_s) E^T: E (V/S rows) is packed once and serves all modules and chunks, and
// neither [rows, V] nor the product weight [V, d] ever exists.
#include "linear_loss_rows.h"

namespace ansatz {
namespace {

constexpr int64_t COLUMNS = 64;

ANSATZ_INLINE vf load_some(const float* p, int64_t n) { return n >= W ? load(p) : load_n(p, n); }
ANSATZ_INLINE void store_some(float* p, vf x, int64_t n) {
  if (n >= W) store(p, x);
  else store_n(p, x, n);
}

// Rows of h as f32.
void widen_rows(float* out, const void* h, int32_t t, int64_t n) {
  parallel_range(n, 16384, [&](int64_t begin, int64_t end, int) {
    if (t == F32) {
      std::memcpy(out + begin, static_cast<const float*>(h) + begin, static_cast<size_t>(end - begin) * 4);
      return;
    }
    const bf16* x = static_cast<const bf16*>(h);
    for (int64_t k = begin; k < end; k += W)
      store_some(out + k, end - k >= W ? load(x + k) : load_n(x + k, end - k), end - k);
  });
}

// gated[r] = h[r] D_s
void gate_rows(float* gated, const float* h, const float* D, int64_t n, int64_t d) {
  parallel_range(n, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++)
      for (int64_t i = 0; i < d; i += W)
        store_some(gated + r * d + i, load_some(h + r * d + i, d - i) * load_some(D + i, d - i), d - i);
  });
}

// From dgated = dlogits_s E: dh += dgated D_s, dD_s += sum of dgated h over the rows.
void ungate(float* dh, float* dD, const float* dgated, const float* h, const float* D, int64_t n, int64_t d) {
  parallel_range(d, COLUMNS, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i += W) {
      const int64_t left = end - i;
      const vf gate = load_some(D + i, left);
      vf sum = load_some(dD + i, left);
      for (int64_t r = 0; r < n; r++) {
        const vf g = load_some(dgated + r * d + i, left);
        sum += g * load_some(h + r * d + i, left);
        store_some(dh + r * d + i, load_some(dh + r * d + i, left) + g * gate, left);
      }
      store_some(dD + i, sum, left);
    }
  });
}

void narrow_rows(void* out, int32_t t, const float* x, int64_t n) {
  parallel_range(n, 16384, [&](int64_t begin, int64_t end, int) {
    if (t == F32) {
      std::memcpy(static_cast<float*>(out) + begin, x + begin, static_cast<size_t>(end - begin) * 4);
      return;
    }
    bf16* o = static_cast<bf16*>(out);
    for (int64_t k = begin; k < end; k += W) {
      if (end - k >= W) store(o + k, load(x + k));
      else store_n(o + k, load_n(x + k, end - k), end - k);
    }
  });
}

ANSATZ_INLINE int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// P = loss, dh?, dD?, dE?, h, D f32[S,d], E f32[M,d], target, rowscale?; I = rows, d, S, M, V, ignore, compute;
// F = zcoef, logit_scale. V <= S M; dh, dD and dE are given together or not at all.
void factored_cross_entropy(const Call& call) {
  const int64_t rows = call.i[0], d = call.i[1], S = call.i[2], M = call.i[3];
  const bool half = call.i[6] != 0;
  const float *D = call.ptr<const float>(5), *E = call.ptr<const float>(6);
  float *dD = call.ptr<float>(2), *dE = call.ptr<float>(3);
  Loss a;
  a.V = call.i[4];
  a.columns = S * M;
  a.ignore = call.i[5];
  a.zcoef = static_cast<float>(call.f[0]);
  a.logit_scale = static_cast<float>(call.f[1]);
  a.bf16_products = half;
  a.gradient = call.p[1] != nullptr;
  a.ld = (S * M + 15) / 16 * 16 + 16;
  a.loss = call.ptr<float>(0);
  a.target = call.ptr<const int32_t>(7);
  a.rowscale = call.ptr<const float>(8);

  const int64_t step = loss_chunk_rows(rows, a.ld), row_bytes = lines(step * d * 4);
  const int64_t forward_bytes = lines(ANSATZ_GEMM_PACKED_BYTES(M, d, half));
  const int64_t backward_bytes = a.gradient ? ANSATZ_GEMM_PACKED_BYTES(d, M, half) : 0;
  char* at = static_cast<char*>(pool_scratch(0, 3, lines(step * a.ld * 4) + 4 * row_bytes + forward_bytes + backward_bytes + 64));
  const auto take = [&](int64_t bytes) { char* const p = at; return at += bytes, p; };
  a.chunk = reinterpret_cast<float*>(take(lines(step * a.ld * 4)));
  float* const h = reinterpret_cast<float*>(take(row_bytes));
  float* const gated = reinterpret_cast<float*>(take(row_bytes));
  float* const dgated = reinterpret_cast<float*>(take(row_bytes));
  float* const dh = reinterpret_cast<float*>(take(row_bytes));
  char* const packed_forward = take(forward_bytes);
  char* const packed_backward = at;

  Gemm g = {};
  g.bf16_products = half;
  g.n = M;
  g.k = d;
  g.b = {E, F32, d, true};
  ANSATZ_GEMM_PACK(g, packed_forward);
  if (a.gradient) {
    g.n = d;
    g.k = M;
    g.b = {E, F32, d, false};
    ANSATZ_GEMM_PACK(g, packed_backward);
    std::memset(dD, 0, static_cast<size_t>(S * d) * 4);
    std::memset(dE, 0, static_cast<size_t>(M * d) * 4);
  }
  const int64_t h_size = call.t[4] == BF16 ? 2 : 4;
  const int32_t grad_type = half ? BF16 : F32;
  const int64_t grad_ld = half ? 2 * a.ld : a.ld, grad_size = half ? 2 : 4;
  for (int64_t r0 = 0; r0 < rows; r0 += step) {
    const int64_t n = least(step, rows - r0);
    widen_rows(h, call.ptr<const char>(4) + r0 * d * h_size, call.t[4], n * d);
    for (int64_t s = 0; s < S; s++) {
      gate_rows(gated, h, D + s * d, n, d);
      g = {};
      g.bf16_products = half;
      g.alpha = a.logit_scale;
      g.m = n;
      g.n = M;
      g.k = d;
      g.a = {gated, F32, d, true};
      g.b_packed = packed_forward;
      g.c = a.chunk + s * M;
      g.c_dtype = F32;
      g.ldc = a.ld;
      ANSATZ_GEMM_RUN(g);
    }
    parallel_range(n, ROWS_PER_TASK, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++) finish_row(a, r0 + r, r);
    });
    if (!a.gradient) continue;
    std::memset(dh, 0, static_cast<size_t>(n * d) * 4);
    for (int64_t s = 0; s < S; s++) {
      const char* const dlogits = reinterpret_cast<const char*>(a.chunk) + s * M * grad_size;
      g = {};
      g.bf16_products = half;
      g.alpha = 1;
      g.m = n;
      g.n = d;
      g.k = M;
      g.a = {dlogits, grad_type, grad_ld, true};
      g.b_packed = packed_backward;
      g.c = dgated;
      g.c_dtype = F32;
      g.ldc = d;
      ANSATZ_GEMM_RUN(g);
      ungate(dh, dD + s * d, dgated, h, D + s * d, n, d);
      gate_rows(gated, h, D + s * d, n, d);
      g.m = M;
      g.k = n;
      g.a = {dlogits, grad_type, grad_ld, false};
      g.b = {gated, F32, d, false};
      g.b_packed = nullptr;
      g.c = dE;
      g.addend = r0 || s ? dE : nullptr;
      g.addend_dtype = F32;
      ANSATZ_GEMM_RUN(g);
    }
    narrow_rows(call.ptr<char>(1) + r0 * d * h_size, call.t[1], dh, n * d);
  }
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(factored_loss, {"factored_cross_entropy", factored_cross_entropy})
