// Cross-entropy over rows of logits, with label smoothing s and the z-loss of PaLM (arXiv 2204.02311, section 5):
//   loss = lse - (1-s) x[t] - s mean(x) + z lse^2,   lse = log sum exp x
//   dloss/dx[j] = p[j] (1 + 2 z lse) - (1-s) [j = t] - s/V,   p[j] = exp(x[j] - lse)
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t BLOCK = 4096;    // columns whose maximum and sum are taken while they are in the L1 cache
constexpr int64_t GRAIN = 32768;   // logits a task

ANSATZ_INLINE vi first_lanes(int64_t n) {
  vi lane;
  for (int k = 0; k < W; k++) lane[k] = k;
  return lane < static_cast<int32_t>(n);
}
ANSATZ_INLINE float exp1(float x) { return vexp(splat(x))[0]; }

template <class T> float block_max(const T* x, int64_t n) {
  const vf low = splat(-__builtin_inff());
  vf m[4] = {low, low, low, low};
  int64_t k = 0;
  for (; k + 4 * W <= n; k += 4 * W)
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) m[u] = vmax(load(x + k + u * W), m[u]);
  for (; k + W <= n; k += W) m[0] = vmax(load(x + k), m[0]);
  if (k < n) m[0] = vmax(select(first_lanes(n - k), load_n(x + k, n - k), low), m[0]);
  return hmax(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
}

// While it computes, the next block (or row) is fetched: block_max reads as fast as memory delivers.
template <class T> float block_sum_exp(const T* x, int64_t n, float shift) {
  vf s[4] = {};
  int64_t k = 0;
  for (; k + 4 * W <= n; k += 4 * W)
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) {
      __builtin_prefetch(x + k + u * W + BLOCK);
      s[u] += vexp(load(x + k + u * W) - shift);
    }
  for (; k + W <= n; k += W) s[0] += vexp(load(x + k) - shift);
  if (k < n) s[0] += select(first_lanes(n - k), vexp(load_n(x + k, n - k) - shift), splat(0.0f));
  return hsum((s[0] + s[1]) + (s[2] + s[3]));
}

template <class T> double mean(const T* x, int64_t n) {
  double total = 0;
  for (int64_t b = 0; b < n; b += BLOCK) {
    const int64_t end = b + BLOCK < n ? b + BLOCK : n;
    vf s[4] = {};
    int64_t k = b;
    for (; k + 4 * W <= end; k += 4 * W)
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++) s[u] += load(x + k + u * W);
    for (; k + W <= end; k += W) s[0] += load(x + k);
    if (k < end) s[0] += load_n(x + k, end - k);
    total += hsum((s[0] + s[1]) + (s[2] + s[3]));
  }
  return total / static_cast<double>(n);
}

// Running maximum and sum, block by block, so that a long row is read from memory once. The sum is kept relative to
// `shift`, the maximum where that is finite: subtracting an infinite one would give NaN.
template <class T> double log_sum_exp(const T* x, int64_t n) {
  float top = -__builtin_inff(), shift = 0, sum = 0;
  for (int64_t b = 0; b < n; b += BLOCK) {
    const int64_t len = b + BLOCK < n ? BLOCK : n - b;
    const float m = block_max(x + b, len);
    if (m > top) {
      top = m;
      const float next = m == __builtin_inff() ? 0.0f : m;
      if (sum != 0.0f) sum *= exp1(shift - next);
      shift = next;
    }
    sum += block_sum_exp(x + b, len, shift);
  }
  return static_cast<double>(shift) + __builtin_log(static_cast<double>(sum));
}

bool targets_valid(const int32_t* target, int64_t rows, int64_t V, int64_t ignore) {
  for (int64_t r = 0; r < rows; r++)
    if (target[r] != ignore && (target[r] < 0 || target[r] >= V)) {
      raise(INDEX_OUT_OF_RANGE, target[r], V);
      return false;
    }
  return true;
}

int64_t rows_per_task(int64_t V) { return V < GRAIN ? GRAIN / (V > 0 ? V : 1) : 1; }

template <class T> void forward(const Call& c, const T* logits) {
  float *loss = c.ptr<float>(0), *lse = c.ptr<float>(1);
  const int32_t* target = c.ptr<int32_t>(3);
  const int64_t rows = c.i[0], V = c.i[1], ignore = c.i[2];
  const double s = c.f[0], z = c.f[1];
  parallel_range(rows, rows_per_task(V), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      if (target[r] == ignore) {
        loss[r] = lse[r] = 0;
        continue;
      }
      const T* x = logits + r * V;
      const double l = log_sum_exp(x, V);
      double value = l - (1 - s) * to_float(x[target[r]]);
      // Left out at 0: a masked logit is -inf, and 0 times that is NaN.
      if (s != 0) value -= s * mean(x, V);
      if (z != 0) value += z * l * l;
      lse[r] = static_cast<float>(l);
      loss[r] = static_cast<float>(value);
    }
  });
}

void cross_entropy(const Call& c) {
  if (!targets_valid(c.ptr<int32_t>(3), c.i[0], c.i[1], c.i[2])) return;
  if (c.t[2] == BF16) forward(c, c.ptr<bf16>(2));
  else forward(c, c.ptr<float>(2));
}

template <class TD, class T> void backward(const Call& c, TD* dlogits, const T* logits) {
  const float *lse = c.ptr<float>(2), *dloss = c.ptr<float>(4);
  const int32_t* target = c.ptr<int32_t>(3);
  const int64_t rows = c.i[0], V = c.i[1], ignore = c.i[2];
  const double s = c.f[0], z = c.f[1];
  parallel_range(rows, rows_per_task(V), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      TD* dx = dlogits + r * V;
      const T* x = logits + r * V;
      if (target[r] == ignore) {
        std::memset(static_cast<void*>(dx), 0, static_cast<size_t>(V) * sizeof(TD));
        continue;
      }
      const float l = lse[r];
      const float scale = static_cast<float>(dloss[r] * (1 + 2 * z * l));
      const float spread = static_cast<float>(dloss[r] * s / static_cast<double>(V));
      const float hit = static_cast<float>(dloss[r] * (1 - s));
      const float xt = to_float(x[target[r]]);   // read before dx, which may be x, replaces it
      int64_t k = 0;
      for (; k + 2 * W <= V; k += 2 * W) {
        const vf a = load(x + k), b = load(x + k + W);
        store(dx + k, scale * vexp(a - l) - spread);
        store(dx + k + W, scale * vexp(b - l) - spread);
      }
      for (; k < V; k += W) {
        const int64_t n = V - k < W ? V - k : W;
        store_n(dx + k, scale * vexp(load_n(x + k, n) - l) - spread, n);
      }
      store_one(dx + target[r], scale * exp1(xt - l) - spread - hit);
    }
  });
}

void cross_entropy_bwd(const Call& c) {
  if (!targets_valid(c.ptr<int32_t>(3), c.i[0], c.i[1], c.i[2])) return;
  if (c.t[0] == BF16 && c.t[1] == BF16) backward(c, c.ptr<bf16>(0), c.ptr<bf16>(1));
  else if (c.t[0] == BF16) backward(c, c.ptr<bf16>(0), c.ptr<float>(1));
  else if (c.t[1] == BF16) backward(c, c.ptr<float>(0), c.ptr<bf16>(1));
  else backward(c, c.ptr<float>(0), c.ptr<float>(1));
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(loss, {"cross_entropy", cross_entropy}, {"cross_entropy_bwd", cross_entropy_bwd})
