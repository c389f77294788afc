// Weights in blocks: the layout that docs/quantised.md describes, shared by all kernels that read or write it.
//
// A matrix [out, in] is cut into strips of 16 rows, a strip into tiles of 64 inputs. Within a tile the rows are
// interleaved: one vector register holds a few consecutive inputs of 16 rows, so that a product with one row of
// activations ends without a horizontal sum, and a whole strip is one run of memory.
#pragma once
#include "simd.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ansatz {
namespace {

enum Format : int32_t { Q8 = 0, Q4 = 1, BF16X16 = 2, F32X16 = 3 };

constexpr int64_t STRIP = 16;   // rows
constexpr int64_t TILE = 64;    // inputs
constexpr int64_t GROUP = 32;   // inputs that share a scale

// Q8, Q4: two groups' scales (2 x 16 bf16), then their codes. The others: values only.
ANSATZ_INLINE constexpr int64_t tile_bytes(int32_t format) {
  return format == Q8 ? 64 + 2 * 512 : format == Q4 ? 64 + 2 * 256 : format == BF16X16 ? 2048 : 4096;
}
ANSATZ_INLINE constexpr int64_t strips_of(int64_t n) { return (n + STRIP - 1) / STRIP; }
ANSATZ_INLINE constexpr int64_t tiles_of(int64_t k) { return (k + TILE - 1) / TILE; }
ANSATZ_INLINE int64_t strip_bytes(int32_t format, int64_t k) { return tiles_of(k) * tile_bytes(format); }
ANSATZ_INLINE int64_t matrix_bytes(int32_t format, int64_t n, int64_t k) { return strips_of(n) * strip_bytes(format, k); }

// Q8 codes are stored plus 128, since the byte products of AVX-512 want one factor unsigned.
constexpr int32_t BIAS = 128;

// Values of the 16 codes of Q4, in units of the scale. They are the Lloyd-Max quantiser (Lloyd 1982) of normally
// distributed groups of 32 whose scale (of either sign) is the best for the group, with one level held at zero: 7.3%
// relative error where 16 even steps have 8.1%, at the cost of a table look-up that is one instruction.
constexpr int8_t Q4_LEVEL[16] = {-127, -98, -77, -61, -47, -34, -22, -11, 0, 11, 23, 35, 49, 64, 82, 105};
constexpr int32_t Q4_ZERO = 8;   // the code of 0

// Offset of a value in its tile. Q8: byte; BF16X16, F32X16: element.
ANSATZ_INLINE int64_t q8_at(int64_t row, int64_t k) {
  return 64 + k / GROUP * 512 + k % GROUP / 4 * 64 + row * 4 + k % 4;
}
// Q4: byte; the low half for the first 16 inputs of a group, the high half for the others.
ANSATZ_INLINE int64_t q4_at(int64_t row, int64_t k) {
  return 64 + k / GROUP * 256 + k % 16 / 4 * 64 + row * 4 + k % 4;
}
ANSATZ_INLINE int q4_shift(int64_t k) { return k % GROUP < 16 ? 0 : 4; }
ANSATZ_INLINE int64_t bf16_at(int64_t row, int64_t k) { return k / 2 * 32 + row * 2 + k % 2; }
ANSATZ_INLINE int64_t f32_at(int64_t row, int64_t k) { return k * STRIP + row; }

ANSATZ_INLINE float scale_at(const char* tile, int64_t row, int64_t k) {
  return to_float(reinterpret_cast<const bf16*>(tile)[k / GROUP * STRIP + row]);
}

}  // namespace
}  // namespace ansatz
