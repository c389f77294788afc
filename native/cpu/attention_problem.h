// What the attention kernels share: the arguments, and which keys a block of queries can see.
//
// Tiles are held transposed, [key][query lane]: a vector then spans queries, so the softmax needs no horizontal sums
// and per-query quantities (position, maximum, log-sum-exp) are plain vectors. 64 query lanes make a block.
#pragma once
#include "attention_micro.h"
#include "attention_pack.h"
#include "../core/pool.h"

namespace ansatz {
namespace {

constexpr int64_t lanes = 64;          // queries of a block
constexpr int64_t key_tile = 64;       // keys of a tile
constexpr int64_t margin = 16;         // zeros around a row of the dS tile (see attention_bias.h)
constexpr float log2e = 1.44269504088896341f, ln2 = 0.693147180559945309f;
constexpr float infinity = __builtin_inff();

ANSATZ_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
ANSATZ_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
ANSATZ_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

enum BiasMode : int64_t { bias_none = 0, bias_relative = 1, bias_full = 2 };

struct Problem {
  int64_t B, Tq, Tk, H, Hkv, D, window, bias_mode;
  bool causal;
  float scale;
  Rows q, k, v, out;
  float* lse;
  const float* bias;
  const int32_t* seg_q;
  const int32_t* seg_k;
  const int32_t* visible;   // [B,Tq] or null: with a causal mask, keys up to this one are seen too (prefix-LM)
  const int32_t* keep;      // [B,Tk] or null: a key with 0 is seen by the query at its own position only
  int64_t Dp;      // D padded to whole vectors
  int64_t group;   // query heads for each key head
  int64_t blocks;  // of queries

  int64_t position(int64_t i) const { return i + Tk - Tq; }
  const char* tokens(const Rows& r, int64_t b, int64_t T, int64_t t, int64_t head) const {
    return r.at((b * T + t) * r.token + head * D);
  }
};

// Integers of a call, in the order of docs/kernels.md; tensors are set by each kernel.
inline Problem read_problem(const Call& c) {
  Problem p = {};
  p.B = c.i[0], p.Tq = c.i[1], p.Tk = c.i[2], p.H = c.i[3], p.Hkv = c.i[4], p.D = c.i[5];
  p.causal = c.i[10] != 0, p.window = c.i[11], p.bias_mode = c.i[12];
  p.scale = static_cast<float>(c.f[0]);
  p.Dp = round_up(larger(p.D, 1), W);
  p.group = p.Hkv ? p.H / p.Hkv : 0;
  p.blocks = (p.Tq + lanes - 1) / lanes;
  return p;
}
inline Rows rows_of(const Call& c, int tensor, int64_t token) {
  return Rows{static_cast<char*>(c.p[tensor]), c.t[tensor], token};
}

struct Range {
  int64_t begin, end;
  bool empty() const { return end <= begin; }
};

// The last key that some query of [q0, q1) reaches under a causal mask.
inline int64_t furthest_key(const Problem& p, int64_t b, int64_t q0, int64_t q1) {
  int64_t furthest = p.position(q1 - 1);
  if (p.visible)
    for (int64_t i = q0; i < q1; i++) furthest = larger(furthest, p.visible[b * p.Tq + i]);
  return furthest;
}

// Keys that some query of [q0, q1) of batch b can see by position alone, from a tile's beginning.
inline Range visible_keys(const Problem& p, int64_t b, int64_t q0, int64_t q1) {
  const int64_t first = p.position(q0), last = p.position(q1 - 1);
  const int64_t begin = p.window ? larger(0, first - p.window + 1) : 0;
  const int64_t end = p.causal ? furthest_key(p, b, q0, q1) + 1 : p.window ? last + p.window : p.Tk;
  return Range{begin / key_tile * key_tile, smaller(end, p.Tk)};
}

struct MinMax { int32_t lo, hi; };
inline MinMax segment_range(const int32_t* s, int64_t n) {
  MinMax r = {s[0], s[0]};
  for (int64_t i = 1; i < n; i++) {
    r.lo = s[i] < r.lo ? s[i] : r.lo;
    r.hi = s[i] > r.hi ? s[i] : r.hi;
  }
  return r;
}

// A block of queries of one head: what the mask needs to know of it.
struct QueryBlock {
  int64_t b, h, q0, nq, width;        // width: lanes in use, whole vectors (pairs of them: see adjacent_pairs)
  MinMax segments;
  MinMax reaches;                     // of the lanes in use
  alignas(64) int32_t position[lanes];
  alignas(64) int32_t reach[lanes];   // under a causal mask: the last key that a lane sees
  alignas(64) int32_t segment[lanes];
};

inline void set_block(const Problem& p, QueryBlock& s, int64_t b, int64_t h, int64_t block) {
  s.b = b, s.h = h, s.q0 = block * lanes, s.nq = smaller(lanes, p.Tq - s.q0);
  s.width = round_up(s.nq, 2 * W);
  for (int64_t l = 0; l < lanes; l++) s.position[l] = s.reach[l] = static_cast<int32_t>(p.position(s.q0 + l));
  if (p.visible)
    for (int64_t l = 0; l < s.nq; l++) {
      const int32_t to = p.visible[b * p.Tq + s.q0 + l];
      s.reach[l] = to > s.reach[l] ? to : s.reach[l];
    }
  s.reaches = segment_range(s.reach, s.nq);
  if (!p.seg_q) return;
  const int32_t* seg = p.seg_q + b * p.Tq + s.q0;
  s.segments = segment_range(seg, s.nq);
  for (int64_t l = 0; l < lanes; l++) s.segment[l] = l < s.nq ? seg[l] : 0;
}

// The visible part of a tile. diagonal: its first key stands at the first query's position and the mask is causal, so
// that lane l sees no key after l; the products then leave most of the dark half out.
enum class Visibility { none, all, some, diagonal };

// Whether some lane sees beyond its own position.
inline bool reaches_ahead(const Problem& p, const QueryBlock& s) {
  for (int64_t l = 0; p.visible && l < s.nq; l++)
    if (s.reach[l] > s.position[l]) return true;
  return false;
}

inline Visibility tile_visibility(const Problem& p, const QueryBlock& s, int64_t k0, int64_t nk) {
  const int64_t first = p.position(s.q0), last = p.position(s.q0 + s.nq - 1), k1 = k0 + nk - 1;
  if (p.causal && k0 > s.reaches.hi) return Visibility::none;
  if (p.window && (first - k1 >= p.window || (!p.causal && k0 - last >= p.window))) return Visibility::none;
  const bool behind = p.window && last - k0 >= p.window, ahead = p.window && !p.causal && k1 - first >= p.window;
  bool all = !(p.causal && k1 > s.reaches.lo) && !behind && !ahead;
  if (p.seg_q) {
    const MinMax sk = segment_range(p.seg_k + s.b * p.Tk + k0, nk);
    if (sk.lo > s.segments.hi || sk.hi < s.segments.lo) return Visibility::none;
    all = all && sk.lo == sk.hi && s.segments.lo == s.segments.hi && sk.lo == s.segments.lo;
  }
  if (p.keep)
    for (int64_t j = 0; all && j < nk; j++) all = p.keep[s.b * p.Tk + k0 + j] != 0;
  if (all) return Visibility::all;
  return p.causal && k0 == first && !reaches_ahead(p, s) ? Visibility::diagonal : Visibility::some;
}

}  // namespace
}  // namespace ansatz
