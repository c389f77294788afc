// Products with weights in blocks: y = alpha x W^T + bias + addend, the same with one matrix a group of rows, with a
// weight that is a product of factors, and over the taps of a convolution.
#include "quant_product.h"

namespace ansatz {
namespace {

Product product_of(const Call& c, const int64_t* sizes) {
  Product p = {};
  p.n = sizes[0];
  p.k = sizes[1];
  p.format = static_cast<int32_t>(sizes[2]);
  p.kind = kind_of(p.format, sizes[3] != 0);
  p.round = sizes[3] != 0 && p.format == BF16X16;
  p.S = 1;
  p.group_step = p.n;
  p.x = c.p[1];
  p.y_type = c.t[0];
  p.x_type = c.t[1];
  p.alpha = c.nf > 0 ? static_cast<float>(c.f[0]) : 1.0f;
  return p;
}

// P = y[R, N], x[R, K], w, bias?, addend?; I = R, N, K, format, compute; F = alpha
void quant_matmul(const Call& c) {
  const int64_t R = c.i[0];
  Product p = product_of(c, c.i + 1);
  p.addend = c.p[4];
  p.bias_type = c.t[3];
  p.addend_type = c.t[4];
  if (p.n <= 0) return;
  for (int64_t row = 0; row < R; row += ROWS) {
    Segment all = {row, least(ROWS, R - row), c.ptr<const char>(2), c.p[0], c.p[3], 0, 0};
    run_segments(p, &all, 1, all.rows);
  }
}

// P = y[R, N], x[R, K], w [E, N, K], offsets i32[E + 1]; I = R, E, N, K, format, compute; F = alpha
void quant_grouped_matmul(const Call& c) {
  const int64_t R = c.i[0], E = c.i[1];
  const int32_t* const offsets = c.ptr<const int32_t>(3);
  Product p = product_of(c, c.i + 2);
  for (int64_t e = 0; e <= E; e++)
    if (offsets[e] < (e ? offsets[e - 1] : 0) || offsets[e] > R || (e == 0 && offsets[0] != 0))
      return raise(INDEX_OUT_OF_RANGE, offsets[e], R + 1);
  if (p.n <= 0) return;
  const int64_t matrix = matrix_bytes(p.format, p.n, p.k), used = offsets[E];
  Segment* const segments = static_cast<Segment*>(pool_scratch(0, 3, (E + 1) * int64_t(sizeof(Segment))));
  int64_t e = 0;
  for (int64_t row = 0; row < used;) {
    int64_t count = 0, rows = 0;
    while (rows < ROWS && row + rows < used) {
      while (offsets[e + 1] <= row + rows) e++;
      const int64_t take = least(offsets[e + 1] - row - rows, ROWS - rows);
      segments[count++] = {row + rows, take, c.ptr<const char>(2) + e * matrix, c.p[0], nullptr, 0, 0};
      rows += take;
    }
    run_segments(p, segments, count, rows);
    row += rows;
  }
  const int64_t left = (R - used) * p.n * bytes_of(p.y_type);
  if (left > 0) std::memset(static_cast<char*>(c.p[0]) + used * p.n * bytes_of(p.y_type), 0, static_cast<size_t>(left));
}

// A factored layer: y[r, s N + j] = sum over k of x[r, k] D[s, k] E[j, k] + bias[s N + j].
// P = y[R, S N], x[R, K], E, D[S, K], bias[S N]?; I = R, S, N, K, format, compute; F = alpha
void quant_factored(const Call& c) {
  const int64_t S = c.i[1], R = c.i[0] * S;
  Product p = product_of(c, c.i + 2);
  p.source = SCALED;
  p.S = S;
  p.scales = c.p[3];
  p.scales_type = c.t[3];
  p.bias_type = c.t[4];
  p.bias_step = p.n;
  p.group_step = S * p.n;
  if (p.n <= 0) return;
  const Segment whole = {0, R, c.ptr<const char>(2), c.p[0], c.p[4], 0, 0};
  if (share_rows(R, p.n))
    return parallel_rows(p, R, [&](int64_t begin, int64_t end, int thread) { multiply_rows(p, &whole, 1, begin, end, thread); });
  for (int64_t row = 0; row < R; row += ROWS) {
    Segment all = {row, least(ROWS, R - row), c.ptr<const char>(2), c.p[0], c.p[4], 0, 0};
    run_segments(p, &all, 1, all.rows);
  }
}

// The last step of up to three causal convolutions over tokens and modules, of the same input (module_conv.cpp): part q,
// y[r, q, s, o] = bias_q[o] + sum over t, j, m of x[r, t, s + j - (J_q-1)/2, m] w_q[o, t, j, m]; t = reach - 1 is row r's own token.
// P = y[R, parts, S, M], x[R, reach, S, M], then for each part w [M, reach J M] and bias f32[M]?;
// I = R, S, M, reach, format, compute, parts, J of each part
void quant_module_conv(const Call& c) {
  const int64_t S = c.i[1], M = c.i[2], reach = c.i[3], rows = c.i[0] * S, parts = c.i[6];
  const int64_t* const J = c.i + 7;
  const bool whole = c.i[4] <= Q4 && M % GROUP == 0;
  int64_t half = 0;
  Product products[3];
  Segment segments[3];
  for (int64_t q = 0; q < parts; q++) {
    const int64_t sizes[4] = {M, reach * J[q] * M, c.i[4], c.i[5]};
    Product& p = products[q] = product_of(c, sizes);
    p.source = PATCH;
    p.S = S;
    p.reach = reach;
    p.J = J[q];
    p.M = M;
    p.bias_type = F32;
    p.group_step = parts * S * M;
    segments[q] = {0, rows, c.ptr<const char>(2 + 2 * q), c.ptr<char>(0) + q * S * M * bytes_of(p.y_type), c.p[3 + 2 * q], 0, 0};
    half = (J[q] - 1) / 2 > half ? (J[q] - 1) / 2 : half;
  }
  const auto some = [&](int64_t begin, int64_t end, int thread) {
    Modules modules;
    if (whole)
      modules = quantise_modules(products[0], begin, end, half, static_cast<char*>(pool_scratch(thread, 3, modules_bytes(products[0], end - begin))));
    for (int64_t q = 0; q < parts;) {
      int64_t next = q + 1;
      while (next < parts && J[next] == J[q]) next++;   // parts that look alike far take the same rows
      Product p = products[q];
      p.modules = whole ? &modules : nullptr;
      multiply_rows(p, segments + q, next - q, begin, end, thread);
      q = next;
    }
  };
  parallel_rows(products[0], rows, some);
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(quant_matmul, {"quant_matmul", quant_matmul}, {"quant_grouped_matmul", quant_grouped_matmul},
               {"quant_factored", quant_factored}, {"quant_module_conv", quant_module_conv})
