// One row of a block gate: choice, softmax and gradients within blocks of N units. See block_gate.cpp. Blocks that divide
// a vector go many at a time (block_gate_lanes.h), others one by one.
#pragma once
#include "random_philox.h"

namespace ansatz {
namespace {

struct BlockGate {
  int64_t F, N, A;              // units, units a block, blocks
  bool hard, before, multiply;  // one-hot mask; mask ahead of the ReLU; chosen units times their probability
  float tau;
};

// u of Gumbel noise lies in [U_EDGE, 1 - U_EDGE], so that -ln(-ln u) is finite.
constexpr float U_EDGE = 1e-6f, U_WIDTH = 1.0f - 2e-6f;

#define ANSATZ_EACH(statement) \
  _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) statement

// vlog of four vectors of x in [2^-126, inf): the same bits without its cases. Operation by operation, since a chain as
// long as this one fills the CPU's queues before the next vector's begins.
ANSATZ_INLINE void log_normal(vf x[4]) {
  vf m[4], y[4], z[4], e[4];
  ANSATZ_EACH(e[j] = __builtin_convertvector(((vi)x[j] >> 23) - 126, vf));
  ANSATZ_EACH(m[j] = (vf)(((vi)x[j] & 0x007fffff) | 0x3f000000));   // [0.5, 1)
  ANSATZ_EACH(z[j] = m[j] + m[j] - 1.0f);
  ANSATZ_EACH(e[j] = m[j] < 0.707106781186547524f ? e[j] - 1.0f : e[j]);
  ANSATZ_EACH(m[j] = m[j] < 0.707106781186547524f ? z[j] : m[j] - 1.0f);
  ANSATZ_EACH(z[j] = m[j] * m[j]);
  ANSATZ_EACH(y[j] = m[j] * 7.0376836292e-2f - 1.1514610310e-1f);
  ANSATZ_EACH(y[j] = y[j] * m[j] + 1.1676998740e-1f);
  ANSATZ_EACH(y[j] = y[j] * m[j] - 1.2420140846e-1f);
  ANSATZ_EACH(y[j] = y[j] * m[j] + 1.4249322787e-1f);
  ANSATZ_EACH(y[j] = y[j] * m[j] - 1.6668057665e-1f);
  ANSATZ_EACH(y[j] = y[j] * m[j] + 2.0000714765e-1f);
  ANSATZ_EACH(y[j] = y[j] * m[j] - 2.4999993993e-1f);
  ANSATZ_EACH(y[j] = y[j] * m[j] + 3.3333331174e-1f);
  ANSATZ_EACH(y[j] = y[j] * m[j] * z[j] + e[j] * -2.12194440e-4f - 0.5f * z[j]);
  ANSATZ_EACH(x[j] = m[j] + y[j] + e[j] * 0.693359375f);
}

// -ln(-ln u) of four vectors of random words. Where u is near 1, ln u is taken as ln(1 - v) of the small v = 1 - u, with
// the rounding of 1 - v put back to first order (divided by u, which 1 + v does well enough): the largest noise values
// keep their precision.
ANSATZ_INLINE void gumbel(const vu word[4], vf g[4]) {
  vf u[4], v[4], lost[4];
  ANSATZ_EACH(u[j] = unit(word[j]));
  ANSATZ_EACH(v[j] = U_EDGE + U_WIDTH * (1.0f - u[j]));
  ANSATZ_EACH(u[j] = select(v[j] < 0.25f, 1.0f - v[j], U_EDGE + U_WIDTH * u[j]));
  ANSATZ_EACH(lost[j] = select(v[j] < 0.25f, ((1.0f - u[j]) - v[j]) * (1.0f + v[j]), splat(0.0f)));
  ANSATZ_EACH(g[j] = u[j]);
  log_normal(g);
  ANSATZ_EACH(g[j] = -(g[j] + lost[j]));
  log_normal(g);
  ANSATZ_EACH(g[j] = -g[j]);
}
#undef ANSATZ_EACH

// Noise of elements [first, first + n), which begin at the returned place; `room` holds n + 4 + 4 W floats.
inline const float* gumbel_row(const Stream& s, int64_t first, int64_t n, float* room) {
  const int64_t skip = first & 3;
  for (int64_t k = 0; k < n + skip; k += 4 * W) {
    vu words[4];
    vf w[4];
    philox(s, (first + k) / 4, words);
    gumbel(words, w);
    interleave(w);
    for (int j = 0; j < 4; j++) store(room + k + j * W, w[j]);
  }
  return room + skip;
}

ANSATZ_INLINE vi lane_numbers() {
  vi lane;
  for (int k = 0; k < W; k++) lane[k] = k;
  return lane;
}
// The first n lanes of p, -inf in the others.
ANSATZ_INLINE vf load_or_low(const float* p, int64_t n) {
  return n >= W ? load(p) : select(lane_numbers() < static_cast<int32_t>(n), load_n(p, n), splat(-__builtin_inff()));
}
ANSATZ_INLINE vf load_some(const float* p, int64_t n) { return n >= W ? load(p) : load_n(p, n); }
ANSATZ_INLINE void store_some(float* p, vf x, int64_t n) {
  if (n >= W) store(p, x);
  else store_n(p, x, n);
}

// Index of the largest z + tau g (g may be null); ties go to the lowest index, NaN is never chosen.
ANSATZ_INLINE int64_t choose(const float* z, const float* g, float tau, int64_t n) {
  const vi lane = lane_numbers();
  vf best = splat(-__builtin_inff());
  vi at = vi{};
  for (int64_t k = 0; k < n; k += W) {
    vf x = load_or_low(z + k, n - k);
    if (g) x = x + tau * load_some(g + k, n - k);
    const vi better = x > best;
    best = select(better, x, best);
    at = better ? lane + static_cast<int32_t>(k) : at;
  }
  const float top = hmax(best);
  const vf candidates = select(best == top, -__builtin_convertvector(at, vf), splat(-16777216.0f));
  return static_cast<int64_t>(-hmax(candidates));
}

ANSATZ_INLINE float largest(const float* z, int64_t n) {
  vf m = splat(-__builtin_inff());
  for (int64_t k = 0; k < n; k += W) m = vmax(load_or_low(z + k, n - k), m);
  return hmax(m);
}

// z becomes softmax(z). A block of all -inf becomes zeros, NaN spreads.
ANSATZ_INLINE void softmax_block(float* z, int64_t n) {
  const float m = largest(z, n);
  if (m == -__builtin_inff() && z[0] == m) {
    for (int64_t k = 0; k < n; k++) z[k] = z[k] == m ? 0.0f : z[k];
    return;
  }
  vf sum = {};
  for (int64_t k = 0; k < n; k += W) {
    const vf e = vexp_fast(load_or_low(z + k, n - k) - m);
    store_some(z + k, e, n - k);
    sum += e;
  }
  const float scale = 1.0f / hsum(sum);
  for (int64_t k = 0; k < n; k += W) store_some(z + k, load_some(z + k, n - k) * scale, n - k);
}

ANSATZ_INLINE float relu_one(float x) { return x <= 0.0f ? 0.0f : x; }
ANSATZ_INLINE vf relu_of(vf x) { return select(x <= 0.0f, splat(0.0f), x); }

// dz (in place of p) and dh of one block. `chosen` is the index of the one-hot mask.
ANSATZ_INLINE void backward_block(const BlockGate& o, float* p, const float* h, const float* da, float* dh,
                                  int64_t chosen) {
  const int64_t n = o.N;
  if (!o.hard || !o.before) {
    const bool scaled = o.hard && o.multiply;
    const vi lane = lane_numbers();
    vf dot = {};
    for (int64_t k = 0; k < n; k += W) {
      const int64_t left = n - k;
      const vf pk = load_some(p + k, left), hk = load_some(h + k, left), dk = load_some(da + k, left);
      const vf up = scaled ? dk * pk : dk;
      const vf mask = o.hard ? select(lane + static_cast<int32_t>(k) == static_cast<int32_t>(chosen), splat(1.0f), splat(0.0f)) : pk;
      dot += pk * (up * relu_of(hk));
      store_some(dh + k, select(hk <= 0.0f, splat(0.0f), up * mask), left);
    }
    const float mean = hsum(dot);
    for (int64_t k = 0; k < n; k += W) {
      const int64_t left = n - k;
      const vf pk = load_some(p + k, left), dk = load_some(da + k, left);
      const vf dm = (scaled ? dk * pk : dk) * relu_of(load_some(h + k, left));
      store_some(p + k, pk * (dm - mean), left);
    }
    return;
  }
  // Ahead of the ReLU the pre-activations of units that were not chosen are exactly 0: nothing flows through them.
  const float pc = p[chosen], up = o.multiply ? da[chosen] * pc : da[chosen];
  const float dm = up * relu_one(h[chosen]), mean = pc * dm;
  for (int64_t k = 0; k < n; k += W) {
    store_some(dh + k, splat(0.0f), n - k);
    store_some(p + k, load_some(p + k, n - k) * -mean, n - k);
  }
  dh[chosen] = h[chosen] <= 0.0f ? 0.0f : up;
  p[chosen] = pc * (dm - mean);
}

}  // namespace
}  // namespace ansatz
