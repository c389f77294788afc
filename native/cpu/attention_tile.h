// The steps on one tile that both directions share: the products, the mask and the bias.
#pragma once
#include "attention_problem.h"

namespace ansatz {
namespace {

// On a diagonal tile lane l sees keys j <= l only. The products work in groups of 16 rows and leave out what no row of
// the group needs; the exponentials of lanes [l, l+2W) stop at key diagonal_keys(l).
constexpr int64_t diagonal_group = 16;
ANSATZ_INLINE int64_t diagonal_keys(int64_t l, int64_t nk) { return smaller(nk, round_up(l + 2 * W, diagonal_group)); }

// [key][lane] = rows[key] . (transposed rows)[lane]: S and dP.
template <bool Pair>
void product_over_dims(bool diagonal, int64_t nk, int64_t width, int64_t Dw, const float* rows, const float* transposed,
                       float* out) {
  const int64_t step = diagonal ? diagonal_group : nk;
  for (int64_t j = 0; j < nk; j += step) {
    const int64_t l = diagonal ? j : 0;
    if (l < width)
      tile_product<Pair, ALayout::rows>(smaller(step, nk - j), width - l, Dw, rows + j * Dw, Dw, transposed + l, lanes,
                                        out + j * lanes + l, lanes, false);
  }
}

// [key][dim] += sum over lanes of x[key][lane] y[lane][dim]: dV and dK.
template <bool Pair>
void product_over_lanes(bool diagonal, int64_t nk, int64_t width, int64_t Dp, const float* x, const float* y,
                        float* out) {
  const int64_t step = diagonal ? diagonal_group : nk, word = Pair ? 2 : 1, ldx = lanes / word;
  for (int64_t j = 0; j < nk; j += step) {
    const int64_t l = diagonal ? j / word : 0;
    if (l * word < width)
      tile_product<Pair, ALayout::rows>(smaller(step, nk - j), Dp, width / word - l, x + j * ldx + l, ldx, y + l * Dp,
                                        Dp, out + j * Dp, Dp, true);
  }
}

// [lane][dim] (+)= sum over keys of x[key][lane] y[key][dim]: O and dQ.
template <bool Pair>
void product_over_keys(bool diagonal, int64_t rows, int64_t nk, int64_t Dp, const float* x, const float* y, float* out,
                       bool accumulate) {
  const int64_t step = diagonal ? diagonal_group : rows, word = Pair ? 2 : 1;
  for (int64_t l = 0; l < rows; l += step)
    tile_product<Pair, ALayout::columns>(smaller(step, rows - l), Dp, (diagonal ? smaller(nk, l + step) : nk) / word,
                                         x + l, lanes, y, Dp, out + l * Dp, Dp, accumulate);
}

// Bias of one tile in [key][lane] order, times log2 e: row j begins at tile + offset + j * step. Relative biases depend
// on key - query only, so one reversed strip serves every row, shifted by a lane. Room: 2 * lanes * key_tile floats.
struct BiasTile { const float* first; int64_t step; };

inline BiasTile load_bias(const Problem& p, const QueryBlock& s, int64_t k0, int64_t nk, float* room) {
  if (p.bias_mode == bias_relative) {
    // index of (key k0+j, lane l) is k0+j - (q0+l) + Tq-1 = top - x with x = l - j + nk-1
    const float* bias = p.bias + s.h * (p.Tq + p.Tk - 1);
    const int64_t top = k0 + nk - 1 - s.q0 + p.Tq - 1;
    for (int64_t x = 0; x < nk - 1 + lanes; x++) room[x] = top - x >= 0 ? bias[top - x] * log2e : 0.0f;
    return BiasTile{room + nk - 1, -1};
  }
  float* staged = room + lanes * key_tile;
  for (int64_t l = 0; l < s.width; l++) {
    const float* row = p.bias + (s.h * p.Tq + s.q0 + l) * p.Tk + k0;
    for (int64_t j = 0; j < key_tile; j++) staged[l * key_tile + j] = l < s.nq && j < nk ? row[j] * log2e : 0.0f;
  }
  transpose_words(room, lanes, staged, key_tile, s.width, nk);
  return BiasTile{room, lanes};
}

// S (raw products) becomes logits times log2 e: scaled, biased, and -inf where the key is not visible, also in the row
// that makes nk even. A lane sees key j when low(j) <= reach (without a causal mask: position), position < high(j),
// the segments agree, and the key is kept or the lane's own.
inline void mask_tile(const Problem& p, const QueryBlock& s, int64_t k0, int64_t nk, bool diagonal, float* S,
                      float* room) {
  const vf c = splat(p.scale * log2e), minus_infinity = splat(-infinity);
  const BiasTile bias = p.bias_mode ? load_bias(p, s, k0, nk, room) : BiasTile{nullptr, 0};
  for (int64_t j = 0; j < nk; j++) {
    const int64_t key = k0 + j;
    const int64_t low = p.causal ? key : p.window ? key - p.window + 1 : INT32_MIN;
    const int64_t high = p.window ? key + p.window : INT32_MAX;
    const vi lo = splat_i(static_cast<int32_t>(larger(low, INT32_MIN)));
    const vi hi = splat_i(static_cast<int32_t>(smaller(high, INT32_MAX)));
    const bool dropped = p.keep && p.keep[s.b * p.Tk + key] == 0;
    const vi own = splat_i(static_cast<int32_t>(key));
    const vi segment = splat_i(p.seg_k ? p.seg_k[s.b * p.Tk + key] : 0);
    for (int64_t l = diagonal ? j / 32 * 32 : 0; l < s.width; l += W) {
      const vi pos = *reinterpret_cast<const vi_u*>(s.position + l);
      const vi reach = *reinterpret_cast<const vi_u*>((p.causal ? s.reach : s.position) + l);
      vi seen = (reach >= lo) & (pos < hi);
      if (dropped) seen &= pos == own;
      if (p.seg_k) seen &= *reinterpret_cast<const vi_u*>(s.segment + l) == segment;
      vf x = load(S + j * lanes + l) * c;
      if (bias.first) x = x + load(bias.first + j * bias.step + l);
      store(S + j * lanes + l, seen ? x : minus_infinity);
    }
  }
  if (nk % 2)
    for (int64_t l = 0; l < s.width; l += W) store(S + nk * lanes + l, minus_infinity);
}

}  // namespace
}  // namespace ansatz
