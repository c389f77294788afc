// Products of packed panels, and where the panels of an operand lie in memory.
#pragma once
#include "gemm_tile.h"

namespace ansatz {
namespace {

constexpr int64_t FAR_STEPS = 512;   // longer column panels are fetched ahead

// Packed row panels [i0, i1) times packed column panels [j0, j1). `sums` (one per tile, or null when K is done in one
// pass) carries partial sums between passes.
template <bool DOT, bool AHEAD = false>
inline void multiply_panels(const Gemm& g, const uint32_t* a, int64_t i0, int64_t i1, const uint32_t* b, int64_t j0,
                            int64_t j1, int64_t steps, TileSums* sums, bool first, bool last, Ahead* ahead = nullptr) {
  const int64_t a_stride = panel_words(steps, MR), b_stride = panel_words(steps, NR);
  const int64_t share = ceil_div(b_stride * 4, (i1 - i0) * 64) * 64;
  for (int64_t j = j0; j < j1; j++, b += b_stride) {
    const uint32_t* ap = a;
    const int cols = static_cast<int>(least(NR, g.n - j * NR));
    for (int64_t i = i0; i < i1; i++, ap += a_stride) {
      const int rows = static_cast<int>(least(MR, g.m - i * MR));
      const TileOut o = tile_out(g, i * MR, j * NR);
      const TileFn fn = tile_of<DOT, AHEAD>(rows);
      // The next panel comes from a farther cache: ask for a share of it before each tile.
      if (steps > FAR_STEPS && j + 1 < j1) {
        const char* const next = reinterpret_cast<const char*>(b + b_stride) + (i - i0) * share;
        for (int64_t at = 0; at < share; at += 64) __builtin_prefetch(next + at, 0, 2);
      }
      TileSums edge;
      TileSums* const s = sums ? sums++ : &edge;
      const bool direct = last && cols == NR && !g.c_transposed;
      fn(ap, b, steps, first ? nullptr : s, direct ? nullptr : s, o, ahead);
      if (last && !direct) finish_edge(*s, rows, cols, g.c_transposed, o);
    }
  }
}

// Where panels [j, je) of op(B) lie in memory, K positions [k0, k1).
inline Ahead place(const Gemm& g, const void* b, int64_t j, int64_t je, int64_t k0, int64_t k1) {
  const int64_t size = dtype_bytes(g.b.dtype), lane = j * NR, lanes = least(je * NR, g.n) - lane, depth = k1 - k0;
  const bool kc = g.b.k_contiguous;
  const char* const at = static_cast<const char*>(b) + (kc ? lane * g.b.ld + k0 : k0 * g.b.ld + lane) * size;
  const int64_t width = (kc ? depth : lanes) * size;
  return {at, kc ? lanes : depth, width, g.b.ld * size - width, width};
}

}  // namespace
}  // namespace ansatz
