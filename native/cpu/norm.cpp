// RMS and layer normalisation over rows of d elements, and their gradients.
//
// RMS norm: Zhang and Sennrich, arXiv 1910.07467; layer norm: Ba et al., arXiv 1607.06450. Gradients of w and b sum
// over rows: tasks of a fixed number of rows leave partial sums, which combine in order (in double).
#include <cmath>

#include "reduce_rows.h"

namespace ansatz {
namespace {

constexpr int64_t kRowGrain = 32768;

// w, or ones; b, or zeros: one loop then serves both. Held by the calling thread's slot 2 for the whole call.
struct Affine { const float *w, *b; };
Affine affine_or_identity(const float* w, const float* b, int64_t d) {
  if (w && b) return {w, b};
  float* s = static_cast<float*>(pool_scratch(0, 2, most(1, d) * 8));
  for (int64_t k = 0; k < d; k++) s[k] = 1.0f;
  std::memset(s + d, 0, static_cast<size_t>(d) * 4);
  return {w ? w : s, b ? b : s + d};
}

struct Statistics { float mean, rstd; };

// One row; w and b always given.
template <class Y, class X>
Statistics rms_row(void* y_, const void* x_, const float* w, const float*, int64_t d, double eps) {
  Y* y = static_cast<Y*>(y_);
  const X* x = static_cast<const X*>(x_);
  const double squares = sum_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA {
    const vf v = part(x + k, m);
    return v * v;
  });
  const float scale = static_cast<float>(1.0 / ::sqrt(squares / static_cast<double>(d) + eps));
  for_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA {
    put_part(y + k, part(x + k, m) * scale * part(w + k, m), m);
  });
  return {0.0f, scale};
}

template <class Y, class X>
Statistics layer_row(void* y_, const void* x_, const float* w, const float* b, int64_t d, double eps) {
  Y* y = static_cast<Y*>(y_);
  const X* x = static_cast<const X*>(x_);
  const double sum = sum_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA { return part(x + k, m); });
  const float mean = static_cast<float>(sum / static_cast<double>(d));
  // Deviations are squared after subtracting: E[x^2] - mean^2 would cancel when |mean| is large.
  const double squares = sum_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA {
    vf v = part(x + k, m) - mean;
    if (m != W) v = (vf)((vi)v & first_lanes(m));
    return v * v;
  });
  const float scale = static_cast<float>(1.0 / ::sqrt(squares / static_cast<double>(d) + eps));
  for_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA {
    put_part(y + k, (part(x + k, m) - mean) * scale * part(w + k, m) + part(b + k, m), m);
  });
  return {mean, scale};
}

using RowFn = Statistics (*)(void*, const void*, const float*, const float*, int64_t, double);

// The row function for the dtypes of y and x, all four pairs being common (f32 residual stream, bf16 activations).
#define ROW_FUNCTION(row, ty, tx)                                   \
  ((ty) == F32 ? ((tx) == F32 ? row<float, float> : row<float, bf16>) \
               : ((tx) == F32 ? row<bf16, float> : row<bf16, bf16>))

void forward(void* y, int32_t ty, const void* x, int32_t tx, float* mean, float* rstd, const Affine& a, RowFn row,
             int64_t rows, int64_t d, double eps) {
  const int64_t step_y = d * dtype_size(ty), step_x = d * dtype_size(tx);
  parallel_range(rows, rows_a_task(d, kRowGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const Statistics s =
          row(static_cast<char*>(y) + r * step_y, static_cast<const char*>(x) + r * step_x, a.w, a.b, d, eps);
      if (mean) mean[r] = s.mean;
      rstd[r] = s.rstd;
    }
  });
}

// P = y, rstd, x, w?; I = rows, d; F = eps
void rms_norm(const Call& c) {
  const Affine a = affine_or_identity(c.ptr<float>(3), nullptr, c.i[1]);
  forward(c.p[0], c.t[0], c.p[2], c.t[2], nullptr, c.ptr<float>(1), a, ROW_FUNCTION(rms_row, c.t[0], c.t[2]), c.i[0],
          c.i[1], c.f[0]);
}

// P = y, mean, rstd, x, w?, b?; I = rows, d; F = eps
void layer_norm(const Call& c) {
  const Affine a = affine_or_identity(c.ptr<float>(4), c.ptr<float>(5), c.i[1]);
  forward(c.p[0], c.t[0], c.p[3], c.t[3], c.ptr<float>(1), c.ptr<float>(2), a, ROW_FUNCTION(layer_row, c.t[0], c.t[3]),
          c.i[0], c.i[1], c.f[0]);
}

// Sums partial[chunk * stride + k] over chunks into out[k].
void combine_chunks(float* out, const float* partial, int64_t chunks, int64_t stride, int64_t d) {
  parallel_range(d, 1024, [&](int64_t begin, int64_t end, int) {
    double total[1024] = {};
    for (int64_t chunk = 0; chunk < chunks; chunk++)
      for (int64_t k = begin; k < end; k++) total[k - begin] += static_cast<double>(partial[chunk * stride + k]);
    for (int64_t k = begin; k < end; k++) out[k] = static_cast<float>(total[k - begin]);
  });
}

// One row's gradient plus `add` (what else flows into x: the residual stream's gradient), null for none; dw and db are
// the chunk's partial sums, null when unwanted. Formulas, with g = dy w:
// RMS norm: xhat = x rstd, dx = rstd (g - xhat mean(g xhat)), dw = sum dy xhat.
template <class T>
void rms_row_bwd(void* dx_, float* dw, float*, const void* x_, const void* dy_, const void* add_, const float* w,
                 Statistics s, int64_t d) {
  T* dx = static_cast<T*>(dx_);
  const T* add = static_cast<const T*>(add_);
  const T *x = static_cast<const T*>(x_), *dy = static_cast<const T*>(dy_);
  const double dot = sum_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA {
    return part(dy + k, m) * part(w + k, m) * part(x + k, m);
  });
  const float scale = s.rstd, pull = static_cast<float>(dot / static_cast<double>(d)) * scale * scale;
  for_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA {
    const vf v = part(x + k, m), g = part(dy + k, m);
    const vf own = (g * part(w + k, m) - v * pull) * scale;
    put_part(dx + k, add ? own + part(add + k, m) : own, m);
    if (dw) put_part(dw + k, part(dw + k, m) + g * v * scale, m);
  });
}

// Layer norm: xhat = (x - mean) rstd, dx = rstd (g - mean(g) - xhat mean(g xhat)), dw = sum dy xhat, db = sum dy.
template <class T>
void layer_row_bwd(void* dx_, float* dw, float* db, const void* x_, const void* dy_, const void* add_, const float* w,
                   Statistics s, int64_t d) {
  T* dx = static_cast<T*>(dx_);
  const T* add = static_cast<const T*>(add_);
  const T *x = static_cast<const T*>(x_), *dy = static_cast<const T*>(dy_);
  const float mean = s.mean, scale = s.rstd;
  // Padding lanes have g = 0, so they add nothing although x - mean is not 0 there.
  const double g_sum =
      sum_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA { return part(dy + k, m) * part(w + k, m); });
  const double dot = sum_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA {
    return part(dy + k, m) * part(w + k, m) * ((part(x + k, m) - mean) * scale);
  });
  const float shift = static_cast<float>(g_sum / static_cast<double>(d));
  const float pull = static_cast<float>(dot / static_cast<double>(d));
  for_vectors(d, [&](int64_t k, int64_t m) ANSATZ_LAMBDA {
    const vf hat = (part(x + k, m) - mean) * scale, g = part(dy + k, m);
    const vf own = (g * part(w + k, m) - shift - hat * pull) * scale;
    put_part(dx + k, add ? own + part(add + k, m) : own, m);
    if (dw) put_part(dw + k, part(dw + k, m) + g * hat, m);
    if (db) put_part(db + k, part(db + k, m) + g, m);
  });
}

using RowBwdFn = void (*)(void*, float*, float*, const void*, const void*, const void*, const float*, Statistics,
                          int64_t);
struct Float { void* p; int32_t t; };   // a tensor and its dtype

void backward(Float dx, float* dw, float* db, Float x, const float* w, const float* mean, const float* rstd, Float dy,
              Float add, RowBwdFn wide, RowBwdFn narrow_rows, int64_t rows, int64_t d) {
  w = affine_or_identity(w, nullptr, d).w;
  const bool sums = dw || db;
  const int64_t chunk_rows = least(256, most(64, kRowGrain / most(1, d)));
  const int64_t chunks = (rows + chunk_rows - 1) / chunk_rows, stride = 2 * d;
  float* partial = sums ? static_cast<float*>(pool_scratch(0, 3, most(1, chunks * stride) * 4)) : nullptr;
  const bool narrow_all = dx.t == BF16 && x.t == BF16 && dy.t == BF16 && (!add.p || add.t == BF16);
  parallel(chunks, [&](int64_t chunk, int thread) {
    float* s = static_cast<float*>(pool_scratch(thread, 0, d * 16));   // for mixed dtypes
    float* const pw = dw ? partial + chunk * stride : nullptr;
    float* const pb = db ? partial + chunk * stride + d : nullptr;
    if (sums) std::memset(partial + chunk * stride, 0, static_cast<size_t>(stride) * 4);
    const int64_t end = least(rows, (chunk + 1) * chunk_rows);
    for (int64_t r = chunk * chunk_rows; r < end; r++) {
      const Statistics st = {mean ? mean[r] : 0.0f, rstd[r]};
      const int64_t at = r * d;
      if (narrow_all) {
        narrow_rows(static_cast<bf16*>(dx.p) + at, pw, pb, static_cast<bf16*>(x.p) + at, static_cast<bf16*>(dy.p) + at,
                    add.p ? static_cast<bf16*>(add.p) + at : nullptr, w, st, d);
      } else {
        wide(target(dx.p, dx.t, at, s), pw, pb, fetch(x.p, x.t, at, d, s + d), fetch(dy.p, dy.t, at, d, s + 2 * d),
             add.p ? fetch(add.p, add.t, at, d, s + 3 * d) : nullptr, w, st, d);
        finish(dx.p, dx.t, at, d, s);
      }
    }
  });
  if (dw) combine_chunks(dw, partial, chunks, stride, d);
  if (db) combine_chunks(db, partial + d, chunks, stride, d);
}

// P = dx, dw?, x, w?, rstd, dy, addend?; I = rows, d
void rms_norm_bwd(const Call& c) {
  backward({c.p[0], c.t[0]}, c.ptr<float>(1), nullptr, {c.p[2], c.t[2]}, c.ptr<float>(3), nullptr, c.ptr<float>(4),
           {c.p[5], c.t[5]}, {c.p[6], c.t[6]}, rms_row_bwd<float>, rms_row_bwd<bf16>, c.i[0], c.i[1]);
}

// P = dx, dw?, db?, x, w?, mean, rstd, dy, addend?; I = rows, d
void layer_norm_bwd(const Call& c) {
  backward({c.p[0], c.t[0]}, c.ptr<float>(1), c.ptr<float>(2), {c.p[3], c.t[3]}, c.ptr<float>(4), c.ptr<float>(5),
           c.ptr<float>(6), {c.p[7], c.t[7]}, {c.p[8], c.t[8]}, layer_row_bwd<float>, layer_row_bwd<bf16>, c.i[0], c.i[1]);
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(norm, {"rms_norm", rms_norm}, {"rms_norm_bwd", rms_norm_bwd}, {"layer_norm", layer_norm},
  {"layer_norm_bwd", layer_norm_bwd})
