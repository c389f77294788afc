// Sparse activations without a controller: statistical top-k, the L1 term, and how often units are active.
#include "block.h"
#include "elementwise_math.h"

namespace ansatz {
namespace {

constexpr int64_t PART = 16384;   // elements of one partial sum
constexpr int64_t COLUMNS = 256;  // units of one task that walks down the rows

ANSATZ_INLINE vf load_some(const float* p, int64_t n) { return n >= W ? load(p) : load_n(p, n); }
ANSATZ_INLINE void store_some(float* p, vf x, int64_t n) {
  if (n >= W) store(p, x);
  else store_n(p, x, n);
}
ANSATZ_INLINE vf keep_first(vf x, int64_t n) {
  if (n >= W) return x;
  vi lane;
  for (int k = 0; k < W; k++) lane[k] = k;
  return select(lane < static_cast<int32_t>(n), x, splat(0.0f));
}

// Statistical top-k (You et al., "Spark Transformer", arXiv 2506.06644): y = relu(x - theta), theta = mean + c std over
// the row (population std), so that a share 1 - Phi(c) of normally distributed scores stays.
// P = y, mean f32[rows], std f32[rows], x; I = rows, n; F = c
void stat_topk(const Call& call) {
  float *mean = call.ptr<float>(1), *deviation = call.ptr<float>(2);
  const int64_t rows = call.i[0], n = call.i[1];
  const float c = static_cast<float>(call.f[0]);
  parallel_range(rows, rows_a_task(n, kGrain), [&](int64_t begin, int64_t end, int thread) {
    float* room = static_cast<float*>(pool_scratch(thread, 0, 2 * n * 4 + 64));
    for (int64_t r = begin; r < end; r++) {
      const float* x = fetch(call.p[3], call.t[3], r * n, n, room);
      vf sum = {}, squares = {};
      for (int64_t k = 0; k < n; k += W) sum += load_some(x + k, n - k);
      const float m = hsum(sum) / static_cast<float>(n);
      for (int64_t k = 0; k < n; k += W) {
        const vf d = keep_first(load_some(x + k, n - k) - m, n - k);
        squares += d * d;
      }
      const float s = vsqrt(splat(hsum(squares) / static_cast<float>(n)))[0], theta = m + c * s;
      mean[r] = m;
      deviation[r] = s;
      float* y = target(call.p[0], call.t[0], r * n, room + n);
      for (int64_t k = 0; k < n; k += W) {
        const vf d = load_some(x + k, n - k) - theta;
        store_some(y + k, select(d <= 0.0f, splat(0.0f), d), n - k);
      }
      finish(call.p[0], call.t[0], r * n, n, room + n);
    }
  });
}

// With g = dy where y > 0 and G = sum g: dx = g - G (1/n + c (x - mean) / (n std)).
// P = dx, x, y, mean, std, dy; I = rows, n; F = c
void stat_topk_bwd(const Call& call) {
  const float *mean = call.ptr<float>(3), *deviation = call.ptr<float>(4);
  const int64_t rows = call.i[0], n = call.i[1];
  const float c = static_cast<float>(call.f[0]);
  parallel_range(rows, rows_a_task(n, kGrain), [&](int64_t begin, int64_t end, int thread) {
    float* room = static_cast<float*>(pool_scratch(thread, 0, 4 * n * 4 + 64));
    for (int64_t r = begin; r < end; r++) {
      const float *x = fetch(call.p[1], call.t[1], r * n, n, room), *y = fetch(call.p[2], call.t[2], r * n, n, room + n);
      const float* dy = fetch(call.p[5], call.t[5], r * n, n, room + 2 * n);
      vf sum = {};
      for (int64_t k = 0; k < n; k += W)
        sum += select(load_some(y + k, n - k) > 0.0f, load_some(dy + k, n - k), splat(0.0f));
      const float share = hsum(sum) / static_cast<float>(n), s = deviation[r];
      const float slope = s > 0.0f ? share * c / s : 0.0f, m = mean[r];
      float* dx = target(call.p[0], call.t[0], r * n, room + 3 * n);
      for (int64_t k = 0; k < n; k += W) {
        const vf g = select(load_some(y + k, n - k) > 0.0f, load_some(dy + k, n - k), splat(0.0f));
        store_some(dx + k, g - share - slope * (load_some(x + k, n - k) - m), n - k);
      }
      finish(call.p[0], call.t[0], r * n, n, room + 3 * n);
    }
  });
}

// P = out f32[1], x; I = n
void abs_sum(const Call& call) {
  const int64_t n = call.i[0], parts = (n + PART - 1) / PART;
  double* partial = static_cast<double*>(pool_scratch(0, 3, parts * 8 + 64));
  parallel(parts, [&](int64_t part, int) {
    alignas(64) float block[kBlock];
    double total = 0;
    const int64_t end = least(n, (part + 1) * PART);
    for (int64_t at = part * PART; at < end; at += kBlock) {
      const int64_t m = least(kBlock, end - at);
      const float* x = fetch(call.p[1], call.t[1], at, m, block);
      vf sum = {};
      for (int64_t k = 0; k < m; k += W) sum += vabs(load_some(x + k, m - k));
      total += static_cast<double>(hsum(sum));
    }
    partial[part] = total;
  });
  double total = 0;
  for (int64_t p = 0; p < parts; p++) total += partial[p];
  *call.ptr<float>(0) = static_cast<float>(total);
}

// dx = sign(x) g (+ addend). P = dx, x, g f32[1], addend?; I = n
void abs_sum_bwd(const Call& call) {
  const float g = *call.ptr<const float>(2);
  parallel_range(call.i[0], kGrain, [&](int64_t begin, int64_t end, int) {
    alignas(64) float sx[kBlock], sa[kBlock], so[kBlock];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t m = least(kBlock, end - at);
      const float* x = fetch(call.p[1], call.t[1], at, m, sx);
      const float* a = call.p[3] ? fetch(call.p[3], call.t[3], at, m, sa) : nullptr;
      float* dx = target(call.p[0], call.t[0], at, so);
      for (int64_t k = 0; k < m; k += W) {
        const vf v = load_some(x + k, m - k);
        vf d = select(v > 0.0f, splat(g), select(v < 0.0f, splat(-g), splat(0.0f)));
        if (a) d += load_some(a + k, m - k);
        store_some(dx + k, d, m - k);
      }
      finish(call.p[0], call.t[0], at, m, so);
    }
  });
}

// Share of rows in which each unit is not 0. P = share f32[F], x; I = rows, F
void nonzero_share(const Call& call) {
  const int64_t rows = call.i[0], F = call.i[1];
  float* share = call.ptr<float>(0);
  const float scale = 1.0f / static_cast<float>(most(1, rows));
  parallel_range(F, COLUMNS, [&](int64_t begin, int64_t end, int) {
    alignas(64) float block[COLUMNS], count[COLUMNS] = {};
    const int64_t n = end - begin;
    for (int64_t r = 0; r < rows; r++) {
      const float* x = fetch(call.p[1], call.t[1], r * F + begin, n, block);
      for (int64_t k = 0; k < n; k += W) {
        const vf hit = select(load_some(x + k, n - k) != 0.0f, splat(1.0f), splat(0.0f));
        store_some(count + k, load_some(count + k, n - k) + hit, n - k);
      }
    }
    for (int64_t k = 0; k < n; k++) share[begin + k] = count[k] * scale;
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(unit_sparsity, {"stat_topk", stat_topk}, {"stat_topk_bwd", stat_topk_bwd}, {"abs_sum", abs_sum},
               {"abs_sum_bwd", abs_sum_bwd}, {"nonzero_share", nonzero_share})
