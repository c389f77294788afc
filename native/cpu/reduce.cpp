// Sums and extremes of x seen as [outer, R, inner] over its middle axis.
//
// The work is cut into units of fixed size: a piece of one row when inner = 1, a piece of the rows of a tile of columns
// otherwise. Each unit leaves a partial result in double; partials combine in order.
#include "reduce_rows.h"

namespace ansatz {
namespace {

constexpr int64_t kRunPiece = 16384;   // elements of a long row that make one unit
constexpr int64_t kFlushRows = 64;     // rows added in f32 before they go to double

// inner = 1: n consecutive elements.
template <class Op> double reduce_piece(const void* x, int32_t t, int64_t at, int64_t n) {
  alignas(64) float s[kBlock];
  double total = Op::identity;
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t m = least(kBlock, n - k);
    total = Op::combine(total, reduce_run<Op>(fetch(x, t, at + k, m, s), m));
  }
  return total;
}

// inner > 1: `rows` rows of n <= kBlock columns, `inner` elements apart, into total[n].
template <class Op>
void reduce_columns(const void* x, int32_t t, int64_t at, int64_t rows, int64_t inner, int64_t n, double* total) {
  alignas(64) float acc[kBlock], s[4][kBlock];
  for (int64_t c = 0; c < n; c++) total[c] = Op::identity;
  for (int64_t begin = 0; begin < rows; begin += kFlushRows) {
    const int64_t end = least(rows, begin + kFlushRows);
    for (int64_t c = 0; c < n; c++) acc[c] = static_cast<float>(Op::identity);
    int64_t r = begin;
    for (; r + 4 <= end; r += 4) {   // four rows at once: a quarter of the accumulator's traffic, and pairwise sums
      const float* p[4];
      for (int k = 0; k < 4; k++) p[k] = fetch(x, t, at + (r + k) * inner, n, s[k]);
      int64_t c = 0;
      for (; c + W <= n; c += W)
        store(acc + c, Op::f(load(acc + c), Op::f(Op::f(load(p[0] + c), load(p[1] + c)),
                                                  Op::f(load(p[2] + c), load(p[3] + c)))));
      for (; c < n; c++) acc[c] = Op::f(acc[c], Op::f(Op::f(p[0][c], p[1][c]), Op::f(p[2][c], p[3][c])));
    }
    for (; r < end; r++) {
      const float* p = fetch(x, t, at + r * inner, n, s[0]);
      int64_t c = 0;
      for (; c + W <= n; c += W) store(acc + c, Op::f(load(acc + c), load(p + c)));
      for (; c < n; c++) acc[c] = Op::f(acc[c], p[c]);
    }
    for (int64_t c = 0; c < n; c++) total[c] = Op::combine(total[c], acc[c]);
  }
}

// out = scale * reduction. P = out, x; I = outer, R, inner.
template <class Op> void reduce(const Call& c, double scale) {
  void* out = c.p[0];
  const void* x = c.p[1];
  const int32_t to = c.t[0], t = c.t[1];
  const int64_t outer = c.i[0], R = c.i[1], inner = c.i[2];
  if (outer == 0 || inner == 0) return;
  const int64_t tile = least(inner, kBlock), tiles = (inner + tile - 1) / tile;
  const int64_t piece = inner == 1 ? kRunPiece : most(kFlushRows, 2 * kGrain / tile / kFlushRows * kFlushRows);
  const int64_t pieces = most(1, (R + piece - 1) / piece);
  // With one piece there is nothing to combine and units write their results themselves.
  double* partial = pieces == 1 ? nullptr : static_cast<double*>(pool_scratch(0, 3, outer * pieces * inner * 8));
  const int64_t grain = rows_a_task(least(R, piece) * tile, kGrain);
  parallel_range(outer * pieces * tiles, grain, [&](int64_t begin, int64_t end, int) {
    double total[kBlock];
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t column = unit % tiles * tile, row = unit / tiles;   // row = o * pieces + piece index
      const int64_t o = row / pieces, first = row % pieces * piece;
      const int64_t rows = least(piece, R - first), n = least(tile, inner - column);
      const int64_t at = (o * R + first) * inner + column;
      if (inner == 1) total[0] = reduce_piece<Op>(x, t, at, rows);
      else reduce_columns<Op>(x, t, at, rows, inner, n, total);
      for (int64_t k = 0; k < n; k++) {
        if (partial) partial[row * inner + column + k] = total[k];
        else write_one(out, to, o * inner + column + k, static_cast<float>(total[k] * scale));
      }
    }
  });
  if (!partial) return;
  parallel_range(outer * inner, 4096, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; k++) {
      const double* p = partial + k / inner * pieces * inner + k % inner;
      double total = p[0];
      for (int64_t j = 1; j < pieces; j++) total = Op::combine(total, p[j * inner]);
      write_one(out, to, k, static_cast<float>(total * scale));
    }
  });
}

void sum(const Call& c) { reduce<Sum>(c, 1.0); }
void mean(const Call& c) { reduce<Sum>(c, 1.0 / static_cast<double>(c.i[1])); }
void max(const Call& c) { reduce<Max>(c, 1.0); }
void min(const Call& c) { reduce<Min>(c, 1.0); }

// In double throughout, since partial products leave f32's range long before the result does.
void prod(const Call& c) {
  const int64_t outer = c.i[0], R = c.i[1], inner = c.i[2];
  parallel_range(outer * inner, rows_a_task(R, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; k++) {
      const int64_t at = k / inner * R * inner + k % inner;
      double p = 1;
      for (int64_t r = 0; r < R; r++) p *= static_cast<double>(read_one(c.p[1], c.t[1], at + r * inner));
      write_one(c.p[0], c.t[0], k, static_cast<float>(p));
    }
  });
}

void sumsq(const Call& c) {
  const void* x = c.p[1];
  const int32_t t = c.t[1];
  const int64_t n = c.i[0], pieces = (n + kRunPiece - 1) / kRunPiece;
  double* partial = static_cast<double*>(pool_scratch(0, 3, most(1, pieces) * 8));
  parallel_range(pieces, 2, [&](int64_t begin, int64_t end, int) {
    alignas(64) float s[kBlock];
    for (int64_t piece = begin; piece < end; piece++) {
      const int64_t stop = least(n, (piece + 1) * kRunPiece);
      double total = 0;
      for (int64_t at = piece * kRunPiece; at < stop; at += kBlock) {
        const int64_t m = least(kBlock, stop - at);
        const float* p = fetch(x, t, at, m, s);
        total += sum_vectors(m, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
          const vf v = part(p + k, lanes);
          return v * v;
        });
      }
      partial[piece] = total;
    }
  });
  double total = 0;
  for (int64_t k = 0; k < pieces; k++) total += partial[k];
  write_one(c.p[0], c.t[0], 0, static_cast<float>(total));
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(reduce, {"sum", sum}, {"mean", mean}, {"max", max}, {"min", min}, {"prod", prod}, {"sumsq", sumsq})
