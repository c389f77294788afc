// Stable sort of rows: ranks for short ones, radix sort for long ones, by all threads together for very long ones.
#include "sort_pairs.h"

namespace ansatz {
namespace {

constexpr int64_t CHUNK = 65536;   // a piece of a row that is sorted by several threads

// sort_pairs over chunks of one long row, counted and moved by all threads; each chunk owns a run of every bucket.
uint64_t* sort_pairs_parallel(uint64_t* a, uint64_t* b, int64_t n, int digits) {
  const int64_t chunks = (n + CHUNK - 1) / CHUNK;
  uint32_t* count = static_cast<uint32_t*>(pool_scratch(0, 2, chunks * 256 * 4));
  for (int d = 0; d < digits; d++) {
    const int shift = 32 + 8 * d;
    parallel_range(n, CHUNK, [&](int64_t begin, int64_t end, int) {
      uint32_t mine[256] = {};
      for (int64_t k = begin; k < end; k++) mine[a[k] >> shift & 255]++;
      std::memcpy(count + begin / CHUNK * 256, mine, sizeof mine);
    });
    uint32_t sum = 0;
    bool shared = false;
    for (int v = 0; v < 256; v++) {
      const uint32_t before = sum;
      for (int64_t c = 0; c < chunks; c++) {
        const uint32_t size = count[c * 256 + v];
        count[c * 256 + v] = sum;
        sum += size;
      }
      shared |= sum - before == n;
    }
    if (shared) continue;
    parallel_range(n, CHUNK, [&](int64_t begin, int64_t end, int) {
      uint32_t at[256];
      std::memcpy(at, count + begin / CHUNK * 256, sizeof at);
      for (int64_t k = begin; k < end; k++) b[at[a[k] >> shift & 255]++] = a[k];
    });
    uint64_t* const t = a;
    a = b;
    b = t;
  }
  return a;
}

template <class O, class T> void sort_rows(const Call& c, O* values, const T* x) {
  int32_t* idx = c.ptr<int32_t>(1);
  const int64_t rows = c.i[0], n = c.i[1];
  const uint32_t flip = c.i[2] ? 0xffffffffu : 0;
  constexpr int digits = sizeof(T);
  if (n == 0) return;
  if (n >= 2 * CHUNK && rows < 8) {
    uint64_t* a = static_cast<uint64_t*>(pool_scratch(0, 3, 2 * n * 8));
    for (int64_t r = 0; r < rows; r++) {
      const T* row = x + r * n;
      parallel_range(n, CHUNK, [&](int64_t begin, int64_t end, int) {
        for (int64_t k = begin; k < end; k++) a[k] = make_pair(row, k, flip);
      });
      const uint64_t* sorted = sort_pairs_parallel(a, a + n, n, digits);
      parallel_range(n, CHUNK, [&](int64_t begin, int64_t end, int) {
        emit(values + r * n, idx + r * n, row, sorted, begin, end);
      });
    }
    return;
  }
  parallel_range(rows, n < GRAIN ? GRAIN / n : 1, [&](int64_t begin, int64_t end, int thread) {
    uint64_t* a = static_cast<uint64_t*>(pool_scratch(thread, 0, 2 * n * 8));
    for (int64_t r = begin; r < end; r++) {
      for (int64_t k = 0; k < n; k++) a[k] = make_pair(x + r * n, k, flip);
      emit(values + r * n, idx + r * n, x + r * n, sort_pairs(a, a + n, n, digits), 0, n);
    }
  });
}

void sort(const Call& c) {
  typed(c, [&](auto* values, const auto* x) { sort_rows(c, values, x); });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(sort, {"sort", sort})
