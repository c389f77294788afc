// What the long convolution and its adjoint share: the runs of equal segments, rows of W channels, and the direct form.
// Kernel files only.
#pragma once
#include "fft.h"

namespace ansatz {
namespace {

// Runs up to this long are convolved directly, which is faster there (and exactly causal).
constexpr int64_t DIRECT = 96;

struct Sizes {
  int64_t B, T, C, taps;
  bool direct;
  explicit Sizes(const int64_t* i) : B(i[0]), T(i[1]), C(i[2]), taps(i[3]), direct(i[4] != 0) {}
};

// Consecutive tokens of one segment. size: 0 direct, else the number of a plan + 1.
struct Run { int64_t b, start, length, size; };

// All runs, sorted by size within groups of `batches` rows of the batch; group g has the runs first[g] .. first[g + 1].
struct Runs {
  Run* run;
  int64_t* first;
  Plan* plan;
  int64_t groups, plans, points;   // points: the largest plan's
  int64_t direct;                  // length of the longest run that is convolved directly
};

inline bool same_run(const int32_t* seg, int64_t k) { return !seg || seg[k] == seg[k - 1]; }

// Lives in thread 0's scratch 3.
inline Runs find_runs(const Sizes& s, const int32_t* seg, int64_t batches) {
  Runs r;
  r.groups = s.B > batches ? (s.B + batches - 1) / batches : 1;
  int64_t count = 0, total = 0, most = 0;
  int64_t points[128];   // of the plans
  r.plans = 0;
  r.direct = 0;
  for (int64_t b = 0; b < s.B; b++)
    for (int64_t t = 0, end; t < s.T; t = end) {
      for (end = t + 1; end < s.T && same_run(seg, b * s.T + end); end++) {}
      count++;
      if (s.direct || end - t <= DIRECT) {
        r.direct = end - t > r.direct ? end - t : r.direct;
        continue;
      }
      const int64_t M = fft_size(end - t);
      int64_t k = 0;
      while (k < r.plans && points[k] != M) k++;
      if (k < r.plans) continue;
      points[r.plans++] = M;
      total += plan_floats(M);
      most = M > most ? M : most;
    }
  r.points = most;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(Run)) + (r.groups + 1) * 8 +
                        r.plans * static_cast<int64_t>(sizeof(Plan)) + 2 * most * 8 + total * 4;
  char* memory = static_cast<char*>(pool_scratch(0, 3, bytes));
  const auto take = [&](int64_t n) { char* at = memory; memory += n; return at; };
  r.run = reinterpret_cast<Run*>(take(count * static_cast<int64_t>(sizeof(Run))));
  r.first = reinterpret_cast<int64_t*>(take((r.groups + 1) * 8));
  r.plan = reinterpret_cast<Plan*>(take(r.plans * static_cast<int64_t>(sizeof(Plan))));
  double* work = reinterpret_cast<double*>(take(2 * most * 8));
  float* table = reinterpret_cast<float*>(memory);
  for (int64_t k = 0; k < r.plans; k++, table += plan_floats(points[k - 1])) r.plan[k] = make_plan(points[k], table, work);
  int64_t at = 0;
  for (int64_t g = 0; g < r.groups; g++) {
    r.first[g] = at;
    for (int64_t size = 0; size <= r.plans; size++)
      for (int64_t b = g * batches; b < (g + 1) * batches && b < s.B; b++)
        for (int64_t t = 0, end; t < s.T; t = end) {
          for (end = t + 1; end < s.T && same_run(seg, b * s.T + end); end++) {}
          const int64_t n = end - t, own = s.direct || n <= DIRECT ? 0 : fft_size(n);
          if (own == (size ? points[size - 1] : 0)) r.run[at++] = {b, t, n, size};
        }
  }
  r.first[r.groups] = at;
  return r;
}

// ---- W channels of the rows of a tensor ------------------------------------------------------------------------------
template <class T> ANSATZ_INLINE vf load_lanes(const T* p, int64_t n) { return n == W ? load(p) : load_n(p, n); }
template <class T> ANSATZ_INLINE void store_lanes(T* p, vf x, int64_t n) {
  if (n == W) store(p, x);
  else store_n(p, x, n);
}

// The first `length` rows, twisted, with zeros behind: a source of transforms.
template <class T> struct TwistedRows {
  const T* p;
  int64_t stride, lanes, length;
  const float* twist;
  float scale;
  ANSATZ_INLINE cv operator()(int64_t k) const {
    if (k >= length) return {splat(0.0f), splat(0.0f)};
    const vf x = load_lanes(p + k * stride, lanes) * splat(scale);
    return {x * splat(twist[2 * k]), x * splat(twist[2 * k + 1])};
  }
};
// Real part of exp(-i pi k / 2M) a.
ANSATZ_INLINE vf untwist(cv a, const float* twist, int64_t k) {
  return a.re * splat(twist[2 * k]) + a.im * splat(twist[2 * k + 1]);
}

// First pass of rows into the block x; the passes below are left to the caller.
template <class T> void enter(const Plan& p, const TwistedRows<T>& rows, float* x) {
  const Level& l = p.level[0];
  const int64_t q = l.n / l.radix;
  const Block b{x};
  if (l.radix == 4) forward_pass<4>(q, l.tw, rows, b);
  else if (l.radix == 3) forward_pass<3>(q, l.tw, rows, b);
  else forward_pass<5>(q, l.tw, rows, b);
}
// Last pass of the way back: `out` takes every element.
template <class Out> void leave(const Plan& p, float* x, const Out& out) {
  const Level& l = p.level[0];
  const int64_t q = l.n / l.radix;
  const Block b{x};
  if (l.radix == 4) inverse_pass<4>(q, l.tw, b, out);
  else if (l.radix == 3) inverse_pass<3>(q, l.tw, b, out);
  else inverse_pass<5>(q, l.tw, b, out);
}
// visit(r, offset) for the blocks below the first level.
template <class F> ANSATZ_INLINE void below(const Plan& p, const F& visit) {
  const Level& l = p.level[0];
  for (int r = 0; r < l.radix; r++) visit(r * (l.n / l.radix) * STEP);
}

// The spectrum of the first taps of a filter h (rows of `stride` floats), divided by M.
inline void filter_spectrum(const Plan& p, const float* h, int64_t stride, int64_t lanes, int64_t taps, float* to) {
  const TwistedRows<float> rows{h, stride, lanes, taps < p.M ? taps : p.M, p.twist, 1.0f / static_cast<float>(p.M)};
  enter(p, rows, to);
  below(p, [&](int64_t at) { spectrum(p, 1, to + at); });
}

// ---- direct ----------------------------------------------------------------------------------------------------------
constexpr int64_t TILE = 8;   // outputs of a tile: as many sums as hide the latency of multiply-adds
inline int64_t direct_rows(int64_t n) { return (n + TILE - 1) / TILE * TILE; }

template <class T>
void copy_rows(float* to, const T* p, int64_t stride, int64_t lanes, int64_t n, int64_t valid, bool backwards) {
  for (int64_t k = 0; k < direct_rows(n); k++) {
    const int64_t from = backwards ? n - 1 - k : k;
    store(to + k * W, k < n && from < valid ? load_lanes(p + from * stride, lanes) : splat(0.0f));
  }
}

// take(k, sum over m <= k of a[k - m] b[m]) for k < n; rows of W floats, zeros behind up to direct_rows(n).
template <class F> void direct_convolution(const float* a, const float* b, int64_t n, const F& take) {
  for (int64_t k0 = 0; k0 < n; k0 += TILE) {
    vf acc[TILE] = {};
    for (int64_t m = 0; m < k0; m++) {
      const vf y = load(b + m * W);
      const float* from = a + (k0 - m) * W;
#pragma GCC unroll 8
      for (int i = 0; i < TILE; i++) acc[i] += load(from + i * W) * y;
    }
#pragma GCC unroll 8
    for (int m = 0; m < TILE; m++) {
      const vf y = load(b + (k0 + m) * W);
#pragma GCC unroll 8
      for (int i = m; i < TILE; i++) acc[i] += load(a + (i - m) * W) * y;
    }
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++)
      if (k0 + i < n) take(k0 + i, acc[i]);
  }
}

}  // namespace
}  // namespace ansatz
