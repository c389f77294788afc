// linear_cross_entropy: the language-model head and its loss in one kernel. With x = logit_scale h w^T,
//   loss = lse(x) - x[target] + zcoef lse(x)^2,
//   d loss / d x = softmax(x) (1 + 2 zcoef lse) - onehot(target),
// in chunks of rows: the logits of a chunk become their own gradient in place, which is multiplied into dh and dw while
// it is in the cache. [rows, V] never exists. The idea is that of the fused losses for GPUs (Hsu et al., "Liger
// Kernel", 2024); here the packed copies of w are shared by all chunks.
#include "linear_loss_rows.h"

namespace ansatz {
namespace {

void linear_cross_entropy(const Call& call) {
  const int64_t rows = call.i[0], d = call.i[1], V = call.i[2];
  const bool half = call.i[4] != 0, want_dh = call.p[1] != nullptr, want_dw = call.p[2] != nullptr;
  Loss a;
  a.V = a.columns = V;
  a.ignore = call.i[3];
  a.zcoef = static_cast<float>(call.f[0]);
  a.logit_scale = static_cast<float>(call.f[1]);
  a.bf16_products = half;
  a.gradient = want_dh || want_dw;
  a.ld = (V + 15) / 16 * 16 + 16;   // not a power of two: rows of a tile would share cache sets
  a.loss = call.ptr<float>(0);
  a.target = call.ptr<const int32_t>(5);
  a.rowscale = call.ptr<const float>(6);

  const int64_t step = loss_chunk_rows(rows, a.ld);
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
