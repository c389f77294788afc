// Weight and bias gradients of the 1-D convolution: sums over all time steps of dy[t] x[shifted t]. Time is cut into
// parts by fixed sizes; each part's sum has a place of its own, and the parts are added up in order.
#include "conv.h"

namespace ansatz {
namespace {

constexpr int64_t PARTS = 64;        // most parts
constexpr int64_t TASKS = 32;        // fewer tiles of the result than this: time is cut too, so that threads have work
constexpr int64_t SPAN = 64;         // time steps gathered at a time
constexpr int64_t ROWS = 96;         // weight rows of a task; SPAN x (ROWS + PANEL) floats fit the L1 cache
constexpr int64_t COLUMNS = 1024;    // channels of a depthwise task
constexpr int64_t CHANNELS = 16;     // input channels written at a time

// dw, dbias from partial sums [part][group][row][width]. Row k ci + c belongs to tap k of input channel c; the row
// after the last weight is the bias's.
template <class T>
void write_gradients(const Call& c, T* dw, const Shape& s, const float* part, int64_t parts, int64_t width) {
  const int64_t weights = s.K * s.ci, rows = weights + (c.p[1] != nullptr), blocks = pieces(s.co, W);
  const auto total = [&](int64_t g, int64_t row, int64_t n0) {
    vf sum = {};
    for (int64_t p = 0; p < parts; p++) sum += load(part + ((p * s.groups + g) * rows + row) * width + n0);
    return sum;
  };
  parallel(s.groups * blocks, [&](int64_t task, int thread) {
    const int64_t g = task / blocks, n0 = task % blocks * W, n = least(W, s.co - n0), o = g * s.co + n0;
    float* line = static_cast<float*>(pool_scratch(thread, 0, W * CHANNELS * s.K * 4));   // [W][channel][tap]
    for (int64_t c0 = 0; c0 < s.ci; c0 += CHANNELS) {
      const int64_t count = least(CHANNELS, s.ci - c0);
      for (int64_t k = 0; k < s.K; k++)
        for (int64_t ch = 0; ch < count; ch++) {
          const vf sum = total(g, k * s.ci + c0 + ch, n0);
          for (int64_t l = 0; l < n; l++) line[(l * CHANNELS + ch) * s.K + k] = sum[l];
        }
      for (int64_t l = 0; l < n; l++)
        copy(dw + ((o + l) * s.ci + c0) * s.K, line + l * CHANNELS * s.K, count * s.K);
    }
    if (rows == weights) return;
    if (c.t[1] == BF16) store_n(c.ptr<bf16>(1) + o, total(g, weights, n0), n);
    else store_n(c.ptr<float>(1) + o, total(g, weights, n0), n);
  });
}

void write_gradients(const Call& c, const Shape& s, const float* part, int64_t parts, int64_t width) {
  if (c.t[0] == BF16) write_gradients(c, c.ptr<bf16>(0), s, part, parts, width);
  else write_gradients(c, c.ptr<float>(0), s, part, parts, width);
}

// to[k][0:n] += sum over four time steps of x[4 k + u] dy[u], and to[K][0:n] += sum of dy when BIAS. x and dy are rows;
// steps and taps that do not exist point at zeros.
template <class T, class D>
void add_steps(float* to, int64_t width, const T* const* x, const D* const* dy, int64_t K, bool bias, int64_t n) {
  const auto columns = [&](int64_t ch, const auto& get, const auto& add) {
    const vf d0 = get(dy[0] + ch), d1 = get(dy[1] + ch), d2 = get(dy[2] + ch), d3 = get(dy[3] + ch);
    for (int64_t k = 0; k < K; k++) {
      const T* const* row = x + 4 * k;
      add(to + k * width + ch, (d0 * get(row[0] + ch) + d1 * get(row[1] + ch)) +
                                   (d2 * get(row[2] + ch) + d3 * get(row[3] + ch)));
    }
    if (bias) add(to + K * width + ch, (d0 + d1) + (d2 + d3));
  };
  int64_t ch = 0;
  for (; ch + W <= n; ch += W)
    columns(ch, [](const auto* p) { return load(p); }, [](float* p, vf v) { store(p, load(p) + v); });
  if (ch < n)
    columns(ch, [&](const auto* p) { return load_n(p, n - ch); }, [](float* p, vf v) { store(p, load(p) + v); });
}

template <class T, class D> void depthwise(const Call& c, Shape s, const T* x, const D* dy) {
  const int64_t C = s.Cin, width = lanes_up(C), K = s.K, rows = K + (c.p[1] != nullptr);
  const int64_t per_batch = pieces(s.Tout, 4), steps = s.B * per_batch, per_part = pieces(steps, PARTS);
  const int64_t parts = steps ? pieces(steps, per_part) : 0, blocks = pieces(C, COLUMNS);
  const Shift shift = shift_of(s, false);
  float* part = static_cast<float*>(pool_scratch(0, 3, parts * rows * width * 4));
  float* zeros = static_cast<float*>(pool_scratch(0, 2, C * 4));
  std::memset(zeros, 0, static_cast<size_t>(C) * 4);
  parallel(parts * blocks, [&](int64_t task, int thread) {
    const int64_t p = task / blocks, c0 = task % blocks * COLUMNS, n = least(C - c0, COLUMNS);
    float* to = part + p * rows * width + c0;
    for (int64_t r = 0; r < rows; r++) std::memset(to + r * width, 0, static_cast<size_t>(lanes_up(n)) * 4);
    const T** from = static_cast<const T**>(pool_scratch(thread, 0, 4 * K * 8));
    const D* d[4];
    for (int64_t step = p * per_part; step < least(steps, (p + 1) * per_part); step++) {
      const int64_t b = step / per_batch, t0 = step % per_batch * 4;
      for (int64_t u = 0; u < 4; u++) {
        const bool real = t0 + u < s.Tout;
        d[u] = real ? dy + (b * s.Tout + t0 + u) * C + c0 : reinterpret_cast<const D*>(zeros);
        for (int64_t k = 0; k < K; k++) {
          const int64_t row = real ? shift.row(t0 + u, k) : -1;
          from[4 * k + u] = row < 0 ? reinterpret_cast<const T*>(zeros) : x + (b * s.T + row) * C + c0;
        }
      }
      add_steps(to, width, from, d, K, rows > K, n);
    }
  });
  s.co = C;   // to the writer, C groups of one channel look like one group whose weights have one input
  s.groups = 1;
  write_gradients(c, s, part, parts, width);
}

// dw^T[row, channel out] = im2col^T dy: a task owns ROWS rows of one group and one part of time.
template <class T, class D> void grouped(const Call& c, const Shape& s, const T* x, const D* dy) {
  const int64_t rows = s.K * s.ci + (c.p[1] != nullptr), width = lanes_up(s.co), tiles = pieces(rows, ROWS);
  const int64_t per_batch = pieces(s.Tout, SPAN), spans = s.B * per_batch, blocks = s.groups * tiles;
  const int64_t wanted = least(spans, pieces(TASKS, blocks)), per_part = wanted ? pieces(spans, wanted) : 0;
  const int64_t parts = wanted ? pieces(spans, per_part) : 0;
  const Shift shift = shift_of(s, false);
  int64_t* order = static_cast<int64_t*>(pool_scratch(0, 2, s.K * 8));
  for (int64_t k = 0; k < s.K; k++) order[k] = k;
  float* part = static_cast<float*>(pool_scratch(0, 3, parts * s.groups * rows * width * 4));
  parallel(parts * blocks, [&](int64_t task, int thread) {
    const int64_t r0 = task % tiles * ROWS, m = least(ROWS, rows - r0), g = task / tiles % s.groups, p = task / blocks;
    float* a = static_cast<float*>(pool_scratch(thread, 0, SPAN * (ROWS + PANEL) * 4));
    float* d = a + SPAN * ROWS;
    float* to = part + ((p * s.groups + g) * rows + r0) * width;
    std::memset(to, 0, static_cast<size_t>(m * width) * 4);
    for (int64_t span = p * per_part; span < least(spans, (p + 1) * per_part); span++) {
      const int64_t b = span / per_batch, t0 = span % per_batch * SPAN, len = least(SPAN, s.Tout - t0);
      for (int64_t t = 0; t < len; t++)
        gather_row(a + t * m, x + b * s.T * s.Cin + g * s.ci, s.Cin, shift, t0 + t, order, s.K, s.ci, r0 / s.ci,
                   r0 % s.ci, m);
      for (int64_t n0 = 0; n0 < width; n0 += PANEL) {
        const int64_t pw = least(PANEL, width - n0), n = least(pw, s.co - n0);
        if (n < pw) std::memset(d, 0, static_cast<size_t>(len * pw) * 4);
        for (int64_t t = 0; t < len; t++) copy(d + t * pw, dy + (b * s.Tout + t0 + t) * s.Cout + g * s.co + n0, n);
        tile_panel<true>(a, m, d, pw, len, to + n0, width, m);
      }
    }
  });
  write_gradients(c, s, part, parts, width);
}

void conv1d_bwd_w(const Call& c) {
  const Shape s(c.i);
  typed(c, 2, 3, [&](auto* x, auto* dy) {
    if (s.depthwise()) depthwise(c, s, x, dy);
    else grouped(c, s, x, dy);
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(conv_weight, {"conv1d_bwd_w", conv1d_bwd_w})
