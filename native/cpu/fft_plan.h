// Sizes, passes and tables of the transforms of fft.h. Kernel files only.
#pragma once
#include <cstdint>

namespace ansatz {
namespace {

constexpr double PI = 3.14159265358979323846;

struct Level { int64_t n; int radix; const float* tw; };
struct Plan {
  int64_t M;            // points: 2^a, 3 2^a or 5 2^a
  int levels;
  int64_t leaf;         // 4 or 8: what is left below the last level
  Level level[32];
  const float* twist;   // exp(i pi k / 2M), k < M
};

// The smallest size that is not less than n (n > 32).
inline int64_t fft_size(int64_t n) {
  int64_t best = 0;
  for (int64_t r = 1; r <= 5; r += 2) {   // 1, 3, 5
    int64_t m = r * 16;
    while (m < n) m *= 2;
    if (best == 0 || m < best) best = m;
  }
  return best;
}

inline int64_t plan_floats(int64_t M) { return 4 * M; }   // 2 M for the passes (1.5 n a level, quartered), 2 M for the twist

// to[2 k], to[2 k + 1] = exp(i angle k), for k < n: powers by repeated products in double.
inline void turns(double* to, double angle, int64_t n) {
  to[0] = 1;
  to[1] = 0;
  for (int64_t half = 1; half < n; half *= 2) {
    const double c = __builtin_cos(angle * static_cast<double>(half)), s = __builtin_sin(angle * static_cast<double>(half));
    for (int64_t k = half; k < n && k < 2 * half; k++) {
      const double a = to[2 * (k - half)], b = to[2 * (k - half) + 1];
      to[2 * k] = a * c - b * s;
      to[2 * k + 1] = a * s + b * c;
    }
  }
}

// `table` has plan_floats(M) floats, `work` 2 M doubles.
inline Plan make_plan(int64_t M, float* table, double* work) {
  Plan p;
  p.M = M;
  p.levels = 0;
  int64_t n = M;
  while (n > 8) {
    const int radix = n == M && n % 3 == 0 ? 3 : n == M && n % 5 == 0 ? 5 : 4;
    p.level[p.levels++] = {n, radix, table};
    const int64_t q = n / radix;
    turns(work, -2 * PI / static_cast<double>(n), q);
    for (int64_t j = 0; j < q; j++) {
      double a = 1, b = 0;
      for (int k = 1; k < radix; k++) {
        const double c = work[2 * j], s = work[2 * j + 1], t = a * c - b * s;
        b = a * s + b * c;
        a = t;
        *table++ = static_cast<float>(a);
        *table++ = static_cast<float>(b);
      }
    }
    n = q;
  }
  p.leaf = n;
  p.twist = table;
  turns(work, PI / static_cast<double>(2 * M), M);
  for (int64_t k = 0; k < 2 * M; k++) table[k] = static_cast<float>(work[k]);
  return p;
}

}  // namespace
}  // namespace ansatz
