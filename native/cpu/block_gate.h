// One row of a block gate: choice, softmax and gradients within blocks of N units. See block_gate.cpp.
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

// Where u is near 1, ln u is taken as ln(1 - v) of the small v = 1 - u, with the rounding of 1 - v put back to first
// order: the largest noise values keep their precision.
ANSATZ_INLINE vf gumbel(vu word) {
  const vf upper = unit(word), v = U_EDGE + U_WIDTH * (1.0f - upper);
  const vi near_one = v < 0.25f;
  const vf u = select(near_one, 1.0f - v, U_EDGE + U_WIDTH * upper);
  const vf lost = select(near_one, ((1.0f - u) - v) / u, splat(0.0f));
  return -vlog(-(vlog(u) + lost));
}

// Noise of elements [first, first + n), which begin at the returned place; `room` holds n + 4 + 4 W floats.
inline const float* gumbel_row(const Stream& s, int64_t first, int64_t n, float* room) {
  const int64_t skip = first & 3;
  for (int64_t k = 0; k < n + skip; k += 4 * W) {
    vu words[4];
    vf w[4];
    philox(s, (first + k) / 4, words);
    for (int j = 0; j < 4; j++) w[j] = gumbel(words[j]);
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
