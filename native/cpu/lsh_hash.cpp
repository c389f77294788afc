// Hashing of queries by random rotations, and chunks of tokens by hash: `lsh_hash` and `lsh_sort` (docs/kernels.md;
// Kitaev et al. 2020, section 2; angular LSH of Andoni et al. 2015).
#include "attention_problem.h"

namespace ansatz {
namespace {

// The largest of [y; -y] over the n columns of y[column][lane], for W lanes: its index, the lowest one of equals.
ANSATZ_INLINE vi nearest_axis(const float* y, int64_t n) {
  vf best = splat(-infinity);
  vi index = {};
  for (int64_t k = 0; k < n; k++) {
    const vf x = load(y + k * lanes);
    const vi more = x > best;
    best = more ? x : best, index = more ? splat_i(static_cast<int32_t>(k)) : index;
  }
  for (int64_t k = 0; k < n; k++) {
    const vf x = -load(y + k * lanes);
    const vi more = x > best;
    best = more ? x : best, index = more ? splat_i(static_cast<int32_t>(n + k)) : index;
  }
  return index;
}

void lsh_hash(const Call& c) {
  const int64_t B = c.i[0], T = c.i[1], H = c.i[2], D = c.i[3], R = c.i[4], f1 = c.i[5], f2 = c.i[6], tok = c.i[7];
  const int64_t half1 = f1 / 2, half2 = f2 / 2, F = half1 + half2, N = R * F, Np = round_up(N, 2);
  const int64_t Dp = round_up(larger(D, 1), W), blocks = (T + lanes - 1) / lanes;
  int32_t* buckets = c.ptr<int32_t>(0);
  const Rows x = rows_of(c, 1, tok);
  const float* rotations = c.ptr<const float>(2);
  parallel(B * H * blocks, [&](int64_t task, int thread) {
    float* axes = static_cast<float*>(pool_scratch(thread, 0, ((Np + 2 * lanes) * Dp + Np * lanes + 64) * 4));
    float *rows = axes + Np * Dp, *q_t = rows + lanes * Dp, *y = q_t + lanes * Dp;
    const int64_t head = task / blocks, b = head / H, h = head % H, t0 = task % blocks * lanes;
    const int64_t n = smaller(lanes, T - t0), width = round_up(n, W);
    for (int64_t k = 0; k < Np; k++) convert_row(axes + k * Dp, rotations + (h * N + k) * D, k < N ? D : 0, Dp);
    stage_rows<false>(rows, x.at((b * T + t0) * tok + h * D), x.dtype, tok, n, width, D, Dp);
    transpose_words(q_t, lanes, rows, Dp, width, Dp);
    tile_product<false, ALayout::rows>(Np, width, Dp, axes, Dp, q_t, lanes, y, lanes, false);
    for (int64_t r = 0; r < R; r++)
      for (int64_t l = 0; l < width; l += W) {
        vi bucket = nearest_axis(y + r * F * lanes + l, half1);
        if (f2) bucket += nearest_axis(y + (r * F + half1) * lanes + l, half2) * static_cast<int32_t>(f1);
        alignas(64) int32_t out[W];
        *reinterpret_cast<vi_u*>(out) = bucket;
        std::memcpy(buckets + (head * R + r) * T + t0 + l, out,
                    static_cast<size_t>(smaller(W, n - l)) * sizeof(int32_t));
      }
  });
}

// place[t]: the chunk of each of n tokens when they stand by bucket, equals by position, `before` others first.
void place_run(const int32_t* buckets, int32_t* place, int64_t n, int64_t before, int64_t nb, int64_t C,
               int32_t* counts) {
  if (!buckets) {
    for (int64_t t = 0; t < n; t++) place[t] = static_cast<int32_t>((before + t) / C);
    return;
  }
  std::memset(counts, 0, static_cast<size_t>(nb) * sizeof(int32_t));
  for (int64_t t = 0; t < n; t++) counts[buckets[t]]++;
  int32_t sum = static_cast<int32_t>(before);
  for (int64_t k = 0; k < nb; k++) {
    const int32_t size = counts[k];
    counts[k] = sum, sum += size;
  }
  for (int64_t t = 0; t < n; t++) place[t] = counts[buckets[t]]++ / static_cast<int32_t>(C);
}

void lsh_sort(const Call& c) {
  const int64_t B = c.i[0], T = c.i[1], H = c.i[2], R = c.i[3], nb = c.i[4], C = c.i[5], chunks = (T + C - 1) / C;
  int32_t *orders = c.ptr<int32_t>(0), *places = c.ptr<int32_t>(1);
  const int32_t *buckets = c.ptr<const int32_t>(2), *segments = c.ptr<const int32_t>(3);
  if (buckets)
    for (int64_t k = 0; k < B * H * R * T; k++)
      if (buckets[k] < 0 || buckets[k] >= nb) return raise(INDEX_OUT_OF_RANGE, buckets[k], nb);
  parallel(B * H * R, [&](int64_t row, int thread) {
    int32_t* counts = static_cast<int32_t*>(pool_scratch(thread, 0, larger(nb, chunks) * 4));
    const int32_t* bucket = buckets ? buckets + row * T : nullptr;
    const int32_t* segment = segments ? segments + row / (H * R) * T : nullptr;
    int32_t *order = orders + row * T, *place = places + row * T;
    for (int64_t t0 = 0, t1; t0 < T; t0 = t1) {   // one document after the other
      t1 = segment ? t0 + 1 : T;
      while (segment && t1 < T && segment[t1] == segment[t0]) t1++;
      place_run(bucket ? bucket + t0 : nullptr, place + t0, t1 - t0, t0, nb, C, counts);
    }
    // A chunk's members by position, whatever their buckets.
    for (int64_t k = 0; k < chunks; k++) counts[k] = static_cast<int32_t>(k * C);
    for (int64_t t = 0; t < T; t++) order[counts[place[t]]++] = static_cast<int32_t>(t);
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(lsh_hash, {"lsh_hash", lsh_hash}, {"lsh_sort", lsh_sort})
