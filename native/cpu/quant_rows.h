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

// Bytes that a tile of 64 inputs takes for one column. INTS: for each group 8 words of codes, scale, correction; the codes
// of all columns come first, column by column.
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

// Rows [row, row + n) as panels of nearly equal width. Returns their number; without `to` it only counts.
inline int64_t cut_panels(int64_t row, int64_t n, int64_t tiles, Kind kind, Panel* to, int64_t& at) {
  const int64_t count = (n + MOST - 1) / MOST;
  for (int64_t p = 0; p < count; p++) {
    const int64_t begin = n * p / count, end = n * (p + 1) / count;
    if (to) to[p] = {row + begin, at, static_cast<int32_t>(end - begin)};
    at += (end - begin) * tiles * column_bytes(kind);
  }
  return count;
}

// Elements `at` to at + W - 1 of values of a dtype, of which n or more are there.
ANSATZ_INLINE vf load_as(const void* p, int32_t t, int64_t at, int64_t n) {
  if (t == BF16) {
    const bf16* x = static_cast<const bf16*>(p) + at;
    return n >= W ? load(x) : load_n(x, n);
  }
  const float* x = static_cast<const float*>(p) + at;
  return n >= W ? load(x) : load_n(x, n);
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

#if defined(__AVX512VNNI__)
ANSATZ_INLINE __m512i low32(__m512i a, __m512i b) { return _mm512_maskz_unpacklo_epi32(0xffff, a, b); }
ANSATZ_INLINE __m512i high32(__m512i a, __m512i b) { return _mm512_maskz_unpackhi_epi32(0xffff, a, b); }
ANSATZ_INLINE __m512i low64(__m512i a, __m512i b) { return _mm512_maskz_unpacklo_epi64(0xff, a, b); }
ANSATZ_INLINE __m512i high64(__m512i a, __m512i b) { return _mm512_maskz_unpackhi_epi64(0xff, a, b); }
ANSATZ_INLINE __m512i even_lanes(__m512i a, __m512i b) { return _mm512_maskz_shuffle_i32x4(0xffff, a, b, 0x88); }
ANSATZ_INLINE __m512i odd_lanes(__m512i a, __m512i b) { return _mm512_maskz_shuffle_i32x4(0xffff, a, b, 0xdd); }
ANSATZ_INLINE __m512i larger(__m512i a, __m512i b) { return _mm512_maskz_max_epi32(0xffff, a, b); }

// Up to 16 groups of a row at once, to the same bits as quantise_group(); at(k) are elements k to k + 15, and zeros beyond
// the `count` groups. Group g's codes go to bytes + g * stride. False, and nothing is written, when a group holds nothing or
// no numbers. Lanes are reduced as they come together: what takes four shuffles a vector takes three for two.
template <class At>
ANSATZ_INLINE bool quantise_groups16(const At& at, int64_t count, char* bytes, int64_t stride, float* scale, int32_t* fix) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i m[4];
#pragma GCC unroll 4
  for (int q = 0; q < 4; q++) {   // four groups
    __m512i v[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
      const int k = (4 * q + g) * GROUP;
      v[g] = larger(_mm512_and_si512((__m512i)at(k), magnitude), _mm512_and_si512((__m512i)at(k + W), magnitude));
    }
    const __m512i two = larger(low32(v[0], v[1]), high32(v[0], v[1])), more = larger(low32(v[2], v[3]), high32(v[2], v[3]));
    m[q] = larger(low64(two, more), high64(two, more));
  }
  const __m512i a = larger(even_lanes(m[0], m[1]), odd_lanes(m[0], m[1])), b = larger(even_lanes(m[2], m[3]), odd_lanes(m[2], m[3]));
  const __m512i bits = larger(even_lanes(a, b), odd_lanes(a, b));
  const __m512 top = (__m512)bits, most = _mm512_set1_ps(127.0f);
  const uint32_t wanted = (1u << count) - 1;
  if ((_mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(0x7f800000)) & _mm512_cmp_ps_mask(top, _mm512_set1_ps(1e-30f), _CMP_GT_OQ) & wanted) != wanted)
    return false;
  alignas(64) float up[16];
  _mm512_store_ps(up, _mm512_div_ps(most, top));
  _mm512_storeu_ps(scale, _mm512_div_ps(top, most));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i sum[8];
#pragma GCC unroll 8
  for (int p = 0; p < 8; p++) {   // two groups
    const int k = 2 * p * GROUP;
    const __m512 s = _mm512_set1_ps(up[2 * p]), t = _mm512_set1_ps(up[2 * p + 1]);
    const auto code = [&](int j, __m512 u) { return _mm512_maskz_cvtps_epi32(0xffff, _mm512_mul_ps((__m512)at(k + j * W), u)); };
    const __m512i first = _mm512_packs_epi32(code(0, s), code(1, s)), second = _mm512_packs_epi32(code(2, t), code(3, t));
    const __m512i both = _mm512_maskz_permutexvar_epi32(0xffff, order, _mm512_packs_epi16(first, second));
    if (2 * p < count) _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + 2 * p * stride), _mm512_castsi512_si256(both));
    if (2 * p + 1 < count)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + (2 * p + 1) * stride), _mm512_maskz_extracti64x4_epi64(0xf, both, 1));
    sum[p] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), both);
  }
  const auto plus = [](__m512i x, __m512i y) { return _mm512_add_epi32(x, y); };
  __m512i four[2];
#pragma GCC unroll 2
  for (int q = 0; q < 2; q++) {
    const __m512i x = plus(low32(sum[4 * q], sum[4 * q + 1]), high32(sum[4 * q], sum[4 * q + 1]));
    const __m512i y = plus(low32(sum[4 * q + 2], sum[4 * q + 3]), high32(sum[4 * q + 2], sum[4 * q + 3]));
    four[q] = plus(low64(x, y), high64(x, y));
  }
  // Lanes of 128 bits: even groups of the first eight, odd ones, even ones of the others, odd ones.
  const __m512i mixed = plus(even_lanes(four[0], four[1]), odd_lanes(four[0], four[1]));
  const __m512i place = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  const __m512i sums = _mm512_maskz_permutexvar_epi32(0xffff, place, mixed);
  _mm512_storeu_si512(fix, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7)));
  return true;
}
static_assert(BIAS == 128, "fix is 128 sums");
#endif

// A row in groups: codes of group g to bytes + g * stride, and put(g, scale, fix). at(j, n) are elements j to j + W - 1, of
// which n or more are wanted; what lies beyond k is zero.
template <class At, class Put>
ANSATZ_INLINE void quantise_row(const At& at, int64_t k, int64_t groups, char* bytes, int64_t stride, const Put& put) {
  alignas(64) float scale[16];
  alignas(64) int32_t fix[16];
  const auto padded = [&](int64_t j) { return k - j >= W ? at(j, W) : k - j > 0 ? at(j, k - j) : vf{}; };
  const auto slowly = [&](int64_t first, int64_t count) {
    for (int64_t g = first; g < first + count; g++) {
      alignas(64) float x[GROUP];
      for (int j = 0; j < GROUP; j += W) store(x + j, padded(g * GROUP + j));
      quantise_group(x, GROUP, reinterpret_cast<int32_t*>(bytes + g * stride), 1, scale, fix);
      put(g, scale[0], fix[0]);
    }
  };
#if defined(__AVX512VNNI__)
  int64_t g = 0;
  for (; g < groups; g += 16) {
    const int64_t count = groups - g < 16 ? groups - g : 16;
    const bool whole = (g + 16) * GROUP <= k;
    const bool done = whole ? quantise_groups16([&](int64_t j) { return at(g * GROUP + j, W); }, 16, bytes + g * stride, stride, scale, fix)
                            : quantise_groups16([&](int64_t j) { return padded(g * GROUP + j); }, count, bytes + g * stride, stride, scale, fix);
    if (done)
      for (int j = 0; j < count; j++) put(g + j, scale[j], fix[j]);
    else slowly(g, count);
  }
#else
  slowly(0, groups);
#endif
}

// Column c of a panel of bytes.
template <class At> ANSATZ_INLINE void quantise_column(const At& at, int64_t k, char* panel, int64_t width, int64_t c) {
  const int64_t stride = width * 40;
  char* const scales = panel + width * 32 + c * 4;
  quantise_row(at, k, 2 * tiles_of(k), panel + c * 32, stride, [&](int64_t g, float scale, int32_t fix) {
    std::memcpy(scales + g * stride, &scale, 4);
    std::memcpy(scales + g * stride + width * 4, &fix, 4);
  });
}

// Column c of a panel from one row of x; what lies beyond k is zero.
template <class T>
inline void pack_column(Kind kind, char* panel, int64_t width, int64_t c, const T* x, int64_t k, bool round) {
  const int64_t tiles = tiles_of(k);
  if (kind <= INTS4) {
    const auto at = [&](int64_t j, int64_t n) { return n >= W ? load(x + j) : load_n(x + j, n); };
    quantise_column(at, k, panel, width, c);
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
