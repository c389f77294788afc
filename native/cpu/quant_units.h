// Feed-forward units as records: everything that one unit reads is one run of memory (docs/quantised.md).
//
// A record is the unit's row of the first matrix, of the gate if there is one, and its column of the second, as parts
// of equal length; a part holds `width` values (padded to 64) and, quantised, their scales behind them.
#pragma once
#include "quant_rows.h"

namespace ansatz {
namespace {

enum UnitFormat : int32_t { UNIT_Q8 = 0, UNIT_Q4 = 1, UNIT_BF16 = 2, UNIT_F32 = 3 };

ANSATZ_INLINE int64_t padded_width(int64_t d) { return (d + TILE - 1) / TILE * TILE; }
ANSATZ_INLINE constexpr int64_t code_bytes(int32_t format, int64_t padded) {
  return format == UNIT_Q8 ? padded : format == UNIT_Q4 ? padded / 2 : format == UNIT_BF16 ? padded * 2 : padded * 4;
}
ANSATZ_INLINE int64_t part_bytes(int32_t format, int64_t d) {
  const int64_t padded = padded_width(d), bytes = code_bytes(format, padded) + (format <= UNIT_Q4 ? padded / GROUP * 2 : 0);
  return (bytes + 63) / 64 * 64;
}
// Of 64 values of UNIT_Q4, the first 32 lie in the low halves of 32 bytes, the others in the high ones.
ANSATZ_INLINE int64_t unit_q4_at(int64_t k) { return k / 64 * 32 + k % 32; }
ANSATZ_INLINE int unit_q4_shift(int64_t k) { return k % 64 < 32 ? 0 : 4; }

// A row of activations for products with parts.
struct UnitRow {
  const float* x;          // padded with zeros
  const int32_t* codes;    // quantised: four bytes a word,
  const int32_t* fix;      // what sums start from where codes are biased, a word for each word of codes,
  const float* scale;      // and a scale for each group
};
ANSATZ_INLINE int64_t unit_row_bytes(int64_t padded) { return padded * 4 + padded + padded + (padded / GROUP + 16) * 4; }

template <class T> inline UnitRow make_unit_row(char* room, const T* x, int64_t d, bool quantise) {
  const int64_t padded = padded_width(d);
  float* const row = reinterpret_cast<float*>(room);
  int32_t* const codes = reinterpret_cast<int32_t*>(row + padded);
  int32_t* const fix = codes + padded / 4;
  float* const scale = reinterpret_cast<float*>(fix + padded / 4);
  for (int64_t k = 0; k < padded; k += W) {
    const int64_t left = d - k;
    store(row + k, left >= W ? load(x + k) : left > 0 ? load_n(x + k, left) : vf{});
  }
  if (quantise) {
    quantise_row([&](int64_t k, int64_t) { return load(row + k); }, padded, padded / GROUP, reinterpret_cast<char*>(codes), GROUP,
                 [&](int64_t g, float s, int32_t) { scale[g] = s; });
#if defined(__AVX512VNNI__)
    for (int64_t k = 0; k < padded / 4; k += W) {   // 128 times the sum of each four, negative
      const __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(-BIAS), _mm512_loadu_si512(codes + k));
      _mm512_storeu_si512(fix + k, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
    }
#endif
  }
  return {row, codes, fix, scale};
}

// Bytes [4 W c, 4 W (c + 1)) of a part's values as factors of dot4.
template <int32_t FORMAT> ANSATZ_INLINE Codes unit_codes(const uint8_t* part, int64_t c, const Q4Table& levels) {
#if defined(__AVX512VNNI__)
  if (FORMAT == UNIT_Q8) return {_mm512_xor_si512(_mm512_loadu_si512(part + c * 64), _mm512_set1_epi8(-128))};
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part + c * 32));
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(x), _mm256_srli_epi16(x, 4), 1);
  return {_mm512_permutexvar_epi8(both, levels.t)};
#elif defined(__AVX2__)
  if (FORMAT == UNIT_Q8) return codes_from(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(part + c * 32)));
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part + c / 2 * 32));
  const __m256i half = _mm256_and_si256(c & 1 ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15));
  return codes_from(_mm256_shuffle_epi8(levels.t, half));
#else
  if (FORMAT == UNIT_Q8) return {*reinterpret_cast<const bytes16_u*>(part + c * 16)};
  Codes low, high;
  levels.decode(part + c / 4 * 32 + c % 2 * 16, low, high);
  return c % 4 < 2 ? low : high;
#endif
}

// Lanes of dot4 number c times their groups' scales.
ANSATZ_INLINE vf lane_scales(const float* s, int64_t c) {
#if defined(__AVX512F__)
  return (vf)_mm512_mask_blend_ps(0xff00, (__m512)splat(s[2 * c]), (__m512)splat(s[2 * c + 1]));
#elif defined(__AVX2__)
  return splat(s[c]);
#else
  return splat(s[c / 2]);
#endif
}

// Asks for `BYTES` bytes, for those of the scales of a part, and for the first KB of a part.
template <int64_t BYTES> ANSATZ_INLINE void fetch(const char* p) {
#pragma GCC unroll 4
  for (int64_t at = 0; at < BYTES; at += 64) __builtin_prefetch(p + at);
}
ANSATZ_INLINE void fetch_run(const char* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at);
}

// LANES products <x, part> at a time: several runs of memory are read at once, and a core that waits for one goes on with
// the others. What the lanes will read next, at `ahead`, is asked for at the pace of the reading. Each is summed in an order that depends on the width only. `room` holds room_floats() floats.
struct DotLane { const char *part, *ahead; };
constexpr int LANES = 4;
ANSATZ_INLINE int64_t room_floats(int64_t padded) { return LANES * (padded / GROUP + W); }

template <int32_t FORMAT, int L>
ANSATZ_INLINE void unit_dots(const UnitRow& x, const DotLane* lane, int64_t padded, const Q4Table& levels, float* room, float* out) {
  if constexpr (FORMAT <= UNIT_Q4) {
    const int64_t groups = padded / GROUP, stride = groups + W;
    constexpr int64_t STEP = FORMAT == UNIT_Q8 ? 4 * W : 2 * W;
    for (int l = 0; l < L; l++) fetch_run(lane[l].ahead + code_bytes(FORMAT, padded), groups * 2);
    for (int64_t g = 0; g < groups; g += W)
#pragma GCC unroll 4
      for (int l = 0; l < L; l++) {
        const bf16* const scales = reinterpret_cast<const bf16*>(lane[l].part + code_bytes(FORMAT, padded));
        const bool full = groups - g >= W;
        const vf s = full ? load(scales + g) : load_n(scales + g, groups - g);
        store(room + l * stride + g, s * (full ? load(x.scale + g) : load_n(x.scale + g, groups - g)));
      }
    const uint8_t* part[L];
#pragma GCC unroll 4
    for (int l = 0; l < L; l++) part[l] = reinterpret_cast<const uint8_t*>(lane[l].part);
    vf sum[L] = {};
    for (int64_t c = 0; c < padded / (4 * W); c++) {
      const vi a = (vi)*reinterpret_cast<const vi_u*>(x.codes + c * W);
      const vi start = BIASED ? (vi)*reinterpret_cast<const vi_u*>(x.fix + c * W) : vi{};
#pragma GCC unroll 4
      for (int l = 0; l < L; l++) {
        if (STEP >= 64 || (c * STEP & 63) == 0) __builtin_prefetch(lane[l].ahead + c * STEP);
        const vi s = dot4(start, unit_codes<FORMAT>(part[l], c, levels), a);
        sum[l] = fused(__builtin_convertvector(s, vf), lane_scales(room + l * stride, c), sum[l]);
      }
    }
#pragma GCC unroll 4
    for (int l = 0; l < L; l++) out[l] = hsum(sum[l]);
  } else {
    constexpr int N = 2;
    constexpr int64_t STEP = N * W * (FORMAT == UNIT_BF16 ? 2 : 4);
    vf sum[L][N] = {};
    for (int64_t k = 0; k < padded; k += N * W)
#pragma GCC unroll 4
      for (int l = 0; l < L; l++) {
        if (STEP >= 64 || k / W % 4 == 0) fetch<STEP>(lane[l].ahead + k / (N * W) * STEP);
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
          const vf w = FORMAT == UNIT_BF16 ? load(reinterpret_cast<const bf16*>(lane[l].part) + k + j * W)
                                           : load(reinterpret_cast<const float*>(lane[l].part) + k + j * W);
          sum[l][j] = fused(w, load(x.x + k + j * W), sum[l][j]);
        }
      }
#pragma GCC unroll 4
    for (int l = 0; l < L; l++) out[l] = hsum(sum[l][0] + sum[l][1]);
  }
}

typedef uint8_t lane_ubytes __attribute__((vector_size(W)));
ANSATZ_INLINE vf signed_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return __builtin_convertvector((vi)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), vf);
#elif defined(__AVX2__)
  return __builtin_convertvector((vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), vf);
#else
  lane_bytes b;
  std::memcpy(&b, p, W);
  return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
#endif
}

// Levels of the low and high halves of W bytes, as floats.
ANSATZ_INLINE void float_levels(const uint8_t* p, const float* table, vf& low, vf& high) {
#if defined(__AVX512F__)
  // vpermps looks at four bits.
  const __m512i x = _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512 t = _mm512_loadu_ps(table);
  low = (vf)_mm512_permutexvar_ps(x, t);
  high = (vf)_mm512_permutexvar_ps(_mm512_srli_epi32(x, 4), t);
#else
  for (int k = 0; k < W; k++) {
    low[k] = table[p[k] & 15];
    high[k] = table[p[k] >> 4];
  }
#endif
}

// y += h part for each lane in turn. `table` are the levels as floats.
struct AddLane {
  float h;
  const char *part, *ahead;
};
template <int32_t FORMAT, int L>
ANSATZ_INLINE void unit_adds(const AddLane* lane, int64_t padded, float* to, const float* table, float* room) {
  constexpr int VECS = TILE / W, HALF = VECS / 2;
  const int64_t groups = padded / GROUP, stride = groups + W;
  if constexpr (FORMAT <= UNIT_Q4) {
    for (int64_t g = 0; g < groups; g += W)
#pragma GCC unroll 4
      for (int l = 0; l < L; l++) {
        const bf16* const scales = reinterpret_cast<const bf16*>(lane[l].part + code_bytes(FORMAT, padded));
        __builtin_prefetch(lane[l].ahead + code_bytes(FORMAT, padded) + g * 2);
        store(room + l * stride + g, (groups - g >= W ? load(scales + g) : load_n(scales + g, groups - g)) * lane[l].h);
      }
  }
  for (int64_t t = 0; t < padded; t += TILE) {
    vf y[VECS];
#pragma GCC unroll 16
    for (int v = 0; v < VECS; v++) y[v] = load(to + t + v * W);
#pragma GCC unroll 4
    for (int l = 0; l < L; l++) {
      const uint8_t* const codes = reinterpret_cast<const uint8_t*>(lane[l].part);
      fetch<code_bytes(FORMAT, TILE)>(lane[l].ahead + code_bytes(FORMAT, t));
      if constexpr (FORMAT <= UNIT_Q4) {
        const float* const scale = room + l * stride + t / GROUP;
        const vf c = splat(scale[0]), d = splat(scale[1]);
        if constexpr (FORMAT == UNIT_Q8) {
#pragma GCC unroll 16
          for (int v = 0; v < VECS; v++) y[v] = fused(v < HALF ? c : d, signed_bytes(codes + t + v * W), y[v]);
        } else {
#pragma GCC unroll 8
          for (int v = 0; v < HALF; v++) {
            vf low, high;
            float_levels(codes + t / 2 + v * W, table, low, high);
            y[v] = fused(c, low, y[v]);
            y[v + HALF] = fused(d, high, y[v + HALF]);
          }
        }
      } else {
        const vf c = splat(lane[l].h);
#pragma GCC unroll 16
        for (int v = 0; v < VECS; v++)
          y[v] = fused(c, FORMAT == UNIT_BF16 ? load(reinterpret_cast<const bf16*>(codes) + t + v * W)
                                              : load(reinterpret_cast<const float*>(codes) + t + v * W), y[v]);
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < VECS; v++) store(to + t + v * W, y[v]);
  }
}

}  // namespace
}  // namespace ansatz
