// block_gate: units in blocks of N, of which a low-rank controller picks one (Jaszczur et al., "Sparse is enough in
// scaling transformers", NeurIPS 2021, section 3.1). With logits z = t c2^T + cb, p = softmax of z within each block,
// i = argmax(z + tau Gumbel), one call computes
//   a = relu(h) m,   m = onehot(i) where hard, else p
// and the backward call, with straight-through gradients (dm/dz = dp/dz for either mask),
//   dz = p (dm - sum p dm),   dt = dz c2,   dc2 = dz^T t.
// Logits, probabilities and noise of a chunk of rows live in scratch memory; of the size [rows, F] only h, a and their
// gradients exist, as in a dense layer. Rows may be grouped, each group with a controller of its own.
#include "block_gate_lanes.h"

#include "gemm.h"

namespace ansatz {
namespace {

constexpr int64_t CHUNK_FLOATS = 1 << 20;   // 4 MB of logits
constexpr int64_t MIN_ROWS = 64, MAX_ROWS = 512, ROWS_PER_TASK = 4;
constexpr int64_t FEW = 4;                  // rows of which a product sums in another order

int64_t chunk_rows(int64_t F) { return most(MIN_ROWS, least(MAX_ROWS, CHUNK_FLOATS / most(1, F))); }

// Rows [begin, end) of group e.
struct Rows { int64_t begin, end; };
Rows rows_of(const int32_t* offsets, int64_t e, int64_t rows) {
  return offsets ? Rows{offsets[e], offsets[e + 1]} : Rows{0, rows};
}
bool groups_valid(const int32_t* offsets, int64_t groups, int64_t rows) {
  if (!offsets) return true;
  for (int64_t e = 0; e <= groups; e++)
    if (offsets[e] < (e ? offsets[e - 1] : 0) || offsets[e] > rows) {
      raise(INDEX_OUT_OF_RANGE, offsets[e], rows + 1);
      return false;
    }
  return true;
}

struct Controller {
  int64_t F, r;
  const float *t, *c2, *cb;   // c2 and cb of one group
  const void* packed;

  // z[n][F] = t c2^T + cb of rows [r0, r0 + n)
  void logits(float* z, int64_t r0, int64_t n) const {
    Gemm g = {};
    g.m = n;
    g.n = F;
    g.k = r;
    g.alpha = 1;
    g.a = {t + r0 * r, F32, r, true};
    g.b = {c2, F32, r, true};
    g.b_packed = packed;
    g.c = z;
    g.c_dtype = F32;
    g.ldc = F;
    g.bias = cb;
    g.bias_dtype = F32;
    // A row's choice must not depend on how many rows its group has: few of them take the path of many.
    if (n <= FEW) ANSATZ_GEMM_ROWS(g, 0);
    else ANSATZ_GEMM_RUN(g);
  }
};

void pack(Controller& k, void* room) {
  Gemm g = {};
  g.n = k.F;
  g.k = k.r;
  g.b = {k.c2, F32, k.r, true};
  ANSATZ_GEMM_PACK(g, room);
  k.packed = room;
}

void forward_row(const BlockGate& o, float* z, const float* noise, const void* h, int32_t th, int64_t at, void* a,
                 int32_t ta, int32_t* index, bool recalled, float* room) {
  if (fits_lanes(o.N)) {
    float* const out = target(a, ta, at, z);
    lanes_forward(o, z, noise, fetch(h, th, at, o.F, room), out, index, recalled);
    finish(a, ta, at, o.F, out);
    return;
  }
  for (int64_t b = 0; b < o.A; b++)
    if (!recalled) index[b] = static_cast<int32_t>(choose(z + b * o.N, noise ? noise + b * o.N : nullptr, o.tau, o.N));
  if (!o.hard || o.multiply)
    for (int64_t b = 0; b < o.A; b++) softmax_block(z + b * o.N, o.N);
  if (o.hard) {
    std::memset(static_cast<char*>(a) + at * dtype_size(ta), 0, static_cast<size_t>(o.F * dtype_size(ta)));
    for (int64_t b = 0; b < o.A; b++) {
      const int64_t j = b * o.N + index[b];
      const float x = relu_one(read_one(h, th, at + j));
      write_one(a, ta, at + j, o.multiply ? x * z[j] : x);
    }
    return;
  }
  const float* hf = fetch(h, th, at, o.F, room);
  float* out = target(a, ta, at, z);
  for (int64_t k = 0; k < o.F; k += W)
    store_some(out + k, relu_of(load_some(hf + k, o.F - k)) * load_some(z + k, o.F - k), o.F - k);
  finish(a, ta, at, o.F, z);
}

void zero_rows(const Call& c, int k, int64_t begin, int64_t end, int64_t width) {
  if (begin >= end) return;
  const int64_t size = dtype_size(c.t[k]);
  std::memset(c.ptr<char>(k) + begin * width * size, 0, static_cast<size_t>((end - begin) * width * size));
}

// P = a, index, h, t, c2, cb?, offsets?, hard?, state?, recalled?; I = rows, F, N, r, groups, stream, multiply; F = tau
void block_gate(const Call& c) {
  const int64_t rows = c.i[0], groups = c.i[4];
  const int32_t* offsets = c.ptr<const int32_t>(6);
  const float* hard = c.ptr<const float>(7);
  BlockGate o = {c.i[1], c.i[2], c.i[1] / c.i[2], !hard || *hard != 0.0f, false, c.i[6] != 0, static_cast<float>(c.f[0])};
  const int32_t *state = c.ptr<const int32_t>(8), *recalled = c.ptr<const int32_t>(9);
  const bool noisy = state && o.tau > 0 && !recalled;
  const Stream s = noisy ? stream_of(state, c.i[5]) : Stream{};
  int32_t* index = c.ptr<int32_t>(1);
  const int64_t F = o.F, r = c.i[3], step = least(chunk_rows(F), most(rows, 1));
  if (!groups_valid(offsets, groups, rows)) return;
  if (recalled) std::memcpy(index, recalled, static_cast<size_t>(rows * o.A) * 4);
  const bool wants_logits = !recalled || !o.hard || o.multiply;
  const int64_t z_bytes = (step * F * 4 + 63) / 64 * 64;
  char* const memory = static_cast<char*>(pool_scratch(0, 3, z_bytes + ANSATZ_GEMM_PACKED_BYTES(F, r, false) + 64));
  float* const z = reinterpret_cast<float*>(memory);
  int64_t done = 0;
  for (int64_t e = 0; e < groups; e++) {
    const Rows span = rows_of(offsets, e, rows);
    zero_rows(c, 0, done, span.begin, F);
    zero_rows(c, 1, done, span.begin, o.A);
    done = span.end;
    if (span.begin == span.end) continue;
    Controller k = {F, r, c.ptr<const float>(3), c.ptr<const float>(4) + e * F * r, nullptr, nullptr};
    if (c.p[5]) k.cb = c.ptr<const float>(5) + e * F;
    if (wants_logits) pack(k, memory + z_bytes);
    for (int64_t r0 = span.begin; r0 < span.end; r0 += step) {
      const int64_t n = least(step, span.end - r0);
      if (wants_logits) k.logits(z, r0, n);
      parallel_range(n, ROWS_PER_TASK, [&](int64_t begin, int64_t end, int thread) {
        float* room = static_cast<float*>(pool_scratch(thread, 0, (2 * F + 4 + 8 * W) * 4));
        for (int64_t q = begin; q < end; q++) {
          const float* noise = noisy ? gumbel_row(s, (r0 + q) * F, F, room + F) : nullptr;
          forward_row(o, z + q * F, noise, c.p[2], c.t[2], (r0 + q) * F, c.p[0], c.t[0], index + (r0 + q) * o.A,
                      recalled != nullptr, room);
        }
      });
    }
  }
  zero_rows(c, 0, done, rows, F);
  zero_rows(c, 1, done, rows, o.A);
}

// out += sums of the columns of z[n][F]
void add_columns(float* out, const float* z, int64_t n, int64_t F) {
  parallel_range(F, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; k += W) {
      const int64_t left = end - k;
      vf sum = load_some(out + k, left);
      for (int64_t q = 0; q < n; q++) sum += load_some(z + q * F + k, left);
      store_some(out + k, sum, left);
    }
  });
}

// P = dh, dt, dc2, dcb?, da, h, index, t, c2, cb?, offsets?, hard?; I = rows, F, N, r, groups, before, multiply
void block_gate_bwd(const Call& c) {
  const int64_t rows = c.i[0], groups = c.i[4];
  const int32_t* offsets = c.ptr<const int32_t>(10);
  const float* hard = c.ptr<const float>(11);
  const BlockGate o = {c.i[1], c.i[2], c.i[1] / c.i[2], !hard || *hard != 0.0f, c.i[5] != 0, c.i[6] != 0, 0};
  const int32_t* index = c.ptr<const int32_t>(6);
  const int64_t F = o.F, r = c.i[3], step = least(chunk_rows(F), most(rows, 1));
  if (!groups_valid(offsets, groups, rows)) return;
  const int64_t z_bytes = (step * F * 4 + 63) / 64 * 64;
  char* const memory = static_cast<char*>(pool_scratch(0, 3, z_bytes + ANSATZ_GEMM_PACKED_BYTES(F, r, false) + 64));
  float* const z = reinterpret_cast<float*>(memory);
  int64_t done = 0;
  for (int64_t e = 0; e < groups; e++) {
    const Rows span = rows_of(offsets, e, rows);
    zero_rows(c, 0, done, span.begin, F);
    zero_rows(c, 1, done, span.begin, r);
    done = span.end;
    float* const dc2 = c.ptr<float>(2) + e * F * r;
    float* const dcb = c.p[3] ? c.ptr<float>(3) + e * F : nullptr;
    if (dcb) std::memset(dcb, 0, static_cast<size_t>(F) * 4);
    if (span.begin == span.end) {
      std::memset(dc2, 0, static_cast<size_t>(F * r) * 4);
      continue;
    }
    Controller k = {F, r, c.ptr<const float>(7), c.ptr<const float>(8) + e * F * r, nullptr, nullptr};
    if (c.p[9]) k.cb = c.ptr<const float>(9) + e * F;
    pack(k, memory + z_bytes);
    for (int64_t r0 = span.begin; r0 < span.end; r0 += step) {
      const int64_t n = least(step, span.end - r0);
      k.logits(z, r0, n);
      parallel_range(n, ROWS_PER_TASK, [&](int64_t begin, int64_t end, int thread) {
        float* room = static_cast<float*>(pool_scratch(thread, 0, 3 * F * 4));
        for (int64_t q = begin; q < end; q++) {
          const int64_t at = (r0 + q) * F;
          const float *h = fetch(c.p[5], c.t[5], at, F, room), *da = fetch(c.p[4], c.t[4], at, F, room + F);
          float *p = z + q * F, *dh = target(c.p[0], c.t[0], at, room + 2 * F);
          if (fits_lanes(o.N)) lanes_backward(o, p, h, da, dh, index + (r0 + q) * o.A);
          else for (int64_t b = 0; b < o.A; b++) {
            softmax_block(p + b * o.N, o.N);
            backward_block(o, p + b * o.N, h + b * o.N, da + b * o.N, dh + b * o.N, index[(r0 + q) * o.A + b]);
          }
          finish(c.p[0], c.t[0], at, F, room + 2 * F);
        }
      });
      if (dcb) add_columns(dcb, z, n, F);
      Gemm g = {};
      g.alpha = 1;
      g.m = n;   // dt = dz c2
      g.n = r;
      g.k = F;
      g.a = {z, F32, F, true};
      g.b = {k.c2, F32, r, false};
      g.c = c.ptr<float>(1) + r0 * r;
      g.c_dtype = F32;
      g.ldc = r;
      ANSATZ_GEMM_RUN(g);
      g.m = F;   // dc2 += dz^T t
      g.k = n;
      g.a = {z, F32, F, false};
      g.b = {k.t + r0 * r, F32, r, false};
      g.c = dc2;
      g.addend = r0 > span.begin ? dc2 : nullptr;
      g.addend_dtype = F32;
      ANSATZ_GEMM_RUN(g);
    }
  }
  zero_rows(c, 0, done, rows, F);
  zero_rows(c, 1, done, rows, r);
}

// P = share f32[groups, F], index i32[rows, A], offsets?; I = rows, A, N, groups
void choice_share(const Call& c) {
  const int64_t rows = c.i[0], A = c.i[1], N = c.i[2], groups = c.i[3], F = A * N;
  float* share = c.ptr<float>(0);
  const int32_t *index = c.ptr<const int32_t>(1), *offsets = c.ptr<const int32_t>(2);
  if (!groups_valid(offsets, groups, rows)) return;
  parallel_range(A, 16, [&](int64_t begin, int64_t end, int) {   // one cache line of indices
    for (int64_t e = 0; e < groups; e++) {
      float* const s = share + e * F;
      std::memset(s + begin * N, 0, static_cast<size_t>((end - begin) * N) * 4);
      const Rows span = rows_of(offsets, e, rows);
      for (int64_t r = span.begin; r < span.end; r++)
        for (int64_t b = begin; b < end; b++) s[b * N + index[r * A + b]] += 1.0f;
      const float scale = 1.0f / static_cast<float>(most(1, span.end - span.begin));
      for (int64_t k = begin * N; k < end * N; k++) s[k] *= scale;
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(block_gate, {"block_gate", block_gate}, {"block_gate_bwd", block_gate_bwd},
               {"choice_share", choice_share})
