// matmul: how the product is cut into pieces that fit the caches and the threads. See gemm.h for the method.
#include "gemm.h"

#include "../core/pool.h"
#include "gemm_panels.h"
#include "gemm_thin.h"

namespace ansatz {
namespace {

constexpr int64_t KC = 512;             // steps of one pass of a task that packs both operands
constexpr int64_t ONE_PASS = 2048;      // steps of one pass over columns packed in full; up to it, sums stay in registers
constexpr int64_t NARROW_PASS = 512;    // where C is narrow, sums in memory cost less than panels that leave the cache
constexpr int64_t A_WORDS = 64 << 10;   // packed rows a task holds: 256 KB, of the L2 cache
constexpr int64_t TASK_COLS = 256;
constexpr int64_t SHARED_KC = 512;      // steps of one pass where threads share both packed operands
constexpr int64_t SHARED_BYTES = 16 << 20;   // of packed panels in the last-level cache
constexpr int64_t PIECE_BYTES = 64 << 10;    // of B that is on its way while the piece before it is multiplied, ...
constexpr int64_t BAND_BYTES = 128 << 10;    // ... and where a piece is a band of whole rows of B

template <WordKind KIND> struct Engine {
  static constexpr bool DOT = KIND == PAIRS;
  static constexpr int64_t PER_STEP = KIND == PAIRS ? 2 : 1;

  // Rows of tiles [i0, i1), columns [j0, j1) on one thread: packs both operands, piece by piece of K.
  static void block(const Gemm& g, int thread, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    const int64_t all_steps = step_count(KIND, g.k), steps = least(all_steps, KC);
    const int64_t passes = most(1, ceil_div(all_steps, KC));
    const int64_t mb = least(i1 - i0, most(1, A_WORDS / (most(steps, 1) * MR))), nb = TASK_COLS / NR;
    const int64_t tiles = passes > 1 ? mb * nb : 0;
    char* own = static_cast<char*>(
        pool_scratch(thread, 0, mb * panel_words(steps, MR) * 4 + 64 + tiles * int64_t(sizeof(TileSums))));
    TileSums* const sums = reinterpret_cast<TileSums*>(own);
    uint32_t* const pa = reinterpret_cast<uint32_t*>(own + tiles * int64_t(sizeof(TileSums)));
    uint32_t* const pb = static_cast<uint32_t*>(pool_scratch(thread, 1, nb * panel_words(steps, NR) * 4));
    for (int64_t j = j0; j < j1; j += nb) {
      const int64_t je = least(j1, j + nb);
      for (int64_t i = i0; i < i1; i += mb) {
        const int64_t ie = least(i1, i + mb);
        for (int64_t p = 0; p < passes; p++) {
          const int64_t k0 = p * KC * PER_STEP, k1 = least(g.k, k0 + KC * PER_STEP);
          if (passes > 1 || i == i0) pack<KIND, NR>(pb, g.b, g.n, j, je, k0, k1);
          pack<KIND, MR>(pa, g.a, g.m, i, ie, k0, k1);
          multiply_panels<DOT>(g, pa, i, ie, pb, j, je, step_count(KIND, k1 - k0), passes > 1 ? sums : nullptr, p == 0,
                               p + 1 == passes);
        }
      }
    }
  }

  // The whole product on one thread, where each pass packs the columns once for all rows.
  static void tall(const Gemm& g, int thread) {
    const int64_t all_steps = step_count(KIND, g.k), steps = least(all_steps, KC), mt = ceil_div(g.m, MR);
    const int64_t passes = most(1, ceil_div(all_steps, KC)), nt = ceil_div(g.n, NR), nb = least(nt, TASK_COLS / NR);
    const int64_t mb = least(mt, most(1, A_WORDS / (most(steps, 1) * MR))), tiles = passes > 1 ? mt * nb : 0;
    char* const own = static_cast<char*>(
        pool_scratch(thread, 0, mb * panel_words(steps, MR) * 4 + 64 + tiles * int64_t(sizeof(TileSums))));
    TileSums* const sums = reinterpret_cast<TileSums*>(own);
    uint32_t* const pa = reinterpret_cast<uint32_t*>(own + tiles * int64_t(sizeof(TileSums)));
    uint32_t* const pb = static_cast<uint32_t*>(pool_scratch(thread, 1, nb * panel_words(steps, NR) * 4));
    for (int64_t j = 0; j < nt; j += nb) {
      const int64_t je = least(nt, j + nb);
      for (int64_t p = 0; p < passes; p++) {
        const int64_t k0 = p * KC * PER_STEP, k1 = least(g.k, k0 + KC * PER_STEP), n = step_count(KIND, k1 - k0);
        pack<KIND, NR>(pb, g.b, g.n, j, je, k0, k1);
        for (int64_t i = 0; i < mt; i += mb) {
          const int64_t ie = least(mt, i + mb);
          pack<KIND, MR>(pa, g.a, g.m, i, ie, k0, k1);
          multiply_panels<DOT>(g, pa, i, ie, pb, j, je, n, passes > 1 ? sums + i * (je - j) : nullptr, p == 0,
                               p + 1 == passes);
        }
      }
    }
  }

  // As `tall`, for few rows: their panels of a pass fit in the cache at once. B goes through in pieces, each packed and
  // used once; the next one is on its way from memory while one is multiplied. Where K is contiguous a piece is a
  // column panel, otherwise a band of B's rows over all columns, so that memory is read in long runs.
  static void streamed(const Gemm& g, int thread) {
    const int64_t all_steps = step_count(KIND, g.k), mt = ceil_div(g.m, MR), nt = ceil_div(g.n, NR);
    const int64_t step_bytes = NR * PER_STEP * dtype_bytes(g.b.dtype);   // of B, a step of one panel
    const int64_t length = g.b.k_contiguous ? KC : most(16, least(KC, BAND_BYTES / (nt * step_bytes)));
    const int64_t steps = least(all_steps, length), passes = most(1, ceil_div(all_steps, length));
    if (mt * panel_words(steps, MR) > A_WORDS) return tall(g, thread);
    const int64_t piece = g.b.k_contiguous ? most(1, PIECE_BYTES / (most(1, steps) * step_bytes)) : nt;
    const int64_t tiles = passes > 1 ? mt * nt : 0;
    char* const own = static_cast<char*>(
        pool_scratch(thread, 0, mt * panel_words(steps, MR) * 4 + 64 + tiles * int64_t(sizeof(TileSums))));
    TileSums* const sums = reinterpret_cast<TileSums*>(own);
    uint32_t* const pa = reinterpret_cast<uint32_t*>(own + tiles * int64_t(sizeof(TileSums)));
    uint32_t* const pb = static_cast<uint32_t*>(pool_scratch(thread, 1, piece * panel_words(steps, NR) * 4));
    for (int64_t p = 0; p < passes; p++) {
      const int64_t k0 = p * length * PER_STEP, k1 = least(g.k, k0 + length * PER_STEP), n = step_count(KIND, k1 - k0);
      pack<KIND, MR>(pa, g.a, g.m, 0, mt, k0, k1);
      for (int64_t j = 0; j < nt; j += piece) {
        const int64_t je = least(nt, j + piece);
        pack<KIND, NR>(pb, g.b, g.n, j, je, k0, k1);
        Ahead next = {};
        if (je < nt) next = place(g, g.b.data, je, least(nt, je + piece), k0, k1);
        else if (k1 < g.k) next = place(g, g.b.data, 0, least(nt, piece), k1, least(g.k, k1 + length * PER_STEP));
        else if (g.b_next) next = place(g, g.b_next, 0, least(nt, piece), 0, least(g.k, length * PER_STEP));
        multiply_panels<DOT, true>(g, pa, 0, mt, pb, j, je, n, passes > 1 ? sums + j * mt : nullptr, p == 0,
                                   p + 1 == passes, &next);
      }
    }
  }

  static void whole(const Gemm& g, int thread) { slice(g, thread, 0, ceil_div(g.n, NR)); }

  // All rows, column panels [j0, j1).
  static void slice(const Gemm& g, int thread, int64_t j0, int64_t j1) {
    if (g.m <= THIN_ROWS) thin_block<KIND>(g, thread, j0, j1);
    else block(g, thread, 0, ceil_div(g.m, MR), j0, j1);
  }

  // B in full: passes of pass_steps, in each the panels one after the other.
  static int64_t pass_steps(int64_t n) { return n <= 2 * TASK_COLS ? NARROW_PASS : ONE_PASS; }

  // Of np panels of a B with n columns.
  static int64_t packed_words(int64_t np, int64_t n, int64_t k) {
    const int64_t steps = step_count(KIND, k), passes = most(1, ceil_div(steps, pass_steps(n)));
    return np * (steps * NR + passes * PANEL_PAD);
  }

  static void pack_columns(const Gemm& g, uint32_t* dst, int64_t j0, int64_t j1) {
    const int64_t length = pass_steps(g.n), passes = most(1, ceil_div(step_count(KIND, g.k), length)), nt = j1 - j0;
    const int64_t per_task = g.b.k_contiguous ? 1 : most(1, least(4, ceil_div(nt, pool_threads())));
    const int64_t groups = ceil_div(nt, per_task), pass_words = nt * panel_words(length, NR);
    parallel(groups * passes, [&](int64_t task, int) {
      const int64_t pass = task / groups, p = task % groups * per_task;
      const int64_t k0 = pass * length * PER_STEP, k1 = least(g.k, k0 + length * PER_STEP);
      uint32_t* const at = dst + pass * pass_words + p * panel_words(step_count(KIND, k1 - k0), NR);
      pack<KIND, NR>(at, g.b, g.n, j0 + p, least(j1, j0 + p + per_task), k0, k1);
    });
  }

  // Row panels [i0, i1) times column panels [j, je) of packed columns that start at panel jp and number np.
  static void rows_task(const Gemm& g, int thread, int64_t i0, int64_t i1, const uint32_t* pb, int64_t jp, int64_t np,
                        int64_t j, int64_t je) {
    const int64_t all_steps = step_count(KIND, g.k), length = pass_steps(g.n);
    const int64_t passes = most(1, ceil_div(all_steps, length));
    const int64_t width = passes > 1 ? TASK_COLS / NR : je - j;
    uint32_t* const pa =
        static_cast<uint32_t*>(pool_scratch(thread, 0, (i1 - i0) * panel_words(least(all_steps, length), MR) * 4));
    TileSums* const sums =
        passes > 1 ? static_cast<TileSums*>(pool_scratch(thread, 1, (i1 - i0) * width * int64_t(sizeof(TileSums)))) : nullptr;
    for (int64_t w = j; w < je; w += width)
      for (int64_t p = 0; p < passes; p++) {
        const int64_t k0 = p * length * PER_STEP, k1 = least(g.k, k0 + length * PER_STEP);
        const int64_t steps = step_count(KIND, k1 - k0);
        pack<KIND, MR>(pa, g.a, g.m, i0, i1, k0, k1);
        multiply_panels<DOT>(g, pa, i0, i1, pb + p * np * panel_words(length, NR) + (w - jp) * panel_words(steps, NR),
                             w, least(je, w + width), steps, sums, p == 0, p + 1 == passes);
      }
  }

  // Few rows for the number of threads: both operands are packed once for all, pass by pass of K, and tasks are
  // rectangles of C. Sums wait in memory between passes.
  static void run_shared(const Gemm& g, int64_t mt, int64_t nt) {
    const int64_t all_steps = step_count(KIND, g.k), steps = least(all_steps, SHARED_KC), threads = pool_threads();
    const int64_t passes = most(1, ceil_div(all_steps, SHARED_KC));
    const int64_t column_bytes = panel_words(steps, NR) * 4 + (passes > 1 ? mt * int64_t(sizeof(TileSums)) : 0);
    const int64_t held = most(TASK_COLS / NR, SHARED_BYTES / column_bytes), most = least(held, nt);
    char* const memory = static_cast<char*>(pool_scratch(
        0, 2, most * (panel_words(steps, NR) * 4 + mt * int64_t(sizeof(TileSums))) + mt * panel_words(steps, MR) * 4 + 64));
    TileSums* const sums = reinterpret_cast<TileSums*>(memory);
    uint32_t* const pb = reinterpret_cast<uint32_t*>(sums + most * mt);
    uint32_t* const pa = pb + most * panel_words(steps, NR);
    for (int64_t j0 = 0; j0 < nt; j0 += held) {
      const int64_t j1 = least(nt, j0 + held), np = j1 - j0;
      int64_t rs = 1, cs = 1;   // how often rows and columns are split
      while (rs * cs < 4 * threads && (rs * 2 <= mt || cs * 2 <= np)) {
        if (rs * 2 <= mt && (cs * 2 > np || mt * MR * cs >= np * NR * rs)) rs *= 2;
        else cs *= 2;
      }
      for (int64_t p = 0; p < passes; p++) {
        const int64_t k0 = p * SHARED_KC * PER_STEP, k1 = least(g.k, k0 + SHARED_KC * PER_STEP);
        const int64_t n = step_count(KIND, k1 - k0), a_groups = ceil_div(mt, 4), b_groups = ceil_div(np, 2);
        parallel(a_groups + b_groups, [&](int64_t task, int) {
          if (task < a_groups) {
            const int64_t i = task * 4;
            pack<KIND, MR>(pa + i * panel_words(n, MR), g.a, g.m, i, least(mt, i + 4), k0, k1);
          } else {
            const int64_t j = (task - a_groups) * 2;
            pack<KIND, NR>(pb + j * panel_words(n, NR), g.b, g.n, j0 + j, least(j1, j0 + j + 2), k0, k1);
          }
        });
        parallel(rs * cs, [&](int64_t task, int) {
          const int64_t r = task / cs, c = task % cs, i0 = mt * r / rs, i1 = mt * (r + 1) / rs;
          for (int64_t j = np * c / cs; j < np * (c + 1) / cs; j++)
            multiply_panels<DOT>(g, pa + i0 * panel_words(n, MR), i0, i1, pb + j * panel_words(n, NR), j0 + j, j0 + j + 1, n,
                                 passes > 1 ? sums + j * mt + i0 : nullptr, p == 0, p + 1 == passes);
        });
      }
    }
  }

  // The pool's work. Thin products: each task packs both operands of its block. Tall ones: columns are packed once for
  // all threads, then tasks of rows pack theirs and multiply.
  static void run(const Gemm& g) {
    const int64_t steps = step_count(KIND, g.k), mt = ceil_div(g.m, MR), nt = ceil_div(g.n, NR);
    const int64_t threads = pool_threads(), wanted = threads * 4;
    if (!g.b_packed) {
      if (g.m * g.n * most(g.k, 1) <= 32 * 32 * 32) return whole(g, 0);
      if (mt <= 4) {
        const int64_t cols = least(nt, most(ceil_div(nt, TASK_COLS / NR), wanted));
        parallel(cols, [&](int64_t c, int thread) { slice(g, thread, nt * c / cols, nt * (c + 1) / cols); });
        return;
      }
      if (mt < wanted * 6 && mt * panel_words(least(steps, SHARED_KC), MR) * 4 <= SHARED_BYTES) return run_shared(g, mt, nt);
    }
    const int64_t mb = most(1, least(8, 2 * A_WORDS / (MR * most(1, least(steps, pass_steps(g.n))))));
    int64_t rows = least(mt, most(wanted, ceil_div(mt, mb)));
    rows = least(mt, ceil_div(rows, threads) * threads);
    const int64_t held = g.b_packed ? nt : most(TASK_COLS / NR, SHARED_BYTES / (4 * most(1, steps * NR)));
    for (int64_t j0 = 0; j0 < nt; j0 += held) {
      const int64_t j1 = least(nt, j0 + held), np = j1 - j0;
      const uint32_t* pb = static_cast<const uint32_t*>(g.b_packed);
      if (!pb) {
        uint32_t* const dst = static_cast<uint32_t*>(pool_scratch(0, 2, packed_words(np, g.n, g.k) * 4));
        pack_columns(g, dst, j0, j1);
        pb = dst;
      }
      const int64_t cols = least(np, ceil_div(wanted, rows));
      parallel(rows * cols, [&](int64_t task, int thread) {
        const int64_t r = task / cols, c = task % cols;
        rows_task(g, thread, mt * r / rows, mt * (r + 1) / rows, pb, j0, np, j0 + np * c / cols, j0 + np * (c + 1) / cols);
      });
    }
  }
};

// A product with few columns is computed as C^T = B^T A^T, so that the vectors run along the long side.
Gemm upright(const Gemm& g) {
  if (g.n > 16 || g.n >= g.m || g.b_packed) return g;
  Gemm t = g;
  t.m = g.n;
  t.n = g.m;
  t.a = g.b;
  t.b = g.a;
  t.c_transposed = !g.c_transposed;
  return t;
}

void matmul(const Call& call) {
  const int64_t* I = call.i;
  const int64_t batch = I[0], M = I[1], N = I[2], K = I[3];
  const int64_t strides[3] = {I[8], I[6], I[7]};   // C, A, B
  Gemm g;
  g.m = M;
  g.n = N;
  g.k = K;
  g.a = {call.p[1], call.t[1], I[4] ? M : K, I[4] == 0};
  g.b = {call.p[2], call.t[2], I[5] ? K : N, I[5] != 0};
  g.b_next = nullptr;
  g.b_packed = nullptr;
  g.c = call.p[0];
  g.c_dtype = call.t[0];
  g.ldc = N;
  g.bias = call.p[3];
  g.bias_dtype = call.t[3];
  g.addend = call.p[4];
  g.addend_dtype = call.t[4];
  g.alpha = static_cast<float>(call.f[0]);
  g.bf16_products = I[9] != 0;
  g.c_transposed = false;
  g.c_once = false;
  if (batch <= 0 || M <= 0 || N <= 0) return;
  // A shared B and rows that follow each other across the batch: one tall product.
  if (batch > 1 && strides[2] == 0 && I[4] == 0 && strides[1] == M * K && strides[0] == M * N) {
    g.m = batch * M;
    ANSATZ_GEMM_RUN(g);
    return;
  }
  const auto item = [&](int64_t b) {
    Gemm x = g;
    x.a.data = static_cast<const char*>(g.a.data) + b * strides[1] * dtype_bytes(g.a.dtype);
    x.b.data = static_cast<const char*>(g.b.data) + b * strides[2] * dtype_bytes(g.b.dtype);
    x.c = static_cast<char*>(g.c) + b * strides[0] * dtype_bytes(g.c_dtype);
    if (g.addend) x.addend = static_cast<const char*>(g.addend) + b * strides[0] * dtype_bytes(g.addend_dtype);
    return x;
  };
  if (batch >= 2 * pool_threads() || (batch > 1 && M * N * K <= 128 * 128 * 128)) {
    parallel(batch, [&](int64_t b, int thread) { ANSATZ_GEMM_TASK(item(b), thread); });
    return;
  }
  for (int64_t b = 0; b < batch; b++) ANSATZ_GEMM_RUN(item(b));
}

}  // namespace

void ANSATZ_GEMM_RUN(const Gemm& g) {
  if (g.m <= 0 || g.n <= 0) return;
  if (g.bf16_products) Engine<BF16_WORDS>::run(upright(g));
  else Engine<FLOATS>::run(upright(g));
}

int64_t ANSATZ_GEMM_PACKED_BYTES(int64_t n, int64_t k, bool bf16_products) {
  const int64_t np = ceil_div(n, NR);
  return 4 * (bf16_products ? Engine<BF16_WORDS>::packed_words(np, n, k) : Engine<FLOATS>::packed_words(np, n, k));
}

void ANSATZ_GEMM_PACK(const Gemm& g, void* packed) {
  const int64_t nt = ceil_div(g.n, NR);
  if (g.bf16_products) Engine<BF16_WORDS>::pack_columns(g, static_cast<uint32_t*>(packed), 0, nt);
  else Engine<FLOATS>::pack_columns(g, static_cast<uint32_t*>(packed), 0, nt);
}

void ANSATZ_GEMM_TASK(const Gemm& g, int thread) {
  if (g.m <= 0 || g.n <= 0) return;
  if (g.bf16_products) Engine<BF16_WORDS>::whole(upright(g), thread);
  else Engine<FLOATS>::whole(upright(g), thread);
  if (g.c_once) stores_done();
}

void ANSATZ_GEMM_ROWS(const Gemm& g, int thread) {
  if (g.m <= 0 || g.n <= 0) return;
  if (g.bf16_products) Engine<BF16_WORDS>::streamed(g, thread);
  else Engine<FLOATS>::streamed(g, thread);
}

}  // namespace ansatz

ANSATZ_KERNELS(gemm, {"matmul", matmul})
