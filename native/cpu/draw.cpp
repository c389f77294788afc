// A token of each row of logits: the likeliest, or one drawn from softmax(x / temperature) by a number that the caller
// has (the inverse of the cumulative distribution, in the order of tokens). Weights are f32 with a maximum of 1, summed in
// f32 over chunks of fixed size, chunks in double: a row's token depends on nothing but the row and its number.
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t CHUNK = 512;

struct Never {
  const int32_t* ranges;   // [2 * count]: first token, and the one after the last; empty ones stand for nothing
  int64_t count;
};

// x[k, k + W) with -inf for forbidden tokens, for what is beyond the row, and for NaN.
ANSATZ_INLINE vf allowed(const float* x, int64_t k, int64_t n, const Never& never, bool some) {
  vf v = n - k >= W ? load(x + k) : load_n(x + k, n - k);
  const vf none = splat(-__builtin_inff());
  v = select(v == v, v, none);
  if (n - k >= W && !some) return v;
  alignas(64) float lane[W];
  store(lane, v);
  for (int j = 0; j < W; j++) {
    if (k + j >= n) lane[j] = -__builtin_inff();
    for (int64_t r = 0; r < never.count; r++)
      if (k + j >= never.ranges[2 * r] && k + j < never.ranges[2 * r + 1]) lane[j] = -__builtin_inff();
  }
  return load(lane);
}

// Whether any forbidden token is in [k0, k1).
ANSATZ_INLINE bool touches(const Never& never, int64_t k0, int64_t k1) {
  for (int64_t r = 0; r < never.count; r++)
    if (never.ranges[2 * r] < k1 && never.ranges[2 * r + 1] > k0) return true;
  return false;
}

int32_t draw(const float* x, int64_t n, float temperature, uint32_t number, const Never& never, double* sums) {
  float top = -__builtin_inff();
  int64_t best_chunk = -1;
  for (int64_t k0 = 0; k0 < n; k0 += CHUNK) {
    const int64_t k1 = k0 + CHUNK < n ? k0 + CHUNK : n;
    const bool some = touches(never, k0, k1);
    vf most = splat(-__builtin_inff());
    for (int64_t k = k0; k < k1; k += W) most = vmax(allowed(x, k, n, never, some), most);
    const float m = hmax(most);
    if (m > top) top = m, best_chunk = k0;
  }
  if (best_chunk < 0) return -1;
  int32_t best = -1;
  alignas(64) float lane[W];
  for (int64_t k = best_chunk; best < 0; k += W) {
    store(lane, allowed(x, k, n, never, touches(never, k, k + W)));
    for (int j = 0; j < W && best < 0; j++)
      if (lane[j] == top) best = static_cast<int32_t>(k + j);
  }
  if (!(temperature > 0.0f) || top == __builtin_inff()) return best;

  const auto weights = [&](int64_t k, bool some) { return vexp((allowed(x, k, n, never, some) - top) / temperature); };
  double total = 0;
  for (int64_t k0 = 0, c = 0; k0 < n; k0 += CHUNK, c++) {
    const int64_t k1 = k0 + CHUNK < n ? k0 + CHUNK : n;
    const bool some = touches(never, k0, k1);
    vf sum = {};
    for (int64_t k = k0; k < k1; k += W) sum += weights(k, some);
    sums[c] = static_cast<double>(hsum(sum));
    total += sums[c];
  }
  double left = number / 4294967296.0 * total;
  int64_t last = best;
  for (int64_t k0 = 0, c = 0; k0 < n; k0 += CHUNK, c++) {
    if (sums[c] == 0.0) continue;
    const int64_t k1 = k0 + CHUNK < n ? k0 + CHUNK : n;
    const bool here = left < sums[c];
    double within = here ? left : sums[c];
    const bool some = touches(never, k0, k1);
    if (here || k1 == n) {
      for (int64_t k = k0; k < k1; k += W) {
        store(lane, weights(k, some));
        for (int j = 0; j < W && k + j < k1; j++) {
          if (lane[j] == 0.0f) continue;
          last = k + j;
          within -= static_cast<double>(lane[j]);
          if (within < 0) return static_cast<int32_t>(last);
        }
      }
      if (here) return static_cast<int32_t>(last);   // the chunk's sum was rounded up: its last token
    }
    left -= sums[c];
  }
  return static_cast<int32_t>(last);
}

// P = token i32[R], x f32[R, V], temperature f32[R], number i32[R], never i32[R, 2 N]; I = R, V, N
void draw_rows(const Call& c) {
  const int64_t R = c.i[0], V = c.i[1], N = c.i[2], chunks = (V + CHUNK - 1) / CHUNK;
  parallel(R, [&](int64_t r, int thread) {
    double* const sums = static_cast<double*>(pool_scratch(thread, 0, chunks * 8 + 64));
    Never never = {c.ptr<const int32_t>(4) + 2 * N * r, N};
    while (never.count > 0 && never.ranges[2 * never.count - 1] <= never.ranges[2 * never.count - 2]) never.count--;
    c.ptr<int32_t>(0)[r] = draw(c.ptr<const float>(1) + r * V, V, c.ptr<const float>(2)[r],
                                static_cast<uint32_t>(c.ptr<const int32_t>(3)[r]), never, sums);
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(draw, {"draw_rows", draw_rows})
