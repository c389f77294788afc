// Backward attention over hashed chunks. All rounds share one softmax, so that with x the logits, lse over all rounds
// and delta = dO . out, every pair of every round gives (Dao et al. 2022, algorithm 4)
//   P = exp(x - lse),   dV = P^T dO,   dS = P (dO V^T - delta),   and with E = dS / |k|:   A = E K,   G = E^T Q.
// A token's query-key vector q gets scale (A + G - u (u . G)), u = q / |q|: as a query, and as a key through its norm.
//
// A task owns a group of chunks. It writes A, G and dV of their tokens; what it gives to keys of the chunks before the
// group goes to a spill of its own, which is added afterwards. So the order of every sum is fixed.
#pragma once
#include "lsh_tile.h"

namespace ansatz {
namespace {

struct LshGradients {
  Rows dx, dout;
  const float* lse;
  float *sums, *spill, *delta;   // [head][T][A, G, dV], [head][group][back][C][G, dV], [head][T]: heads that go together
  int64_t spill_at(const Lsh& p, int64_t slot, int64_t group, int64_t distance) const {
    return (((slot * p.groups + group) * p.back + distance - 1) * p.C) * 2 * p.Dp;
  }
};

struct BackwardTask {
  Slot* ring;
  float *q_t, *do_rows, *do_t, *do_int, *dq, *S, *dP, *P, *E, *E_int;
  static int64_t floats(const Lsh& p) {
    return (p.back + 1) * slot_floats(p, true) + 5 * lanes * p.Dp + 5 * key_tile * lanes + 64;
  }
  BackwardTask(const Lsh& p, float* at, Slot* slots) : ring(slots) {
    const auto take = [&at](int64_t n) {
      float* p = at;
      at += n;
      return p;
    };
    for (int64_t k = 0; k <= p.back; k++) at = place_slot(p, true, at, ring[k]);
    const int64_t rows = lanes * p.Dp, tile = key_tile * lanes;
    q_t = take(rows), do_rows = take(rows), do_t = take(rows), do_int = take(rows), dq = take(rows);
    S = take(tile), dP = take(tile), P = take(tile), E = take(tile), E_int = take(tile);
  }
};

// P and E of one tile in the layouts of the products that follow (see gradient_tile). What was left out of S and dP is
// masked here, whatever it holds.
template <bool Pair>
void gradient_stairs(const Lsh& p, const TileAt& at, const Stairs& s, const BackwardTask& t, const float* lse,
                     const float* delta) {
  const float* inverse = at.k->inverse + at.k0;
  for (int64_t l = 0; l < s.width; l += 2 * W) {
    const int64_t nk = s.keys32[l / 32];
    const vf lse0 = load(lse + l), lse1 = load(lse + l + W), delta0 = load(delta + l), delta1 = load(delta + l + W);
    for (int64_t j = 0; j < nk; j += 2) {
      const int64_t here = j * lanes + l, next = here + lanes;
      const vf p0 = exp2_nonpositive(logit(p, at, j, l, load(t.S + here)) - lse0);
      const vf p1 = exp2_nonpositive(logit(p, at, j, l + W, load(t.S + here + W)) - lse1);
      const vf p2 = exp2_nonpositive(logit(p, at, j + 1, l, load(t.S + next)) - lse0);
      const vf p3 = exp2_nonpositive(logit(p, at, j + 1, l + W, load(t.S + next + W)) - lse1);
      const vf zero = {};
      const vf e0 = p0 > 0.0f ? p0 * (load(t.dP + here) - delta0) * inverse[j] : zero;
      const vf e1 = p1 > 0.0f ? p1 * (load(t.dP + here + W) - delta1) * inverse[j] : zero;
      const vf e2 = p2 > 0.0f ? p2 * (load(t.dP + next) - delta0) * inverse[j + 1] : zero;
      const vf e3 = p3 > 0.0f ? p3 * (load(t.dP + next + W) - delta1) * inverse[j + 1] : zero;
      if (Pair) {
        store(t.P + here / 2, adjacent_pairs(p0, p1)), store(t.P + next / 2, adjacent_pairs(p2, p3));
        store(t.E + here / 2, adjacent_pairs(e0, e1)), store(t.E + next / 2, adjacent_pairs(e2, e3));
        float* out = t.E_int + j / 2 * lanes + l;
        store(out, interleave_pair(e0, e2)), store(out + W, interleave_pair(e1, e3));
      } else {
        store(t.P + here, p0), store(t.P + here + W, p1), store(t.P + next, p2), store(t.P + next + W, p3);
        store(t.E + here, e0), store(t.E + here + W, e1), store(t.E + next, e2), store(t.E + next + W, e3);
      }
    }
  }
}

ANSATZ_INLINE void add_or_set(float* to, const float* x, int64_t n, bool set) {
  for (int64_t k = 0; k < n; k += W) store(to + k, set ? load(x + k) : load(to + k) + load(x + k));
}

template <bool Pair>
void load_backward(const Lsh& p, const LshGradients& g, Slot& s, int64_t b, int64_t h, int64_t r, int64_t chunk) {
  load_slot<Pair>(p, s, b, h, r, chunk);
  if (chunk + 1 < p.chunks)
    prefetch_tokens(g.dout.at(b * p.T * g.dout.token + h * p.D), p.D * g.dout.width(), g.dout.token * g.dout.width(),
                    p.order + p.row(b * p.H + h, r) + (chunk + 1) * p.C, p.size(chunk + 1));
  if (Pair) interleave_rows(s.inter, reinterpret_cast<const char*>(s.rows), p.Dp, round_up(s.n, 2 * W), p.Dp, p.Dp);
  std::memset(s.dk, 0, static_cast<size_t>(round_up(s.n, 2) * p.Dp) * sizeof(float));
  std::memset(s.dv, 0, static_cast<size_t>(round_up(s.n, 2) * p.Dp) * sizeof(float));
}

// What the queries of one block get from and give to the keys that they see.
template <bool Pair>
void backward_lanes(const Lsh& p, const LshGradients& g, const BackwardTask& t, int64_t head, int64_t slot, int64_t r,
                    int64_t c, int64_t q0) {
  const int64_t b = head / p.H, h = head % p.H, Dp = p.Dp, Dw = Pair ? Dp / 2 : Dp, size = p.back + 1;
  const int64_t word = Pair ? 2 : 1;
  const Slot& own = t.ring[(c + size) % size];
  const int64_t nq = smaller(lanes, own.n - q0), width = round_up(nq, 2 * W);
  const int32_t* pos = own.pos + q0;
  transpose_words(t.q_t, lanes, own.rows + q0 * Dw, Dw, width, Dw);
  const char* dout = g.dout.at(b * p.T * g.dout.token + h * p.D);
  gather_tokens<Pair>(t.do_rows, dout, g.dout.dtype, g.dout.token, pos, nq, width, p.D, Dp);
  transpose_words(t.do_t, lanes, t.do_rows, Dw, width, Dw);
  if (Pair) interleave_rows(t.do_int, reinterpret_cast<const char*>(t.do_rows), Dp, width, Dp, Dp);
  std::memset(t.dq, 0, static_cast<size_t>(round_up(nq, 2) * Dp) * sizeof(float));
  alignas(64) float lse[lanes], delta[lanes];
  for (int64_t l = 0; l < lanes; l++) {
    const float x = l < nq ? g.lse[head * p.T + pos[l]] : -infinity;
    lse[l] = x != -infinity ? x * log2e : infinity;   // 2^(x - inf) = 0: unused lanes, and queries that see nothing
    delta[l] = l < nq ? g.delta[slot * p.T + pos[l]] : 0.0f;
  }
  for (int64_t d = 0; d <= p.back; d++) {
    const Slot& k = t.ring[(c - d + size) % size];
    for (int64_t k0 = 0; k0 < k.n; k0 += key_tile) {
      const Stairs s = stairs_of(pos, nq, k.pos + k0, smaller(key_tile, k.n - k0));
      if (s.dark) break;
      stairs_over_dims<Pair>(s, Dw, k.rows + k0 * Dw, t.q_t, t.S);
      stairs_over_dims<Pair>(s, Dw, k.v + k0 * Dw, t.do_t, t.dP);
      gradient_stairs<Pair>(p, TileAt{&own, &k, q0, k0, r}, s, t, lse, delta);
      stairs_over_lanes<Pair>(s, Dp, t.P, Pair ? t.do_int : t.do_rows, k.dv + k0 * Dp);
      stairs_over_lanes<Pair>(s, Dp, t.E, Pair ? own.inter + q0 / 2 * Dp : own.rows + q0 * Dp, k.dk + k0 * Dp);
      stairs_over_keys<Pair>(s, Dp, Pair ? t.E_int : t.E, (Pair ? k.inter : k.rows) + k0 / word * Dp, t.dq);
    }
  }
  for (int64_t l = 0; l < nq; l++)
    add_or_set(g.sums + (slot * p.T + pos[l]) * 3 * Dp, t.dq + l * Dp, Dp, r == 0);
}

inline void deliver_keys(const Lsh& p, const LshGradients& g, const Slot& s, int64_t slot, bool set) {
  for (int64_t j = 0; j < s.n; j++) {
    float* to = g.sums + ((slot * p.T + s.pos[j]) * 3 + 1) * p.Dp;
    add_or_set(to, s.dk + j * p.Dp, p.Dp, set), add_or_set(to + p.Dp, s.dv + j * p.Dp, p.Dp, set);
  }
}

template <bool Pair>
void backward_group(const Lsh& p, const LshGradients& g, int64_t head, int64_t slot, int64_t r, int64_t group,
                    float* memory, Slot* slots) {
  const BackwardTask t(p, memory, slots);
  const int64_t b = head / p.H, h = head % p.H, Dp = p.Dp, size = p.back + 1;
  const int64_t c0 = group * p.group, c1 = smaller(c0 + p.group, p.chunks);
  const auto ring = [&](int64_t c) -> Slot& { return t.ring[(c + size) % size]; };
  const auto leave = [&](int64_t c) {   // no later chunk of the group sees chunk c
    const Slot& s = ring(c);
    if (c >= c0) return deliver_keys(p, g, s, slot, r == 0);
    float* to = g.spill + g.spill_at(p, slot, group, c0 - c);
    for (int64_t j = 0; j < s.n; j++, to += 2 * Dp) {
      std::memcpy(to, s.dk + j * Dp, static_cast<size_t>(Dp) * sizeof(float));
      std::memcpy(to + Dp, s.dv + j * Dp, static_cast<size_t>(Dp) * sizeof(float));
    }
  };
  for (int64_t c = c0 - p.back; c < c0; c++) load_backward<Pair>(p, g, ring(c), b, h, r, p.wrap(c));
  for (int64_t c = c0; c < c1; c++) {
    if (c > c0) leave(c - size);
    load_backward<Pair>(p, g, ring(c), b, h, r, c);
    for (int64_t q0 = 0; q0 < ring(c).n; q0 += lanes) backward_lanes<Pair>(p, g, t, head, slot, r, c, q0);
  }
  for (int64_t c = c1 - size; c < c1; c++) leave(c);
}

// The spills of one round that belong to tokens of one group, by ascending group that they come from.
inline void add_spills(const Lsh& p, const LshGradients& g, int64_t head, int64_t slot, int64_t r, int64_t group) {
  const int64_t last = smaller((group + 1) * p.group, p.chunks);
  for (int64_t c = group * p.group; c < last; c++)
    for (int64_t from = 0; from < p.groups; from++) {
      const int64_t distance = (from * p.group - c + p.chunks) % p.chunks;
      if (distance == 0 || distance > p.back) continue;
      const float* x = g.spill + g.spill_at(p, slot, from, distance);
      const int32_t* members = p.order + p.row(head, r) + c * p.C;
      for (int64_t j = 0; j < p.size(c); j++, x += 2 * p.Dp)
        add_or_set(g.sums + ((slot * p.T + members[j]) * 3 + 1) * p.Dp, x, 2 * p.Dp, false);
    }
}

template <class T> float dot_rows(const T* a, const T* b, int64_t D) {
  vf sum = {};
  int64_t d = 0;
  for (; d + W <= D; d += W) sum += load(a + d) * load(b + d);
  if (d < D) sum += load_n(a + d, D - d) * load_n(b + d, D - d);
  return hsum(sum);
}

// dx of tokens [t0, t1) of one head from the sums over rounds.
template <class T>
void finish_tokens(const Lsh& p, const LshGradients& g, int64_t head, int64_t slot, int64_t t0, int64_t t1) {
  const int64_t b = head / p.H, h = head % p.H, D = p.D, Dp = p.Dp;
  for (int64_t t = t0; t < t1; t++) {
    if (const int64_t next = t + tokens_ahead; next < p.T) {
      prefetch_row(p.query(b, next, h), D * p.x.width());
      prefetch_row(g.dx.at((b * p.T + next) * g.dx.token + h * D), D * p.x.width());
      prefetch_row(g.dx.at((b * p.T + next) * g.dx.token + (h + p.H) * D), D * p.x.width());
    }
    float *A = g.sums + (slot * p.T + t) * 3 * Dp, *G = A + Dp, *dv = G + Dp;
    const T* q = reinterpret_cast<const T*>(p.query(b, t, h));
    const float inverse = inverse_norm(q, D);
    vf along = {};
    for (int64_t d = 0; d < D; d += W) along += load_n(q + d, smaller(W, D - d)) * load(G + d);
    const float share = hsum(along) * inverse * inverse;
    const bool alone = g.lse[head * p.T + t] == -infinity;
    const T* dout = reinterpret_cast<const T*>(g.dout.at((b * p.T + t) * g.dout.token + h * D));
    for (int64_t d = 0; d < D; d += W) {
      const int64_t n = smaller(W, D - d);
      store(A + d, load(A + d) + load(G + d) - load_n(q + d, n) * share);
      if (alone) store(dv + d, load(dv + d) + load_n(dout + d, n));
    }
    T* dx = reinterpret_cast<T*>(g.dx.at((b * p.T + t) * g.dx.token + h * D));
    store_scaled(dx, A, D, p.scale), store_scaled(dx + p.H * D, dv, D, 1.0f);
  }
}

}  // namespace
}  // namespace ansatz
