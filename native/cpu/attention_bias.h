// Gradients of additive biases. A tile of dS arrives as [key][margin + lanes + margin] float32 with zero margins.
//
// Fixed order: a task owns the columns (keys) of its chunk for one head and adds batches in order. Relative biases are
// shared between chunks, so each (head, chunk) keeps a strip of its own and the strips are added in order at the end.
#pragma once
#include "attention_tile.h"

namespace ansatz {
namespace {

constexpr int64_t bias_row = lanes + 2 * margin;

// A strip is indexed by i - (j - c0) + chunk - 1 for query i and key j of the chunk that starts at key c0.
ANSATZ_INLINE int64_t strip_length(const Problem& p, int64_t chunk) { return round_up(p.Tq + chunk + 2 * lanes, W); }

// strip[x] += sum over the tile's diagonal x = l - j + nk-1. Each sum walks down the keys, one lane to the left each
// time, reading across the zero margins: every diagonal is summed in registers, in one order.
inline void add_diagonals(const float* tile, int64_t nk, float* strip) {
  for (int64_t x = 0; x < nk - 1 + lanes; x += W) {
    const int64_t j0 = larger(0, nk - x - W), j1 = smaller(nk - 1, nk - 1 + lanes - 1 - x);
    vf sum = {};
    for (int64_t j = j0; j <= j1; j++) sum += load(tile + j * bias_row + margin + x + j - (nk - 1));
    store(strip + x, load(strip + x) + sum);
  }
}

inline void add_relative(const Problem& p, const QueryBlock& s, int64_t chunk, int64_t c0, int64_t k0, int64_t nk,
                         const float* tile, float* strips) {
  float* strip = strips + (s.h * ((p.Tk + chunk - 1) / chunk) + c0 / chunk) * strip_length(p, chunk);
  add_diagonals(tile, nk, strip + s.q0 - (k0 - c0) - (nk - 1) + chunk - 1);
}

// dbias[h][key - query + Tq-1] from the strips of head h.
inline void reduce_strips(const Problem& p, int64_t h, int64_t chunk, const float* strips, float* dbias) {
  const int64_t chunks = (p.Tk + chunk - 1) / chunk, length = strip_length(p, chunk), n = p.Tq + p.Tk - 1;
  float* out = dbias + h * n;
  for (int64_t k = 0; k < n; k++) {
    float sum = 0.0f;
    // in chunk c: i - j = Tq-1 - k, so its index is Tq-1 - k + c*chunk + chunk-1, when within [0, Tq + chunk - 1)
    const int64_t base = p.Tq - 1 - k + chunk - 1;
    for (int64_t c = base < 0 ? -base / chunk : 0; c < chunks && base + c * chunk < p.Tq + chunk - 1; c++)
      if (base + c * chunk >= 0) sum += strips[(h * chunks + c) * length + base + c * chunk];
    out[k] = sum;
  }
}

// Room: lanes * (key_tile + W) floats.
inline void add_full(const Problem& p, const QueryBlock& s, int64_t k0, int64_t nk, const float* tile, float* room,
                     float* dbias) {
  const int64_t rows = round_up(nk, W);
  for (int64_t l = 0; l < s.width; l += W)
    for (int64_t j = 0; j < rows; j += W)
      transpose_block(room + l * key_tile + j, key_tile, tile + j * bias_row + margin + l, bias_row, W);
  for (int64_t l = 0; l < s.nq; l++) {
    float* out = dbias + (s.h * p.Tq + s.q0 + l) * p.Tk + k0;
    for (int64_t j = 0; j < nk; j++) out[j] += room[l * key_tile + j];
  }
}

}  // namespace
}  // namespace ansatz
