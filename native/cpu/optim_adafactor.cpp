// Adafactor without momentum (Shazeer and Stern 2018, arXiv 1804.04235; the form of T5X): second moments of matrices are
// kept as the means of their rows and columns.
//
// One matrix at a time: (1) row and column means of g^2, (2) mean squares of the update and of the weights, (3) the
// step. Each pass is cut into at most 64 blocks of rows of fixed size, whose partial sums combine in order.
#include "optim.h"

namespace ansatz {
namespace {

constexpr int64_t kBlockElements = 16384;   // of one block of rows, at least
constexpr int64_t kMaxBlocks = 64;

struct Factored {
  int64_t rows, cols;
  float scale, beta, gain, eps1, eps2, clip, lr_decay;
  double rate;
  float *p, *r, *c;
};

ANSATZ_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// rate of the step and what clipping leaves of the update: lr max(eps2, rms(p)) / max(1, rms(u) / clip).
ANSATZ_INLINE float step_size(double rate, double squares_u, double squares_p, int64_t n, float eps2, float clip) {
  const double rms_u = square_root(squares_u / static_cast<double>(n));
  const double rms_p = square_root(squares_p / static_cast<double>(n));
  const double scale = rms_p > static_cast<double>(eps2) ? rms_p : static_cast<double>(eps2);
  const double cut = rms_u / static_cast<double>(clip);
  return static_cast<float>(rate * scale / (cut > 1.0 ? cut : 1.0));
}

template <class G> void factored(const Factored& f, const G* g) {
  const int64_t rows = f.rows, cols = f.cols;
  const int64_t block = most((rows + kMaxBlocks - 1) / kMaxBlocks, rows_a_task(cols, kBlockElements));
  const int64_t blocks = (rows + block - 1) / block;
  // Column sums of each block, then the factors of rows and columns, then two sums a block.
  const int64_t wide = (cols + W - 1) / W * W, tall = (rows + W - 1) / W * W;
  float* sums = static_cast<float*>(pool_scratch(0, 3, (blocks * wide + wide + tall) * 4 + blocks * 16));
  float *row_factor = sums + blocks * wide, *column_factor = row_factor + tall;
  double* squares = reinterpret_cast<double*>(column_factor + wide);

  parallel_range(rows, block, [&](int64_t begin, int64_t end, int) {
    float* columns = sums + begin / block * wide;
    for (int64_t k = 0; k < wide; k += W) store(columns + k, splat(0.0f));
    for (int64_t i = begin; i < end; i++) {
      const G* row = g + i * cols;
      const double total = sum_vectors(cols, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
        const vf x = part(row + k, lanes) * f.scale, square = select(first_lanes(lanes), x * x + f.eps1, splat(0.0f));
        store(columns + k, load(columns + k) + square);
        return square;
      });
      f.r[i] = f.beta * f.r[i] + f.gain * static_cast<float>(total / static_cast<double>(cols));
    }
  });
  for (int64_t j = 0; j < cols; j++) {
    double total = 0;
    for (int64_t k = 0; k < blocks; k++) total += static_cast<double>(sums[k * wide + j]);
    f.c[j] = f.beta * f.c[j] + f.gain * static_cast<float>(total / static_cast<double>(rows));
    column_factor[j] = static_cast<float>(1.0 / square_root(static_cast<double>(f.c[j])));
  }
  double mean = 0;
  for (int64_t i = 0; i < rows; i++) mean += static_cast<double>(f.r[i]);
  mean /= static_cast<double>(rows);
  for (int64_t i = 0; i < rows; i++)
    row_factor[i] = f.scale * static_cast<float>(square_root(mean / static_cast<double>(f.r[i])));

  parallel_range(rows, block, [&](int64_t begin, int64_t end, int) {
    double updates = 0, weights = 0;
    for (int64_t i = begin; i < end; i++) {
      updates += sum_vectors(cols, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
        const vf u = part(g + i * cols + k, lanes) * row_factor[i] * part(column_factor + k, lanes);
        return u * u;
      });
      weights += sum_vectors(cols, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
        const vf x = part(f.p + i * cols + k, lanes);
        return x * x;
      });
    }
    squares[2 * (begin / block)] = updates;
    squares[2 * (begin / block) + 1] = weights;
  });
  double updates = 0, weights = 0;
  for (int64_t k = 0; k < blocks; k++) updates += squares[2 * k], weights += squares[2 * k + 1];
  const float size = step_size(f.rate, updates, weights, rows * cols, f.eps2, f.clip);

  parallel_range(rows, block, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)
      for_vectors(cols, [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
        float* at = f.p + i * cols + k;
        const vf u = part(g + i * cols + k, lanes) * row_factor[i] * part(column_factor + k, lanes), x = part(at, lanes);
        put_part(at, x - size * u - f.lr_decay * x, lanes);
      });
  });
}

// Vectors and small matrices keep every second moment.
template <class G> void whole(const Factored& f, float* v, const G* g, int64_t n) {
  const int64_t block = most((n + kMaxBlocks - 1) / kMaxBlocks, kBlockElements), blocks = (n + block - 1) / block;
  double* squares = static_cast<double*>(pool_scratch(0, 3, blocks * 16));
  const auto update = [&](int64_t k, int64_t lanes) ANSATZ_LAMBDA {
    return part(g + k, lanes) * f.scale / vsqrt(select(first_lanes(lanes), part(v + k, lanes), splat(1.0f)));
  };
  parallel_range(n, block, [&](int64_t begin, int64_t end, int) {
    for_vectors(end - begin, [&](int64_t at, int64_t lanes) ANSATZ_LAMBDA {
      const vf x = part(g + begin + at, lanes) * f.scale;
      put_part(v + begin + at, f.beta * part(v + begin + at, lanes) + f.gain * (x * x + f.eps1), lanes);
    });
    squares[2 * (begin / block)] = sum_vectors(end - begin, [&](int64_t at, int64_t lanes) ANSATZ_LAMBDA {
      const vf u = update(begin + at, lanes);
      return u * u;
    });
    squares[2 * (begin / block) + 1] = sum_vectors(end - begin, [&](int64_t at, int64_t lanes) ANSATZ_LAMBDA {
      const vf x = part(f.p + begin + at, lanes);
      return x * x;
    });
  });
  double updates = 0, weights = 0;
  for (int64_t k = 0; k < blocks; k++) updates += squares[2 * k], weights += squares[2 * k + 1];
  const float size = step_size(f.rate, updates, weights, n, f.eps2, f.clip);
  parallel_range(n, block, [&](int64_t begin, int64_t end, int) {
    for_vectors(end - begin, [&](int64_t at, int64_t lanes) ANSATZ_LAMBDA {
      const int64_t k = begin + at;
      const vf x = part(f.p + k, lanes);
      put_part(f.p + k, x - size * update(k, lanes) - f.lr_decay * x, lanes);
    });
  });
}

// scalars[3] = 1 - beta2 of this step. P = p, r?, c?, v?, g, scalars; I = batch, rows, cols;
// F = lrmult, eps1, eps2, clip, decay
void adafactor(const Call& c) {
  const float* scalars = c.ptr<float>(5);
  const int64_t batch = c.i[0], rows = c.i[1], cols = c.i[2];
  if (scalars[FINITE] == 0.0f || rows * cols == 0) return;
  const double rate = c.f[0] * static_cast<double>(scalars[RATE]);
  for (int64_t b = 0; b < batch; b++) {
    const Factored f = {rows, cols, scalars[GRADIENT_SCALE], 1.0f - scalars[CORRECTION2], scalars[CORRECTION2],
                        static_cast<float>(c.f[1]), static_cast<float>(c.f[2]), static_cast<float>(c.f[3]),
                        static_cast<float>(rate * c.f[4]), rate, c.ptr<float>(0) + b * rows * cols,
                        c.p[1] ? c.ptr<float>(1) + b * rows : nullptr, c.p[2] ? c.ptr<float>(2) + b * cols : nullptr};
    with_float(c.p[4], c.t[4], [&](const auto* g) {
      g += b * rows * cols;
      if (c.p[1]) factored(f, g);
      else whole(f, c.ptr<float>(3) + b * rows * cols, g, rows * cols);
    });
  }
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(optim_adafactor, {"adafactor", adafactor})
