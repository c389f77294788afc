// Rows whose blocks of N = 2, 4, 8 or 16 units divide a vector: W / N blocks at a time, reductions within groups of lanes.
#pragma once
#include "block_gate.h"

namespace ansatz {
namespace {

ANSATZ_INLINE bool fits_lanes(int64_t n) { return n > 1 && n <= W && W % n == 0; }

// x with the lanes of every pair of `step`-wide groups exchanged.
template <int STEP> ANSATZ_INLINE vf exchange(vf x) {
#if defined(__AVX512F__)
  if constexpr (STEP == 1) return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  else if constexpr (STEP == 2) return __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  else if constexpr (STEP == 4) return __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  else return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
#elif defined(__AVX2__)
  if constexpr (STEP == 1) return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
  else if constexpr (STEP == 2) return __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
  else return __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
#else
  if constexpr (STEP == 1) return __builtin_shufflevector(x, x, 1, 0, 3, 2);
  else return __builtin_shufflevector(x, x, 2, 3, 0, 1);
#endif
}

// The largest, and the sum, of each group of N lanes, in all of them. Every lane adds in an order of its own, but sums
// of two are exact to the bit either way round, so all lanes of a group agree.
template <int N> ANSATZ_INLINE vf group_max(vf x) {
  if constexpr (N > 1) x = vmax(exchange<1>(x), x);
  if constexpr (N > 2) x = vmax(exchange<2>(x), x);
  if constexpr (N > 4) x = vmax(exchange<4>(x), x);
  if constexpr (N > 8) x = vmax(exchange<8>(x), x);
  return x;
}
template <int N> ANSATZ_INLINE vf group_sum(vf x) {
  if constexpr (N > 1) x = x + exchange<1>(x);
  if constexpr (N > 2) x = x + exchange<2>(x);
  if constexpr (N > 4) x = x + exchange<4>(x);
  if constexpr (N > 8) x = x + exchange<8>(x);
  return x;
}

// NaN ranks below every number.
ANSATZ_INLINE vf ranked(vf x) { return x == x ? x : splat(-__builtin_inff()); }

// Softmax of each group; all -inf gives zeros, NaN spreads.
template <int N> ANSATZ_INLINE vf group_softmax(vf z) {
  const vf m = group_max<N>(ranked(z));
  const vf e = vexp_fast(z - select(m == -__builtin_inff(), splat(0.0f), m));
  const vf sum = group_sum<N>(e);
  return e * select(sum == 0.0f, splat(0.0f), 1.0f / sum);
}

// Position of each lane in its block, and of the first unit that attains its block's largest (in all its lanes).
template <int N> ANSATZ_INLINE vf group_lane() {
  vf x;
  for (int k = 0; k < W; k++) x[k] = static_cast<float>(k % N);
  return x;
}
template <int N> ANSATZ_INLINE vf group_first(vf x, vf lane) {
  x = ranked(x);
  return -group_max<N>(select(x == group_max<N>(x), -lane, splat(-static_cast<float>(N))));
}

template <int N> ANSATZ_INLINE void put_choice(int32_t* index, vf first, int64_t left) {
  float at[W];
  store(at, first);
  for (int b = 0; b < W / N && b * N < left; b++) index[b] = static_cast<int32_t>(at[b * N]);
}
template <int N> ANSATZ_INLINE vf get_choice(const int32_t* index, int64_t left) {
  const vi number = lane_numbers();
  vf x = splat(static_cast<float>(index[0]));
#pragma GCC unroll 8
  for (int b = 1; b < W / N; b++)
    if (b * N < left) x = select(number >= b * N, splat(static_cast<float>(index[b])), x);
  return x;
}

// a = relu(h) times the mask; z is read, noise may be null, index is written unless it is given.
template <int N>
inline void lanes_forward(const BlockGate& o, const float* z, const float* noise, const float* h, float* a,
                          int32_t* index, bool recalled) {
  const vf lane = group_lane<N>();
  for (int64_t k = 0; k < o.F; k += W, index += W / N) {
    const int64_t left = o.F - k;
    const vf logit = load_some(z + k, left);
    vf first;
    if (recalled) {
      first = get_choice<N>(index, left);
    } else {
      first = group_first<N>(noise ? logit + o.tau * load_some(noise + k, left) : logit, lane);
      put_choice<N>(index, first, left);
    }
    vf x = relu_of(load_some(h + k, left));
    if (!o.hard || o.multiply) x = x * group_softmax<N>(logit);
    if (o.hard) x = select(lane == first, x, splat(0.0f));
    store_some(a + k, x, left);
  }
}

// dz in place of z, and dh: backward_block for all blocks of a row.
template <int N>
inline void lanes_backward(const BlockGate& o, float* z, const float* h, const float* da, float* dh,
                           const int32_t* index) {
  const vf lane = group_lane<N>(), zero = splat(0.0f);
  for (int64_t k = 0; k < o.F; k += W, index += W / N) {
    const int64_t left = o.F - k;
    const vf p = group_softmax<N>(load_some(z + k, left)), hk = load_some(h + k, left);
    const vi chosen = lane == get_choice<N>(index, left);
    vf up = load_some(da + k, left);
    if (o.hard && o.multiply) up = up * p;
    vf dm = up * relu_of(hk);
    // Ahead of the ReLU the pre-activations of units that were not chosen are exactly 0: nothing flows through them.
    if (o.hard && o.before) dm = select(chosen, dm, zero);
    store_some(z + k, p * (dm - group_sum<N>(p * dm)), left);
    const vf pass = o.hard ? select(chosen, up, zero) : up * p;
    store_some(dh + k, select(hk <= 0.0f, zero, pass), left);
  }
}

#define ANSATZ_BY_BLOCK(n, call) \
  switch (n) {                   \
    case 2: call(2); return;     \
    case 4: call(4); return;     \
    ANSATZ_BY_BLOCK_8(call)      \
    ANSATZ_BY_BLOCK_16(call)     \
  }
#if defined(__AVX2__)
#define ANSATZ_BY_BLOCK_8(call) case 8: call(8); return;
#else
#define ANSATZ_BY_BLOCK_8(call)
#endif
#if defined(__AVX512F__)
#define ANSATZ_BY_BLOCK_16(call) case 16: call(16); return;
#else
#define ANSATZ_BY_BLOCK_16(call)
#endif

inline void lanes_forward(const BlockGate& o, const float* z, const float* noise, const float* h, float* a,
                          int32_t* index, bool recalled) {
#define ANSATZ_CALL(N) lanes_forward<N>(o, z, noise, h, a, index, recalled)
  ANSATZ_BY_BLOCK(o.N, ANSATZ_CALL)
#undef ANSATZ_CALL
}
inline void lanes_backward(const BlockGate& o, float* z, const float* h, const float* da, float* dh,
                           const int32_t* index) {
#define ANSATZ_CALL(N) lanes_backward<N>(o, z, h, da, dh, index)
  ANSATZ_BY_BLOCK(o.N, ANSATZ_CALL)
#undef ANSATZ_CALL
}

}  // namespace
}  // namespace ansatz
