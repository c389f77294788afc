// The multiplicative ("factored") dense layer (Jaszczur et al. 2021, section 3.2): y[s M + m] = sum_i x[i] D[s,i] E[m,i].
// It needs d M + S d weights instead of S M d, and as many multiplications as a dense layer. The product weight
// W[s,m,i] = D[s,i] E[m,i] lives in scratch memory, as many modules at a time as fit PANEL_FLOATS.
#include "../core/pool.h"
#include "gemm.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t PANEL_FLOATS = 16 << 20;   // 64 MB
constexpr int64_t COLUMNS = 64;

ANSATZ_INLINE vf load_some(const float* p, int64_t n) { return n >= W ? load(p) : load_n(p, n); }
ANSATZ_INLINE void store_some(float* p, vf x, int64_t n) {
  if (n >= W) store(p, x);
  else store_n(p, x, n);
}

struct Factors {
  int64_t rows, d, S, M;
  bool bf16_products;
  const float *D, *E;
  int64_t panel;   // modules of a panel

  explicit Factors(const Call& c, int first)
      : rows(c.i[0]), d(c.i[1]), S(c.i[2]), M(c.i[3]), bf16_products(c.i[4] != 0), D(c.ptr<const float>(first)),
        E(c.ptr<const float>(first + 1)) {
    const int64_t fit = PANEL_FLOATS / (M * d > 0 ? M * d : 1);
    panel = fit < 1 ? 1 : (fit < S ? fit : S);
  }
  int64_t panel_floats() const { return panel * M * d; }

  // w[p M][d] of modules [s0, s0 + p)
  void weights(float* w, int64_t s0, int64_t p) const {
    parallel_range(p * M, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        const float *a = D + (s0 + row / M) * d, *b = E + row % M * d;
        for (int64_t i = 0; i < d; i += W) store_some(w + row * d + i, load_some(a + i, d - i) * load_some(b + i, d - i), d - i);
      }
    });
  }
};

int64_t size_of(int32_t t) { return t == BF16 ? 2 : 4; }

// P = y[rows, S M], x[rows, d], D f32[S, d], E f32[M, d], bias? f32[S M]; I = rows, d, S, M, compute
void factored_linear(const Call& c) {
  const Factors f(c, 2);
  float* const w = static_cast<float*>(pool_scratch(0, 3, f.panel_floats() * 4 + 64));
  for (int64_t s0 = 0; s0 < f.S; s0 += f.panel) {
    const int64_t p = least(f.panel, f.S - s0);
    f.weights(w, s0, p);
    Gemm g = {};
    g.bf16_products = f.bf16_products;
    g.alpha = 1;
    g.m = f.rows;
    g.n = p * f.M;
    g.k = f.d;
    g.a = {c.p[1], c.t[1], f.d, true};
    g.b = {w, F32, f.d, true};
    g.c = c.ptr<char>(0) + s0 * f.M * size_of(c.t[0]);
    g.c_dtype = c.t[0];
    g.ldc = f.S * f.M;
    if (c.p[4]) g.bias = c.ptr<const float>(4) + s0 * f.M;
    g.bias_dtype = F32;
    ANSATZ_GEMM_RUN(g);
  }
}

// P = dx, dD, dE, x, D, E, dy; I as above
void factored_linear_bwd(const Call& c) {
  const Factors f(c, 4);
  const int64_t d = f.d, M = f.M;
  float *const dD = c.ptr<float>(1), *const dE = c.ptr<float>(2);
  float* const w = static_cast<float*>(pool_scratch(0, 3, 2 * f.panel_floats() * 4 + 64));
  float* const dw = w + f.panel_floats();
  std::memset(dE, 0, static_cast<size_t>(M * d) * 4);
  for (int64_t s0 = 0; s0 < f.S; s0 += f.panel) {
    const int64_t p = least(f.panel, f.S - s0);
    const char* const dy = c.ptr<const char>(6) + s0 * M * size_of(c.t[6]);
    f.weights(w, s0, p);
    Gemm g = {};
    g.bf16_products = f.bf16_products;
    g.alpha = 1;
    g.m = f.rows;
    g.n = d;
    g.k = p * M;
    g.a = {dy, c.t[6], f.S * M, true};
    g.b = {w, F32, d, false};
    g.c = c.p[0];
    g.c_dtype = c.t[0];
    g.ldc = d;
    g.addend = s0 ? c.p[0] : nullptr;
    g.addend_dtype = c.t[0];
    ANSATZ_GEMM_RUN(g);
    g.m = p * M;
    g.k = f.rows;
    g.a = {dy, c.t[6], f.S * M, false};
    g.b = {c.p[3], c.t[3], d, false};
    g.c = dw;
    g.c_dtype = F32;
    g.addend = nullptr;
    ANSATZ_GEMM_RUN(g);
    parallel_range(d, COLUMNS, [&](int64_t begin, int64_t end, int) {
      for (int64_t s = 0; s < p; s++)
        for (int64_t i = begin; i < end; i += W) {
          const int64_t left = end - i;
          const vf ds = load_some(f.D + (s0 + s) * d + i, left);
          vf sum = {};
          for (int64_t m = 0; m < M; m++) {
            const vf g = load_some(dw + (s * M + m) * d + i, left);
            sum += g * load_some(f.E + m * d + i, left);
            store_some(dE + m * d + i, load_some(dE + m * d + i, left) + g * ds, left);
          }
          store_some(dD + (s0 + s) * d + i, sum, left);
        }
    });
  }
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(factored, {"factored_linear", factored_linear}, {"factored_linear_bwd", factored_linear_bwd})
