// Blocks of elements as f32, whatever dtype a tensor has. Kernels compute on f32 blocks: an f32 tensor is used in
// place, any other is converted through a few KiB of scratch that stay in the L1 cache. One loop an operation then
// serves every combination of dtypes, and memory bandwidth hides the conversion.
#pragma once
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

// [&](...) ANSATZ_LAMBDA { ... }: inlined although a helper calls it from several places (full vectors, the tail).
#define ANSATZ_LAMBDA __attribute__((always_inline))

constexpr int64_t kBlock = 1024;    // elements of one scratch block (4 KiB)
constexpr int64_t kGrain = 32768;   // elements of one task; less than this runs on the calling thread

// Rows of `width` elements that make one task of about `grain` elements.
ANSATZ_INLINE int64_t rows_a_task(int64_t width, int64_t grain) { return most(1, grain / most(1, width)); }

ANSATZ_INLINE int64_t dtype_size(int32_t t) { return t == BF16 ? 2 : t == U8 ? 1 : 4; }

ANSATZ_INLINE float to_float(int32_t x) { return static_cast<float>(x); }
ANSATZ_INLINE float to_float(uint8_t x) { return static_cast<float>(x); }
ANSATZ_INLINE void store_one(int32_t* p, float x) { *p = static_cast<int32_t>(x); }
ANSATZ_INLINE void store_one(uint8_t* p, float x) { *p = static_cast<uint8_t>(static_cast<int64_t>(x)); }

// Calls f with a typed pointer to element `at` of a tensor of any dtype.
template <class F> ANSATZ_INLINE void with_type(const void* base, int32_t t, int64_t at, const F& f) {
  if (t == F32) f(static_cast<const float*>(base) + at);
  else if (t == BF16) f(static_cast<const bf16*>(base) + at);
  else if (t == I32) f(static_cast<const int32_t*>(base) + at);
  else f(static_cast<const uint8_t*>(base) + at);
}
template <class F> ANSATZ_INLINE void with_type(void* base, int32_t t, int64_t at, const F& f) {
  if (t == F32) f(static_cast<float*>(base) + at);
  else if (t == BF16) f(static_cast<bf16*>(base) + at);
  else if (t == I32) f(static_cast<int32_t*>(base) + at);
  else f(static_cast<uint8_t*>(base) + at);
}

inline void widen_to(float* dst, const bf16* src, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) store(dst + k, load(src + k));
  for (; k < n; k++) dst[k] = to_float(src[k]);
}
inline void widen_to(float* dst, const float* src, int64_t n) { std::memcpy(dst, src, static_cast<size_t>(n) * 4); }
inline void widen_to(float* dst, const int32_t* src, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W)
    store(dst + k, __builtin_convertvector((vi)*reinterpret_cast<const vi_u*>(src + k), vf));
  for (; k < n; k++) dst[k] = to_float(src[k]);
}
ANSATZ_INLINE vi load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return vi{p[0], p[1], p[2], p[3]};
#endif
}
inline void widen_to(float* dst, const uint8_t* src, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) store(dst + k, __builtin_convertvector(load_bytes(src + k), vf));
  for (; k < n; k++) dst[k] = to_float(src[k]);
}
inline void narrow_to(bf16* dst, const float* src, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) store(dst + k, load(src + k));
  if (k < n) store_n(dst + k, load_n(src + k, n - k), n - k);
}
inline void narrow_to(float* dst, const float* src, int64_t n) { std::memcpy(dst, src, static_cast<size_t>(n) * 4); }
inline void narrow_to(int32_t* dst, const float* src, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) *reinterpret_cast<vi_u*>(dst + k) = __builtin_convertvector(load(src + k), vi);
  for (; k < n; k++) store_one(dst + k, src[k]);
}
inline void narrow_to(uint8_t* dst, const float* src, int64_t n) {
  for (int64_t k = 0; k < n; k++) store_one(dst + k, src[k]);
}

// Elements [at, at + n) as f32: in place for f32, otherwise converted into scratch.
inline const float* fetch(const void* base, int32_t t, int64_t at, int64_t n, float* scratch) {
  if (t == F32) return static_cast<const float*>(base) + at;
  with_type(base, t, at, [&](const auto* p) { widen_to(scratch, p, n); });
  return scratch;
}

// Where to write elements [at, at + n): in place for f32, otherwise scratch, which finish() then converts.
ANSATZ_INLINE float* target(void* base, int32_t t, int64_t at, float* scratch) {
  return t == F32 ? static_cast<float*>(base) + at : scratch;
}
inline void finish(void* base, int32_t t, int64_t at, int64_t n, const float* scratch) {
  if (t == F32) return;
  with_type(base, t, at, [&](auto* p) { narrow_to(p, scratch, n); });
}

ANSATZ_INLINE float read_one(const void* base, int32_t t, int64_t at) {
  float x = 0;
  with_type(base, t, at, [&](const auto* p) { x = to_float(*p); });
  return x;
}
ANSATZ_INLINE void write_one(void* base, int32_t t, int64_t at, float x) {
  with_type(base, t, at, [&](auto* p) { store_one(p, x); });
}

// True when any lane of a comparison holds.
ANSATZ_INLINE bool any(vi mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  uint64_t half[2];
  std::memcpy(half, &mask, 16);
  return (half[0] | half[1]) != 0;
#endif
}

}  // namespace
}  // namespace ansatz
