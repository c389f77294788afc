// Reductions of runs of consecutive floats, in a fixed order whatever the number of threads.
#pragma once
#include "block.h"

namespace ansatz {
namespace {

// The first m lanes, m a constant W in full steps.
template <class T> ANSATZ_INLINE vf part(const T* p, int64_t m) { return m == W ? load(p) : load_n(p, m); }
template <class T> ANSATZ_INLINE void put_part(T* p, vf x, int64_t m) {
  if (m == W) store(p, x);
  else store_n(p, x, m);
}
// -1 in the first m lanes.
ANSATZ_INLINE vi first_lanes(int64_t m) {
  vi lane;
  for (int k = 0; k < W; k++) lane[k] = k;
  return lane < splat_i(static_cast<int32_t>(m));
}

// Calls f(k, m) for vectors k, k + W, ... of [0, n): m = W, and last the m < W elements that remain.
template <class F> ANSATZ_INLINE void for_vectors(int64_t n, const F& f) {
  int64_t k = 0;
  for (; k + W <= n; k += W) f(k, static_cast<int64_t>(W));
  if (k < n) f(k, n - k);
}

// A NaN wins, unlike in vmax and vmin. V is a scalar or a vector.
template <class V> ANSATZ_INLINE V nan_max(V a, V b) { return ((a > b) | (a != a)) ? a : b; }
template <class V> ANSATZ_INLINE V nan_min(V a, V b) { return ((a < b) | (a != a)) ? a : b; }

// What a reduction does to floats: to one another, and (for sums) in double between blocks.
struct Sum {
  static constexpr double identity = 0;
  template <class V> static ANSATZ_INLINE V f(V a, V b) { return a + b; }
  static ANSATZ_INLINE double combine(double a, double b) { return a + b; }
};
struct Max {
  static constexpr double identity = -__builtin_inf();
  template <class V> static ANSATZ_INLINE V f(V a, V b) { return nan_max(a, b); }
  static ANSATZ_INLINE double combine(double a, double b) { return nan_max(a, b); }
};
struct Min {
  static constexpr double identity = __builtin_inf();
  template <class V> static ANSATZ_INLINE V f(V a, V b) { return nan_min(a, b); }
  static ANSATZ_INLINE double combine(double a, double b) { return nan_min(a, b); }
};

// Combines the lanes pairwise, halving the vector each time (in registers: rows of 64 elements feel this).
typedef float vf4 __attribute__((vector_size(16)));
template <class Op> ANSATZ_INLINE float fold(vf4 x) {
  const vf4 y = Op::f(x, __builtin_shufflevector(x, x, 2, 3, 0, 1));
  return Op::f(static_cast<float>(y[0]), static_cast<float>(y[1]));
}
#if defined(__AVX2__)
typedef float vf8 __attribute__((vector_size(32)));
template <class Op> ANSATZ_INLINE float fold(vf8 x) {
  return fold<Op>(Op::f(__builtin_shufflevector(x, x, 0, 1, 2, 3), __builtin_shufflevector(x, x, 4, 5, 6, 7)));
}
#endif
#if defined(__AVX512F__)
template <class Op> ANSATZ_INLINE float fold(vf x) {
  return fold<Op>(Op::f(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                        __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15)));
}
#endif

// The sum of f(k, m) (a vector whose lanes from m on are 0) over [0, n): four f32 accumulators over 4096 elements,
// which combine in double.
template <class F> ANSATZ_INLINE double sum_vectors(int64_t n, const F& f) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += 4096) {
    const int64_t end = least(n, begin + 4096);
    vf a0 = {}, a1 = {}, a2 = {}, a3 = {};
    int64_t k = begin;
    for (; k + 4 * W <= end; k += 4 * W) {
      a0 += f(k, static_cast<int64_t>(W));
      a1 += f(k + W, static_cast<int64_t>(W));
      a2 += f(k + 2 * W, static_cast<int64_t>(W));
      a3 += f(k + 3 * W, static_cast<int64_t>(W));
    }
    for (; k + W <= end; k += W) a0 += f(k, static_cast<int64_t>(W));
    if (k < end) a1 += f(k, end - k);
    total += fold<Sum>((a0 + a1) + (a2 + a3));
  }
  return total;
}

// The reduction of n consecutive floats; n is a block's, so f32 accumulators do.
template <class Op> inline float reduce_run(const float* x, int64_t n) {
  const float identity = static_cast<float>(Op::identity);
  float result = identity;
  int64_t k = 0;
  if (n >= W) {
    vf a0 = splat(identity), a1 = a0, a2 = a0, a3 = a0;
    for (; k + 4 * W <= n; k += 4 * W) {
      a0 = Op::f(a0, load(x + k));
      a1 = Op::f(a1, load(x + k + W));
      a2 = Op::f(a2, load(x + k + 2 * W));
      a3 = Op::f(a3, load(x + k + 3 * W));
    }
    for (; k + W <= n; k += W) a0 = Op::f(a0, load(x + k));
    result = fold<Op>(Op::f(Op::f(a0, a1), Op::f(a2, a3)));
  }
  for (; k < n; k++) result = Op::f(result, x[k]);
  return result;
}

}  // namespace
}  // namespace ansatz
