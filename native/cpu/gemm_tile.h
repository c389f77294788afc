// Register tiles: MR x NR sums of C stay in registers along K; each step loads NV vectors of B and broadcasts MR words
// of A. MR * NV accumulators + NV vectors of B + one broadcast fit the register file, and MR * NV covers latency x rate.
#pragma once
#include "gemm_pack.h"

namespace ansatz {
namespace {

#if defined(__AVX512F__)
constexpr int MR = 14, NV = 2;   // 32 registers
#elif defined(__AVX2__)
constexpr int MR = 6, NV = 2;    // 16 registers
#elif defined(__aarch64__)
constexpr int MR = 8, NV = 3;    // 32 registers
#else
constexpr int MR = 4, NV = 3;    // 16 registers
#endif
constexpr int NR = NV * W;

#if defined(__AVX512BF16__)
constexpr WordKind BF16_WORDS = PAIRS;
#else
constexpr WordKind BF16_WORDS = ROUNDED;
#endif

template <bool DOT> ANSATZ_INLINE vf multiply_add(vf sum, vu a, vu b) {
#if defined(__AVX512BF16__)
  if constexpr (DOT) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
  return (vf)a * (vf)b + sum;
}

// Where a tile's sums go.
struct TileOut {
  char* c;                // element (0, 0)
  const char* addend;     // or null
  const char* bias;       // or null; element 0 of the tile's columns
  int64_t ldc;
  int32_t c_dtype, addend_dtype, bias_dtype;
  float alpha;
  bool once;              // C goes past the caches (f32, whole lines)
};

ANSATZ_INLINE int64_t dtype_bytes(int32_t t) { return t == BF16 ? 2 : 4; }
ANSATZ_INLINE vf load_as(const char* p, int32_t t) {
  return t == BF16 ? load(reinterpret_cast<const bf16*>(p)) : load(reinterpret_cast<const float*>(p));
}
ANSATZ_INLINE vf load_n_as(const char* p, int32_t t, int64_t n) {
  return t == BF16 ? load_upto(reinterpret_cast<const bf16*>(p), n) : load_upto(reinterpret_cast<const float*>(p), n);
}
ANSATZ_INLINE float load_one(const char* p, int32_t t) {
  return t == BF16 ? to_float(*reinterpret_cast<const bf16*>(p)) : *reinterpret_cast<const float*>(p);
}

ANSATZ_INLINE TileOut tile_out(const Gemm& g, int64_t i, int64_t j) {
  const int64_t at = g.c_transposed ? j * g.ldc + i : i * g.ldc + j, b = g.c_transposed ? i : j;
  TileOut o;
  o.c = static_cast<char*>(g.c) + at * dtype_bytes(g.c_dtype);
  o.addend = g.addend ? static_cast<const char*>(g.addend) + at * dtype_bytes(g.addend_dtype) : nullptr;
  o.bias = g.bias ? static_cast<const char*>(g.bias) + b * dtype_bytes(g.bias_dtype) : nullptr;
  o.ldc = g.ldc;
  o.c_dtype = g.c_dtype;
  o.addend_dtype = g.addend_dtype;
  o.bias_dtype = g.bias_dtype;
  o.alpha = g.alpha;
  o.once = g.c_once && g.c_dtype == F32 && reinterpret_cast<uintptr_t>(g.c) % 64 == 0 && g.ldc % 16 == 0;
  return o;
}

// A store that does not read the line first, and leaves the caches to others. Ordered by stores_done().
ANSATZ_INLINE void store_once(float* p, vf x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)x);
#else
  store(p, x);
#endif
}
ANSATZ_INLINE void stores_done() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Lines of memory that are asked for, one after the other, while a tile is computed: `rows` of `width` bytes each, of
// which `left` remain in the first, `gap` bytes between them.
struct Ahead {
  const char* at;
  int64_t rows, width, gap, left;

  ANSATZ_INLINE void ask() {
    if (rows <= 0) return;
    __builtin_prefetch(at, 0, 2);   // into the L2 cache: the L1 holds the panels in use
    at += 64;
    left -= 64;
    if (left > 0) return;
    at += left + gap;
    left = width;
    rows--;
  }
};

// The addend's lines are asked for before the tile is computed, so that adding them at its end does not wait.
ANSATZ_INLINE void fetch_addend(const TileOut& o, int rows) {
  const int64_t row = o.ldc * dtype_bytes(o.addend_dtype), width = NR * dtype_bytes(o.addend_dtype);
  const char* x = o.addend;
  for (int i = 0; i < rows; i++, x += row)
    for (int64_t at = 0; at < width; at += 64) __builtin_prefetch(x + at);
}

// The tile's sums in memory, MR rows of NR: used where the tile hangs over C's edge, where C is transposed, and
// between pieces of K.
struct alignas(64) TileSums { float v[MR * NR]; };

template <int ROWS> ANSATZ_INLINE void finish_full(vf (&acc)[ROWS][NV], const TileOut& o) {
  vf bias[NV] = {};
  if (o.bias) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) bias[j] = load_as(o.bias + j * W * dtype_bytes(o.bias_dtype), o.bias_dtype);
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = acc[i][j] * o.alpha + bias[j];
  if (o.addend) {
    if (o.addend_dtype == BF16) {
      const bf16* x = reinterpret_cast<const bf16*>(o.addend);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++, x += o.ldc)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[i][j] += load(x + j * W);
    } else {
      const float* x = reinterpret_cast<const float*>(o.addend);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++, x += o.ldc)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[i][j] += load(x + j * W);
    }
  }
  if (o.c_dtype == BF16) {
    bf16* c = reinterpret_cast<bf16*>(o.c);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++, c += o.ldc)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) store(c + j * W, acc[i][j]);
  } else {
    float* c = reinterpret_cast<float*>(o.c);
    if (o.once) {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++, c += o.ldc)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) store_once(c + j * W, acc[i][j]);
      return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++, c += o.ldc)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) store(c + j * W, acc[i][j]);
  }
}

// One tile: `steps` words of the panels a and b. Sums start from `from` (or zero) and go to `to`, or finish C. Requests
// of `ahead` are spread over the steps: the memory system drops those that come in bursts.
template <int ROWS, bool DOT, bool AHEAD>
inline __attribute__((noinline)) void tile(const uint32_t* a, const uint32_t* b, int64_t steps, const TileSums* from,
                                           TileSums* to, const TileOut& o, Ahead* ahead) {
  Ahead next = {};
  if (AHEAD) next = *ahead;
  vf acc[ROWS][NV] = {};
  if (from) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = load(from->v + i * NR + j * W);
  }
  if (!to && o.addend) fetch_addend(o, ROWS);
  for (int64_t s = 0; s < steps; s++, a += MR, b += NR) {
    vu bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) bv[j] = *reinterpret_cast<const vu*>(b + j * W);
    if (AHEAD) {
      next.ask();
      next.ask();
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const vu av = vu{} + a[i];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = multiply_add<DOT>(acc[i][j], av, bv[j]);
    }
  }
  if (AHEAD) *ahead = next;
  if (!to) {
    finish_full<ROWS>(acc, o);
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(to->v + i * NR + j * W, acc[i][j]);
}

using TileFn = void (*)(const uint32_t*, const uint32_t*, int64_t, const TileSums*, TileSums*, const TileOut&, Ahead*);

#define ANSATZ_TILE(R) tile < (R) <= MR ? (R) : MR, DOT, AHEAD >
template <bool DOT, bool AHEAD> ANSATZ_INLINE TileFn tile_of(int rows) {
  static constexpr TileFn table[16] = {
      nullptr,         ANSATZ_TILE(1),  ANSATZ_TILE(2),  ANSATZ_TILE(3),  ANSATZ_TILE(4), ANSATZ_TILE(5),
      ANSATZ_TILE(6),  ANSATZ_TILE(7),  ANSATZ_TILE(8),  ANSATZ_TILE(9),  ANSATZ_TILE(10), ANSATZ_TILE(11),
      ANSATZ_TILE(12), ANSATZ_TILE(13), ANSATZ_TILE(14), ANSATZ_TILE(15)};
  return table[rows];
}
#undef ANSATZ_TILE

// C from sums: any number of rows and columns, C upright or transposed.
inline __attribute__((noinline)) void finish_edge(const TileSums& sums, int rows, int cols, bool transposed,
                                                  const TileOut& o) {
  const int64_t ab = dtype_bytes(o.addend_dtype), bb = dtype_bytes(o.bias_dtype);
  if (transposed) {
    for (int j = 0; j < cols; j++)
      for (int i = 0; i < rows; i++) {
        const float bias = o.bias ? load_one(o.bias + i * bb, o.bias_dtype) : 0.0f;
        float x = sums.v[i * NR + j] * o.alpha + bias;
        const int64_t at = j * o.ldc + i;
        if (o.addend) x += load_one(o.addend + at * ab, o.addend_dtype);
        if (o.c_dtype == BF16) reinterpret_cast<bf16*>(o.c)[at] = to_bf16(x);
        else reinterpret_cast<float*>(o.c)[at] = x;
      }
    return;
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < cols; j += W) {
      const int64_t n = cols - j < W ? cols - j : W, at = i * o.ldc + j;
      const vf bias = o.bias ? load_n_as(o.bias + j * bb, o.bias_dtype, n) : vf{};
      vf x = load(sums.v + i * NR + j) * o.alpha + bias;   // rounds as finish_full does
      if (o.addend) x += load_n_as(o.addend + at * ab, o.addend_dtype, n);
      if (o.c_dtype == BF16) {
        bf16* c = reinterpret_cast<bf16*>(o.c) + at;
        if (n == W) store(c, x); else store_n(c, x, n);
      } else {
        float* c = reinterpret_cast<float*>(o.c) + at;
        if (n == W) store(c, x); else store_n(c, x, n);
      }
    }
}

}  // namespace
}  // namespace ansatz
