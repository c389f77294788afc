// Rows and elements picked by index: embedding and gather, their adjoints, one-hot. The adjoints add in the order of
// the indices, whatever the number of threads: a task owns its part of the output and walks the indices in order.
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

constexpr int64_t GRAIN = 32768;   // elements a task
constexpr int64_t SLICE = 128;     // columns of a scatter that one task owns

ANSATZ_INLINE int64_t units(int64_t size) { return size < 1 ? GRAIN : size < GRAIN ? GRAIN / size : 1; }

ANSATZ_INLINE bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  uint64_t half[2];
  std::memcpy(half, &mask, sizeof half);
  return (half[0] | half[1]) != 0;
#endif
}
ANSATZ_INLINE vi load_ids(const int32_t* p) { return *reinterpret_cast<const vi_u*>(p); }

// ---- validity of indices -----------------------------------------------------------------------------------------
// Position of the first index outside [0, limit) in ids[begin, end), or -1.
int64_t find_bad(const int32_t* ids, int64_t begin, int64_t end, int64_t limit) {
  const uint32_t top = limit > INT32_MAX ? 0x80000000u : static_cast<uint32_t>(limit);
  int64_t k = begin;
  for (; k + 4 * W <= end; k += 4 * W) {
    vi bad = {};
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) bad |= (vi)((vu)load_ids(ids + k + u * W) >= top);
    if (any(bad)) break;
  }
  for (; k < end; k++)
    if (static_cast<uint32_t>(ids[k]) >= top) return k;
  return -1;
}

// The lowest bad position that any task found, so that the report does not depend on which task came first.
struct FirstBad {
  int64_t at = INT64_MAX;
  void note(int64_t position) {
    int64_t seen = __atomic_load_n(&at, __ATOMIC_RELAXED);
    while (position < seen &&
           !__atomic_compare_exchange_n(&at, &seen, position, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  bool report(const int32_t* ids, int64_t limit) const {
    if (at == INT64_MAX) return false;
    raise(INDEX_OUT_OF_RANGE, ids[at], limit);
    return true;
  }
};

bool all_valid(const int32_t* ids, int64_t n, int64_t limit) {
  FirstBad bad;
  parallel_range(n, GRAIN, [&](int64_t begin, int64_t end, int) {
    const int64_t at = find_bad(ids, begin, end, limit);
    if (at >= 0) bad.note(at);
  });
  return !bad.report(ids, limit);
}

// ---- copies: exact within a dtype (no trip through float, which would quiet NaNs and flush denormals) ------------
ANSATZ_INLINE void copy_one(float* o, const float* x) { *o = *x; }
ANSATZ_INLINE void copy_one(bf16* o, const bf16* x) { *o = *x; }
ANSATZ_INLINE void copy_one(uint8_t* o, const uint8_t* x) { *o = *x; }
template <class O, class T> ANSATZ_INLINE void copy_one(O* o, const T* x) { store_one(o, to_float(*x)); }
template <class T> ANSATZ_INLINE void copy_lanes(T* o, const T* x) { std::memcpy(o, x, sizeof(T) * W); }
template <class O, class T> ANSATZ_INLINE void copy_lanes(O* o, const T* x) { store(o, load(x)); }
template <class T> void copy_row(T* o, const T* x, int64_t n) {
  if (n > 0) std::memcpy(o, x, sizeof(T) * static_cast<size_t>(n));
}
template <class O, class T> void copy_row(O* o, const T* x, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) copy_lanes(o + k, x + k);
  for (; k < n; k++) copy_one(o + k, x + k);
}

// f(out, x) with typed pointers for the dtypes of P[a] and P[b]: any floats, or both i32 (moved as floats) or both u8.
template <class F> void typed(const Call& c, int a, int b, const F& f) {
  if (c.t[a] == U8) return f(c.ptr<uint8_t>(a), c.ptr<const uint8_t>(b));
  if (c.t[a] == BF16 && c.t[b] == BF16) return f(c.ptr<bf16>(a), c.ptr<const bf16>(b));
  if (c.t[a] == BF16) return f(c.ptr<bf16>(a), c.ptr<const float>(b));
  if (c.t[b] == BF16) return f(c.ptr<float>(a), c.ptr<const bf16>(b));
  return f(c.ptr<float>(a), c.ptr<const float>(b));
}

// ---- reading -----------------------------------------------------------------------------------------------------
void embedding(const Call& c) {
  const int32_t* ids = c.ptr<int32_t>(2);
  const int64_t n = c.i[0], d = c.i[1], rows = c.i[2];
  if (!all_valid(ids, n, rows)) return;
  typed(c, 0, 1, [&](auto* out, const auto* table) {
    parallel_range(n, units(d), [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; k++) copy_row(out + k * d, table + ids[k] * d, d);
    });
  });
}

// One row of a gather along an axis that is not the last: column i comes from source row idx[i]. A run of equal
// indices (an index broadcast over the columns, the usual case) is copied as a vector.
template <class O, class T> void gather_row(O* out, const T* x, const int32_t* idx, int64_t inner) {
  int64_t i = 0;
  for (; i + W <= inner; i += W) {
    const T* from = x + idx[i] * inner + i;
    if (!any(load_ids(idx + i) != idx[i])) {
      copy_lanes(out + i, from);
    } else {
      for (int k = 0; k < W; k++) copy_one(out + i + k, x + idx[i + k] * inner + i + k);
    }
  }
  for (; i < inner; i++) copy_one(out + i, x + idx[i] * inner + i);
}

void gather(const Call& c) {
  const int32_t* idx = c.ptr<int32_t>(2);
  const int64_t outer = c.i[0], n = c.i[1], m = c.i[2], inner = c.i[3];
  FirstBad bad;
  typed(c, 0, 1, [&](auto* out, const auto* x) {
    parallel_range(outer * m, units(inner), [&](int64_t begin, int64_t end, int) {
      const int64_t at = find_bad(idx, begin * inner, end * inner, n);
      if (at >= 0) return bad.note(at);
      for (int64_t r = begin; r < end;) {
        const int64_t o = r / m, stop = least((o + 1) * m, end);
        const auto* from = x + o * n * inner;
        if (inner == 1) {
          for (; r < stop; r++) copy_one(out + r, from + idx[r]);
        } else {
          for (; r < stop; r++) gather_row(out + r * inner, from, idx + r * inner, inner);
        }
      }
    });
  });
  bad.report(idx, n);
}

// ---- adding ------------------------------------------------------------------------------------------------------
// out[0:d] = sum of the rows dy[order[0..count)], added in that order, in registers.
template <class T> void sum_rows(float* out, const T* dy, const int32_t* order, int64_t count, int64_t d) {
  constexpr int N = 4;
  int64_t k = 0;
  for (; k + N * W <= d; k += N * W) {
    vf acc[N] = {};
    for (int64_t e = 0; e < count; e++)
#pragma GCC unroll 4
      for (int u = 0; u < N; u++) acc[u] += load(dy + order[e] * d + k + u * W);
#pragma GCC unroll 4
    for (int u = 0; u < N; u++) store(out + k + u * W, acc[u]);
  }
  for (; k + W <= d; k += W) {
    vf acc = {};
    for (int64_t e = 0; e < count; e++) acc += load(dy + order[e] * d + k);
    store(out + k, acc);
  }
  for (; k < d; k++) {
    float acc = 0;
    for (int64_t e = 0; e < count; e++) acc += to_float(dy[order[e] * d + k]);
    out[k] = acc;
  }
}

// A counting sort of the ids lists, for each table row, the tokens that used it (in order); every row is then summed
// and written once.
void embedding_bwd(const Call& c) {
  float* dtable = c.ptr<float>(0);
  const int32_t* ids = c.ptr<int32_t>(1);
  const int64_t n = c.i[0], d = c.i[1], rows = c.i[2];
  if (!all_valid(ids, n, rows)) return;
  int32_t* start = static_cast<int32_t*>(pool_scratch(0, 3, (rows + 2 + n) * 4));
  int32_t* order = start + rows + 2;
  std::memset(start, 0, static_cast<size_t>(rows + 2) * 4);
  for (int64_t k = 0; k < n; k++) start[ids[k] + 2]++;
  for (int64_t r = 2; r < rows + 2; r++) start[r] += start[r - 1];
  for (int64_t k = 0; k < n; k++) order[start[ids[k] + 1]++] = static_cast<int32_t>(k);   // leaves start[id] = begin
  const auto sum = [&](const auto* dy) {
    parallel_range(rows, units(d), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++) {
        const int64_t count = start[r + 1] - start[r];
        if (count == 0 && d > 0) std::memset(dtable + r * d, 0, static_cast<size_t>(d) * 4);
        else sum_rows(dtable + r * d, dy, order + start[r], count, d);
      }
    });
  };
  if (c.t[2] == BF16) sum(c.ptr<const bf16>(2));
  else sum(c.ptr<const float>(2));
}

// acc[idx[i], i] += x[i] for the columns i < n of one source row. Columns are distinct, so lanes never collide.
template <class T> void scatter_row(float* acc, int64_t stride, const T* x, const int32_t* idx, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    if (!any(load_ids(idx + i) != idx[i])) {
      float* to = acc + idx[i] * stride + i;
      store(to, load(to) + load(x + i));
    } else {
      for (int k = 0; k < W; k++) acc[idx[i + k] * stride + i + k] += to_float(x[i + k]);
    }
  }
  for (; i < n; i++) acc[idx[i] * stride + i] += to_float(x[i]);
}

// Adds in f32 and rounds once: into the output itself, or into scratch when the output is bf16.
ANSATZ_INLINE float* accumulators(float* out, int64_t, int64_t, int) { return out; }
ANSATZ_INLINE float* accumulators(bf16*, int64_t n, int64_t width, int thread) {
  return static_cast<float*>(pool_scratch(thread, 0, n * width * 4));
}

template <class O, class T> void scatter(const Call& c, O* out, const int32_t* idx, const T* x) {
  const int64_t outer = c.i[0], n = c.i[1], m = c.i[2], inner = c.i[3];
  const int64_t slices = (inner + SLICE - 1) / SLICE, width = least(inner, SLICE);
  parallel_range(outer * slices, units((n + m) * width), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t o = task / slices, col = task % slices * SLICE, w = least(SLICE, inner - col);
      O* to = out + o * n * inner + col;
      float* acc = accumulators(to, n, width, thread);
      const bool direct = static_cast<void*>(acc) == static_cast<void*>(to);
      const int64_t stride = direct ? inner : width;
      for (int64_t r = 0; r < n; r++) std::memset(acc + r * stride, 0, static_cast<size_t>(w) * 4);
      const int64_t from = o * m * inner + col;
      if (inner == 1) {
        for (int64_t j = from; j < from + m; j++) acc[idx[j]] += to_float(x[j]);
      } else {
        for (int64_t j = 0; j < m; j++) scatter_row(acc, stride, x + from + j * inner, idx + from + j * inner, w);
      }
      if (!direct)
        for (int64_t r = 0; r < n; r++) copy_row(to + r * inner, acc + r * stride, w);
    }
  });
}

void scatter_add(const Call& c) {
  const int32_t* idx = c.ptr<int32_t>(1);
  if (!all_valid(idx, c.i[0] * c.i[2] * c.i[3], c.i[1])) return;
  if (c.t[0] == BF16 && c.t[2] == BF16) scatter(c, c.ptr<bf16>(0), idx, c.ptr<const bf16>(2));
  else if (c.t[0] == BF16) scatter(c, c.ptr<bf16>(0), idx, c.ptr<const float>(2));
  else if (c.t[2] == BF16) scatter(c, c.ptr<float>(0), idx, c.ptr<const bf16>(2));
  else scatter(c, c.ptr<float>(0), idx, c.ptr<const float>(2));
}

template <class O> void set_one_hot(O* out, const int32_t* ids, int64_t n, int64_t classes) {
  parallel_range(n, units(classes), [&](int64_t begin, int64_t end, int) {
    std::memset(static_cast<void*>(out + begin * classes), 0, static_cast<size_t>((end - begin) * classes) * sizeof(O));
    for (int64_t k = begin; k < end; k++) store_one(out + k * classes + ids[k], 1.0f);
  });
}

void one_hot(const Call& c) {
  const int32_t* ids = c.ptr<int32_t>(1);
  if (!all_valid(ids, c.i[0], c.i[1])) return;
  if (c.t[0] == BF16) set_one_hot(c.ptr<bf16>(0), ids, c.i[0], c.i[1]);
  else set_one_hot(c.ptr<float>(0), ids, c.i[0], c.i[1]);
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(index, {"embedding", embedding}, {"embedding_bwd", embedding_bwd}, {"gather", gather},
               {"scatter_add", scatter_add}, {"one_hot", one_hot})
