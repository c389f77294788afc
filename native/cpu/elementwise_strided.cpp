// Copies between a strided and a contiguous layout: permutations, slices, expansion, concatenation.
//
// Three cases, after merging dimensions: rows contiguous on both sides (memcpy), a transpose (one dimension is
// contiguous in the source, another in the destination: square tiles in registers), anything else (element loops).
#include "elementwise_shape.h"
#include "elementwise_shuffle.h"

namespace ansatz {
namespace {

constexpr int kTo = 0, kFrom = 1;   // operands of a Shape<2>
constexpr int64_t kTile = 64;

template <class E> ANSATZ_INLINE void copy_run(E* to, const E* from, int64_t n) {
  if (n == kTile) std::memcpy(to, from, kTile * sizeof(E));   // inline
  else if (n * static_cast<int64_t>(sizeof(E)) >= 64) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(E));
  else for (int64_t k = 0; k < n; k++) to[k] = from[k];
}

template <class E> void copy_rows(const Shape<2>& shape, E* to, const E* from, int64_t begin, int64_t end) {
  const int last = shape.nd - 1;
  const int64_t st = shape.strides[kTo][last], sf = shape.strides[kFrom][last];
  for_runs(shape, begin, end, end, [&](const int64_t* offset, int64_t, int64_t n) {
    E* t = to + offset[kTo];
    const E* f = from + offset[kFrom];
    if (st == 1 && sf == 1) {
      copy_run(t, f, n);
    } else if (st == 1 && sf == 0) {
      const E x = *f;
      for (int64_t k = 0; k < n; k++) t[k] = x;
    } else {
      for (int64_t k = 0; k < n; k++) t[k * st] = f[k * sf];
    }
  });
}

// The transpose goes through a square buffer in the L1 cache, and from there row by row to its place: written directly,
// rows a power of two apart would evict one another before their cache lines are full.
// to[r + c * st] = from[r * sf + c] over rows x columns, each at most kTile.
template <class E>
void transpose_block(E* to, int64_t st, const E* from, int64_t sf, int64_t rows, int64_t columns) {
  alignas(64) E buffer[kTile * kTile];
  int64_t r = 0;
  if constexpr (sizeof(E) > 1) {
    for (; r + W <= rows; r += W) {
      int64_t c = 0;
      for (; c + W <= columns; c += W) transpose_tile(buffer + r + c * kTile, kTile, from + r * sf + c, sf);
      for (; c < columns; c++)
        for (int k = 0; k < W; k++) buffer[r + k + c * kTile] = from[(r + k) * sf + c];
    }
  }
  for (; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) buffer[r + c * kTile] = from[r * sf + c];
  for (int64_t c = 0; c < columns; c++) copy_run(to + c * st, buffer + c * kTile, rows);
}

// The dimension in which operand j is contiguous, or -1.
int unit_dimension(const Shape<2>& shape, int j) {
  for (int k = shape.nd - 1; k >= 0; k--)
    if (shape.strides[j][k] == 1) return k;
  return -1;
}

// The pieces of dimensions `row` (contiguous in the destination) and `column` (in the source) are cut into blocks of
// kTile; the others are walked outside.
template <class E> void transpose(const Shape<2>& shape, E* to, const E* from, int row, int column) {
  Shape<2> outer;
  for (int k = 0; k < shape.nd; k++) {
    if (k == row || k == column) continue;
    outer.dims[outer.nd] = shape.dims[k];
    for (int j = 0; j < 2; j++) outer.strides[j][outer.nd] = shape.strides[j][k];
    outer.nd++;
  }
  const int64_t rows = shape.dims[row], columns = shape.dims[column];
  const int64_t st = shape.strides[kTo][column], sf = shape.strides[kFrom][row];
  const int64_t tile_rows = (rows + kTile - 1) / kTile, tile_columns = (columns + kTile - 1) / kTile;
  const int64_t tiles = tile_rows * tile_columns;
  const int64_t grain = rows_a_task(least(rows, kTile) * least(columns, kTile), kGrain);
  parallel_range(outer.elements() * tiles, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; task++) {
      const Walker<2> walk(outer, task / tiles);
      const int64_t tile = task % tiles, r = tile / tile_columns * kTile, c = tile % tile_columns * kTile;
      transpose_block(to + walk.offset[kTo] + r + c * st, st, from + walk.offset[kFrom] + r * sf + c, sf,
                      least(kTile, rows - r), least(kTile, columns - c));
    }
  });
}

template <class E> void copy(const Shape<2>& shape, void* to_, const void* from_) {
  E* to = static_cast<E*>(to_);
  const E* from = static_cast<const E*>(from_);
  const int64_t n = shape.elements();
  const int last = shape.nd - 1;
  if (!disjoint(shape, kTo)) return copy_rows(shape, to, from, 0, n);   // overlapping writes: in order, the last wins
  const int row = unit_dimension(shape, kTo), column = unit_dimension(shape, kFrom);
  const bool rows_match = shape.strides[kTo][last] == 1 && shape.strides[kFrom][last] == 1;
  if (!rows_match && row >= 0 && column >= 0 && row != column && shape.dims[row] > 1 && shape.dims[column] > 1)
    return transpose(shape, to, from, row, column);
  parallel_range(n, kGrain, [&](int64_t begin, int64_t end, int) { copy_rows(shape, to, from, begin, end); });
}

// P = out, x; I = nd, dims, strides of operand j. The other operand is contiguous.
Shape<2> read_shape(const Call& c, int j) {
  Shape<2> shape;
  shape.nd = static_cast<int>(c.i[0]);
  for (int k = 0; k < shape.nd; k++) {
    shape.dims[k] = c.i[1 + k];
    shape.strides[j][k] = c.i[1 + shape.nd + k];
  }
  shape.contiguous(1 - j);
  return shape;
}

void strided_copy(const Call& c, int strided) {
  Shape<2> shape = read_shape(c, strided);
  if (shape.elements() == 0) return;
  shape.collapse();
  const int64_t size = dtype_size(c.t[0]);
  if (size == 4) copy<uint32_t>(shape, c.p[0], c.p[1]);
  else if (size == 2) copy<uint16_t>(shape, c.p[0], c.p[1]);
  else copy<uint8_t>(shape, c.p[0], c.p[1]);
}
void strided_read(const Call& c) { strided_copy(c, kFrom); }
void strided_write(const Call& c) { strided_copy(c, kTo); }

void add_runs(const Call& c, const Shape<2>& shape, int64_t begin, int64_t end) {
  const int32_t to = c.t[0], tx = c.t[1];
  const int64_t step = shape.strides[kTo][shape.nd - 1];
  alignas(64) float sx[kBlock], so[kBlock];
  for_runs(shape, begin, end, kBlock, [&](const int64_t* offset, int64_t at, int64_t n) {
    const int64_t o = offset[kTo];
    if (to == I32 && tx == I32) {
      uint32_t* out = c.ptr<uint32_t>(0) + o;
      for (int64_t k = 0; k < n; k++) out[k * step] += c.ptr<uint32_t>(1)[at + k];
      return;
    }
    const float* x = fetch(c.p[1], tx, at, n, sx);
    if (step != 1) {   // in order: the stride may be 0
      for (int64_t k = 0; k < n; k++)
        write_one(c.p[0], to, o + k * step, read_one(c.p[0], to, o + k * step) + x[k]);
      return;
    }
    const float* old = fetch(c.p[0], to, o, n, so);
    float* out = target(c.p[0], to, o, so);
    int64_t k = 0;
    for (; k + W <= n; k += W) store(out + k, load(old + k) + load(x + k));
    for (; k < n; k++) out[k] = old[k] + x[k];
    finish(c.p[0], to, o, n, so);
  });
}

void strided_add(const Call& c) {
  Shape<2> shape = read_shape(c, kTo);
  const int64_t n = shape.elements();
  if (n == 0) return;
  shape.collapse();
  if (!disjoint(shape, kTo)) return add_runs(c, shape, 0, n);
  parallel_range(n, kGrain, [&](int64_t begin, int64_t end, int) { add_runs(c, shape, begin, end); });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(elementwise_strided, {"strided_read", strided_read}, {"strided_write", strided_write},
  {"strided_add", strided_add})
