// The steps on one tile, 64 queries (lanes) by 64 keys, of hashed chunks: what it sees, the products, the logits.
#pragma once
#include "lsh_problem.h"

namespace ansatz {
namespace {

// Lanes and keys stand in order of position: key j is seen from some lane on. Products skip what no lane of 16 by no
// key of 16 needs; first[g] is the lane, down to a multiple of 16, that key group g is seen from; keys16 and keys32 are
// the keys, up to a multiple of 16, that each 16 and each 32 lanes see some of.
struct Stairs {
  int64_t nq, width, keys;   // width: lanes in whole pairs of vectors; keys: even
  int64_t first[4], keys16[4], keys32[2];
  bool dark;
};

constexpr int64_t stair = 16;

inline Stairs stairs_of(const int32_t* lane_pos, int64_t nq, const int32_t* key_pos, int64_t nk) {
  Stairs s;
  s.nq = nq, s.width = round_up(nq, 2 * W), s.keys = round_up(nk, 2);
  s.dark = key_pos[0] >= lane_pos[nq - 1];
  if (s.dark) return s;
  int64_t lane = 0;
  for (int64_t g = 0; g < 4; g++) {
    while (g * stair < nk && lane < nq && lane_pos[lane] <= key_pos[g * stair]) lane++;
    s.first[g] = g * stair < nk && lane < nq ? lane / stair * stair : s.width;
  }
  int64_t key = 0;
  for (int64_t g = 0; g < 4; g++) {
    s.keys16[g] = 0;
    if (g * stair >= nq) continue;
    const int32_t last = lane_pos[smaller(g * stair + stair, nq) - 1];
    while (key < nk && key_pos[key] < last) key++;
    s.keys16[g] = smaller(round_up(key, stair), s.keys);
  }
  s.keys32[0] = larger(s.keys16[0], s.keys16[1]), s.keys32[1] = larger(s.keys16[2], s.keys16[3]);
  return s;
}

// Groups of keys from `g` on that are seen from the same lane: one product serves them.
inline int64_t same_first(const Stairs& s, int64_t g) {
  int64_t end = g + 1;
  while (end * stair < s.keys && s.first[end] == s.first[g]) end++;
  return end;
}

// [key][lane] = rows[key] . (transposed rows)[lane].
template <bool Pair>
void stairs_over_dims(const Stairs& s, int64_t Dw, const float* rows, const float* transposed, float* out) {
  for (int64_t g = 0, end; g * stair < s.keys; g = end) {
    end = same_first(s, g);
    const int64_t j = g * stair, l = s.first[g];
    if (l < s.width)
      tile_product<Pair, ALayout::rows>(smaller(end * stair, s.keys) - j, s.width - l, Dw, rows + j * Dw, Dw,
                                        transposed + l, lanes, out + j * lanes + l, lanes, false);
  }
}

// [key][dim] += sum over lanes of x[key][lane] y[lane][dim].
template <bool Pair>
void stairs_over_lanes(const Stairs& s, int64_t Dp, const float* x, const float* y, float* out) {
  const int64_t word = Pair ? 2 : 1, ldx = lanes / word;
  for (int64_t g = 0, end; g * stair < s.keys; g = end) {
    end = same_first(s, g);
    const int64_t j = g * stair, l = s.first[g] / word;
    if (s.first[g] < s.width)
      tile_product<Pair, ALayout::rows>(smaller(end * stair, s.keys) - j, Dp, s.width / word - l, x + j * ldx + l, ldx,
                                        y + l * Dp, Dp, out + j * Dp, Dp, true);
  }
}

// [lane][dim] += sum over keys of x[key][lane] y[key][dim].
template <bool Pair>
void stairs_over_keys(const Stairs& s, int64_t Dp, const float* x, const float* y, float* out) {
  const int64_t rows = round_up(s.nq, 2);
  for (int64_t g = 0, end; g * stair < rows; g = end) {
    end = g + 1;
    while (end * stair < rows && s.keys16[end] == s.keys16[g]) end++;
    const int64_t l = g * stair;
    if (s.keys16[g])
      tile_product<Pair, ALayout::columns>(smaller(end * stair, rows) - l, Dp, s.keys16[g] / (Pair ? 2 : 1), x + l,
                                           lanes, y, Dp, out + l * Dp, Dp, true);
  }
}

// log2 of 1 + count, count < most_rounds.
alignas(64) constexpr float log2_table[most_rounds] = {
    0.0f,          1.0f,          1.5849625007f, 2.0f,          2.3219280949f, 2.5849625007f, 2.8073549221f, 3.0f,
    3.1699250014f, 3.3219280949f, 3.4594316186f, 3.5849625007f, 3.7004397181f, 3.8073549221f, 3.9068905956f, 4.0f};
ANSATZ_INLINE vf log2_of_more(vi count) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)count, _mm512_load_ps(log2_table));
#else
  vf y;
  for (int k = 0; k < W; k++) y[k] = log2_table[count[k]];
  return y;
#endif
}

// Where a tile begins in its two slots, and the round.
struct TileAt {
  const Slot *q, *k;
  int64_t q0, k0, r;
};

ANSATZ_INLINE vi load_lanes(const int32_t* p) { return *reinterpret_cast<const vi_u*>(p); }

// Logits times log2 e of key j for W lanes from l on: -inf where the key is not seen, less log2 N for a pair that N
// rounds see (so that the sum over rounds is softmax over the union of what they see).
ANSATZ_INLINE vf logit(const Lsh& p, const TileAt& t, int64_t j, int64_t l, vf product) {
  const Slot &q = *t.q, &k = *t.k;
  const int64_t lane = t.q0 + l, key = t.k0 + j;
  vi seen = load_lanes(q.pos + lane) > splat_i(k.pos[key]);
  if (p.segments) seen &= load_lanes(q.segment + lane) == splat_i(k.segment[key]);
  if (p.buckets) seen &= load_lanes(q.bucket + t.r * p.Cp + lane) == splat_i(k.bucket[t.r * p.Cp + key]);
  vf x = product * splat(k.factor[key]);
  if (p.dedupe && p.R > 1) {
    vi others = {};
    for (int64_t o = 0; o < p.R; o++) {
      if (o == t.r) continue;
      const vi ahead = load_lanes(q.place + o * p.Cp + lane) - splat_i(k.place[o * p.Cp + key]);
      vi both = ahead + ((ahead >> 31) & static_cast<int32_t>(p.chunks)) <= static_cast<int32_t>(p.back);
      if (p.buckets) both &= load_lanes(q.bucket + o * p.Cp + lane) == splat_i(k.bucket[o * p.Cp + key]);
      others -= both;
    }
    x -= p.R == 2 ? __builtin_convertvector(others, vf) : log2_of_more(others);
  }
  return select(seen, x, splat(-infinity));
}

}  // namespace
}  // namespace ansatz
