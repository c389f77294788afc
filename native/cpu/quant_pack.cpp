// Weights into blocks and back, and rows of a matrix in blocks by index (an embedding that is also the output matrix).
#include "../core/pool.h"
#include "quant_scale.h"

namespace ansatz {
namespace {

// Inputs [k0, k0 + n) of `rows` rows, interleaved; zeros where there is nothing.
template <class T> void interleave(const T* w, int64_t ld, int64_t rows, int64_t have, int64_t n, float* x) {
  for (int64_t k = 0; k < n; k++)
    for (int64_t r = 0; r < STRIP; r++) x[k * STRIP + r] = r < rows && k < have ? to_float(w[r * ld + k]) : 0.0f;
}

void pack_tile(int32_t format, const float* x, const float* scales, int64_t groups, int64_t rows, char* tile) {
  uint8_t* const bytes = reinterpret_cast<uint8_t*>(tile);
  if (format == F32X16) {
    std::memcpy(tile, x, TILE * STRIP * 4);
    return;
  }
  if (format == BF16X16) {
    bf16* const to = reinterpret_cast<bf16*>(tile);
    for (int64_t k = 0; k < TILE; k++)
      for (int64_t r = 0; r < STRIP; r++) to[bf16_at(r, k)] = to_bf16(x[k * STRIP + r]);
    return;
  }
  std::memset(tile, 0, static_cast<size_t>(tile_bytes(format)));
  for (int g = 0; g < 2; g++) {
    GroupCodes q;
    alignas(64) float given[STRIP];
    if (scales)
      for (int64_t r = 0; r < STRIP; r++) given[r] = r < rows && g < groups ? scales[r * groups + g] : 0.0f;
    const float* const from = x + g * GROUP * STRIP;
    if (format == Q8) q8_group(from, scales ? given : nullptr, q);
    else q4_group(from, scales ? given : nullptr, q);
    for (int64_t r = 0; r < STRIP; r++) reinterpret_cast<bf16*>(tile)[g * STRIP + r] = to_bf16(q.scale[r]);
    for (int64_t k = 0; k < GROUP; k++)
      for (int64_t r = 0; r < STRIP; r++) {
        const int32_t code = q.code[k * STRIP + r];
        if (format == Q8) bytes[q8_at(r, g * GROUP + k)] = static_cast<uint8_t>(code);
        else bytes[q4_at(r, g * GROUP + k)] |= static_cast<uint8_t>(code << q4_shift(k));
      }
  }
}

// P = out u8, w float [batch, N, K], scales? f32 [batch, N, ceil(K / 32)]; I = batch, N, K, format
void quant_pack(const Call& c) {
  const int64_t batch = c.i[0], N = c.i[1], K = c.i[2], strips = strips_of(N), tiles = tiles_of(K);
  const int32_t format = static_cast<int32_t>(c.i[3]);
  const int64_t groups = (K + GROUP - 1) / GROUP;
  char* const out = c.ptr<char>(0);
  const float* const scales = format <= Q4 ? c.ptr<const float>(2) : nullptr;
  parallel(batch * strips, [&](int64_t task, int) {
    const int64_t row = task / strips * N + task % strips * STRIP, rows = least(STRIP, N - task % strips * STRIP);
    alignas(64) float x[TILE * STRIP];
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t k = t * TILE, have = K - k;
      if (c.t[1] == BF16) interleave(c.ptr<const bf16>(1) + row * K + k, K, rows, have, TILE, x);
      else interleave(c.ptr<const float>(1) + row * K + k, K, rows, have, TILE, x);
      // Only the groups that exist have a scale of their own; `own` has the rows of this tile's groups.
      float own[2 * STRIP];
      if (scales)
        for (int64_t r = 0; r < rows; r++)
          for (int64_t g = 0; g < 2; g++)
            own[r * 2 + g] = 2 * t + g < groups ? scales[(row + r) * groups + 2 * t + g] : 0.0f;
      pack_tile(format, x, scales ? own : nullptr, 2, rows, out + (task * tiles + t) * tile_bytes(format));
    }
  });
}

// One row of a strip as floats.
template <class T> void unpack_row(int32_t format, const char* strip, int64_t r, int64_t K, T* out) {
  for (int64_t t = 0; t < tiles_of(K); t++) {
    const char* const tile = strip + t * tile_bytes(format);
    const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(tile);
    const int64_t n = least(TILE, K - t * TILE);
    T* const to = out + t * TILE;
    for (int64_t k = 0; k < n; k++) {
      float x;
      if (format == F32X16) x = reinterpret_cast<const float*>(tile)[f32_at(r, k)];
      else if (format == BF16X16) x = to_float(reinterpret_cast<const bf16*>(tile)[bf16_at(r, k)]);
      else {
        const int32_t q = format == Q8 ? bytes[q8_at(r, k)] - BIAS : Q4_LEVEL[bytes[q4_at(r, k)] >> q4_shift(k) & 15];
        x = static_cast<float>(q) * scale_at(tile, r, k);
      }
      store_one(to + k, x);
    }
  }
}

template <class F> void with_type(const Call& c, const F& f) {
  if (c.t[0] == BF16) f(c.ptr<bf16>(0));
  else f(c.ptr<float>(0));
}

// P = w float [batch, N, K], packed; I = batch, N, K, format
void quant_unpack(const Call& c) {
  const int64_t batch = c.i[0], N = c.i[1], K = c.i[2], strips = strips_of(N);
  const int32_t format = static_cast<int32_t>(c.i[3]);
  with_type(c, [&](auto* out) {
    parallel(batch * strips, [&](int64_t task, int) {
      const int64_t first = task % strips * STRIP;
      for (int64_t r = 0; r < least(STRIP, N - first); r++)
        unpack_row(format, c.ptr<const char>(1) + task * strip_bytes(format, K), r, K,
                   out + (task / strips * N + first + r) * K);
    });
  });
}

// P = out float [n, d], table, ids i32 [n]; I = n, d, rows, format
void quant_embedding(const Call& c) {
  const int32_t* const ids = c.ptr<const int32_t>(2);
  const int64_t n = c.i[0], d = c.i[1], rows = c.i[2];
  const int32_t format = static_cast<int32_t>(c.i[3]);
  for (int64_t k = 0; k < n; k++)
    if (ids[k] < 0 || ids[k] >= rows) return raise(INDEX_OUT_OF_RANGE, ids[k], rows);
  with_type(c, [&](auto* out) {
    parallel_range(n, d > 4096 ? 1 : 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; k++)
        unpack_row(format, c.ptr<const char>(1) + ids[k] / STRIP * strip_bytes(format, d), ids[k] % STRIP, d, out + k * d);
    });
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(quant_pack, {"quant_pack", quant_pack}, {"quant_unpack", quant_unpack},
               {"quant_embedding", quant_embedding})
