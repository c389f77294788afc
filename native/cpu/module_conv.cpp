// Causal convolution over time and over the S modules of a token, with weights shared by all modules (Jaszczur et al.
// 2021, section 3.2): with x[B,T,S,C], off = k - (K-1) <= 0 and m = j - (J-1)/2,
//   y[b,t,s,o] = bias[o] + sum over k, j, c of x[b, t+off, s+m, c] w[o,k,j,c].
// Taps before the sequence, beyond the modules, or in another segment than t read zeros. Patches of a chunk of rows are
// gathered and multiplied as matrices.
#include "../core/pool.h"
#include "gemm.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t PATCH_BYTES = 8 << 20;
constexpr int64_t TOKENS_PER_TASK = 8;

ANSATZ_INLINE int64_t size_of(int32_t t) { return t == BF16 ? 2 : 4; }

// I = B, T, S, C, O, K, J, reverse, compute
struct Patches {
  int64_t tokens, T, S, C, O, K, J;
  bool reverse;   // the adjoint: reads t - off and s - m
  bool bf16_products;
  const int32_t* seg;
  int64_t width, step;   // elements of a patch, tokens of a chunk

  Patches(const Call& c, const void* segments, int64_t element)
      : tokens(c.i[0] * c.i[1]), T(c.i[1]), S(c.i[2]), C(c.i[3]), O(c.i[4]), K(c.i[5]), J(c.i[6]), reverse(c.i[7] != 0),
        bf16_products(c.i[8] != 0), seg(static_cast<const int32_t*>(segments)), width(K * J * C) {
    const int64_t token_bytes = S * width * element, fit = PATCH_BYTES / (token_bytes > 0 ? token_bytes : 1);
    step = fit < TOKENS_PER_TASK ? TOKENS_PER_TASK : fit;
    if (step > tokens) step = tokens > 0 ? tokens : 1;
  }

  // out[n S][width] of tokens [first, first + n)
  void gather(char* out, const char* x, int64_t element, int64_t first, int64_t n) const {
    const int64_t bytes = C * element, half = (J - 1) / 2;
    parallel_range(n, TOKENS_PER_TASK, [&](int64_t begin, int64_t end, int) {
      for (int64_t q = begin; q < end; q++) {
        const int64_t token = first + q, t = token % T;
        for (int64_t k = 0; k < K; k++) {
          const int64_t off = reverse ? K - 1 - k : k - (K - 1), from = t + off;
          const bool there = from >= 0 && from < T && (!seg || seg[token + off] == seg[token]);
          for (int64_t s = 0; s < S; s++)
            for (int64_t j = 0; j < J; j++) {
              const int64_t m = reverse ? s - (j - half) : s + (j - half);
              char* const to = out + (((q * S + s) * K + k) * J + j) * bytes;
              if (there && m >= 0 && m < S) std::memcpy(to, x + ((token + off) * S + m) * bytes, static_cast<size_t>(bytes));
              else std::memset(to, 0, static_cast<size_t>(bytes));
            }
        }
      }
    });
  }
};

// P = y[B,T,S,O], x[B,T,S,C], w f32[O,K,J,C], bias? f32[O], seg? i32[B,T]
void module_conv(const Call& c) {
  const int64_t element = size_of(c.t[1]);
  const Patches p(c, c.p[4], element);
  const int64_t patch_bytes = (p.step * p.S * p.width * element + 63) / 64 * 64;
  char* const patch = static_cast<char*>(pool_scratch(0, 3, patch_bytes + ANSATZ_GEMM_PACKED_BYTES(p.O, p.width, p.bf16_products) + 64));
  Gemm g = {};
  g.bf16_products = p.bf16_products;
  g.n = p.O;
  g.k = p.width;
  g.b = {c.p[2], F32, p.width, true};
  ANSATZ_GEMM_PACK(g, patch + patch_bytes);
  g.b_packed = patch + patch_bytes;
  g.alpha = 1;
  g.bias = c.p[3];
  g.bias_dtype = F32;
  g.c_dtype = c.t[0];
  g.ldc = p.O;
  for (int64_t first = 0; first < p.tokens; first += p.step) {
    const int64_t n = least(p.step, p.tokens - first);
    p.gather(patch, c.ptr<const char>(1), element, first, n);
    g.m = n * p.S;
    g.a = {patch, c.t[1], p.width, true};
    g.c = c.ptr<char>(0) + first * p.S * p.O * size_of(c.t[0]);
    ANSATZ_GEMM_RUN(g);
  }
}

// P = dw f32[O,K,J,C], x, dy[B,T,S,O], seg?
void module_conv_bwd_w(const Call& c) {
  const int64_t element = size_of(c.t[1]);
  const Patches p(c, c.p[3], element);
  char* const patch = static_cast<char*>(pool_scratch(0, 3, p.step * p.S * p.width * element + 64));
  if (p.tokens * p.S == 0) std::memset(c.p[0], 0, static_cast<size_t>(p.O * p.width) * 4);
  for (int64_t first = 0; first < p.tokens; first += p.step) {
    const int64_t n = least(p.step, p.tokens - first);
    p.gather(patch, c.ptr<const char>(1), element, first, n);
    Gemm g = {};
    g.bf16_products = p.bf16_products;
    g.alpha = 1;
    g.m = p.O;
    g.n = p.width;
    g.k = n * p.S;
    g.a = {c.ptr<const char>(2) + first * p.S * p.O * size_of(c.t[2]), c.t[2], p.O, false};
    g.b = {patch, c.t[1], p.width, false};
    g.c = c.p[0];
    g.c_dtype = F32;
    g.ldc = p.width;
    g.addend = first ? c.p[0] : nullptr;
    g.addend_dtype = F32;
    ANSATZ_GEMM_RUN(g);
  }
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(module_conv, {"module_conv", module_conv}, {"module_conv_bwd_w", module_conv_bwd_w})
