// Scales and codes of one group of 32 inputs for 16 rows at a time: vector lanes are rows.
#pragma once
#include "quant_dot.h"

namespace ansatz {
namespace {

// x[k * STRIP + row]; scale and codes of the 16 rows, code[k * STRIP + row].
struct GroupCodes {
  alignas(64) float scale[STRIP];
  alignas(64) int32_t code[GROUP * STRIP];
};

ANSATZ_INLINE vf rounded_scale(vf s) { return widen(narrow(s)); }
// 1/s, and 0 where a group is empty.
ANSATZ_INLINE vf inverse(vf s) { return select(vabs(s) > 1e-37f, 1.0f / s, splat(0.0f)); }

// Codes by even steps, to the nearest.
ANSATZ_INLINE void q8_group(const float* x, const float* given, GroupCodes& out) {
  for (int v = 0; v < STRIP; v += W) {
    vf top = {};
    vi bad = {};
    for (int k = 0; k < GROUP; k++) {
      const vf y = vabs(load(x + k * STRIP + v));
      bad |= (vi)y >= 0x7f800000;
      top = vmax(y, top);
    }
    const vf scale = rounded_scale(given ? load(given + v) : top * (1.0f / 127.0f)), up = inverse(scale);
    store(out.scale + v, select(bad, splat(__builtin_nanf("")), scale));
    for (int k = 0; k < GROUP; k++) {
      const vf y = load(x + k * STRIP + v) * up, z = vmax(vmin(y, splat(127.0f)), splat(-127.0f));
      const vi q = (bad ? vi{} : nearest(z)) + BIAS;
      std::memcpy(out.code + k * STRIP + v, &q, sizeof q);
    }
  }
}

// The level nearest to u, and its code.
ANSATZ_INLINE vf q4_level(vf u, vi* code) {
  vf level = splat(Q4_LEVEL[0]);
  vi q = {};
#pragma GCC unroll 16
  for (int i = 1; i < 16; i++) {
    const vi above = u > 0.5f * (Q4_LEVEL[i - 1] + Q4_LEVEL[i]);
    level += select(above, splat(float(Q4_LEVEL[i] - Q4_LEVEL[i - 1])), splat(0.0f));
    if (code) q -= above;
  }
  if (code) *code = q;
  return level;
}

// The scale that fits best when values are coded by the scale `s`: with codes fixed, least squares gives
// sum(x level) / sum(level^2), which takes `gain` = sum(x level)^2 / sum(level^2) off the squared error.
ANSATZ_INLINE vf q4_fit(const float* x, vf s, vf* gain) {
  const vf up = inverse(s);
  vf xl = {}, ll = {};
  for (int k = 0; k < GROUP; k++) {
    const vf y = load(x + k * STRIP), level = q4_level(y * up, nullptr);
    xl += y * level;
    ll += level * level;
  }
  const vf fit = select(ll > 0.0f, xl / ll, splat(0.0f));
  *gain = fit * xl;
  return fit;
}

// Tries scales that put the largest value at several places of the table, of either sign since the table is not
// symmetric, takes the best after its least-squares fit, and fits twice more.
ANSATZ_INLINE void q4_group(const float* x, const float* given, GroupCodes& out) {
  constexpr int TRIES = 8;
  constexpr float FIRST = 79, LAST = 146;
  for (int v = 0; v < STRIP; v += W) {
    vf top = {}, scale = {}, best = {};
    vi bad = {};
    for (int k = 0; k < GROUP; k++) {
      const vf y = vabs(load(x + k * STRIP + v));
      bad |= (vi)y >= 0x7f800000;
      top = vmax(y, top);
    }
    if (given) {
      scale = load(given + v);
    } else {
      for (int t = 0; t < 2 * TRIES; t++) {
        const float end = FIRST + (LAST - FIRST) / (TRIES - 1) * (t / 2);
        vf gain;
        const vf fit = q4_fit(x + v, top * ((t & 1 ? -1.0f : 1.0f) / end), &gain);
        const vi better = gain > best;
        best = select(better, gain, best);
        scale = select(better, fit, scale);
      }
      for (int t = 0; t < 2; t++) {
        vf gain;
        const vf fit = q4_fit(x + v, scale, &gain);
        scale = select(gain >= best, fit, scale);
        best = vmax(gain, best);
      }
    }
    scale = rounded_scale(scale);
    store(out.scale + v, select(bad, splat(__builtin_nanf("")), scale));
    const vf up = inverse(scale);
    for (int k = 0; k < GROUP; k++) {
      vi q;
      q4_level(load(x + k * STRIP + v) * up, &q);
      q = bad ? splat_i(Q4_ZERO) : q;
      std::memcpy(out.code + k * STRIP + v, &q, sizeof q);
    }
  }
}

}  // namespace
}  // namespace ansatz
