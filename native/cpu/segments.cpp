// Two rows of tokens in segments, made into one in which every segment is together: its tokens of the first row, then
// those of the second. Padding (segment 0) comes last.
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

// P = from i32[B,N], segments i32[B,N], positions i32[B,N], place i32[B,Tb], a i32[B,Ta], b i32[B,Tb]; I = B, Ta, Tb;
// N = Ta + Tb. from[i] = N row + the token's place in [a | b]; place[t] = N row + where token t of b went. Positions count from 0 in each segment and are 0 in padding.
void join_segments(const Call& c) {
  const int64_t B = c.i[0], Ta = c.i[1], Tb = c.i[2], N = Ta + Tb;
  parallel(B, [&](int64_t row, int) {
    int32_t *from = c.ptr<int32_t>(0) + row * N, *segments = c.ptr<int32_t>(1) + row * N;
    int32_t *positions = c.ptr<int32_t>(2) + row * N, *place = c.ptr<int32_t>(3) + row * Tb;
    const int32_t *a = c.ptr<const int32_t>(4) + row * Ta, *b = c.ptr<const int32_t>(5) + row * Tb;
    const int64_t base = row * N;
    int64_t at = 0;
    const auto append = [&](int32_t segment) {
      int32_t position = 0;
      for (int64_t k = 0; k < N; k++) {
        if ((k < Ta ? a[k] : b[k - Ta]) != segment) continue;
        from[at] = static_cast<int32_t>(base + k);
        segments[at] = segment;
        positions[at] = segment == 0 ? 0 : position++;
        if (k >= Ta) place[k - Ta] = static_cast<int32_t>(base + at);
        at++;
      }
    };
    int64_t last = INT64_MIN;
    for (;;) {   // segments in ascending order
      int64_t next = INT64_MAX;
      for (int64_t k = 0; k < N; k++) {
        const int64_t s = k < Ta ? a[k] : b[k - Ta];
        if (s != 0 && s > last && s < next) next = s;
      }
      if (next == INT64_MAX) break;
      append(static_cast<int32_t>(next));
      last = next;
    }
    append(0);
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(segments, {"join_segments", join_segments})
