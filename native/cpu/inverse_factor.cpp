// The upper Cholesky factor U of an inverse, inv(H) = U^T U, in float64: what one-shot quantisation and pruning walk
// along (Frantar et al. 2022, "GPTQ", section 3.3). With the order of rows and columns reversed by J and J H J = L L^T,
// H = (J L J)(J L J)^T, and U is the inverse of the upper factor J L J: one factorisation and one triangular inverse
// instead of an inverse and two factorisations.
//
// The matrix is padded to whole blocks by ones on the diagonal, which change nothing else.

#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

typedef double vd __attribute__((vector_size(W * 4)));
typedef double vd_u __attribute__((vector_size(W * 4), aligned(8), may_alias));
constexpr int D = W / 2;                      // doubles of a vector
constexpr int64_t BLOCK = 64, CHUNK = 32;     // rows of a block, columns of a packed panel
constexpr int VECTORS = W == 16 ? 4 : 2;      // of a row of a tile
constexpr int ROWS = 4;

// c [ROWS, CHUNK] = a b, or c - a b; a [ROWS, n] with its rows lda apart, b [n, CHUNK].
template <bool SUBTRACT> void tile(const double* a, int64_t lda, const double* b, int64_t n, double* c, int64_t ldc) {
  for (int64_t j = 0; j < CHUNK; j += VECTORS * D) {
    vd sum[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < n; k++) {
      vd x[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) x[v] = *reinterpret_cast<const vd_u*>(b + k * CHUNK + j + v * D);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sum[r][v] += (vd{} + a[r * lda + k]) * x[v];
    }
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) {
        vd_u* const to = reinterpret_cast<vd_u*>(c + r * ldc + j + v * D);
        *to = SUBTRACT ? (vd)*to - sum[r][v] : sum[r][v];
      }
  }
}

// L of the block at `a`, in place; its inverse, transposed, as two panels [BLOCK, CHUNK]. False: not positive definite.
bool factor_block(double* a, int64_t ld, double* inverse) {
  for (int64_t j = 0; j < BLOCK; j++) {
    double sum = a[j * ld + j];
    for (int64_t k = 0; k < j; k++) sum -= a[j * ld + k] * a[j * ld + k];
    if (!(sum > 0)) return false;
    const double root = __builtin_sqrt(sum);
    a[j * ld + j] = root;
    for (int64_t i = j + 1; i < BLOCK; i++) {
      double s = a[i * ld + j];
      for (int64_t k = 0; k < j; k++) s -= a[i * ld + k] * a[j * ld + k];
      a[i * ld + j] = s / root;
    }
  }
  std::memset(inverse, 0, BLOCK * BLOCK * 8);
  const auto at = [&](int64_t i, int64_t j) -> double& { return inverse[i / CHUNK * BLOCK * CHUNK + j * CHUNK + i % CHUNK]; };
  for (int64_t j = 0; j < BLOCK; j++) {
    at(j, j) = 1 / a[j * ld + j];
    for (int64_t i = j + 1; i < BLOCK; i++) {
      double s = 0;
      for (int64_t k = j; k < i; k++) s += a[i * ld + k] * at(k, j);
      at(i, j) = -s / a[i * ld + i];
    }
  }
  return true;
}

struct Matrix {
  double* a;
  int64_t n;   // rows, padded
};

// L, in the lower triangle, block column after block column.
bool factor(const Matrix& m) {
  const int64_t n = m.n;
  double* const shared = static_cast<double*>(pool_scratch(0, 1, (n * BLOCK + BLOCK * BLOCK) * 8));
  double* const inverse = shared + n * BLOCK;
  for (int64_t j = 0; j < n; j += BLOCK) {
    // What is left of the columns: minus the products of the rows of L before them.
    parallel_range(j, 256, [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; k++)
        for (int64_t c = 0; c < BLOCK; c++)
          shared[c / CHUNK * j * CHUNK + k * CHUNK + c % CHUNK] = m.a[(j + c) * n + k];
    });
    parallel_range(n - j, 32, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r += ROWS)
        for (int64_t c = 0; c < BLOCK; c += CHUNK)
          tile<true>(m.a + (j + r) * n, n, shared + c * j, j, m.a + (j + r) * n + j + c, n);
    });
    if (!factor_block(m.a + j * n + j, n, inverse)) return false;
    // Below: A inv(L)^T.
    parallel_range(n - j - BLOCK, 32, [&](int64_t begin, int64_t end, int) {
      double row[ROWS * BLOCK];
      for (int64_t r = begin; r < end; r += ROWS) {
        double* const to = m.a + (j + BLOCK + r) * n + j;
        for (int64_t i = 0; i < ROWS; i++) std::memcpy(row + i * BLOCK, to + i * n, BLOCK * 8);
        for (int64_t c = 0; c < BLOCK; c += CHUNK) tile<false>(row, BLOCK, inverse + c * BLOCK, BLOCK, to + c, n);
      }
    });
  }
  return true;
}

// The inverse of L in its place, block row after block row: X_i = inv(L_ii) (I - sum over k < i of L_ik X_k).
void invert(const Matrix& m) {
  const int64_t n = m.n;
  double* const rows = static_cast<double*>(pool_scratch(0, 1, (n * BLOCK + BLOCK * BLOCK) * 8));
  for (int64_t i = 0; i < n; i += BLOCK) {
    for (int64_t r = 0; r < BLOCK; r++) {
      std::memcpy(rows + r * n, m.a + (i + r) * n, static_cast<size_t>(i + BLOCK) * 8);
      std::memset(m.a + (i + r) * n + i, 0, BLOCK * 8);
      m.a[(i + r) * n + i + r] = 1;
    }
    parallel((i + BLOCK) / CHUNK, [&](int64_t task, int thread) {
      const int64_t c = task * CHUNK;
      if (c < i) {
        const int64_t depth = i - c;
        double* const packed = static_cast<double*>(pool_scratch(thread, 2, n * CHUNK * 8));
        for (int64_t k = 0; k < depth; k++) std::memcpy(packed + k * CHUNK, m.a + (c + k) * n + c, CHUNK * 8);
        for (int64_t r = 0; r < BLOCK; r++) std::memset(m.a + (i + r) * n + c, 0, CHUNK * 8);
        for (int64_t r = 0; r < BLOCK; r += ROWS)
          tile<true>(rows + r * n + c, n, packed, depth, m.a + (i + r) * n + c, n);
      }
      for (int64_t r = 0; r < BLOCK; r++) {
        double* const x = m.a + (i + r) * n + c;
        for (int64_t q = 0; q < r; q++) {
          const double l = rows[r * n + i + q];
          const double* const y = m.a + (i + q) * n + c;
          for (int64_t k = 0; k < CHUNK; k++) x[k] -= l * y[k];
        }
        const double up = 1 / rows[r * n + i + r];
        for (int64_t k = 0; k < CHUNK; k++) x[k] *= up;
      }
    });
  }
}

// P = U f32 [K, K], work u8?, H f32 [K, K], order i32 [K]?; I = K; F = damp
void inverse_factor(const Call& c) {
  const int64_t K = c.i[0];
  float* const out = c.ptr<float>(0);
  const float* const h = c.ptr<const float>(2);
  const int32_t* const order = c.ptr<const int32_t>(3);
  Matrix m;
  m.n = (K + BLOCK - 1) / BLOCK * BLOCK;
  m.a = static_cast<double*>(c.p[1] ? c.p[1] : pool_scratch(0, 3, m.n * m.n * 8));
  if (order)
    for (int64_t k = 0; k < K; k++)
      if (order[k] < 0 || order[k] >= K) return raise(INDEX_OUT_OF_RANGE, order[k], K);
  const auto at = [&](int64_t k) { return order ? static_cast<int64_t>(order[k]) : k; };
  double mean = 0;
  for (int64_t k = 0; k < K; k++) mean += h[k * K + k] == 0 ? 1.0 : h[k * K + k];
  const double damp = c.f[0] * mean / static_cast<double>(K > 0 ? K : 1);
  parallel_range(m.n, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      double* const row = m.a + i * m.n;
      std::memset(row, 0, static_cast<size_t>(m.n) * 8);
      if (i >= K) row[i] = 1;
      else {
        const float* const from = h + at(K - 1 - i) * K;
        for (int64_t j = 0; j <= i; j++) row[j] = from[at(K - 1 - j)];
        if (row[i] == 0) row[i] = 1;
        row[i] += damp;
      }
    }
  });
  const bool sound = factor(m);
  if (sound) invert(m);
  // Both triangles, so that columns of U are runs of memory too.
  parallel_range(K, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t j = 0; j < K; j++) {
      const double* const row = m.a + (K - 1 - j) * m.n;
      for (int64_t t = begin; t < end; t++)
        if (t >= j) out[t * K + j] = sound ? static_cast<float>(row[K - 1 - t]) : __builtin_nanf("");
    }
    for (int64_t t = begin; t < end; t++) {
      const double* const row = m.a + (K - 1 - t) * m.n;
      for (int64_t j = t; j < K; j++) out[t * K + j] = sound ? static_cast<float>(row[K - 1 - j]) : __builtin_nanf("");
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(inverse_factor, {"inverse_factor", inverse_factor})
