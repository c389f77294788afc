// Forward attention of blocks of queries: tiles of keys with an online softmax (Milakov and Gimelshein 2018; Dao et al.
// 2022). With x the logits so far times log2 e:  m = max x,  l = sum 2^(x-m),  O = sum 2^(x-m) v; a tile that raises m
// first scales l and O by 2^(m_old - m_new). At the end out = O / l and lse = ln 2 (m + log2 l).
#pragma once
#include "attention_tile.h"

namespace ansatz {
namespace {

// Blocks of queries that share packed tiles of keys and values.
constexpr int64_t max_blocks_together = 4;

struct ForwardScratch {
  float *k_rows, *v, *S, *room, *q_t, *O;   // q_t and O: one for each block
  static int64_t floats(int64_t Dp) {
    return (2 * key_tile + 2 * max_blocks_together * lanes) * Dp + key_tile * lanes + 2 * lanes * key_tile + 64;
  }
  ForwardScratch(float* at, int64_t Dp) {
    k_rows = at, v = k_rows + key_tile * Dp, S = v + key_tile * Dp, room = S + key_tile * lanes;
    q_t = room + 2 * key_tile * lanes, O = q_t + max_blocks_together * lanes * Dp;
  }
};

struct SoftmaxState {
  bool started;
  alignas(64) float max[lanes];
  alignas(64) float sum[lanes];
  alignas(64) float rescale[lanes];
};

// One pass of the online softmax over S[nk][lanes] for the lanes in use. c scales the logits (1 when mask_tile did).
// Probabilities replace S as the A operand of P V: words [key pair][lane] (row j/2 of a strip of lanes is written after
// row j was read) or elements [key][lane]. keys is even (a padding row of S holds -inf). Returns whether some lane's
// maximum rose, so that O must be rescaled.
template <bool Pair>
bool softmax_tile(float* S, int64_t keys, int64_t width, bool diagonal, float c, SoftmaxState& state) {
  bool rose = false;
  for (int64_t l = 0; l < width; l += 2 * W) {
    const int64_t nk = diagonal ? diagonal_keys(l, keys) : keys;
    vf m0 = splat(-infinity), m1 = m0, m2 = m0, m3 = m0;
    for (int64_t j = 0; j < nk; j += 2) {
      const float* s = S + j * lanes + l;
      m0 = vmax(load(s) * c, m0), m1 = vmax(load(s + W) * c, m1);
      m2 = vmax(load(s + lanes) * c, m2), m3 = vmax(load(s + lanes + W) * c, m3);
    }
    const vf old0 = load(state.max + l), old1 = load(state.max + l + W);
    const vf new0 = vmax(vmax(m0, m2), old0), new1 = vmax(vmax(m1, m3), old1);
    // A lane that has seen nothing yet subtracts 0, so that 2^(-inf - 0) = 0 and not NaN.
    const vf base0 = new0 == -infinity ? splat(0.0f) : new0, base1 = new1 == -infinity ? splat(0.0f) : new1;
    const vf scale0 = exp2_nonpositive(old0 - base0), scale1 = exp2_nonpositive(old1 - base1);
    store(state.max + l, new0), store(state.max + l + W, new1);
    store(state.rescale + l, scale0), store(state.rescale + l + W, scale1);
    for (int64_t k = l; k < l + 2 * W; k++) rose |= state.rescale[k] != 1.0f;

    vf sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
    for (int64_t j = 0; j < nk; j += 2) {
      const float* s = S + j * lanes + l;
      const vf p0 = exp2_nonpositive(load(s) * c - base0), p1 = exp2_nonpositive(load(s + W) * c - base1);
      const vf p2 = exp2_nonpositive(load(s + lanes) * c - base0);
      const vf p3 = exp2_nonpositive(load(s + lanes + W) * c - base1);
      sum0 += p0, sum1 += p1, sum2 += p2, sum3 += p3;
      if (Pair) {
        float* out = S + (j / 2) * lanes + l;
        store(out, interleave_pair(p0, p2)), store(out + W, interleave_pair(p1, p3));
      } else {
        float* out = S + j * lanes + l;
        store(out, p0), store(out + W, p1), store(out + lanes, p2), store(out + lanes + W, p3);
      }
    }
    store(state.sum + l, load(state.sum + l) * scale0 + (sum0 + sum2));
    store(state.sum + l + W, load(state.sum + l + W) * scale1 + (sum1 + sum3));
  }
  return rose;
}

inline void scale_rows(float* O, const float* factor, int64_t n, int64_t Dp) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < Dp; d += W) store(O + i * Dp + d, load(O + i * Dp + d) * factor[i]);
}

// One packed tile of keys and values for one block of queries.
template <bool Pair>
void forward_tile(const Problem& p, const ForwardScratch& t, const QueryBlock& s, SoftmaxState& state, Visibility seen,
                  int64_t k0, int64_t nk, const float* q_t, float* O) {
  const int64_t Dp = p.Dp, Dw = Pair ? Dp / 2 : Dp, even = round_up(nk, 2), rows = round_up(s.nq, 2);
  const bool diagonal = seen == Visibility::diagonal;
  product_over_dims<Pair>(diagonal, even, s.width, Dw, t.k_rows, q_t, t.S);
  const bool masked = p.bias_mode || seen != Visibility::all || even > nk;
  if (masked) mask_tile(p, s, k0, nk, diagonal, t.S, t.room);
  const bool rose = softmax_tile<Pair>(t.S, even, s.width, diagonal, masked ? 1.0f : p.scale * log2e, state);
  if (state.started && rose) scale_rows(O, state.rescale, rows, Dp);
  product_over_keys<Pair>(diagonal, rows, even, Dp, t.S, t.v, O, state.started);
  state.started = true;
}

inline void finish_block(const Problem& p, const QueryBlock& s, const SoftmaxState& state, float* O) {
  if (!state.started) std::memset(O, 0, sizeof(float) * static_cast<size_t>(lanes * p.Dp));
  for (int64_t i = 0; i < s.nq; i++) {
    const float sum = state.sum[i];
    char* out = const_cast<char*>(p.tokens(p.out, s.b, p.Tq, s.q0 + i, s.h));
    store_row(out, p.out.dtype, O + i * p.Dp, p.D, sum == 0.0f ? 0.0f : 1.0f / sum);
  }
  alignas(64) float lse[lanes];
  for (int64_t l = 0; l < lanes; l += W)
    store(lse + l, load(state.max + l) * ln2 + vlog(load(state.sum + l)));   // -inf + log 0 = -inf: nothing seen
  std::memcpy(p.lse + (s.b * p.H + s.h) * p.Tq + s.q0, lse, sizeof(float) * static_cast<size_t>(s.nq));
}

// Blocks [first, last) of one head.
template <bool Pair>
void forward_blocks(const Problem& p, int64_t b, int64_t h, int64_t first, int64_t last, float* memory) {
  const ForwardScratch t(memory, p.Dp);
  const int64_t Dp = p.Dp, Dw = Pair ? Dp / 2 : Dp, kv_head = h / p.group, n = last - first;
  QueryBlock blocks[max_blocks_together];
  SoftmaxState states[max_blocks_together];
  Range keys[max_blocks_together], all = {p.Tk, 0};
  for (int64_t k = 0; k < n; k++) {
    QueryBlock& s = blocks[k];
    set_block(p, s, b, h, first + k);
    stage_rows<Pair>(t.O, p.tokens(p.q, b, p.Tq, s.q0, h), p.q.dtype, p.q.token, s.nq, s.width, p.D, Dp);
    transpose_words(t.q_t + k * lanes * Dp, lanes, t.O, Dw, s.width, Dw);
    states[k].started = false;
    for (int64_t l = 0; l < lanes; l++) states[k].max[l] = -infinity, states[k].sum[l] = 0.0f;
    keys[k] = visible_keys(p, b, s.q0, s.q0 + s.nq);
    if (!keys[k].empty()) all = Range{smaller(all.begin, keys[k].begin), larger(all.end, keys[k].end)};
  }
  for (int64_t k0 = all.begin; k0 < all.end; k0 += key_tile) {
    const int64_t nk = smaller(key_tile, all.end - k0), even = round_up(nk, 2);
    bool packed = false;
    for (int64_t k = 0; k < n; k++) {
      const int64_t mine = smaller(nk, keys[k].end - k0);
      const Visibility seen = mine > 0 ? tile_visibility(p, blocks[k], k0, mine) : Visibility::none;
      if (seen == Visibility::none) continue;
      if (!packed) {
        const char *key = p.tokens(p.k, b, p.Tk, k0, kv_head), *value = p.tokens(p.v, b, p.Tk, k0, kv_head);
        stage_rows<Pair>(t.k_rows, key, p.k.dtype, p.k.token, nk, even, p.D, Dp);
        if (Pair) interleave_rows(t.v, value, p.v.token, nk, p.D, Dp);
        else stage_rows<Pair>(t.v, value, p.v.dtype, p.v.token, nk, even, p.D, Dp);
        packed = true;
        if (const int64_t next = smaller(key_tile, all.end - k0 - key_tile); next > 0) {
          prefetch_rows(p.k, p.tokens(p.k, b, p.Tk, k0 + key_tile, kv_head), next, p.D);
          prefetch_rows(p.v, p.tokens(p.v, b, p.Tk, k0 + key_tile, kv_head), next, p.D);
        }
      }
      forward_tile<Pair>(p, t, blocks[k], states[k], seen, k0, mine, t.q_t + k * lanes * Dp, t.O + k * lanes * Dp);
    }
  }
  for (int64_t k = 0; k < n; k++) finish_block(p, blocks[k], states[k], t.O + k * lanes * Dp);
}

}  // namespace
}  // namespace ansatz
