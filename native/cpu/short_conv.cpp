// Short causal depthwise convolutions of the parts of a packed tensor, the product of the last two parts, and the decay
// of implicit filters: what stands around a long convolution, or makes a mixer by itself. One pass over memory each.
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int MOST = 16;          // taps
constexpr int64_t ROWS = 32;      // rows of a chunk of the backward pass: their gradients stay in the L2 cache
constexpr int64_t PARTS = 64;     // most partial sums of the taps' gradients

struct Sizes {
  int64_t B, T, D, parts, convolved, K, width;   // width: of a row of z
  explicit Sizes(const int64_t* i)
      : B(i[0]), T(i[1]), D(i[2]), parts(i[3]), convolved(i[4]), K(i[5]), width(i[2] * i[3]) {}
};

// Which tokens a row reads: bit `lag` for the one so many back, if it is in the row's segment.
ANSATZ_INLINE uint32_t reach(const Sizes& s, const int32_t* seg, int64_t b, int64_t t) {
  uint32_t bits = 0;
  for (int64_t lag = 0; lag < s.K && lag <= t; lag++)
    if (!seg || seg[b * s.T + t - lag] == seg[b * s.T + t]) bits |= 1u << lag;
  return bits;
}

// Taps as [lag][channel], then the bias.
void arrange(float* to, const Sizes& s, const float* w, const float* bias) {
  const int64_t C = s.convolved * s.D;
  for (int64_t lag = 0; lag < s.K; lag++)
    for (int64_t c = 0; c < C; c++) to[lag * C + c] = w[c * s.K + s.K - 1 - lag];
  for (int64_t c = 0; c < C; c++) to[s.K * C + c] = bias ? bias[c] : 0.0f;
}

template <class T> ANSATZ_INLINE vf get(const T* p, int64_t n) { return n == W ? load(p) : load_n(p, n); }
template <class T> ANSATZ_INLINE void put(T* p, vf x, int64_t n) {
  if (n == W) store(p, x);
  else store_n(p, x, n);
}

// Channels [c, c + n) of a row of the convolved tensor; z points at the row.
template <class T>
ANSATZ_INLINE vf value(const Sizes& s, const T* z, const float* taps, uint32_t bits, int64_t c, int64_t n) {
  const int64_t C = s.convolved * s.D;
  if (c >= C) return get(z + c, n);
  vf sum = get(taps + s.K * C + c, n);
  for (int64_t lag = 0; lag < s.K; lag++)
    if (bits >> lag & 1) sum += get(taps + lag * C + c, n) * get(z - lag * s.width + c, n);
  return sum;
}

template <class T> void forward(const Call& c, const Sizes& s, T* out, T* rest, const T* z) {
  float* taps = static_cast<float*>(pool_scratch(0, 3, (s.K + 1) * s.convolved * s.D * 4));
  arrange(taps, s, c.ptr<float>(3), c.ptr<float>(4));
  const int32_t* seg = c.ptr<int32_t>(5);
  const int64_t last = (s.parts - 1) * s.D, others = s.parts > 2 ? (s.parts - 2) * s.D : 0;
  parallel_range(s.B * s.T, 1 + 32768 / (1 + s.width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const uint32_t bits = reach(s, seg, r / s.T, r % s.T);
      const T* row = z + r * s.width;
      for (int64_t d = 0; d < s.D; d += W) {
        const int64_t n = least(W, s.D - d);
        vf x = value(s, row, taps, bits, last + d, n);
        if (s.parts > 1) x *= value(s, row, taps, bits, last - s.D + d, n);
        put(out + r * s.D + d, x, n);
        for (int64_t p = 0; p < others; p += s.D) put(rest + r * others + p + d, value(s, row, taps, bits, p + d, n), n);
      }
    }
  });
}

// Gradients of the convolved tensor: of the factors of the product, and those of the other parts as they come.
template <class T>
void factor_gradients(const Sizes& s, float* g, const T* row, const float* taps, uint32_t bits, const T* dout,
                      const T* drest) {
  const int64_t last = (s.parts - 1) * s.D, others = s.parts > 2 ? (s.parts - 2) * s.D : 0;
  for (int64_t d = 0; d < s.D; d += W) {
    const int64_t n = least(W, s.D - d);
    const vf dy = get(dout + d, n);
    if (s.parts == 1) {
      put(g + d, dy, n);
    } else {
      put(g + last + d, dy * value(s, row, taps, bits, last - s.D + d, n), n);
      put(g + last - s.D + d, dy * value(s, row, taps, bits, last + d, n), n);
    }
  }
  for (int64_t c = 0; c < others; c += W) {
    const int64_t n = least(W, others - c);
    put(g + c, drest ? get(drest + c, n) : splat(0.0f), n);
  }
}

// dz of one vector of channels for `rows` rows, and the sums that the taps' gradients get from them. g and bits have
// K - 1 rows more at the end (bits 0 where there are none). KT: the number of taps when it is known, else 0.
template <int KT, class T>
void adjoint(const Sizes& s, T* dz, const T* z, const float* g, const uint32_t* bits, const float* taps, float* sums,
             int64_t rows, int64_t c, int64_t n) {
  const int64_t C = s.convolved * s.D, K = KT ? KT : s.K, row = s.width;
  vf w[KT ? KT : MOST], acc[KT ? KT : MOST], total = get(sums + K * C + c, n);
#pragma GCC unroll 4
  for (int64_t lag = 0; lag < K; lag++) {
    w[lag] = get(taps + lag * C + c, n);
    acc[lag] = get(sums + lag * C + c, n);
  }
  for (int64_t t = 0; t < rows; t++) {
    const vf own = get(g + t * row + c, n);
    total += own;
    vf sum = splat(0.0f);
#pragma GCC unroll 4
    for (int64_t lag = 0; lag < K; lag++) {
      if (bits[t + lag] >> lag & 1) sum += w[lag] * get(g + (t + lag) * row + c, n);
      if (bits[t] >> lag & 1) acc[lag] += own * get(z + (t - lag) * row + c, n);
    }
    put(dz + t * row + c, sum, n);
  }
#pragma GCC unroll 4
  for (int64_t lag = 0; lag < K; lag++) put(sums + lag * C + c, acc[lag], n);
  put(sums + K * C + c, total, n);
}

template <class T> void backward(const Call& c, const Sizes& s, T* dz, const T* z, const T* dout, const T* drest) {
  float *dw = c.ptr<float>(1), *dbias = c.ptr<float>(2);
  const int32_t* seg = c.ptr<int32_t>(6);
  const int64_t C = s.convolved * s.D, K = s.K, others = s.parts > 2 ? (s.parts - 2) * s.D : 0;
  const int64_t per_batch = (s.T + ROWS - 1) / ROWS, chunks = s.B * per_batch, each = (chunks + PARTS - 1) / PARTS;
  const int64_t parts = chunks ? (chunks + each - 1) / each : 0, size = (K + 1) * C;
  float* taps = static_cast<float*>(pool_scratch(0, 3, (1 + parts) * size * 4));
  float* sums = taps + size;
  arrange(taps, s, c.ptr<float>(4), c.ptr<float>(5));
  parallel(parts, [&](int64_t part, int thread) {
    float* to = sums + part * size;
    std::memset(to, 0, static_cast<size_t>(size) * 4);
    float* g = static_cast<float*>(pool_scratch(thread, 0, (ROWS + K) * s.width * 4));
    uint32_t bits[ROWS + MOST];
    for (int64_t chunk = part * each; chunk < least(chunks, (part + 1) * each); chunk++) {
      const int64_t b = chunk / per_batch, t0 = chunk % per_batch * ROWS, rows = least(ROWS, s.T - t0);
      const int64_t first = b * s.T + t0;
      for (int64_t r = 0; r < rows + K - 1; r++) {
        const bool real = t0 + r < s.T;
        bits[r] = real ? reach(s, seg, b, t0 + r) : 0;
        if (!real) continue;
        factor_gradients(s, g + r * s.width, z + (first + r) * s.width, taps, bits[r], dout + (first + r) * s.D,
                         drest ? drest + (first + r) * others : nullptr);
      }
      T* target = dz + first * s.width;
      const T* source = z + first * s.width;
      for (int64_t ch = 0; ch < C; ch += W) {
        const int64_t n = least(W, C - ch);
        if (K == 3) adjoint<3>(s, target, source, g, bits, taps, to, rows, ch, n);
        else if (K == 4) adjoint<4>(s, target, source, g, bits, taps, to, rows, ch, n);
        else adjoint<0>(s, target, source, g, bits, taps, to, rows, ch, n);
      }
      for (int64_t ch = C; ch < s.width; ch += W)
        for (int64_t r = 0; r < rows; r++) {
          const int64_t n = least(W, s.width - ch);
          put(target + r * s.width + ch, get(g + r * s.width + ch, n), n);
        }
    }
  });
  for (int64_t ch = 0; ch < C; ch++)
    for (int64_t lag = 0; lag <= K; lag++) {
      float sum = 0;
      for (int64_t part = 0; part < parts; part++) sum += sums[part * size + lag * C + ch];
      if (lag < K) dw[ch * K + K - 1 - lag] = sum;
      else if (dbias) dbias[ch] = sum;
    }
}

void short_conv(const Call& c) {
  const Sizes s(c.i);
  if (c.t[0] == BF16) forward(c, s, c.ptr<bf16>(0), c.ptr<bf16>(1), c.ptr<bf16>(2));
  else forward(c, s, c.ptr<float>(0), c.ptr<float>(1), c.ptr<float>(2));
}
void short_conv_bwd(const Call& c) {
  const Sizes s(c.i);
  if (c.t[0] == BF16) backward(c, s, c.ptr<bf16>(0), c.ptr<bf16>(3), c.ptr<bf16>(7), c.ptr<bf16>(8));
  else backward(c, s, c.ptr<float>(0), c.ptr<float>(3), c.ptr<float>(7), c.ptr<float>(8));
}

// out[t, c] = x[t, c] (exp(-rate(c) t) + shift), rate(c) = first + (last - first) c/(C-1). Exponentials of one row in
// ROWS are computed afresh, those between by multiplication.
void decay_window(const Call& c) {
  const int64_t rows = c.i[0], C = c.i[1];
  const float first = static_cast<float>(c.f[0]), shift = static_cast<float>(c.f[2]);
  const float slope = C > 1 ? static_cast<float>((c.f[1] - c.f[0]) / static_cast<double>(C - 1)) : 0.0f;
  float* out = c.ptr<float>(0);
  const float* x = c.ptr<float>(1);
  vf lane = splat(0.0f);
  for (int i = 0; i < W; i++) lane[i] = static_cast<float>(i);
  parallel_range(rows, ROWS, [&](int64_t begin, int64_t end, int) {
    for (int64_t ch = 0; ch < C; ch += W) {
      const int64_t n = least(W, C - ch);
      const vf rate = (lane + splat(static_cast<float>(ch))) * slope + first, step = vexp(-rate);
      vf decay = vexp(-rate * static_cast<float>(begin));
      for (int64_t t = begin; t < end; t++, decay *= step)
        put(out + t * C + ch, get(x + t * C + ch, n) * (decay + shift), n);
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(short_conv, {"short_conv", short_conv}, {"short_conv_bwd", short_conv_bwd}, {"decay_window", decay_window})
