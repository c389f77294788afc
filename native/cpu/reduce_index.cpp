// Positions of extremes and running sums over the middle axis of x seen as [outer, R, inner].
#include "reduce_rows.h"

namespace ansatz {
namespace {

// Comparison in which a NaN beats every number and no other NaN, so that the first NaN is the extreme.
template <bool largest> ANSATZ_INLINE vi beats(vf x, vf best) {
  return ((largest ? x > best : x < best) | (x != x)) & (best == best);
}

// inner = 1: find the extreme, then its first position.
template <bool largest> int32_t position_in_row(const void* x, int32_t t, int64_t at, int64_t R) {
  alignas(64) float s[kBlock];
  const float worst = largest ? -__builtin_inff() : __builtin_inff();
  float best = worst;
  for (int64_t k = 0; k < R; k += kBlock) {
    const int64_t n = least(kBlock, R - k);
    const float* p = fetch(x, t, at + k, n, s);
    best = largest ? nan_max(best, reduce_run<Max>(p, n)) : nan_min(best, reduce_run<Min>(p, n));
  }
  const bool nan = best != best;
  for (int64_t k = 0; k < R; k += kBlock) {
    const int64_t n = least(kBlock, R - k);
    const float* p = fetch(x, t, at + k, n, s);
    int64_t j = 0;
    for (; j + W <= n; j += W) {
      const vf v = load(p + j);
      if (any(nan ? v != v : v == best)) break;
    }
    for (; j < n; j++)
      if (nan ? p[j] != p[j] : p[j] == best) return static_cast<int32_t>(k + j);
  }
  return 0;
}

// inner > 1: positions for n <= kBlock columns.
template <bool largest>
void positions_in_columns(const void* x, int32_t t, int64_t at, int64_t R, int64_t inner, int64_t n, int32_t* out) {
  alignas(64) float best[kBlock + W], s[kBlock + W];
  alignas(64) int32_t index[kBlock + W];
  const vf worst = splat(largest ? -__builtin_inff() : __builtin_inff());
  for (int64_t c = 0; c < n; c += W) {
    store(best + c, worst);
    *reinterpret_cast<vi_u*>(index + c) = vi{};
  }
  for (int64_t r = 0; r < R; r++) {
    const float* p = fetch(x, t, at + r * inner, n, s);
    const vi row = splat_i(static_cast<int32_t>(r));
    for_vectors(n, [&](int64_t c, int64_t m) ANSATZ_LAMBDA {
      const vf v = part(p + c, m), b = load(best + c);
      const vi better = beats<largest>(v, b);
      store(best + c, select(better, v, b));
      vi_u* const i = reinterpret_cast<vi_u*>(index + c);
      *i = better ? row : (vi)*i;
    });
  }
  std::memcpy(out, index, static_cast<size_t>(n) * 4);
}

template <bool largest> void position(const Call& c) {
  int32_t* out = c.ptr<int32_t>(0);
  const void* x = c.p[1];
  const int32_t t = c.t[1];
  const int64_t outer = c.i[0], R = c.i[1], inner = c.i[2];
  if (outer == 0 || inner == 0) return;
  const int64_t tile = least(inner, kBlock), tiles = (inner + tile - 1) / tile;
  parallel_range(outer * tiles, rows_a_task(R * tile, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t o = unit / tiles, column = unit % tiles * tile;
      if (inner == 1) out[o] = position_in_row<largest>(x, t, o * R, R);
      else positions_in_columns<largest>(x, t, o * R * inner + column, R, inner, least(tile, inner - column),
                                         out + o * inner + column);
    }
  });
}

// Running sums are kept in double: an f32 sum would drift over long rows. I = outer, R, inner, reverse, exclusive.
void cumsum(const Call& c) {
  void* out = c.p[0];
  const void* x = c.p[1];
  const int32_t to = c.t[0], t = c.t[1];
  const int64_t outer = c.i[0], R = c.i[1], inner = c.i[2];
  const bool reverse = c.i[3] != 0, exclusive = c.i[4] != 0;
  if (outer == 0 || inner == 0) return;
  constexpr int64_t kTile = 256;
  const int64_t tile = least(inner, kTile), tiles = (inner + tile - 1) / tile;
  parallel_range(outer * tiles, rows_a_task(R * tile, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t column = unit % tiles * tile, n = least(tile, inner - column);
      const int64_t base = unit / tiles * R * inner + column;
      if (inner == 1) {   // blocks of the row, in the direction of the sum
        double total = 0;
        float sx[kBlock], so[kBlock];
        for (int64_t done = 0; done < R; done += kBlock) {
          const int64_t m = least(kBlock, R - done), at = base + (reverse ? R - done - m : done);
          const float* p = fetch(x, t, at, m, sx);
          float* q = target(out, to, at, so);
          for (int64_t j = 0; j < m; j++) {
            const int64_t k = reverse ? m - 1 - j : j;
            const double before = total;
            total += static_cast<double>(p[k]);
            q[k] = static_cast<float>(exclusive ? before : total);
          }
          finish(out, to, at, m, so);
        }
        continue;
      }
      double total[kTile] = {};
      float sx[kTile], so[kTile];
      for (int64_t j = 0; j < R; j++) {
        const int64_t at = base + (reverse ? R - 1 - j : j) * inner;
        const float* p = fetch(x, t, at, n, sx);
        float* q = target(out, to, at, so);
        for (int64_t k = 0; k < n; k++) {
          const double before = total[k];
          total[k] += static_cast<double>(p[k]);
          q[k] = static_cast<float>(exclusive ? before : total[k]);
        }
        finish(out, to, at, n, so);
      }
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(reduce_index, {"argmax", position<true>}, {"argmin", position<false>}, {"cumsum", cumsum})
