// Weights of a matrix rounded or removed one column after another, each row's error made up for by the columns that
// are still free (Frantar et al. 2022, "GPTQ"; Frantar and Alistarh 2023, "SparseGPT"; both after the optimal brain
// surgeon). U is that of inverse_factor. For column j: e = (w_j - q_j) / U_jj, and w_t -= e U_jt for t > j.
//
// Rows do not know of each other: a task takes 32 of them, lanes are rows, and all columns of a task stay in the L2
// cache. Within a block of 128 columns errors act at once; on later ones as one product when the block is done.
#include "../core/pool.h"
#include "quant_scale.h"

namespace ansatz {
namespace {

constexpr int64_t LANES = 32, COLUMNS = 128;
constexpr int V = LANES / W;                            // vectors of a column
constexpr int T = W == 16 ? 8 : (V < 8 ? 8 / V : 1);    // later columns at a time
constexpr int32_t KEEP = 2;                             // no rounding

struct Problem {
  int64_t n, k, groups;
  int32_t format;
  int64_t least_of, among;   // remove `least_of` of every `among` consecutive columns; among 0: a share of each row
  double sparsity;
  bool zeros;                // weights that are 0 stay so
  bool removes;              // any of these
  const float* w;
  const float* u;
  const int32_t* order;
  float* out;
  float* scales;
  ANSATZ_INLINE int64_t at(int64_t p) const { return order ? order[p] : p; }
};

// Scratch of a task: columns by place in the order.
struct Strip {
  float* w;         // [k][LANES]
  float* error;     // [COLUMNS][LANES]
  uint8_t* gone;    // [k][LANES]
  float* score;     // [COLUMNS][LANES]
};

// Marks the `count` columns of [from, to) with the least w^2 / U_jj^2, ties to the first.
void mark(const Problem& p, const Strip& s, int64_t from, int64_t to, int64_t count) {
  for (int64_t j = from; j < to; j++) {
    const float up = 1.0f / p.u[j * p.k + j];
    for (int64_t v = 0; v < LANES; v += W) {
      const vf x = load(s.w + j * LANES + v) * up;
      store(s.score + (j - from) * LANES + v, x * x);
    }
  }
  for (int64_t j = 0; j < to - from; j++)
    for (int64_t v = 0; v < LANES; v += W) {
      const vf own = load(s.score + j * LANES + v);
      vi rank = {};
      for (int64_t i = 0; i < to - from; i++) {
        const vf other = load(s.score + i * LANES + v);
        rank -= i < j ? (vi)(other <= own) : (vi)(other < own);
      }
      for (int l = 0; l < W; l++) s.gone[(from + j) * LANES + v + l] |= rank[l] < count;
    }
}

// Scales of the group of columns that begins at place `from`: those that fit the weights as they are now.
void choose_scales(const Problem& p, const Strip& s, int64_t from, int64_t to, float* scale, int64_t row, int64_t rows) {
  alignas(64) float x[GROUP * STRIP];
  GroupCodes codes;
  for (int64_t v = 0; v < LANES; v += STRIP) {
    std::memset(x, 0, sizeof x);
    for (int64_t j = from; j < to; j++) std::memcpy(x + (j - from) * STRIP, s.w + j * LANES + v, STRIP * 4);
    if (p.format == Q8) q8_group(x, nullptr, codes);
    else q4_group(x, nullptr, codes);
    std::memcpy(scale + v, codes.scale, STRIP * 4);
  }
  for (int64_t r = 0; r < rows; r++) p.scales[(row + r) * p.groups + p.at(from) / GROUP] = scale[r];
}

ANSATZ_INLINE vf rounded(int32_t format, vf w, vf scale) {
  if (format == KEEP) return w;
  const vf y = w * inverse(scale);
  if (format == Q4) return q4_level(y, nullptr) * scale;
  return __builtin_convertvector(nearest(vmax(vmin(y, splat(127.0f)), splat(-127.0f))), vf) * scale;
}

// w_t -= sum of e_j U_jt over the block, for the columns after it.
template <int N> ANSATZ_INLINE void correct(const Problem& p, const Strip& s, int64_t b0, int64_t b1, int64_t t) {
  vf sum[N][V] = {};
  for (int64_t j = b0; j < b1; j++) {
    vf e[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) e[v] = load(s.error + (j - b0) * LANES + v * W);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sum[i][v] += e[v] * p.u[(t + i) * p.k + j];
  }
  for (int i = 0; i < N; i++)
    for (int v = 0; v < V; v++) {
      float* const w = s.w + (t + i) * LANES + v * W;
      store(w, load(w) - sum[i][v]);
    }
}

void solve(const Problem& p, const Strip& s, int64_t row, int64_t rows) {
  alignas(64) float scale[LANES] = {};
  for (int64_t b0 = 0; b0 < p.k; b0 += COLUMNS) {
    const int64_t b1 = least(p.k, b0 + COLUMNS);
    if (p.sparsity > 0 && p.among == 0) {
      const auto share = [&](int64_t k) { return static_cast<int64_t>(p.sparsity * static_cast<double>(k) + 0.5); };
      mark(p, s, b0, b1, share(b1) - share(b0));
    }
    for (int64_t j = b0; j < b1; j++) {
      if (p.among > 0 && j % p.among == 0) mark(p, s, j, least(p.k, j + p.among), p.least_of - (j + p.among > p.k ? j + p.among - p.k : 0));
      if (p.format != KEEP && (j == 0 || p.at(j) / GROUP != p.at(j - 1) / GROUP)) {
        int64_t end = j + 1;
        while (end < p.k && p.at(end) / GROUP == p.at(j) / GROUP) end++;
        choose_scales(p, s, j, end, scale, row, rows);
      }
      const float* const u = p.u + j * p.k;
      const float up = 1.0f / u[j];
      vf e[V];
      for (int v = 0; v < V; v++) {
        float* const w = s.w + j * LANES + v * W;
        const vf before = load(w);
        vf q = rounded(p.format, before, load(scale + v * W));
        if (p.removes)
          for (int l = 0; l < W; l++)
            if (s.gone[j * LANES + v * W + l]) q[l] = 0;
        store(w, q);
        e[v] = (before - q) * up;
        store(s.error + (j - b0) * LANES + v * W, e[v]);
      }
      for (int64_t t = j + 1; t < b1; t++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
          float* const w = s.w + t * LANES + v * W;
          store(w, load(w) - e[v] * u[t]);
        }
    }
    int64_t t = b1;
    for (; t + T <= p.k; t += T) correct<T>(p, s, b0, b1, t);
    for (; t < p.k; t++) correct<1>(p, s, b0, b1, t);
  }
}

// P = out f32 [N, K], scales f32 [N, groups]?, w f32 [N, K], U f32 [K, K], order i32 [K]?;
// I = N, K, format, least_of, among, zeros; F = sparsity
void obs_round(const Call& c) {
  Problem p;
  p.n = c.i[0];
  p.k = c.i[1];
  p.groups = (p.k + GROUP - 1) / GROUP;
  p.format = static_cast<int32_t>(c.i[2]);
  p.least_of = c.i[3];
  p.among = c.i[4];
  p.zeros = c.i[5] != 0;
  p.sparsity = c.f[0];
  p.removes = p.zeros || p.among > 0 || p.sparsity > 0;
  p.out = c.ptr<float>(0);
  p.scales = c.ptr<float>(1);
  p.w = c.ptr<const float>(2);
  p.u = c.ptr<const float>(3);
  p.order = c.ptr<const int32_t>(4);
  if (p.order)
    for (int64_t k = 0; k < p.k; k++)
      if (p.order[k] < 0 || p.order[k] >= p.k) return raise(INDEX_OUT_OF_RANGE, p.order[k], p.k);
  parallel_range(p.n, LANES, [&](int64_t begin, int64_t end, int thread) {
    const int64_t rows = end - begin, each = p.k * LANES;
    char* const memory = static_cast<char*>(pool_scratch(thread, 0, each * 5 + 2 * COLUMNS * LANES * 4));
    Strip s;
    s.w = reinterpret_cast<float*>(memory);
    s.error = s.w + each;
    s.score = s.error + COLUMNS * LANES;
    s.gone = reinterpret_cast<uint8_t*>(s.score + COLUMNS * LANES);
    for (int64_t k = 0; k < p.k; k++)
      for (int64_t r = 0; r < LANES; r++) {
        const float x = r < rows ? p.w[(begin + r) * p.k + p.at(k)] : 0.0f;
        s.w[k * LANES + r] = x;
        s.gone[k * LANES + r] = p.zeros && x == 0;
      }
    solve(p, s, begin, rows);
    for (int64_t k = 0; k < p.k; k++)
      for (int64_t r = 0; r < rows; r++) p.out[(begin + r) * p.k + p.at(k)] = s.w[k * LANES + r];
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(obs, {"obs_round", obs_round})
