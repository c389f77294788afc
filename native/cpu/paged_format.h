// How keys and values lie in the pages of a cache. A page holds `page` tokens (a multiple of 32) of every key head; for
// each head the keys transposed, then the values, then what the format needs beside them:
//
//   keys    [D][page]        so that 32 keys are multiplied by one broadcast element of a query: no horizontal sums
//   values  [page][Dp]       Dp = D rounded up to 16: no tails; what lies between is zero
//   scales  f32 [2][page]    int8 only: one a token and head, for keys and for values
//
// Formats: 0 f32, 1 bf16, 2 int8 (symmetric, amax / 127), 3 f16 (saturating; denormals become 0).
#pragma once
#include "simd.h"

namespace ansatz {
namespace {

struct KvF32 {
  typedef float cell;
  static constexpr bool scaled = false;
  static ANSATZ_INLINE vf read(const cell* p) { return load(p); }
  static ANSATZ_INLINE cell make(float x, float) { return x; }
};
struct KvBf16 {
  typedef bf16 cell;
  static constexpr bool scaled = false;
  static ANSATZ_INLINE vf read(const cell* p) { return load(p); }
  static ANSATZ_INLINE cell make(float x, float) { return to_bf16(x); }
};
typedef int8_t vb __attribute__((vector_size(W)));
typedef int8_t vb_u __attribute__((vector_size(W), aligned(1), may_alias));
struct KvInt8 {
  typedef int8_t cell;
  static constexpr bool scaled = true;
  static ANSATZ_INLINE vf read(const cell* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_cvtepi32_ps(
        0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const vb_u*>(p), vi), vf);
#endif
  }
  // The product of two floats is exact in a double: a fused multiply-add of one level rounds as others do without.
  static ANSATZ_INLINE cell make(float x, float scale) {
    const double r = static_cast<double>(x) * scale + 6755399441055744.0 - 6755399441055744.0;   // 1.5 2^52: to even
    return static_cast<cell>(r < -127.0 ? -127.0 : (r > 127.0 ? 127.0 : r));
  }
};
struct KvF16 {
  struct cell { uint16_t bits; };
  static constexpr bool scaled = false;
  static ANSATZ_INLINE vf read(const cell* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    const vu h = __builtin_convertvector(*reinterpret_cast<const vh_u*>(p), vu);
    const vu magnitude = h & 0x7fffu, sign = (h & 0x8000u) << 16;
    const vu wide = (magnitude << 13) + (112u << 23);
    return (vf)(sign | (magnitude == 0u ? vu{} : wide));
#endif
  }
  static ANSATZ_INLINE cell make(float x, float) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    const uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};   // NaN stays one
    if (magnitude < 0x38800000u) return {static_cast<uint16_t>(sign)};
    const uint32_t rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    return {static_cast<uint16_t>(sign | (rounded > 0x7bffu ? 0x7bffu : rounded))};
  }
};

struct PageShape {
  int64_t heads, D, Dp, page, cell_bytes, scale_bytes, head_bytes, page_bytes;
};

inline PageShape page_shape(int64_t heads, int64_t D, int64_t page, int64_t format) {
  PageShape s;
  s.heads = heads, s.D = D, s.Dp = (D + 15) / 16 * 16, s.page = page;
  s.cell_bytes = format == 0 ? 4 : (format == 2 ? 1 : 2);
  s.scale_bytes = format == 2 ? 8 * page : 0;
  s.head_bytes = (s.D + s.Dp) * page * s.cell_bytes + s.scale_bytes;
  s.head_bytes = (s.head_bytes + 63) / 64 * 64;
  s.page_bytes = heads * s.head_bytes;
  return s;
}

// One head's part of a page.
template <class F> struct PageHead {
  typename F::cell *keys, *values;
  float* scales;   // of keys, then of values; int8 only
};
template <class F> ANSATZ_INLINE PageHead<F> page_head(uint8_t* pool, const PageShape& s, int64_t page, int64_t head) {
  uint8_t* at = pool + page * s.page_bytes + head * s.head_bytes;
  PageHead<F> h;
  h.keys = reinterpret_cast<typename F::cell*>(at);
  h.values = h.keys + s.D * s.page;
  h.scales = reinterpret_cast<float*>(h.values + s.page * s.Dp);
  return h;
}

// The page of a row's token, or -1 for rows that stand for nothing.
ANSATZ_INLINE int64_t page_of(const int32_t* table, int64_t max_pages, int64_t sequence, int64_t position,
                              int64_t page) {
  if (sequence < 0) return -1;
  const int64_t n = position / page;
  if (position < 0 || n >= max_pages) {
    raise(INDEX_OUT_OF_RANGE, position, max_pages * page);
    return -1;
  }
  return table[sequence * max_pages + n];
}

// Whether every row's token lies in the page table; if not, that is reported.
inline bool rows_fit(int64_t R, const int32_t* sequence, const int32_t* position, int64_t limit) {
  for (int64_t r = 0; r < R; r++)
    if (sequence[r] >= 0 && (position[r] < 0 || position[r] >= limit)) {
      raise(INDEX_OUT_OF_RANGE, position[r], limit);
      return false;
    }
  return true;
}

// Calls f with the format's type.
template <class Fn> ANSATZ_INLINE void with_format(int64_t format, const Fn& f) {
  if (format == 0) f(KvF32{});
  else if (format == 1) f(KvBf16{});
  else if (format == 2) f(KvInt8{});
  else f(KvF16{});
}

}  // namespace
}  // namespace ansatz
