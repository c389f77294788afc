// Causal convolution with filters as long as the sequence, one a channel, and its adjoint. Each run of tokens of one
// segment is convolved by itself: by FFT, or directly where it is short. A task has W channels of a group of rows of the
// batch; a filter's spectrum is made once for all runs of a size.
#include "long_conv.h"

namespace ansatz {
namespace {

constexpr int64_t BATCHES = 8;   // rows of the batch in a forward task: one filter transform for eight and their inverses

template <class T> void forward(const Call& c, const Sizes& s, T* y, const T* v) {
  const float *h = c.ptr<float>(2), *beta = c.ptr<float>(3);
  const Runs runs = find_runs(s, c.ptr<int32_t>(4), BATCHES);
  const int64_t blocks = (s.C + W - 1) / W;
  parallel(blocks * runs.groups, [&](int64_t task, int thread) {
    const int64_t group = task / blocks, c0 = task % blocks * W, lanes = s.C - c0 < W ? s.C - c0 : W;
    const int64_t rows = direct_rows(runs.direct) * W, floats = runs.points * STEP > rows ? runs.points * STEP : rows;
    float* filter = static_cast<float*>(pool_scratch(thread, 0, floats * 4));
    float* x = static_cast<float*>(pool_scratch(thread, 1, floats * 4));
    const vf skip = beta ? load_lanes(beta + c0, lanes) : splat(0.0f);
    int64_t size = -1;
    for (int64_t k = runs.first[group]; k < runs.first[group + 1]; k++) {
      const Run run = runs.run[k];
      const bool fresh = run.size != size;
      size = run.size;
      const T* from = v + (run.b * s.T + run.start) * s.C + c0;
      T* to = y + (run.b * s.T + run.start) * s.C + c0;
      const auto take = [&](int64_t t, vf sum) {
        store_lanes(to + t * s.C, sum + skip * load_lanes(from + t * s.C, lanes), lanes);
      };
      if (size == 0) {
        if (fresh) copy_rows(filter, h + c0, s.C, lanes, runs.direct, s.taps, false);
        copy_rows(x, from, s.C, lanes, run.length, run.length, false);
        direct_convolution(filter, x, run.length, take);
        continue;
      }
      const Plan& p = runs.plan[size - 1];
      if (fresh) filter_spectrum(p, h + c0, s.C, lanes, s.taps, filter);
      enter(p, TwistedRows<T>{from, s.C, lanes, run.length, p.twist, 1.0f}, x);
      below(p, [&](int64_t at) { multiply(p, 1, x + at, filter + at); });
      leave(p, x, [&](int64_t t, cv a) {
        if (t < run.length) take(t, untwist(a, p.twist, t));
      });
    }
  });
}

// dv = correlation of dy with h, + beta dy; dh = sum over runs of the correlation of dy with v; dbeta = sum of dy v.
template <class T> void backward(const Call& c, const Sizes& s, T* dv, const T* v, const T* dy) {
  float *dh = c.ptr<float>(1), *dbeta = c.ptr<float>(2);
  const float *h = c.ptr<float>(4), *beta = c.ptr<float>(5);
  const Runs runs = find_runs(s, c.ptr<int32_t>(7), s.B);
  parallel((s.C + W - 1) / W, [&](int64_t task, int thread) {
    const int64_t c0 = task * W, lanes = s.C - c0 < W ? s.C - c0 : W, points = runs.points * STEP;
    const int64_t rows = direct_rows(runs.direct) * W;
    // Spectra of the filter and of its gradient, then the two signals; the direct form puts four blocks of rows there.
    float* memory = static_cast<float*>(pool_scratch(thread, 0, 4 * (points > rows ? points : rows) * 4));
    float *filter = memory, *gradient = filter + points, *g = gradient + points, *x = g + points;
    float *near = memory, *near_gradient = near + rows, *back = near_gradient + rows, *ahead = back + rows;
    const vf skip = beta ? load_lanes(beta + c0, lanes) : splat(0.0f);
    vf total = splat(0.0f);
    const int64_t taps = least(s.taps, s.T);
    for (int64_t j = 0; j < s.taps; j++) store_lanes(dh + j * s.C + c0, splat(0.0f), lanes);
    const auto add = [&](int64_t j, vf sum) {
      float* to = dh + j * s.C + c0;
      store_lanes(to, load_lanes(to, lanes) + sum, lanes);
    };
    for (int64_t k = 0; k < runs.first[1]; k++) {
      const Run run = runs.run[k];
      const int64_t offset = (run.b * s.T + run.start) * s.C + c0, n = run.length;
      const T *from = v + offset, *grad = dy + offset;
      vf sum = splat(0.0f);
      const auto take = [&](int64_t t, vf part) {
        const vf d = load_lanes(grad + t * s.C, lanes);
        sum += d * load_lanes(from + t * s.C, lanes);
        store_lanes(dv + offset + t * s.C, part + skip * d, lanes);
      };
      const bool fresh = k == 0 || runs.run[k - 1].size != run.size;
      const bool last = k + 1 == runs.first[1] || runs.run[k + 1].size != run.size;
      if (run.size == 0) {
        // Correlations are convolutions with time turned round: dy'[m] = dy[n-1-m].
        if (fresh) {
          copy_rows(near, h + c0, s.C, lanes, runs.direct, s.taps, false);
          for (int64_t i = 0; i < rows; i += W) store(near_gradient + i, splat(0.0f));
        }
        copy_rows(back, grad, s.C, lanes, n, n, true);
        copy_rows(ahead, from, s.C, lanes, n, n, false);
        direct_convolution(near, back, n, [&](int64_t m, vf part) { take(n - 1 - m, part); });
        direct_convolution(back, ahead, n, [&](int64_t m, vf part) {
          float* to = near_gradient + (n - 1 - m) * W;
          store(to, load(to) + part);
        });
        if (last)
          for (int64_t j = 0; j < least(taps, runs.direct); j++) add(j, load(near_gradient + j * W));
      } else {
        const Plan& p = runs.plan[run.size - 1];
        if (fresh) {
          filter_spectrum(p, h + c0, s.C, lanes, s.taps, filter);
          for (int64_t i = 0; i < p.M * STEP; i += W) store(gradient + i, splat(0.0f));
        }
        enter(p, TwistedRows<T>{from, s.C, lanes, n, p.twist, 1.0f}, x);
        enter(p, TwistedRows<T>{grad, s.C, lanes, n, p.twist, 1.0f}, g);
        below(p, [&](int64_t at) { correlate(p, 1, g + at, x + at, filter + at, gradient + at); });
        leave(p, g, [&](int64_t t, cv a) {
          if (t < n) take(t, untwist(a, p.twist, t));
        });
        if (last) {
          const vf scale = splat(1.0f / static_cast<float>(p.M));
          below(p, [&](int64_t at) { from_spectrum(p, 1, gradient + at); });
          leave(p, gradient, [&](int64_t j, cv a) {
            if (j < taps) add(j, scale * untwist(a, p.twist, j));
          });
        }
      }
      total += sum;
    }
    if (dbeta) store_lanes(dbeta + c0, total, lanes);
  });
}

void long_conv(const Call& c) {
  const Sizes s(c.i);
  if (c.t[0] == BF16) forward(c, s, c.ptr<bf16>(0), c.ptr<bf16>(1));
  else forward(c, s, c.ptr<float>(0), c.ptr<float>(1));
}
void long_conv_bwd(const Call& c) {
  const Sizes s(c.i);
  if (c.t[0] == BF16) backward(c, s, c.ptr<bf16>(0), c.ptr<bf16>(3), c.ptr<bf16>(6));
  else backward(c, s, c.ptr<float>(0), c.ptr<float>(3), c.ptr<float>(6));
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(long_conv, {"long_conv", long_conv}, {"long_conv_bwd", long_conv_bwd})
