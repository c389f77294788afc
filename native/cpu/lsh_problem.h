// What the kernels of attention over hashed chunks share: the arguments, and a chunk's tokens gathered for products.
//
// A round puts the T tokens of a head into chunks of C by their buckets (Kitaev et al. 2020). Queries of a chunk see
// keys of their chunk and of the `back` chunks before it (around the end), at earlier positions. Keys are queries of
// unit length, so one gathered copy serves as both: the key's 1/|q| becomes a factor on its logits. A chunk's members
// stand in order of position, so that what a tile sees is a staircase, the diagonal in a chunk's own tiles.
#pragma once
#include "attention_problem.h"

namespace ansatz {
namespace {

constexpr int64_t most_rounds = 16;
constexpr int64_t group_tokens = 512;    // chunks that a task walks along, in tokens
constexpr int64_t tasks_wanted = 32;     // heads go together until there are so many tasks
constexpr float norm_eps = 1e-12f;       // a query of zeros has a key of zeros

struct Lsh {
  int64_t B, T, H, D, Dp, R, C, Cp, back, chunks, group, groups, together;
  bool dedupe;
  float scale;
  Rows x;                      // [B,T,2H,D]: query-keys, then values
  const int32_t *order, *place, *buckets, *segments;

  const char* query(int64_t b, int64_t t, int64_t h) const { return x.at((b * T + t) * x.token + h * D); }
  const char* value(int64_t b, int64_t t, int64_t h) const { return query(b, t, h + H); }
  int64_t size(int64_t chunk) const { return smaller(C, T - chunk * C); }
  int64_t wrap(int64_t chunk) const { return chunk < 0 ? chunk + chunks : chunk; }
  int64_t row(int64_t head, int64_t r) const { return (head * R + r) * T; }   // of order, place, buckets
};

inline Lsh read_lsh(const Call& c, int x, int order) {
  Lsh p = {};
  p.B = c.i[0], p.T = c.i[1], p.H = c.i[2], p.D = c.i[3], p.R = c.i[4], p.C = c.i[5], p.dedupe = c.i[7] != 0;
  p.scale = static_cast<float>(c.f[0]);
  p.Dp = round_up(larger(p.D, 1), W);
  p.Cp = round_up(p.C, lanes);
  p.chunks = (p.T + p.C - 1) / p.C;
  p.back = smaller(c.i[6], larger(p.chunks - 1, 0));
  p.group = larger(1, group_tokens / p.C);
  p.groups = (p.chunks + p.group - 1) / p.group;
  p.together = p.groups ? smaller(p.B * p.H, (tasks_wanted + p.groups - 1) / p.groups) : 0;
  p.x = rows_of(c, x, 2 * p.H * p.D);
  p.order = c.ptr<const int32_t>(order), p.place = c.ptr<const int32_t>(order + 1);
  p.buckets = c.ptr<const int32_t>(order + 2), p.segments = c.ptr<const int32_t>(order + 3);
  return p;
}

// One gathered chunk. Arrays hold Cp entries (place and bucket: Cp a round); entries from n on are padding.
struct Slot {
  float *rows, *inter, *v, *dk, *dv;   // inter: rows interleaved (bfloat16), or rows itself
  float *inverse, *factor;             // 1/|q|, and that times scale log2 e
  int32_t *pos, *segment, *bucket, *place;
  int64_t chunk, n;
};

// Words that a slot takes from scratch memory; `gradients` adds dk and dv.
inline int64_t slot_floats(const Lsh& p, bool gradients) {
  return p.Cp * ((gradients ? 5 : 3) * p.Dp + 4 + 2 * p.R);
}
inline float* place_slot(const Lsh& p, bool gradients, float* at, Slot& s) {
  const auto take = [&at](int64_t n) {
    float* p = at;
    at += n;
    return p;
  };
  const int64_t rows = p.Cp * p.Dp;
  s.rows = take(rows), s.inter = take(rows), s.v = take(rows);
  s.dk = gradients ? take(rows) : nullptr, s.dv = gradients ? take(rows) : nullptr;
  s.inverse = take(p.Cp), s.factor = take(p.Cp);
  s.pos = reinterpret_cast<int32_t*>(take(p.Cp)), s.segment = reinterpret_cast<int32_t*>(take(p.Cp));
  s.bucket = reinterpret_cast<int32_t*>(take(p.R * p.Cp)), s.place = reinterpret_cast<int32_t*>(take(p.R * p.Cp));
  return at;
}

// Rows of the given tokens, `token` elements apart in memory, as stage_rows leaves them.
template <bool Pair>
void gather_tokens(float* words, const char* base, int32_t dtype, int64_t token, const int32_t* members, int64_t n,
                   int64_t padded, int64_t D, int64_t Dp) {
  typename Mode<Pair>::Element* out = reinterpret_cast<typename Mode<Pair>::Element*>(words);
  for (int64_t j = 0; j < padded; j++, out += Dp) {
    const int64_t have = j < n ? D : 0, at = j < n ? members[j] * token : 0;
    if (dtype == BF16) convert_row(out, reinterpret_cast<const bf16*>(base) + at, have, Dp);
    else convert_row(out, reinterpret_cast<const float*>(base) + at, have, Dp);
  }
}

// Tokens of a chunk lie anywhere, and those of one head far apart: without this every row waits for memory.
ANSATZ_INLINE void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
}
inline void prefetch_tokens(const char* base, int64_t row_bytes, int64_t token_bytes, const int32_t* members,
                            int64_t n) {
  for (int64_t j = 0; j < n; j++) prefetch_row(base + members[j] * token_bytes, row_bytes);
}
constexpr int64_t tokens_ahead = 12;   // for passes in order of position

template <class T> ANSATZ_INLINE float inverse_norm(const T* x, int64_t D) {
  vf sum = {};
  int64_t d = 0;
  for (; d + W <= D; d += W) sum += load(x + d) * load(x + d);
  if (d < D) sum += load_n(x + d, D - d) * load_n(x + d, D - d);
  return 1.0f / __builtin_sqrtf(hsum(sum) + norm_eps);
}

// Fills a slot with the chunk's queries (also its keys), values and what masks need of them.
template <bool Pair>
void load_slot(const Lsh& p, Slot& s, int64_t b, int64_t h, int64_t r, int64_t chunk) {
  using Element = typename Mode<Pair>::Element;
  const int64_t head = b * p.H + h, n = p.size(chunk), padded = round_up(n, 2 * W);
  const int32_t* members = p.order + p.row(head, r) + chunk * p.C;
  s.chunk = chunk, s.n = n;
  gather_tokens<Pair>(s.rows, p.query(b, 0, h), p.x.dtype, p.x.token, members, n, padded, p.D, p.Dp);
  gather_tokens<Pair>(s.v, p.value(b, 0, h), p.x.dtype, p.x.token, members, n, padded, p.D, p.Dp);
  if (chunk + 1 < p.chunks) {   // most likely the next to come
    const int64_t row_bytes = p.D * p.x.width(), token_bytes = p.x.token * p.x.width();
    prefetch_tokens(p.query(b, 0, h), row_bytes, token_bytes, members + n, p.size(chunk + 1));
    prefetch_tokens(p.value(b, 0, h), row_bytes, token_bytes, members + n, p.size(chunk + 1));
  }
  const Element* rows = reinterpret_cast<const Element*>(s.rows);
  for (int64_t j = 0; j < n; j++) {
    s.inverse[j] = inverse_norm(rows + j * p.Dp, p.Dp);
    s.factor[j] = s.inverse[j] * (p.scale * log2e);
    s.pos[j] = members[j];
  }
  for (int64_t j = n; j < p.Cp; j++) s.pos[j] = INT32_MAX, s.inverse[j] = s.factor[j] = 0.0f;
  if (p.segments)
    for (int64_t j = 0; j < p.Cp; j++) s.segment[j] = j < n ? p.segments[b * p.T + members[j]] : 0;
  for (int64_t other = 0; other < p.R; other++) {
    const int64_t row = p.row(head, other);
    if (p.dedupe && other != r)
      for (int64_t j = 0; j < p.Cp; j++) s.place[other * p.Cp + j] = j < n ? p.place[row + members[j]] : 0;
    if (p.buckets && (p.dedupe || other == r))
      for (int64_t j = 0; j < p.Cp; j++) s.bucket[other * p.Cp + j] = j < n ? p.buckets[row + members[j]] : 0;
  }
}

}  // namespace
}  // namespace ansatz
