// 1-D convolution over [batch, time, channel] tensors, and its adjoint in x. Both are sums over (tap, channel) of
// shifted rows. Depthwise convolutions stream over channels; the others gather the shifted rows into a tile (im2col)
// and multiply it by the weights reordered to [group][panel][tap, channel][output].
#include "conv.h"

namespace ansatz {
namespace {

constexpr int64_t TILE = 48;      // output rows of a task
constexpr int64_t DEPTH = 1024;   // im2col columns gathered at a time

// ---- depthwise -----------------------------------------------------------------------------------------------------
// out[t, c] = bias[c] + sum over the taps j of w[j][c] x[j][c], all rows C long.
template <class O, class T>
void weighted_rows(O* out, const T* const* x, const float* const* w, const float* bias, int64_t taps, int64_t C) {
  int64_t c = 0;
  for (; c + 4 * W <= C; c += 4 * W) {
    vf acc[4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) acc[u] = load(bias + c + u * W);
    for (int64_t j = 0; j < taps; j++)
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++) acc[u] += load(w[j] + c + u * W) * load(x[j] + c + u * W);
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) store(out + c + u * W, acc[u]);
  }
  for (; c < C; c += W) {
    const int64_t n = least(W, C - c);
    vf acc = load_n(bias + c, n);
    for (int64_t j = 0; j < taps; j++) acc += load_n(w[j] + c, n) * load_n(x[j] + c, n);
    store_n(out + c, acc, n);
  }
}

template <class O, class T>
void depthwise_rows(O* out, const T* x, const float* wt, const Shape& s, const Shift& shift, int64_t rows) {
  const int64_t C = s.Cin;
  parallel_range(s.B * rows, 1 + 131072 / (1 + C * s.K), [&](int64_t begin, int64_t end, int thread) {
    const T** from = static_cast<const T**>(pool_scratch(thread, 0, s.K * 8));
    const float** w = static_cast<const float**>(pool_scratch(thread, 1, s.K * 8));
    for (int64_t r = begin; r < end; r++) {
      const int64_t b = r / rows, t = r % rows;
      int64_t taps = 0;
      for (int64_t k = 0; k < s.K; k++) {
        const int64_t row = shift.row(t, k);
        if (row < 0) continue;
        from[taps] = x + (b * shift.length + row) * C;
        w[taps++] = wt + k * C;
      }
      weighted_rows(out + r * C, from, w, wt + s.K * C, taps, C);
    }
  });
}

// ---- general: gathered rows times reordered weights ------------------------------------------------------------
// The taps that reach an output row depend on its phase: none but (t + pad - k dilation) divisible by the stride count
// in the adjoint. Forward there is one phase with all the taps.
struct Phases {
  int64_t count;
  int64_t *order, *first;   // taps sorted by phase; those of phase q are order[first[q] .. first[q + 1])
  Phases(const Shape& s, bool adjoint) : count(adjoint ? s.stride : 1) {
    order = static_cast<int64_t*>(pool_scratch(0, 2, (s.K + count + 1) * 8));
    first = order + s.K;
    int64_t at = 0;
    for (int64_t q = 0; q < count; q++) {
      first[q] = at;
      for (int64_t k = 0; k < s.K; k++)
        if (k * s.dilation % count == q) order[at++] = k;
    }
    first[count] = at;
  }
};

// Weights as [group][panel][tap, channel in][PANEL channels out]; the last panel is as narrow as W allows. In and out
// are those of the pass: the adjoint reads dy and yields dx.
template <class T> float* reorder_weights(const T* w, const Shape& s, bool adjoint, const int64_t* order) {
  const int64_t in = adjoint ? s.co : s.ci, out = adjoint ? s.ci : s.co, width = lanes_up(out), depth = s.K * in;
  const int64_t step_in = adjoint ? s.ci * s.K : s.K, step_out = adjoint ? s.K : s.ci * s.K;
  const int64_t panels = pieces(out, PANEL);
  float* to = static_cast<float*>(pool_scratch(0, 3, s.groups * width * depth * 4));
  parallel(s.groups * panels, [&](int64_t task, int) {
    const int64_t g = task / panels, n0 = task % panels * PANEL;
    const int64_t pw = least(PANEL, width - n0), n1 = least(pw, out - n0);
    float* panel = to + (g * width + n0) * depth;
    const T* from = w + g * s.co * s.ci * s.K + n0 * step_out;
    if (n1 < pw) std::memset(panel, 0, static_cast<size_t>(depth * pw) * 4);
    // Channels in blocks, so that what is read and what is written both stay in the L1 cache.
    for (int64_t block = 0; block < in; block += 16)
      for (int64_t n = 0; n < n1; n++)
        for (int64_t ch = block; ch < least(in, block + 16); ch++) {
          const T* taps = from + n * step_out + ch * step_in;
          float* p = panel + ch * pw + n;
          for (int64_t j = 0; j < s.K; j++) p[j * in * pw] = to_float(taps[order[j]]);
        }
  });
  return to;
}

template <class O, class T>
void grouped(const Call& c, O* out, const T* x, const Shape& s, bool adjoint, int weight, int bias) {
  const int64_t cin = adjoint ? s.Cout : s.Cin, cout = adjoint ? s.Cin : s.Cout;
  const int64_t in = cin / s.groups, n = cout / s.groups, width = lanes_up(n), rows = adjoint ? s.T : s.Tout;
  const Shift shift = shift_of(s, adjoint);
  const Phases phases(s, adjoint);
  const float* w = c.t[weight] == BF16 ? reorder_weights(c.ptr<bf16>(weight), s, adjoint, phases.order)
                                      : reorder_weights(c.ptr<float>(weight), s, adjoint, phases.order);
  const bool biased = bias >= 0 && c.p[bias];
  const int64_t tiles = pieces(pieces(rows, phases.count), TILE);
  parallel(s.B * tiles * phases.count * s.groups, [&](int64_t task, int thread) {
    const int64_t g = task % s.groups, q = task / s.groups % phases.count;
    const int64_t tile = task / (s.groups * phases.count) % tiles, b = task / (s.groups * phases.count * tiles);
    const int64_t lead = adjoint ? ((q - s.pad) % s.stride + s.stride) % s.stride : 0;   // the phase's first row
    const int64_t t0 = lead + tile * TILE * phases.count, m = least(TILE, pieces(rows - t0, phases.count));
    if (t0 >= rows) return;
    const int64_t* order = phases.order + phases.first[q];
    const int64_t taps = phases.first[q + 1] - phases.first[q], depth = taps * in;
    float* a = static_cast<float*>(pool_scratch(thread, 0, TILE * DEPTH * 4));
    float* acc = static_cast<float*>(pool_scratch(thread, 1, TILE * width * 4));
    std::memset(acc, 0, static_cast<size_t>(width) * 4);
    for (int64_t k = 0; biased && k < n; k++) acc[k] = read(c.p[bias], c.t[bias], g * n + k);
    for (int64_t i = 1; i < m; i++) std::memcpy(acc + i * width, acc, static_cast<size_t>(width) * 4);
    for (int64_t r0 = 0; r0 < depth; r0 += DEPTH) {
      const int64_t len = least(DEPTH, depth - r0);
      for (int64_t i = 0; i < m; i++)
        gather_row(a + i * len, x + b * shift.length * cin + g * in, cin, shift, t0 + i * phases.count, order, taps, in,
                   r0 / in, r0 % in, len);
      for (int64_t n0 = 0; n0 < width; n0 += PANEL) {
        const int64_t pw = least(PANEL, width - n0);
        const float* panel = w + (g * width + n0) * s.K * in + (phases.first[q] * in + r0) * pw;
        tile_panel<false>(a, len, panel, pw, len, acc + n0, width, m);
      }
    }
    for (int64_t i = 0; i < m; i++) copy(out + (b * rows + t0 + i * phases.count) * cout + g * n, acc + i * width, n);
  });
}

void convolve(const Call& c, bool adjoint, int in, int weight, int bias) {
  const Shape s(c.i);
  if (!s.depthwise()) {
    typed(c, 0, in, [&](auto* out, auto* x) { grouped(c, out, x, s, adjoint, weight, bias); });
    return;
  }
  const int64_t C = s.Cin, K = s.K;
  float* wt = static_cast<float*>(pool_scratch(0, 3, (K + 1) * C * 4));   // [K][C], then the bias
  parallel_range(C, 4096, [&](int64_t begin, int64_t end, int) {
    for (int64_t ch = begin; ch < end; ch++) {
      for (int64_t k = 0; k < K; k++) wt[k * C + ch] = read(c.p[weight], c.t[weight], ch * K + k);
      wt[K * C + ch] = bias >= 0 && c.p[bias] ? read(c.p[bias], c.t[bias], ch) : 0.0f;
    }
  });
  const Shift shift = shift_of(s, adjoint);
  typed(c, 0, in, [&](auto* out, auto* x) { depthwise_rows(out, x, wt, s, shift, adjoint ? s.T : s.Tout); });
}

void conv1d(const Call& c) { convolve(c, false, 1, 2, 3); }
void conv1d_bwd_x(const Call& c) { convolve(c, true, 2, 1, -1); }

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(conv, {"conv1d", conv1d}, {"conv1d_bwd_x", conv1d_bwd_x})
