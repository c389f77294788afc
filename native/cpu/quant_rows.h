// Rows of activations, made ready for the products of quant_tile.h: quantised (or rounded, or copied) once, and
// interleaved in panels of up to MOST columns so that a product reads them in one run.
#pragma once
#include "quant_dot.h"

namespace ansatz {
namespace {

// How the weights of a format are multiplied. INTS: rows are quantised to bytes in groups of 32, each with an f32
// scale. PAIRS: bf16 products where the CPU has them. WIDE: bf16 weights times f32. FLOATS: f32 times f32.
enum Kind { INTS8, INTS4, PAIRS, WIDE, FLOATS };
constexpr int KINDS = 5;

#if defined(__AVX512F__)
constexpr int MOST = 6, STRIPS = 2;   // columns and strips of a register tile
#elif defined(__aarch64__)
constexpr int MOST = 3, STRIPS = 1;
#else
constexpr int MOST = 2, STRIPS = 1;
#endif

// Bytes that a tile of 64 inputs takes for one column. INTS: for each group 8 words of codes, scale, correction.
ANSATZ_INLINE constexpr int64_t column_bytes(Kind kind) {
  return kind <= INTS4 ? 2 * (32 + 4 + 4) : kind == PAIRS ? 128 : 256;
}
ANSATZ_INLINE Kind kind_of(int32_t format, bool bf16_products) {
#if defined(__AVX512BF16__)
  if (format == BF16X16 && bf16_products) return PAIRS;
#endif
  return format == Q8 ? INTS8 : format == Q4 ? INTS4 : format == BF16X16 ? WIDE : FLOATS;
}

struct Panel {
  int64_t row;     // first row, in x and y
  int64_t at;      // first byte among the packed panels
  int32_t width;   // rows
};

// Rows [row, row + n) as panels of nearly equal width. Returns their number; at == null counts only.
inline int64_t cut_panels(int64_t row, int64_t n, int64_t tiles, Kind kind, Panel* to, int64_t& at) {
  const int64_t count = (n + MOST - 1) / MOST;
  for (int64_t p = 0; p < count; p++) {
    const int64_t begin = n * p / count, end = n * (p + 1) / count;
    to[p] = {row + begin, at, static_cast<int32_t>(end - begin)};
    at += (end - begin) * tiles * column_bytes(kind);
  }
  return count;
}

ANSATZ_INLINE int32_t most_of(vi x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)x);
#else
  int32_t m = x[0];
  for (int k = 1; k < W; k++) m = x[k] > m ? x[k] : m;
  return m;
#endif
}
ANSATZ_INLINE int32_t total_of(vi x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t s = 0;
  for (int k = 0; k < W; k++) s += x[k];
  return s;
#endif
}

typedef int8_t lane_bytes __attribute__((vector_size(W)));
ANSATZ_INLINE void store_bytes(int8_t* p, vi x) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)x));
#else
  const lane_bytes b = __builtin_convertvector(x, lane_bytes);
  std::memcpy(p, &b, W);
#endif
}

// One group of a row: code = x 127 / max|x|, to the nearest, scale = max|x| / 127. A group that holds NaN or infinity
// has the scale NaN, which spreads to the row's results and to nothing else.
template <class T>
ANSATZ_INLINE void quantise_group(const T* x, int64_t have, int32_t* codes, int64_t stride, float* scale, int32_t* fix) {
  constexpr int N = GROUP / W;
  vf v[N];
  vi size = {};
#pragma GCC unroll 8
  for (int k = 0; k < N; k++) {
    const int64_t left = have - k * W;
    v[k] = left >= W ? load(x + k * W) : left > 0 ? load_n(x + k * W, left) : vf{};
    const vi m = (vi)v[k] & 0x7fffffff;
    size = m > size ? m : size;
  }
  const int32_t bits = most_of(size);
  float top;
  std::memcpy(&top, &bits, 4);
  const bool finite = bits < 0x7f800000, some = finite && top > 1e-30f;
  const vf up = splat(some ? 127.0f / top : 0.0f);
  alignas(32) int8_t bytes[GROUP];
  vi sum = {};
#pragma GCC unroll 8
  for (int k = 0; k < N; k++) {
    const vi q = some ? nearest(v[k] * up) : vi{};
    store_bytes(bytes + k * W, q);
    sum += q;
  }
  for (int k = 0; k < 8; k++) std::memcpy(codes + k * stride, bytes + 4 * k, 4);
  *scale = some ? top / 127.0f : finite ? 0.0f : __builtin_nanf("");
  *fix = BIASED ? -BIAS * total_of(sum) : 0;
}

// Column c of a panel from one row of x; what lies beyond k is zero.
template <class T>
inline void pack_column(Kind kind, char* panel, int64_t width, int64_t c, const T* x, int64_t k, bool round) {
  const int64_t tiles = tiles_of(k);
  if (kind <= INTS4) {
    for (int64_t g = 0; g < 2 * tiles; g++) {
      int32_t* const to = reinterpret_cast<int32_t*>(panel + g * width * 40);
      quantise_group(x + g * GROUP, k - g * GROUP, to + c, width, reinterpret_cast<float*>(to + 8 * width) + c,
                     to + 9 * width + c);
    }
    return;
  }
  for (int64_t at = 0; at < tiles * TILE; at += W) {
    const int64_t left = k - at;
    const vf v = left >= W ? load(x + at) : left > 0 ? load_n(x + at, left) : vf{};
    if (kind == PAIRS) {
      const vh h = narrow(v);
      uint32_t words[W / 2];
      std::memcpy(words, &h, sizeof words);
      uint32_t* const to = reinterpret_cast<uint32_t*>(panel) + at / 2 * width + c;
      for (int j = 0; j < W / 2; j++) to[j * width] = words[j];
    } else {
      const vf y = round ? widen(narrow(v)) : v;
      float* const to = reinterpret_cast<float*>(panel) + at * width + c;
      for (int j = 0; j < W; j++) to[j * width] = y[j];
    }
  }
}

}  // namespace
}  // namespace ansatz
