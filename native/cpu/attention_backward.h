// Backward attention. With P = 2^(x - lse log2 e) recomputed from the logits x (times log2 e), delta = sum dO * out:
//   dV = P^T dO,   dP = dO V^T,   dS = P * (dP - delta),   dQ = scale dS K,   dK = scale dS^T Q,   dbias = dS.
// (Dao et al. 2022, algorithm 4.) A task owns a chunk of keys of one key head, accumulates its dK and dV, and walks
// over the blocks of queries. A block's dQ comes from all chunks that it sees: they add to it in a fixed order, from
// the last chunk to the first, each waiting for its turn. Tasks are numbered in that order too, and start by
// number (parallel_in_order), so a task only ever waits for one that is already running.
#pragma once
#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif
#include "attention_bias.h"

namespace ansatz {
namespace {

struct Gradients {
  Rows dq, dk, dv, dout;
  float* dbias;
  int64_t chunk, chunks;   // keys of a chunk
  float* dq_sum;           // [B H][Tq][Dp], when there are several chunks
  int32_t* turn;           // [B H][blocks]: the chunk that may add next
  float* strips;           // relative dbias: see attention_bias.h
};

struct BackwardScratch {
  float *k_rows, *k_int, *v_rows, *dk, *dv;                       // the chunk
  float *q_rows, *q_t, *q_int, *do_rows, *do_t, *do_int, *dq;    // the block of queries
  float *S, *dP, *P, *dS, *dS_int, *bias_tile, *room;            // the tile
  static int64_t floats(int64_t Dp, int64_t chunk) {
    return 5 * chunk * Dp + 7 * lanes * Dp + 5 * key_tile * lanes + key_tile * bias_row + 2 * lanes * key_tile + 64;
  }
  BackwardScratch(float* at, int64_t Dp, int64_t chunk) {
    const auto take = [&at](int64_t n) {
      float* p = at;
      at += n;
      return p;
    };
    const int64_t keys = chunk * Dp, queries = lanes * Dp, tile = key_tile * lanes;
    k_rows = take(keys), k_int = take(keys), v_rows = take(keys), dk = take(keys), dv = take(keys);
    q_rows = take(queries), q_t = take(queries), q_int = take(queries), do_rows = take(queries);
    do_t = take(queries), do_int = take(queries), dq = take(queries);
    S = take(tile), dP = take(tile), P = take(tile), dS = take(tile), dS_int = take(tile);
    bias_tile = take(key_tile * bias_row), room = take(2 * tile);
  }
};

// delta[l] = rows[l] . out[l] for n <= lanes rows. The lanes of W partial sums are transposed and added, which is
// cheaper than W horizontal sums.
template <class A, class B>
void row_dots(const A* rows, int64_t Dp, const B* out, int64_t token, int64_t n, int64_t D, float* delta) {
  alignas(64) float partial[W * W], sums[W * W];
  for (int64_t l0 = 0; l0 < n; l0 += W) {
    for (int64_t l = 0; l < W; l++) {
      vf sum = {};
      if (l0 + l < n) {
        const A* a = rows + (l0 + l) * Dp;
        const B* b = out + (l0 + l) * token;
        int64_t d = 0;
        for (; d + W <= D; d += W) sum += load(a + d) * load(b + d);
        if (d < D) sum += load_n(a + d, D - d) * load_n(b + d, D - d);
      }
      store(partial + l * W, sum);
    }
    transpose_block(sums, W, partial, W, W);
    vf total = {};
    for (int k = 0; k < W; k++) total += load(sums + k * W);
    store(delta + l0, total);
  }
}

// P and dS of one tile from S and dP, in the layouts of the products that follow. c scales the logits.
template <bool Pair>
void gradient_tile(const BackwardScratch& t, int64_t keys, int64_t width, bool diagonal, float c, const float* lse,
                   const float* delta, bool keep) {
  for (int64_t l = 0; l < width; l += 2 * W) {
    const int64_t nk = diagonal ? diagonal_keys(l, keys) : keys;
    const vf lse0 = load(lse + l), lse1 = load(lse + l + W), delta0 = load(delta + l), delta1 = load(delta + l + W);
    for (int64_t j = 0; j < nk; j += 2) {
      const int64_t at = j * lanes + l, next = at + lanes;
      const vf p0 = exp2_nonpositive(load(t.S + at) * c - lse0), p1 = exp2_nonpositive(load(t.S + at + W) * c - lse1);
      const vf p2 = exp2_nonpositive(load(t.S + next) * c - lse0);
      const vf p3 = exp2_nonpositive(load(t.S + next + W) * c - lse1);
      const vf d0 = p0 * (load(t.dP + at) - delta0), d1 = p1 * (load(t.dP + at + W) - delta1);
      const vf d2 = p2 * (load(t.dP + next) - delta0), d3 = p3 * (load(t.dP + next + W) - delta1);
      if (Pair) {
        store(t.P + at / 2, adjacent_pairs(p0, p1)), store(t.P + next / 2, adjacent_pairs(p2, p3));
        store(t.dS + at / 2, adjacent_pairs(d0, d1)), store(t.dS + next / 2, adjacent_pairs(d2, d3));
        float* out = t.dS_int + j / 2 * lanes + l;
        store(out, interleave_pair(d0, d2)), store(out + W, interleave_pair(d1, d3));
      } else {
        store(t.P + at, p0), store(t.P + at + W, p1), store(t.P + next, p2), store(t.P + next + W, p3);
        store(t.dS + at, d0), store(t.dS + at + W, d1), store(t.dS + next, d2), store(t.dS + next + W, d3);
      }
      if (keep) {
        float* out = t.bias_tile + j * bias_row + margin + l;
        store(out, d0), store(out + W, d1), store(out + bias_row, d2), store(out + bias_row + W, d3);
      }
    }
  }
}

ANSATZ_INLINE void wait_turn(const int32_t* turn, int32_t chunk) {
  for (int spins = 0; __atomic_load_n(turn, __ATOMIC_ACQUIRE) != chunk; spins++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
#if defined(__unix__) || defined(__APPLE__)
    if (spins > 2000) sched_yield();
#endif
  }
}

// Adds this chunk's part of a block's dQ to the earlier ones, or writes the result when it is the last.
inline void deliver_dq(const Problem& p, const Gradients& g, const QueryBlock& s, int64_t c, bool first, bool last,
                       float* dq) {
  int32_t* turn = g.turn + (s.b * p.H + s.h) * p.blocks + s.q0 / lanes;
  float* sum = g.dq_sum + ((s.b * p.H + s.h) * p.Tq + s.q0) * p.Dp;
  const int64_t n = s.nq * p.Dp;
  if (!first) {
    wait_turn(turn, static_cast<int32_t>(c));
    float* to = last ? dq : sum;
    for (int64_t k = 0; k < n; k += W) store(to + k, load(sum + k) + load(dq + k));
  } else if (!last) {
    std::memcpy(sum, dq, static_cast<size_t>(n) * sizeof(float));
  }
  if (!last) __atomic_store_n(turn, static_cast<int32_t>(c - 1), __ATOMIC_RELEASE);
  else
    for (int64_t i = 0; i < s.nq; i++)
      store_row(const_cast<char*>(p.tokens(g.dq, s.b, p.Tq, s.q0 + i, s.h)), g.dq.dtype, dq + i * p.Dp, p.D, p.scale);
}

// All that one block of queries contributes to and receives from the chunk of keys [c0, c0 + n).
template <bool Pair>
void backward_block(const Problem& p, const Gradients& g, const BackwardScratch& t, QueryBlock& s, int64_t c0,
                    Range keys) {
  using Element = typename Mode<Pair>::Element;
  const int64_t Dp = p.Dp, Dw = Pair ? Dp / 2 : Dp;
  stage_rows<Pair>(t.q_rows, p.tokens(p.q, s.b, p.Tq, s.q0, s.h), p.q.dtype, p.q.token, s.nq, s.width, p.D, Dp);
  stage_rows<Pair>(t.do_rows, p.tokens(g.dout, s.b, p.Tq, s.q0, s.h), g.dout.dtype, g.dout.token, s.nq, s.width, p.D,
                   Dp);
  transpose_words(t.q_t, lanes, t.q_rows, Dw, s.width, Dw);
  transpose_words(t.do_t, lanes, t.do_rows, Dw, s.width, Dw);
  if (Pair) {
    interleave_rows(t.q_int, reinterpret_cast<const char*>(t.q_rows), Dp, s.width, Dp, Dp);
    interleave_rows(t.do_int, reinterpret_cast<const char*>(t.do_rows), Dp, s.width, Dp, Dp);
  }
  const float* q_int = Pair ? t.q_int : t.q_rows;
  const float* do_int = Pair ? t.do_int : t.do_rows;

  if (g.dbias && s.width < lanes) std::memset(t.bias_tile, 0, sizeof(float) * key_tile * bias_row);
  alignas(64) float lse[lanes], delta[lanes];
  for (int64_t l = 0; l < lanes; l++) {
    const float x = l < s.nq ? p.lse[(s.b * p.H + s.h) * p.Tq + s.q0 + l] : -infinity;
    lse[l] = x != -infinity ? x * log2e : infinity;   // unused lanes and blind queries: 2^(x - inf) = 0
    delta[l] = 0.0f;
  }
  // from the dO that dP uses, or dP - delta would not cancel where it should
  const Element* rows_do = reinterpret_cast<const Element*>(t.do_rows);
  const char* out = p.tokens(p.out, s.b, p.Tq, s.q0, s.h);
  if (p.out.dtype == BF16) row_dots(rows_do, Dp, reinterpret_cast<const bf16*>(out), p.out.token, s.nq, p.D, delta);
  else row_dots(rows_do, Dp, reinterpret_cast<const float*>(out), p.out.token, s.nq, p.D, delta);

  if (const int64_t next = smaller(lanes, p.Tq - s.q0 - lanes); next > 0) {
    prefetch_rows(p.q, p.tokens(p.q, s.b, p.Tq, s.q0 + lanes, s.h), next, p.D);
    prefetch_rows(p.out, p.tokens(p.out, s.b, p.Tq, s.q0 + lanes, s.h), next, p.D);
    prefetch_rows(g.dout, p.tokens(g.dout, s.b, p.Tq, s.q0 + lanes, s.h), next, p.D);
  }

  const int64_t rows = round_up(s.nq, 2), c1 = smaller(c0 + g.chunk, p.Tk), c = c0 / g.chunk;
  const int64_t word = Pair ? 2 : 1;   // elements along a reduction in one word
  bool started = false;
  for (int64_t k0 = c0; k0 < c1; k0 += key_tile) {
    const int64_t nk = smaller(smaller(key_tile, c1 - k0), keys.end - k0), even = round_up(nk, 2), r = k0 - c0;
    if (nk <= 0 || k0 + nk <= keys.begin) continue;
    const Visibility seen = tile_visibility(p, s, k0, nk);
    if (seen == Visibility::none) continue;
    const bool diagonal = seen == Visibility::diagonal && !g.dbias;   // dbias wants the tile's zeros too
    product_over_dims<Pair>(diagonal, even, s.width, Dw, t.k_rows + r * Dw, t.q_t, t.S);
    product_over_dims<Pair>(diagonal, even, s.width, Dw, t.v_rows + r * Dw, t.do_t, t.dP);
    const bool masked = p.bias_mode || seen != Visibility::all || even > nk;
    if (masked) mask_tile(p, s, k0, nk, diagonal, t.S, t.room);
    gradient_tile<Pair>(t, even, s.width, diagonal, masked ? 1.0f : p.scale * log2e, lse, delta, g.dbias != nullptr);
    product_over_lanes<Pair>(diagonal, even, s.width, Dp, t.P, do_int, t.dv + r * Dp);
    product_over_lanes<Pair>(diagonal, even, s.width, Dp, t.dS, q_int, t.dk + r * Dp);
    product_over_keys<Pair>(diagonal, rows, even, Dp, Pair ? t.dS_int : t.dS,
                            (Pair ? t.k_int : t.k_rows) + r / word * Dp, t.dq, started);
    started = true;
    if (g.dbias && p.bias_mode == bias_relative) add_relative(p, s, g.chunk, c0, k0, nk, t.bias_tile, g.strips);
    if (g.dbias && p.bias_mode == bias_full) add_full(p, s, k0, nk, t.bias_tile, t.room, g.dbias);
  }
  if (!started) std::memset(t.dq, 0, static_cast<size_t>(lanes * Dp) * sizeof(float));
  deliver_dq(p, g, s, c, c == (keys.end - 1) / g.chunk, c == keys.begin / g.chunk, t.dq);
}

template <bool Pair>
void backward_chunk(const Problem& p, const Gradients& g, int64_t b, int64_t kv_head, int64_t c, float* memory) {
  const BackwardScratch t(memory, p.Dp, g.chunk);
  const int64_t Dp = p.Dp, c0 = c * g.chunk, c1 = smaller(c0 + g.chunk, p.Tk), n = c1 - c0, even = round_up(n, 2);
  stage_rows<Pair>(t.k_rows, p.tokens(p.k, b, p.Tk, c0, kv_head), p.k.dtype, p.k.token, n, even, p.D, Dp);
  stage_rows<Pair>(t.v_rows, p.tokens(p.v, b, p.Tk, c0, kv_head), p.v.dtype, p.v.token, n, even, p.D, Dp);
  if (Pair) interleave_rows(t.k_int, reinterpret_cast<const char*>(t.k_rows), Dp, even, Dp, Dp);
  std::memset(t.dk, 0, static_cast<size_t>(even * Dp) * sizeof(float));
  std::memset(t.dv, 0, static_cast<size_t>(even * Dp) * sizeof(float));

  QueryBlock s;
  for (int64_t h = kv_head * p.group; h < (kv_head + 1) * p.group; h++)
    for (int64_t block = 0; block < p.blocks; block++) {
      const int64_t q0 = block * lanes, q1 = smaller(q0 + lanes, p.Tq);
      const Range keys = visible_keys(p, b, q0, q1);
      if (keys.empty() && c == 0) {   // nobody else will write this block's dQ
        std::memset(t.dq, 0, static_cast<size_t>(Dp) * sizeof(float));
        for (int64_t i = q0; i < q1; i++)
          store_row(const_cast<char*>(p.tokens(g.dq, b, p.Tq, i, h)), g.dq.dtype, t.dq, p.D, 0.0f);
      }
      if (keys.empty() || keys.end <= c0 || keys.begin >= c1) continue;
      set_block(p, s, b, h, block);
      backward_block<Pair>(p, g, t, s, c0, keys);
    }
  for (int64_t j = 0; j < n; j++) {
    store_row(const_cast<char*>(p.tokens(g.dk, b, p.Tk, c0 + j, kv_head)), g.dk.dtype, t.dk + j * Dp, p.D, p.scale);
    store_row(const_cast<char*>(p.tokens(g.dv, b, p.Tk, c0 + j, kv_head)), g.dv.dtype, t.dv + j * Dp, p.D, 1.0f);
  }
}

}  // namespace
}  // namespace ansatz
