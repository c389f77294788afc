// Register tiles: S strips of 16 weight rows times C rows of activations, over a number of tiles of 64 inputs.
//
// Each sum is one chain over the inputs in ascending order, whatever C is and however the work is cut: a row's result
// has the same bits alone and in company. For INTS a link of the chain is a group of 32 inputs: their exact integer sum
// times (weight scale x activation scale), added in one rounding.
#pragma once
#include "quant_rows.h"

namespace ansatz {
namespace {

constexpr int VECTORS = STRIP / W;   // of a strip

// Sums of a register tile in memory, [C][S * STRIP].
struct alignas(64) Sums { float v[MOST * STRIPS * STRIP]; };

// Where the weights of a register tile lie, and which memory to ask for meanwhile: with each tile of 64 inputs the
// lines [line0, line1) of one tile a strip, first at `soon`; from tile `turn` on, `jump` bytes farther.
struct WeightPlace {
  const char* w;
  int64_t next;        // from one strip to the next
  const char* soon;
  int64_t soon_next, soon_tile, line0, line1, turn, jump;
};

template <Kind KIND> ANSATZ_INLINE constexpr int64_t kind_tile_bytes() {
  return tile_bytes(KIND == INTS8 ? Q8 : KIND == INTS4 ? Q4 : KIND == FLOATS ? F32X16 : BF16X16);
}

template <Kind KIND, int S, int C>
ANSATZ_INLINE void one_tile(vf (&acc)[C][S * VECTORS], const char* (&w)[S], const char* a, const Q4Table& levels) {
  constexpr int NV = S * VECTORS;
  const auto at = [&](int v, int64_t offset) { return w[v / VECTORS] + offset + v % VECTORS * (W * 4); };
  if constexpr (KIND == INTS8 || KIND == INTS4) {
    for (int g = 0; g < 2; g++, a += 40 * C) {
      const int32_t* const code = reinterpret_cast<const int32_t*>(a);
      const float* const scale = reinterpret_cast<const float*>(a) + 8 * C;
      vi s[C][NV];
#pragma GCC unroll 8
      for (int c = 0; c < C; c++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) s[c][v] = BIASED ? splat_i(code[9 * C + c]) : vi{};
      if constexpr (KIND == INTS8) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
          Codes q[NV];
#pragma GCC unroll 4
          for (int v = 0; v < NV; v++) q[v] = q8_codes(reinterpret_cast<const uint8_t*>(at(v, 64 + g * 512 + j * 64)));
#pragma GCC unroll 8
          for (int c = 0; c < C; c++) {
            const vi b = splat_i(code[8 * c + j]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) s[c][v] = dot4(s[c][v], q[v], b);
          }
        }
      } else {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          Codes low[NV], high[NV];
#pragma GCC unroll 4
          for (int v = 0; v < NV; v++)
            levels.decode(reinterpret_cast<const uint8_t*>(at(v, 64 + g * 256 + j * 64)), low[v], high[v]);
#pragma GCC unroll 8
          for (int c = 0; c < C; c++) {
            const vi b = splat_i(code[8 * c + j]), d = splat_i(code[8 * c + j + 4]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) s[c][v] = dot4(dot4(s[c][v], low[v], b), high[v], d);
          }
        }
      }
      vf ws[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) ws[v] = load_scales(w[v / VECTORS] + g * 32, v % VECTORS);
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        const vf d = splat(scale[c]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[c][v] = fused(ws[v] * d, __builtin_convertvector(s[c][v], vf), acc[c][v]);
      }
    }
  } else if constexpr (KIND == PAIRS) {
#if defined(__AVX512BF16__)
    const uint32_t* const x = reinterpret_cast<const uint32_t*>(a);
#pragma GCC unroll 4
    for (int j = 0; j < 32; j++) {
      __m512bh b[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) b[v] = (__m512bh)_mm512_loadu_si512(at(v, j * 64));
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        const __m512bh y = (__m512bh)(vu{} + x[j * C + c]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[c][v] = (vf)_mm512_dpbf16_ps((__m512)acc[c][v], b[v], y);
      }
    }
#endif
  } else if constexpr (KIND == WIDE) {
    const float* const x = reinterpret_cast<const float*>(a);
#pragma GCC unroll 2
    for (int j = 0; j < 32; j++) {
      vf even[NV], odd[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) {
        const vu pair = (vu)*reinterpret_cast<const vi_u*>(at(v, j * 64));
        even[v] = (vf)(pair << 16);
        odd[v] = (vf)(pair & 0xffff0000u);
      }
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        const vf y = splat(x[2 * j * C + c]), z = splat(x[(2 * j + 1) * C + c]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[c][v] = fused(odd[v], z, fused(even[v], y, acc[c][v]));
      }
    }
  } else {
    const float* const x = reinterpret_cast<const float*>(a);
#pragma GCC unroll 4
    for (int j = 0; j < 64; j++) {
      vf b[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) b[v] = load(reinterpret_cast<const float*>(at(v, j * 64)));
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        const vf y = splat(x[j * C + c]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[c][v] = fused(b[v], y, acc[c][v]);
      }
    }
  }
}

template <Kind KIND, int S, int C>
inline __attribute__((noinline)) void register_tile(const WeightPlace& p, const char* a, int64_t tiles, bool first, Sums& sums) {
  constexpr int NV = S * VECTORS;
  constexpr int64_t LINES = kind_tile_bytes<KIND>() / 64, WIDTH = S * STRIP;
  vf acc[C][NV] = {};
  if (!first) {
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[c][v] = load(sums.v + c * WIDTH + v * W);
  }
  const char* w[S];
  for (int s = 0; s < S; s++) w[s] = p.w + s * p.next;
  const Q4Table levels;
  for (int64_t t = 0; t < tiles; t++, a += C * column_bytes(KIND)) {
    const char* const soon = p.soon + t * p.soon_tile + (t >= p.turn ? p.jump : 0);
    if (p.line1 - p.line0 == LINES) {
#pragma GCC unroll 64
      for (int64_t line = 0; line < LINES; line++)
#pragma GCC unroll 2
        for (int s = 0; s < S; s++) __builtin_prefetch(soon + s * p.soon_next + line * 64);
    } else {
      for (int64_t line = p.line0; line < p.line1; line++)
#pragma GCC unroll 2
        for (int s = 0; s < S; s++) __builtin_prefetch(soon + s * p.soon_next + line * 64);
    }
    one_tile<KIND, S, C>(acc, w, a, levels);
#pragma GCC unroll 2
    for (int s = 0; s < S; s++) w[s] += kind_tile_bytes<KIND>();
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; c++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) store(sums.v + c * WIDTH + v * W, acc[c][v]);
}

using TileFn = void (*)(const WeightPlace&, const char*, int64_t, bool, Sums&);
// Single strips are for one row, or f32 weights.
#define ANSATZ_QUANT_TILE(C) register_tile < KIND, S, S < STRIPS && KIND != FLOATS ? 1 : (C) <= MOST ? (C) : MOST >
template <Kind KIND, int S> ANSATZ_INLINE TileFn tile_for(int width) {
  static constexpr TileFn table[7] = {nullptr, ANSATZ_QUANT_TILE(1), ANSATZ_QUANT_TILE(2), ANSATZ_QUANT_TILE(3),
                                      ANSATZ_QUANT_TILE(4), ANSATZ_QUANT_TILE(5), ANSATZ_QUANT_TILE(6)};
  return table[width];
}
#undef ANSATZ_QUANT_TILE

}  // namespace
}  // namespace ansatz
