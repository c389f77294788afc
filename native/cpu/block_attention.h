// Attention of each query to a few chosen blocks of keys (the selected branch of Yuan et al. 2025, arXiv 2502.11089):
// what the forward and the backward pass share. All query heads of a key head read the same blocks.
#pragma once
#include "attention_tile.h"

namespace ansatz {
namespace {

// A list of blocks: those chosen by one query for one key head, ascending; the rest of its n places hold -1.
struct BlockList {
  const int32_t* block;
  int64_t count;
};

struct Selected {
  Problem p;               // Tq = Tk = T, causal
  const int32_t* index;    // [B,T,Hkv,n]
  int64_t n, size, blocks; // places of a list, tokens of a block, blocks of a row

  // Lists come from data. A bad one is reported and read as empty: blocks ascend, none lies beyond the query's own, and
  // after the first -1 come only others.
  BlockList list(int64_t b, int64_t t, int64_t kv_head) const {
    const int32_t* at = index + ((b * p.Tq + t) * p.Hkv + kv_head) * n;
    const int64_t own = t / size;
    int64_t count = 0;
    for (int64_t before = -1; count < n && at[count] != -1; before = at[count++])
      if (at[count] <= before || at[count] > own) {
        raise(INDEX_OUT_OF_RANGE, at[count], own + 1);
        return BlockList{at, 0};
      }
    for (int64_t k = count; k < n; k++)
      if (at[k] != -1) {
        raise(INDEX_OUT_OF_RANGE, at[k], 0);
        return BlockList{at, 0};
      }
    return BlockList{at, count};
  }
};

// I: B, T, H, Hkv, D, size, n. Tensors are contiguous: a token's heads lie D apart.
inline Selected read_selected(const Call& c) {
  Selected s = {};
  Problem& p = s.p;
  p.B = c.i[0], p.Tq = p.Tk = c.i[1], p.H = c.i[2], p.Hkv = c.i[3], p.D = c.i[4];
  p.causal = true;
  p.scale = static_cast<float>(c.f[0]);
  p.Dp = round_up(larger(p.D, 1), W);
  p.group = p.Hkv ? p.H / p.Hkv : 0;
  s.size = c.i[5], s.n = c.i[6];
  s.blocks = (p.Tk + s.size - 1) / s.size;
  return s;
}

// Least and largest segment of every block's tokens, [B][blocks].
inline void block_segments(MinMax* out, const int32_t* seg, int64_t B, int64_t T, int64_t size) {
  const int64_t blocks = (T + size - 1) / size;
  parallel_range(B * blocks, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; k++) {
      const int64_t j0 = k % blocks * size;
      out[k] = segment_range(seg + k / blocks * T + j0, smaller(size, T - j0));
    }
  });
}

}  // namespace
}  // namespace ansatz
