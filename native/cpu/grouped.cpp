// Rows that belong to groups (tokens at their experts): moving them to their groups and back, and matrix products with
// one matrix a group. Group e has the rows [offsets[e], offsets[e + 1]); rows after the last group are unused and zero.
#include "../core/pool.h"
#include "gemm.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t GRAIN = 32768;            // elements of a task that moves rows
constexpr int64_t ROWS = 512, COLS = 256;   // of the result of a task that multiplies
constexpr int64_t WIDE = 512, SMALL = 128;  // columns of a task where groups have at most SMALL rows on average
constexpr int64_t FEW = 4;                  // where no group can be larger, the product for few rows reads B once
constexpr int64_t ONCE_BYTES = 16 << 20;    // results larger than this leave the caches before anybody reads them

ANSATZ_INLINE int64_t rows_a_task(int64_t width) { return width < GRAIN ? GRAIN / (width < 1 ? 1 : width) : 1; }
ANSATZ_INLINE int64_t bytes_of(int32_t t) { return t == BF16 ? 2 : 4; }

// f(out, x) with typed pointers.
template <class F> void typed(void* out, int32_t to, const void* x, int32_t tx, const F& f) {
  if (to == BF16 && tx == BF16) f(static_cast<bf16*>(out), static_cast<const bf16*>(x));
  else if (to == BF16) f(static_cast<bf16*>(out), static_cast<const float*>(x));
  else if (tx == BF16) f(static_cast<float*>(out), static_cast<const bf16*>(x));
  else f(static_cast<float*>(out), static_cast<const float*>(x));
}

// ---- moving rows ---------------------------------------------------------------------------------------------------
template <class T> void zero_row(T* p, int64_t n) { std::memset(p, 0, sizeof(T) * static_cast<size_t>(n)); }
template <class T> void copy_row(T* o, const T* x, int64_t n) { std::memcpy(o, x, sizeof(T) * static_cast<size_t>(n)); }
template <class O, class T> void copy_row(O* o, const T* x, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) store(o + k, load(x + k));
  if (k < n) store_n(o + k, load_n(x + k, n - k), n - k);
}

void gather_rows(const Call& c) {
  const int32_t* pick = c.ptr<const int32_t>(2);
  const int64_t R = c.i[0], d = c.i[1], n = c.i[2], per = c.i[3];
  typed(c.p[0], c.t[0], c.p[1], c.t[1], [&](auto* out, const auto* x) {
    parallel_range(R, rows_a_task(d), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++) {
        if (pick[r] >= n) return raise(INDEX_OUT_OF_RANGE, pick[r], n);
        if (pick[r] < 0) zero_row(out + r * d, d);
        else copy_row(out + r * d, x + pick[r] / per * d, d);
      }
    });
  });
}

// Columns [at, at + lanes) of the sum over a token's rows, in the order of its choices.
template <class T>
ANSATZ_INLINE vf sum_choices(const T* y, const int32_t* slot, const float* w, int64_t k, int64_t d, int64_t at,
                             int64_t lanes) {
  vf sum = {};
  for (int64_t j = 0; j < k; j++) {
    if (slot[j] < 0) continue;
    const T* from = y + slot[j] * d + at;
    const vf x = lanes == W ? load(from) : load_n(from, lanes);
    sum += w ? x * w[j] : x;
  }
  return sum;
}

ANSATZ_INLINE vf load_addend(const void* p, int32_t t, int64_t at, int64_t lanes) {
  if (t == BF16) {
    const bf16* x = static_cast<const bf16*>(p) + at;
    return lanes == W ? load(x) : load_n(x, lanes);
  }
  const float* x = static_cast<const float*>(p) + at;
  return lanes == W ? load(x) : load_n(x, lanes);
}

// Says so, and is false, when a place lies outside the grouped rows.
bool places_fit(const int32_t* slot, int64_t n, int64_t R) {
  for (int64_t r = 0; r < n; r++)
    if (slot[r] >= R) {
      raise(INDEX_OUT_OF_RANGE, slot[r], R);
      return false;
    }
  return true;
}

void combine_rows(const Call& c) {
  const int32_t* slot = c.ptr<const int32_t>(2);
  const float* w = c.ptr<const float>(3);
  const void* addend = c.p[4];
  const int32_t addend_type = c.t[4];
  const int64_t n = c.i[0], k = c.i[1], d = c.i[2], R = c.i[3];
  const float alpha = static_cast<float>(c.f[0]);
  typed(c.p[0], c.t[0], c.p[1], c.t[1], [&](auto* out, const auto* y) {
    parallel_range(n, rows_a_task(d * k), [&](int64_t begin, int64_t end, int) {
      if (!places_fit(slot + begin * k, (end - begin) * k, R)) return;
      for (int64_t t = begin; t < end; t++)
        for (int64_t at = 0; at < d; at += W) {
          const int64_t lanes = least(W, d - at);
          vf x = sum_choices(y, slot + t * k, w ? w + t * k : nullptr, k, d, at, lanes) * alpha;
          if (addend) x += load_addend(addend, addend_type, t * d + at, lanes);
          if (lanes == W) store(out + t * d + at, x);
          else store_n(out + t * d + at, x, lanes);
        }
    });
  });
}

// dy[slot[t, j]] = alpha w[t, j] dout[t] and dw[t, j] = alpha <dout[t], y[slot[t, j]]>.
template <class Y, class G>
void spread_token(Y* dy, float* dw, const Y* y, const G* dout, const int32_t* slot, const float* w, int64_t k, int64_t d,
                  float alpha) {
  for (int64_t j = 0; j < k; j++) {
    if (slot[j] < 0) {
      dw[j] = 0;
      continue;
    }
    const float scale = alpha * w[j];
    Y* const to = dy + slot[j] * d;
    const Y* const from = y + slot[j] * d;
    vf dot = {};
    int64_t at = 0;
    for (; at + W <= d; at += W) {
      const vf g = load(dout + at);
      dot += g * load(from + at);
      store(to + at, g * scale);
    }
    if (at < d) {
      const vf g = load_n(dout + at, d - at);
      dot += g * load_n(from + at, d - at);
      store_n(to + at, g * scale, d - at);
    }
    dw[j] = alpha * hsum(dot);
  }
}

void combine_rows_bwd(const Call& c) {
  float* dw = c.ptr<float>(1);
  const int32_t *slot = c.ptr<const int32_t>(3), *pick = c.ptr<const int32_t>(4);
  const float* w = c.ptr<const float>(5);
  const int64_t n = c.i[0], k = c.i[1], d = c.i[2], R = c.i[3];
  const float alpha = static_cast<float>(c.f[0]);
  const auto run = [&](auto* dy, const auto* y, const auto* dout) {
    parallel_range(n, rows_a_task(d * k), [&](int64_t begin, int64_t end, int) {
      if (!places_fit(slot + begin * k, (end - begin) * k, R)) return;
      for (int64_t t = begin; t < end; t++)
        spread_token(dy, dw + t * k, y, dout + t * d, slot + t * k, w + t * k, k, d, alpha);
    });
    parallel_range(R, rows_a_task(d), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++)
        if (pick[r] < 0) zero_row(dy + r * d, d);
    });
  };
  const auto with_dout = [&](auto* dy, const auto* y) {
    if (c.t[6] == BF16) run(dy, y, c.ptr<const bf16>(6));
    else run(dy, y, c.ptr<const float>(6));
  };
  if (c.t[0] == BF16) with_dout(c.ptr<bf16>(0), c.ptr<const bf16>(2));
  else with_dout(c.ptr<float>(0), c.ptr<const float>(2));
}

// ---- products ------------------------------------------------------------------------------------------------------
// Offsets come from data: they must ascend within [0, R].
bool offsets_fit(const int32_t* offsets, int64_t E, int64_t R) {
  int32_t before = 0;
  for (int64_t e = 0; e <= E; e++) {
    if (offsets[e] < before || offsets[e] > R || (e == 0 && offsets[0] != 0)) {
      raise(INDEX_OUT_OF_RANGE, offsets[e], R + 1);
      return false;
    }
    before = offsets[e];
  }
  return true;
}

// Columns of a task's result. Groups with few rows are bound by reading B or writing C: longer runs of memory are faster.
int64_t columns_a_task(int64_t rows, int64_t groups) { return rows <= groups * SMALL ? WIDE : COLS; }

void grouped_matmul(const Call& c) {
  const int32_t* offsets = c.ptr<const int32_t>(3);
  const int64_t R = c.i[0], E = c.i[1], N = c.i[2], K = c.i[3], transB = c.i[4], most = c.i[5];
  if (!offsets_fit(offsets, E, R) || N == 0) return;
  char* const out = c.ptr<char>(0);
  const char* const a = c.ptr<const char>(1);
  const char* const b = c.ptr<const char>(2);
  const int64_t out_row = N * bytes_of(c.t[0]), a_row = K * bytes_of(c.t[1]), b_size = N * K * bytes_of(c.t[2]);
  const int64_t used = offsets[E];
  // Pieces of groups, of about ROWS rows and of one size in a group: a rest of few rows would read all of B for little.
  struct Tile { int32_t group, row, rows; };
  Tile* const tile = static_cast<Tile*>(pool_scratch(0, 3, (E + R / ROWS + 1) * int64_t(sizeof(Tile))));
  int64_t tiles = 0;
  for (int64_t e = 0; e < E; e++) {
    const int64_t size = offsets[e + 1] - offsets[e], pieces = (size + ROWS / 2) / ROWS;
    const int64_t rows = pieces > 1 ? ceil_div(size, pieces) : size;
    for (int64_t r = 0; r < size; r += rows)
      tile[tiles++] = {static_cast<int32_t>(e), static_cast<int32_t>(offsets[e] + r),
                       static_cast<int32_t>(least(rows, size - r))};
  }
  const int64_t width = columns_a_task(used, tiles), columns = ceil_div(N, width);
  const auto matrix = [&](int64_t task) {   // the columns of B that a task multiplies with
    return b + tile[task / columns].group * b_size + task % columns * width * (transB ? K : 1) * bytes_of(c.t[2]);
  };
  parallel(tiles * columns, [&](int64_t task, int thread) {
    const Tile at = tile[task / columns];
    const int64_t j = task % columns * width, later = task + pool_threads();
    Gemm g = {};
    g.m = at.rows;
    g.n = least(width, N - j);
    g.k = K;
    g.a = {a + at.row * a_row, c.t[1], K, true};
    g.b = {matrix(task), c.t[2], transB ? K : N, transB != 0};
    g.b_next = later < tiles * columns && g.n == width ? matrix(later) : nullptr;
    g.c = out + at.row * out_row + j * bytes_of(c.t[0]);
    g.c_dtype = c.t[0];
    g.ldc = N;
    g.alpha = static_cast<float>(c.f[0]);
    g.bf16_products = c.i[6] != 0;
    if (most <= FEW) ANSATZ_GEMM_TASK(g, thread);
    else ANSATZ_GEMM_ROWS(g, thread);
  });
  if (used < R) std::memset(out + used * out_row, 0, static_cast<size_t>((R - used) * out_row));
}

void grouped_matmul_weight(const Call& c) {
  const int32_t* offsets = c.ptr<const int32_t>(3);
  const int64_t R = c.i[0], E = c.i[1], M = c.i[2], N = c.i[3];
  if (!offsets_fit(offsets, E, R) || M == 0 || N == 0) return;
  const int64_t a_row = M * bytes_of(c.t[1]), b_row = N * bytes_of(c.t[2]), size = bytes_of(c.t[0]);
  const int64_t width = columns_a_task(offsets[E], E), columns = ceil_div(N, width), bands = ceil_div(M, ROWS);
  parallel(E * bands * columns, [&](int64_t task, int thread) {
    const int64_t e = task / (bands * columns), i = task / columns % bands * ROWS, j = task % columns * width;
    Gemm g = {};
    g.m = least(ROWS, M - i);
    g.n = least(width, N - j);
    g.k = offsets[e + 1] - offsets[e];
    g.a = {c.ptr<const char>(1) + offsets[e] * a_row + i * bytes_of(c.t[1]), c.t[1], M, false};
    g.b = {c.ptr<const char>(2) + offsets[e] * b_row + j * bytes_of(c.t[2]), c.t[2], N, false};
    g.c = c.ptr<char>(0) + ((e * M + i) * N + j) * size;
    g.c_dtype = c.t[0];
    g.ldc = N;
    g.alpha = static_cast<float>(c.f[0]);
    g.bf16_products = c.i[4] != 0;
    g.c_once = E * M * N * size > ONCE_BYTES;
    if (g.k > 0) return ANSATZ_GEMM_TASK(g, thread);
    for (int64_t r = 0; r < g.m; r++) std::memset(static_cast<char*>(g.c) + r * N * size, 0, static_cast<size_t>(g.n * size));
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(grouped, {"gather_rows", gather_rows}, {"combine_rows", combine_rows},
               {"combine_rows_bwd", combine_rows_bwd}, {"grouped_matmul", grouped_matmul},
               {"grouped_matmul_weight", grouped_matmul_weight})
