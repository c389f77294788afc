// The controller of a layer that uses one unit of every block: t = low x, z = logits t + bias, and the first largest z of
// each block. Sums are f32, whatever the weights are stored as: a rounded logit is another choice.
//
// The logits' weights come as a matrix [F, r], or in strips of 16 units so that a register holds one input of 16 units and
// nothing is summed across lanes: f32 [F/16][r][16], or bf16 in pairs of inputs [F/16][r/2][16][2].
#include "../core/pool.h"
#include "quant_dot.h"

namespace ansatz {
namespace {

constexpr int64_t TASK_BYTES = 16 << 10;
constexpr int64_t SERIAL = 32 << 10;   // values that one thread copies rather than wake the others
constexpr int64_t AHEAD_BYTES = 8 << 10;
constexpr int ROWS = 4;                // that share what is read of weights
enum Layout { MATRIX = 0, STRIPS_F32 = 1, STRIPS_BF16 = 2 };

// <a[i], b> over n floats for R rows a; they are padded with zeros to a multiple of 4 W. A row's sum is made the same way
// whatever R is.
template <int R, class T> ANSATZ_INLINE void dots(const float* a, int64_t a_step, const T* b, int64_t n, float* out, int64_t out_step) {
  vf s[R][4] = {};
  int64_t k = 0;
  for (; k + 4 * W <= n; k += 4 * W)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const vf w = load(b + k + j * W);
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) s[i][j] = fused(w, load(a + i * a_step + k + j * W), s[i][j]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const int64_t left = n - k - j * W;
    if (left <= 0) break;
    const vf w = left >= W ? load(b + k + j * W) : load_n(b + k + j * W, left);
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) s[i][j] = fused(w, load(a + i * a_step + k + j * W), s[i][j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) out[i * out_step] = hsum((s[i][0] + s[i][1]) + (s[i][2] + s[i][3]));
}
template <class T> ANSATZ_INLINE float dot(const float* a, const T* b, int64_t n) {
  float out;
  dots<1>(a, 0, b, n, &out, 0);
  return out;
}

template <class F> void typed(const void* p, int32_t t, const F& f) {
  if (t == BF16) f(static_cast<const bf16*>(p));
  else f(static_cast<const float*>(p));
}

// The largest value so far of each lane, and which of the block's units it was; NaN is no value.
struct Best {
  vf z;
  vi unit;
};
constexpr int HALVES = 16 / W;   // registers of a strip

// z of N units from strip `w` on, for R rows t of r values: units[i] is the first largest.
template <Layout LAYOUT, int R>
ANSATZ_INLINE void choose_block(const float* t, int64_t t_step, int64_t r, const char* w, const float* bias, int64_t N, int32_t* units) {
  const int64_t strip = LAYOUT == STRIPS_F32 ? r * 64 : (r + 1) / 2 * 64;
  alignas(64) int32_t count[W];
  for (int k = 0; k < W; k++) count[k] = k;
  const vi lanes = *reinterpret_cast<const vi*>(count);
  Best best[R];
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) best[i] = {splat(-__builtin_inff()), vi{}};
  constexpr int V = R == 1 ? 4 : 2;   // registers at a time
  const int64_t most = N / W;
  for (int64_t v0 = 0; v0 < most; v0 += V) {
    vf z[R][V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      const vf b = bias && v0 + v < most ? load(bias + (v0 + v) * W) : vf{};
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) z[i][v] = b;
    }
    // A register beyond the block reads the last one again.
    const char* from[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      const int64_t at = v0 + v < most ? v0 + v : most - 1;
      from[v] = w + at / HALVES * strip + at % HALVES * W * 4;
    }
    if (LAYOUT == STRIPS_F32) {
      for (int64_t k = 0; k < r; k++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
          const vf x = load(reinterpret_cast<const float*>(from[v] + k * 64));
#pragma GCC unroll 4
          for (int i = 0; i < R; i++) z[i][v] = fused(x, splat(t[i * t_step + k]), z[i][v]);
        }
    } else {
      for (int64_t k = 0; k < r; k += 2)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
          __builtin_prefetch(from[v] + k / 2 * 64 + AHEAD_BYTES);
          const vu pair = (vu)*reinterpret_cast<const vi_u*>(from[v] + k / 2 * 64);
          const vf even = (vf)(pair << 16), odd = (vf)(pair & 0xffff0000u);
#pragma GCC unroll 4
          for (int i = 0; i < R; i++)
            z[i][v] = fused(odd, splat(t[i * t_step + k + 1]), fused(even, splat(t[i * t_step + k]), z[i][v]));
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      if (v0 + v >= most) break;
      const vi unit = lanes + static_cast<int32_t>((v0 + v) * W);
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) {
        const vi above = z[i][v] > best[i].z;
        best[i].z = select(above, z[i][v], best[i].z);
        best[i].unit = above ? unit : best[i].unit;
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) {
    const vf top = splat(hmax(best[i].z));
    const vi where = best[i].z == top ? best[i].unit : vi{} + INT32_MAX;
#if defined(__AVX512F__)
    const int32_t unit = _mm512_reduce_min_epi32((__m512i)where);
#else
    int32_t unit = where[0];
    for (int k = 1; k < W; k++) unit = where[k] < unit ? where[k] : unit;
#endif
    units[i] = unit == INT32_MAX ? 0 : unit;
  }
}

template <Layout LAYOUT>
void choose_strips(int32_t* choice, const float* t, int64_t t_step, int64_t rows, int64_t r, const char* w, const float* bias, int64_t A, int64_t N) {
  const int64_t block = N / 16 * (LAYOUT == STRIPS_F32 ? r * 64 : (r + 1) / 2 * 64);
  // Whole lines of choices to a task: two cores that write to one line wait for each other.
  const int64_t grain = ceil_div(ceil_div(TASK_BYTES, block * (1 + rows / 8)), 16) * 16;
  parallel_range(A, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t a = begin; a < end; a++) {
      const char* const at = w + a * block;
      const float* const own = bias ? bias + a * N : nullptr;
      int32_t units[ROWS];
      int64_t row = 0;
      for (; row + ROWS <= rows; row += ROWS) {
        choose_block<LAYOUT, ROWS>(t + row * t_step, t_step, r, at, own, N, units);
        for (int i = 0; i < ROWS; i++) choice[(row + i) * A + a] = units[i];
      }
      for (; row < rows; row++) choose_block<LAYOUT, 1>(t + row * t_step, t_step, r, at, own, N, choice + row * A + a);
    }
  });
}

void choose_matrix(const Call& c, const float* t, int64_t t_step, const float* bias) {
  const int64_t rows = c.i[0], r = c.i[2], N = c.i[4], A = c.i[3] / N;
  int32_t* const choice = c.ptr<int32_t>(0);
  typed(c.p[3], c.t[3], [&](const auto* logits) {
    const int64_t grain = ceil_div(TASK_BYTES, N * r * int64_t(sizeof(*logits)));
    parallel_range(A, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t a = begin; a < end; a++)
        for (int64_t row = 0; row < rows; row++) {
          float best = -__builtin_inff();
          int32_t at = 0;
          for (int64_t n = 0; n < N; n++) {
            const int64_t j = a * N + n;
            const float z = dot(t + row * t_step, logits + j * r, r) + (bias ? bias[j] : 0.0f);
            if (z > best) {
              best = z;
              at = static_cast<int32_t>(n);
            }
          }
          choice[row * A + a] = at;
        }
    });
  });
}

// P = choice i32[rows, A], x[rows, d], low[r, d], logits, bias f32[F]?; I = rows, d, r, F, N, layout of the logits
void unit_choice(const Call& c) {
  const int64_t rows = c.i[0], d = c.i[1], r = c.i[2], F = c.i[3], N = c.i[4], A = F / N;
  const float* const bias = c.ptr<const float>(4);
  const int64_t xd = ceil_div(d, 4 * W) * 4 * W, td = ceil_div(r, 4 * W) * 4 * W;
  float* const x = static_cast<float*>(pool_scratch(0, 2, rows * (xd + td) * 4));
  float* const t = x + rows * xd;
  typed(c.p[1], c.t[1], [&](const auto* from) {
    const auto widen_rows = [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        for (int64_t k = 0; k < xd; k += W) {
          const int64_t left = d - k;
          store(x + row * xd + k, left >= W ? load(from + row * d + k) : left > 0 ? load_n(from + row * d + k, left) : vf{});
        }
        std::memset(t + row * td, 0, static_cast<size_t>(td) * 4);
      }
    };
    if (rows * d <= SERIAL) widen_rows(0, rows, 0);
    else parallel_range(rows, 4, widen_rows);
  });
  typed(c.p[2], c.t[2], [&](const auto* low) {
    const int64_t grain = ceil_div(TASK_BYTES, d * int64_t(sizeof(*low)) * (1 + rows / 8));
    parallel_range(r, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; k++) {
        int64_t row = 0;
        for (; row + ROWS <= rows; row += ROWS) dots<ROWS>(x + row * xd, xd, low + k * d, d, t + row * td + k, td);
        for (; row < rows; row++) dots<1>(x + row * xd, xd, low + k * d, d, t + row * td + k, td);
      }
    });
  });
  if (c.i[5] == STRIPS_F32) choose_strips<STRIPS_F32>(c.ptr<int32_t>(0), t, td, rows, r, c.ptr<const char>(3), bias, A, N);
  else if (c.i[5] == STRIPS_BF16) choose_strips<STRIPS_BF16>(c.ptr<int32_t>(0), t, td, rows, r, c.ptr<const char>(3), bias, A, N);
  else choose_matrix(c, t, td, bias);
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(quant_choice, {"unit_choice", unit_choice})
