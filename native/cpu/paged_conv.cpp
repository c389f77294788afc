// Long convolutions over the pages of sequences: `paged_conv` in docs/kernels.md. A row sums over all of its past, so
// sums are taken in splits of tokens at fixed places, each in order of tokens, and added in order: what a row gets
// depends neither on the rows beside it nor on threads.
#include "../core/pool.h"
#include "paged_format.h"

namespace ansatz {
namespace {

constexpr int64_t SPLIT = 256;        // tokens
constexpr int64_t TILE = 32;          // rows of one sequence
constexpr int64_t BLOCK = 4 * W;      // channels

struct PagedConv {
  int64_t R, C, taps, page, max_pages;
  const float *pool, *h, *beta;
  const int32_t *table, *sequence, *position;
};

// Rows `row` to row + rows - 1: one sequence, one position after the other. Channels c0 to c0 + width - 1.
struct ConvTile {
  int64_t row, rows, c0, width;
};

ANSATZ_INLINE const float* token_at(const PagedConv& p, int64_t row, int64_t t) {
  const int64_t page = p.table[p.sequence[row] * p.max_pages + t / p.page];
  return p.pool + (page * p.page + t % p.page) * p.C;
}

// sums[m][BLOCK] += h[position - t] v[t] for tokens t in [begin, end), which lie in one page and which all MR rows see.
// `width` counts for the last vector of a tail only.
template <int MR, int NV, bool Tail>
ANSATZ_INLINE void add_tokens(const PagedConv& p, const float* v, const float* h, int64_t count, int64_t width,
                              float* sums) {
  const auto get = [&](const float* from) { return Tail ? load_n(from, width) : load(from); };
  vf acc[MR][NV];
#pragma GCC unroll 4
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) acc[m][n] = load(sums + m * BLOCK + n * W);
  for (int64_t t = 0; t < count; t++, v += p.C, h -= p.C) {
    vf x[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) x[n] = get(v + n * W);
#pragma GCC unroll 4
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) acc[m][n] = acc[m][n] + get(h + m * p.C + n * W) * x[n];
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) store(sums + m * BLOCK + n * W, acc[m][n]);
}

template <int MR>
void add_range(const PagedConv& p, const ConvTile& tile, int64_t row, int64_t begin, int64_t end, float* sums) {
  for (int64_t t = begin; t < end;) {
    const int64_t left = p.page - t % p.page, count = end - t < left ? end - t : left;
    const float *v = token_at(p, row, t) + tile.c0, *h = p.h + (p.position[row] - t) * p.C + tile.c0;
    int64_t c = 0;
    for (; c + 4 * W <= tile.width; c += 4 * W) add_tokens<MR, 4, false>(p, v + c, h + c, count, W, sums + c);
    for (; c + W <= tile.width; c += W) add_tokens<MR, 1, false>(p, v + c, h + c, count, W, sums + c);
    if (c < tile.width) add_tokens<MR, 1, true>(p, v + c, h + c, count, tile.width - c, sums + c);
    t += count;
  }
}

// What the tokens of a split add to the rows of a tile. A row's tokens come in order, alone or with its neighbours'.
void add_split(const PagedConv& p, const ConvTile& tile, int64_t split, float* sums) {
  std::memset(sums, 0, static_cast<size_t>(tile.rows * BLOCK) * 4);
  const int64_t first = split * SPLIT, last = first + SPLIT;
  const auto low = [&](int64_t row) {
    const int64_t t = p.position[row] - p.taps + 1;
    return t > first ? t : first;
  };
  const auto high = [&](int64_t row) { return p.position[row] + 1 < last ? p.position[row] + 1 : last; };
  int64_t m = 0;
  for (; m + 4 <= tile.rows; m += 4) {
    const int64_t row = tile.row + m, begin = low(row + 3), end = high(row);
    float* to = sums + m * BLOCK;
    if (begin >= end) {
      for (int64_t k = 0; k < 4; k++) add_range<1>(p, tile, row + k, low(row + k), high(row + k), to + k * BLOCK);
      continue;
    }
    for (int64_t k = 0; k < 4; k++) add_range<1>(p, tile, row + k, low(row + k), begin, to + k * BLOCK);
    add_range<4>(p, tile, row, begin, end, to);
    for (int64_t k = 0; k < 4; k++) add_range<1>(p, tile, row + k, end, high(row + k), to + k * BLOCK);
  }
  for (; m < tile.rows; m++) {
    const int64_t row = tile.row + m;
    add_range<1>(p, tile, row, low(row), high(row), sums + m * BLOCK);
  }
}

template <class Out> void convolve(const PagedConv& p, Out* out) {
  const int64_t blocks = (p.C + BLOCK - 1) / BLOCK;
  if (!rows_fit(p.R, p.sequence, p.position, p.max_pages * p.page)) return;
  int64_t splits = 1, tiles = 0;
  // Where tiles begin, and behind the last one the end.
  int64_t* begins = static_cast<int64_t*>(pool_scratch(0, 3, (p.R + 1) * 8));
  for (int64_t r = 0; r < p.R; r++) {
    if (p.sequence[r] >= 0 && p.position[r] / SPLIT >= splits) splits = p.position[r] / SPLIT + 1;
    const bool joins = r > 0 && r - begins[tiles - 1] < TILE && p.sequence[r] == p.sequence[r - 1] &&
                       p.position[r] == p.position[r - 1] + 1;
    if (!joins) begins[tiles++] = r;
  }
  begins[tiles] = p.R;
  const auto tile_of = [&](int64_t task) {
    const int64_t k = task / blocks, c0 = task % blocks * BLOCK;
    return ConvTile{begins[k], begins[k + 1] - begins[k], c0, p.C - c0 < BLOCK ? p.C - c0 : BLOCK};
  };
  const auto write = [&](const ConvTile& t, int64_t m, const float* sums) {
    const int64_t row = t.row + m;
    Out* to = out + row * p.C + t.c0;
    const float* own = p.sequence[row] < 0 || !p.beta ? nullptr : token_at(p, row, p.position[row]) + t.c0;
    for (int64_t c = 0; c < t.width; c++) store_one(to + c, own ? sums[c] + p.beta[t.c0 + c] * own[c] : sums[c]);
  };
  const auto splits_of = [&](const ConvTile& t) {
    return p.sequence[t.row] < 0 ? 0 : p.position[t.row + t.rows - 1] / SPLIT + 1;
  };
  const auto add = [](float* total, const float* part, int64_t n) {
    for (int64_t c = 0; c < n; c += W) store(total + c, load(total + c) + load(part + c));
  };

  if (splits == 1 || tiles * blocks >= 2 * pool_threads()) {
    parallel(tiles * blocks, [&](int64_t task, int thread) {
      const ConvTile t = tile_of(task);
      float* total = static_cast<float*>(pool_scratch(thread, 0, 2 * TILE * BLOCK * 4));
      float* part = total + TILE * BLOCK;
      std::memset(total, 0, static_cast<size_t>(t.rows * BLOCK) * 4);
      for (int64_t k = 0; k < splits_of(t); k++) {
        add_split(p, t, k, part);
        add(total, part, t.rows * BLOCK);
      }
      for (int64_t m = 0; m < t.rows; m++) write(t, m, total + m * BLOCK);
    });
    return;
  }
  // Few rows with a long past: every split is a task.
  float* parts = static_cast<float*>(pool_scratch(0, 2, tiles * blocks * splits * TILE * BLOCK * 4));
  parallel(tiles * blocks * splits, [&](int64_t task, int) {
    const ConvTile t = tile_of(task / splits);
    if (task % splits < splits_of(t)) add_split(p, t, task % splits, parts + task * TILE * BLOCK);
  });
  parallel(tiles * blocks, [&](int64_t task, int thread) {
    const ConvTile t = tile_of(task);
    float* total = static_cast<float*>(pool_scratch(thread, 0, 2 * TILE * BLOCK * 4));
    std::memset(total, 0, static_cast<size_t>(t.rows * BLOCK) * 4);
    for (int64_t k = 0; k < splits_of(t); k++) add(total, parts + (task * splits + k) * TILE * BLOCK, t.rows * BLOCK);
    for (int64_t m = 0; m < t.rows; m++) write(t, m, total + m * BLOCK);
  });
}

void paged_conv(const Call& c) {
  PagedConv p;
  p.R = c.i[0], p.C = c.i[1], p.taps = c.i[2], p.page = c.i[3], p.max_pages = c.i[4];
  p.pool = c.ptr<const float>(1), p.h = c.ptr<const float>(2), p.beta = c.ptr<const float>(3);
  p.table = c.ptr<const int32_t>(4), p.sequence = c.ptr<const int32_t>(5), p.position = c.ptr<const int32_t>(6);
  if (c.t[0] == BF16) convolve(p, c.ptr<bf16>(0));
  else convolve(p, c.ptr<float>(0));
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(paged_conv, {"paged_conv", paged_conv})
