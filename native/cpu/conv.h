// What the passes of a 1-D convolution share: its shape, which input row a tap reads, the im2col gather and the
// register tile. Rows are the channels of one time step; see conv.cpp and conv_weight.cpp. Kernel files only.
#pragma once
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int NV = W == 16 ? 4 : 2;      // vectors of outputs in a micro-tile
constexpr int MT = 6;                    // rows of a micro-tile: 6 x NV accumulators fit the registers
constexpr int64_t PANEL = NV * W;

ANSATZ_INLINE int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }
ANSATZ_INLINE int64_t lanes_up(int64_t n) { return pieces(n, W) * W; }

struct Shape {
  int64_t B, T, Cin, Cout, K, groups, stride, pad, dilation, Tout, ci, co;   // ci, co: channels of one group
  explicit Shape(const int64_t* i)
      : B(i[0]), T(i[1]), Cin(i[2]), Cout(i[3]), K(i[4]), groups(i[5]), stride(i[6]), pad(i[7]), dilation(i[8]),
        Tout(i[9]), ci(i[2] / i[5]), co(i[3] / i[5]) {}
  bool depthwise() const { return ci == 1 && co == 1; }
};

// Source row of output row t at tap k, or -1. Forward: t stride - pad + k dilation. Adjoint: the y row that reads it.
struct Shift {
  int64_t stride, pad, dilation, length;   // length of the source
  bool adjoint;
  ANSATZ_INLINE int64_t row(int64_t t, int64_t k) const {
    int64_t s;
    if (adjoint) {
      s = t + pad - k * dilation;
      if (s < 0 || s % stride) return -1;
      s /= stride;
    } else {
      s = t * stride - pad + k * dilation;
    }
    return s >= 0 && s < length ? s : -1;
  }
};
Shift shift_of(const Shape& s, bool adjoint) { return {s.stride, s.pad, s.dilation, adjoint ? s.Tout : s.T, adjoint}; }

ANSATZ_INLINE float read(const void* p, int32_t dtype, int64_t k) {
  return dtype == BF16 ? to_float(static_cast<const bf16*>(p)[k]) : static_cast<const float*>(p)[k];
}
template <class O, class T> ANSATZ_INLINE void copy(O* o, const T* x, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) store(o + k, load(x + k));
  for (; k < n; k++) store_one(o + k, to_float(x[k]));
}
template <class F> void typed(const Call& c, int a, int b, const F& f) {
  if (c.t[a] == BF16 && c.t[b] == BF16) return f(c.ptr<bf16>(a), c.ptr<bf16>(b));
  if (c.t[a] == BF16) return f(c.ptr<bf16>(a), c.ptr<float>(b));
  if (c.t[b] == BF16) return f(c.ptr<float>(a), c.ptr<bf16>(b));
  return f(c.ptr<float>(a), c.ptr<float>(b));
}

// c[i, 0:N W] += sum over r of a(i, r) b[r, 0:N W]; a(i, r) = a[i lda + r], or a[r lda + i] when TRANS. rows <= MT: the
// missing rows repeat the last one and are not stored.
template <int N, bool TRANS>
void micro_tile(const float* a, int64_t lda, const float* b, int64_t depth, float* c, int64_t ldc, int64_t rows) {
  const float* at[MT];
  for (int i = 0; i < MT; i++) at[i] = a + least(i, rows - 1) * (TRANS ? 1 : lda);
  vf acc[MT][N] = {};
  for (int64_t r = 0; r < depth; r++) {
    vf w[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) w[j] = load(b + (r * N + j) * W);
#pragma GCC unroll 8
    for (int i = 0; i < MT; i++) {
      const vf x = splat(at[i][TRANS ? r * lda : r]);
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) acc[i][j] += x * w[j];
    }
  }
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) store(c + i * ldc + j * W, load(c + i * ldc + j * W) + acc[i][j]);
  }
}

// All rows of a tile against one panel, whose width is a multiple of W up to PANEL.
template <bool TRANS>
void tile_panel(const float* a, int64_t lda, const float* b, int64_t width, int64_t depth, float* c, int64_t ldc,
                int64_t rows) {
  for (int64_t i = 0; i < rows; i += MT) {
    const float* ai = a + i * (TRANS ? 1 : lda);
    const int64_t m = least(MT, rows - i);
    if (width == W) micro_tile<1, TRANS>(ai, lda, b, depth, c + i * ldc, ldc, m);
    else if (width == 2 * W) micro_tile<2, TRANS>(ai, lda, b, depth, c + i * ldc, ldc, m);
    else if (width == 3 * W) micro_tile<NV == 4 ? 3 : 1, TRANS>(ai, lda, b, depth, c + i * ldc, ldc, m);
    else micro_tile<NV, TRANS>(ai, lda, b, depth, c + i * ldc, ldc, m);
  }
}

// `count` columns of the im2col row of output row t, from channel ch of tap order[j]. `x` points at the group's first
// channel in its batch. Columns past the last tap are 1 (they sum the bias gradient).
template <class T>
void gather_row(float* to, const T* x, int64_t row_size, const Shift& shift, int64_t t, const int64_t* order,
                int64_t taps, int64_t channels, int64_t j, int64_t ch, int64_t count) {
  for (; count > 0; j++, ch = 0) {
    const int64_t n = least(channels - ch, count);
    if (j >= taps) {
      for (int64_t k = 0; k < n; k++) to[k] = 1.0f;
    } else {
      const int64_t row = shift.row(t, order[j]);
      if (row < 0) std::memset(to, 0, static_cast<size_t>(n) * 4);
      else copy(to, x + row * row_size + ch, n);
    }
    to += n;
    count -= n;
  }
}

}  // namespace
}  // namespace ansatz
