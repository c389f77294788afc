// Index arithmetic of strided tensors: up to kMaxDims dimensions shared by N operands with strides of their own.
#pragma once
#include "block.h"

namespace ansatz {
namespace {

constexpr int kMaxDims = 16;

template <int N> struct Shape {
  int nd = 0;
  int64_t dims[kMaxDims];
  int64_t strides[N][kMaxDims];

  int64_t elements() const {
    int64_t n = 1;
    for (int k = 0; k < nd; k++) n *= dims[k];
    return n;
  }

  // Drops dimensions of one element and merges neighbours that every operand walks as one; leaves at least one.
  void collapse() {
    int kept = 0;
    for (int k = 0; k < nd; k++) {
      if (dims[k] == 1) continue;
      bool merge = kept > 0;
      for (int j = 0; j < N && merge; j++) merge = strides[j][kept - 1] == strides[j][k] * dims[k];
      if (!merge) kept++;
      const int64_t before = merge ? dims[kept - 1] : 1;
      dims[kept - 1] = before * dims[k];
      for (int j = 0; j < N; j++) strides[j][kept - 1] = strides[j][k];
    }
    if (kept == 0) {
      dims[0] = 1;
      for (int j = 0; j < N; j++) strides[j][0] = 1;
      kept = 1;
    }
    nd = kept;
  }

  // Strides of a contiguous tensor of these dims, for operand j.
  void contiguous(int j) {
    int64_t s = 1;
    for (int k = nd - 1; k >= 0; k--) {
      strides[j][k] = s;
      s *= dims[k];
    }
  }
};

// Walks rows of a shape (runs along the last dimension): offsets of N operands, advanced like an odometer.
template <int N> struct Walker {
  const Shape<N>& shape;
  int64_t index[kMaxDims];
  int64_t offset[N];   // of the current position

  Walker(const Shape<N>& s, int64_t at) : shape(s) {
    for (int j = 0; j < N; j++) offset[j] = 0;
    for (int k = s.nd - 1; k >= 0; k--) {
      index[k] = at % s.dims[k];
      at /= s.dims[k];
      for (int j = 0; j < N; j++) offset[j] += index[k] * s.strides[j][k];
    }
  }
  int64_t left_in_row() const { return shape.dims[shape.nd - 1] - index[shape.nd - 1]; }
  // Moves n elements on; n is at most left_in_row().
  void advance(int64_t n) {
    int k = shape.nd - 1;
    index[k] += n;
    for (int j = 0; j < N; j++) offset[j] += n * shape.strides[j][k];
    for (; index[k] == shape.dims[k] && k > 0; k--) {
      for (int j = 0; j < N; j++) offset[j] += shape.strides[j][k - 1] - shape.dims[k] * shape.strides[j][k];
      index[k] = 0;
      index[k - 1]++;
    }
  }
};

// Calls f(offsets, at, n) for runs of at most `most` elements along the last dimension that make up [begin, end).
template <int N, class F>
ANSATZ_INLINE void for_runs(const Shape<N>& shape, int64_t begin, int64_t end, int64_t most, const F& f) {
  Walker<N> walk(shape, begin);
  for (int64_t at = begin; at < end;) {
    const int64_t n = least(least(walk.left_in_row(), end - at), most);
    f(static_cast<const int64_t*>(walk.offset), at, n);
    walk.advance(n);
    at += n;
  }
}

// Whether no two positions of operand j share an element: each stride steps over all that the smaller ones span.
template <int N> bool disjoint(const Shape<N>& shape, int j) {
  int64_t size[kMaxDims], count[kMaxDims];
  for (int k = 0; k < shape.nd; k++) {
    const int64_t s = shape.strides[j][k];
    const int64_t step = s < 0 ? -s : s;
    int at = k;
    for (; at > 0 && size[at - 1] > step; at--) size[at] = size[at - 1], count[at] = count[at - 1];
    size[at] = step;
    count[at] = shape.dims[k];
  }
  int64_t span = 0;
  for (int k = 0; k < shape.nd; k++) {
    if (count[k] == 1) continue;
    if (size[k] <= span) return false;
    span += size[k] * (count[k] - 1);
  }
  return true;
}

// n elements from offset `at`, `step` elements apart, as consecutive floats.
inline void gather_run(const void* base, int32_t t, int64_t at, int64_t step, int64_t n, float* dst) {
  with_type(base, t, at, [&](const auto* p) {
    if (step == 1) {
      if (n >= W) return widen_to(dst, p, n);
      for (int64_t k = 0; k < n; k++) dst[k] = to_float(p[k]);
    } else if (step == 0) {
      const float x = to_float(*p);
      for (int64_t k = 0; k < n; k++) dst[k] = x;
    } else {
      for (int64_t k = 0; k < n; k++) dst[k] = to_float(p[k * step]);
    }
  });
}

}  // namespace
}  // namespace ansatz
