// `block_attention_bwd` (docs/kernels.md). The lists are turned round: for every block, the queries that chose it. A
// task owns one block of one key head, fills tiles of 64 lanes (queries x heads that share keys) from its list, and
// does on them what the backward pass of full attention does (attention_backward.h): the five products, dK and dV
// summed in place. A query's dQ comes from all blocks on its own list: they add to it in a fixed order, from the last
// block to the first, each waiting for its turn. Tasks are numbered and start in that order too
// (parallel_in_order), so a task only waits for one that is already running.
#include "attention_backward.h"
#include "block_attention.h"

namespace ansatz {
namespace {

// A query on a block's list, and which place the block has on the query's own list.
struct Entry { int32_t query, rank; };

// Queries of a block that one task takes. The first block of a row is on every list: it is shared out.
constexpr int64_t queries_of_part = 2048;

struct Part { int32_t row, block, first, last, slot; };   // slot: where its dK and dV wait to be summed; -1 alone

struct Inverse {
  Entry* entries;     // [B Hkv][T n], those of a block together, queries ascending
  int32_t* offsets;   // [B Hkv][blocks + 1]
  int32_t* turn;      // [B Hkv][T]: the place on the query's list that may add to dQ next
  Part* parts;
  int64_t count, slots;
};

struct BlockGradients {
  Rows dq, dk, dv, dout;
  float* dq_sum;      // [B Hkv][T][group][Dp]
  float* delta;       // [B][T][H]
  float* waiting;     // [slots][2][size][Dp]
};

// Entries of one row (batch x key head): counting sort by block.
void invert(const Selected& s, const Inverse& inverse, int64_t row) {
  const int64_t T = s.p.Tq, b = row / s.p.Hkv, kv_head = row % s.p.Hkv;
  Entry* entries = inverse.entries + row * T * s.n;
  int32_t* offsets = inverse.offsets + row * (s.blocks + 1);
  std::memset(offsets, 0, static_cast<size_t>(s.blocks + 1) * sizeof(int32_t));
  for (int64_t t = 0; t < T; t++) {
    const BlockList list = s.list(b, t, kv_head);
    for (int64_t k = 0; k < list.count; k++) offsets[list.block[k] + 1]++;
    inverse.turn[row * T + t] = -1;
  }
  for (int64_t j = 0; j < s.blocks; j++) offsets[j + 1] += offsets[j];
  for (int64_t t = 0; t < T; t++) {
    const BlockList list = s.list(b, t, kv_head);
    for (int64_t k = 0; k < list.count; k++)
      entries[offsets[list.block[k]]++] = Entry{static_cast<int32_t>(t), static_cast<int32_t>(k)};
  }
  for (int64_t j = s.blocks; j > 0; j--) offsets[j] = offsets[j - 1];   // each had moved on to the next one's start
  offsets[0] = 0;
}

// The tasks, last blocks first. Every block has one at least: its dK and dV are written even when nobody chose it.
void share_out(const Selected& s, Inverse& inverse) {
  inverse.count = inverse.slots = 0;
  for (int64_t j = s.blocks - 1; j >= 0; j--)
    for (int64_t row = 0; row < s.p.B * s.p.Hkv; row++) {
      const int32_t* offsets = inverse.offsets + row * (s.blocks + 1);
      const bool alone = offsets[j + 1] - offsets[j] <= queries_of_part;
      int64_t first = offsets[j];
      do {
        const int64_t last = smaller(first + queries_of_part, offsets[j + 1]);
        inverse.parts[inverse.count++] =
            Part{static_cast<int32_t>(row), static_cast<int32_t>(j), static_cast<int32_t>(first),
                 static_cast<int32_t>(last), static_cast<int32_t>(alone ? -1 : inverse.slots++)};
        first = last;
      } while (first < offsets[j + 1]);
    }
}

// delta = sum dO * out of every head of one token, from the dO that dP uses; dQ of queries that chose nothing is 0.
template <bool Pair> void prepare_token(const Selected& s, const BlockGradients& g, int64_t token, float* room) {
  using Element = typename Mode<Pair>::Element;
  const Problem& p = s.p;
  const int64_t b = token / p.Tq, t = token % p.Tq;
  for (int64_t h = 0; h < p.H; h += lanes) {
    const int64_t n = smaller(lanes, p.H - h);
    alignas(64) float delta[lanes];
    stage_rows<Pair>(room, p.tokens(g.dout, b, p.Tq, t, h), g.dout.dtype, p.D, n, n, p.D, p.Dp);
    const Element* rows = reinterpret_cast<const Element*>(room);
    const char* out = p.tokens(p.out, b, p.Tq, t, h);
    if (p.out.dtype == BF16) row_dots(rows, p.Dp, reinterpret_cast<const bf16*>(out), p.D, n, p.D, delta);
    else row_dots(rows, p.Dp, reinterpret_cast<const float*>(out), p.D, n, p.D, delta);
    std::memcpy(g.delta + token * p.H + h, delta, static_cast<size_t>(n) * sizeof(float));
  }
  for (int64_t kv_head = 0; kv_head < p.Hkv; kv_head++) {
    if (s.list(b, t, kv_head).count) continue;
    std::memset(room, 0, static_cast<size_t>(p.Dp) * sizeof(float));
    for (int64_t h = kv_head * p.group; h < (kv_head + 1) * p.group; h++)
      store_row(const_cast<char*>(p.tokens(g.dq, b, p.Tq, t, h)), g.dq.dtype, room, p.D, 0.0f);
  }
}

// The entries of a tile as lanes (entry by entry, heads side by side) with the rows of Q and dO that they stand for.
template <bool Pair>
void gather_lanes(const Selected& s, const BlockGradients& g, const BackwardScratch& t, QueryBlock& lane,
                  const Entry* entries, int64_t n, int64_t b, int64_t h0, float* lse, float* delta) {
  const Problem& p = s.p;
  const int64_t G = p.group, Dw = Pair ? p.Dp / 2 : p.Dp;
  lane.b = b, lane.h = h0, lane.q0 = 0, lane.nq = n * G, lane.width = round_up(lane.nq, 2 * W);
  for (int64_t e = 0; e < n; e++) {
    const int64_t at = entries[e].query, l0 = e * G;
    stage_rows<Pair>(t.q_rows + l0 * Dw, p.tokens(p.q, b, p.Tq, at, h0), p.q.dtype, p.D, G, G, p.D, p.Dp);
    stage_rows<Pair>(t.do_rows + l0 * Dw, p.tokens(g.dout, b, p.Tq, at, h0), g.dout.dtype, p.D, G, G, p.D, p.Dp);
    for (int64_t k = 0; k < G; k++) {
      const float x = p.lse[(b * p.H + h0 + k) * p.Tq + at];
      lse[l0 + k] = x != -infinity ? x * log2e : infinity;   // blind queries: 2^(x - inf) = 0
      delta[l0 + k] = g.delta[(b * p.Tq + at) * p.H + h0 + k];
      lane.position[l0 + k] = lane.reach[l0 + k] = static_cast<int32_t>(at);
      lane.segment[l0 + k] = p.seg_q ? p.seg_q[b * p.Tq + at] : 0;
    }
  }
  const size_t rest = static_cast<size_t>((lane.width - lane.nq) * Dw) * sizeof(float);
  std::memset(t.q_rows + lane.nq * Dw, 0, rest);
  std::memset(t.do_rows + lane.nq * Dw, 0, rest);
  for (int64_t l = lane.nq; l < lanes; l++) {
    lse[l] = infinity, delta[l] = 0.0f;
    lane.position[l] = lane.reach[l] = -1, lane.segment[l] = 0;
  }
  lane.segments = segment_range(lane.segment, lane.nq), lane.reaches = segment_range(lane.reach, lane.nq);
  transpose_words(t.q_t, lanes, t.q_rows, Dw, lane.width, Dw);
  transpose_words(t.do_t, lanes, t.do_rows, Dw, lane.width, Dw);
  if (Pair) {
    interleave_rows(t.q_int, reinterpret_cast<const char*>(t.q_rows), p.Dp, lane.width, p.Dp, p.Dp);
    interleave_rows(t.do_int, reinterpret_cast<const char*>(t.do_rows), p.Dp, lane.width, p.Dp, p.Dp);
  }
}

// Adds a tile's dQ to that of its queries, in the order of their lists, or writes the results that are complete.
void deliver(const Selected& s, const Inverse& inverse, const BlockGradients& g, const Entry* entries, int64_t n,
             int64_t row, const float* dq) {
  const Problem& p = s.p;
  const int64_t b = row / p.Hkv, kv_head = row % p.Hkv, words = p.group * p.Dp;
  for (int64_t e = 0; e < n; e++, dq += words) {
    const int64_t t = entries[e].query, rank = entries[e].rank;
    int32_t* turn = inverse.turn + row * p.Tq + t;
    float* sum = g.dq_sum + (row * p.Tq + t) * words;
    const bool first = rank == s.list(b, t, kv_head).count - 1;
    if (!first) {
      wait_turn(turn, static_cast<int32_t>(rank));
      for (int64_t k = 0; k < words; k += W) store(sum + k, load(sum + k) + load(dq + k));
    }
    const float* whole = first ? dq : sum;
    if (rank > 0) {
      if (first) std::memcpy(sum, dq, static_cast<size_t>(words) * sizeof(float));
      __atomic_store_n(turn, static_cast<int32_t>(rank - 1), __ATOMIC_RELEASE);
    } else {
      for (int64_t k = 0; k < p.group; k++)
        store_row(const_cast<char*>(p.tokens(g.dq, b, p.Tq, t, kv_head * p.group + k)), g.dq.dtype, whole + k * p.Dp,
                  p.D, p.scale);
    }
  }
}

template <bool Pair>
void part_gradients(const Selected& s, const Inverse& inverse, const BlockGradients& g, const Part& part,
                    const BackwardScratch& t) {
  const Problem& p = s.p;
  const int64_t Dp = p.Dp, Dw = Pair ? Dp / 2 : Dp, word = Pair ? 2 : 1;
  const int64_t b = part.row / p.Hkv, kv_head = part.row % p.Hkv, h0 = kv_head * p.group;
  const int64_t j0 = part.block * s.size, keys = smaller(s.size, p.Tk - j0), padded = round_up(keys, 2);
  const int64_t together = lanes / p.group;
  stage_rows<Pair>(t.k_rows, p.tokens(p.k, b, p.Tk, j0, kv_head), p.k.dtype, p.k.token, keys, padded, p.D, Dp);
  stage_rows<Pair>(t.v_rows, p.tokens(p.v, b, p.Tk, j0, kv_head), p.v.dtype, p.v.token, keys, padded, p.D, Dp);
  if (Pair) interleave_rows(t.k_int, reinterpret_cast<const char*>(t.k_rows), Dp, padded, Dp, Dp);
  std::memset(t.dk, 0, static_cast<size_t>(padded * Dp) * sizeof(float));
  std::memset(t.dv, 0, static_cast<size_t>(padded * Dp) * sizeof(float));

  QueryBlock lane = {};
  alignas(64) float lse[lanes], delta[lanes];
  const Entry* entries = inverse.entries + part.row * p.Tq * s.n;
  for (int64_t e = part.first; e < part.last; e += together) {
    const int64_t n = smaller(together, part.last - e);
    gather_lanes<Pair>(s, g, t, lane, entries + e, n, b, h0, lse, delta);
    const int64_t rows = round_up(lane.nq, 2);
    for (int64_t r = 0; r < keys; r += key_tile) {
      const int64_t nk = smaller(key_tile, keys - r), even = round_up(nk, 2);
      product_over_dims<Pair>(false, even, lane.width, Dw, t.k_rows + r * Dw, t.q_t, t.S);
      product_over_dims<Pair>(false, even, lane.width, Dw, t.v_rows + r * Dw, t.do_t, t.dP);
      bool masked = j0 + r + nk - 1 > lane.reaches.lo || even > nk;
      if (p.seg_k && !masked) {
        const MinMax seen = segment_range(p.seg_k + b * p.Tk + j0 + r, nk);
        masked = seen.lo != seen.hi || lane.segments.lo != lane.segments.hi || seen.lo != lane.segments.lo;
      }
      if (masked) mask_tile(p, lane, j0 + r, nk, false, t.S, t.room);
      gradient_tile<Pair>(t, even, lane.width, false, masked ? 1.0f : p.scale * log2e, lse, delta, false);
      product_over_lanes<Pair>(false, even, lane.width, Dp, t.P, Pair ? t.do_int : t.do_rows, t.dv + r * Dp);
      product_over_lanes<Pair>(false, even, lane.width, Dp, t.dS, Pair ? t.q_int : t.q_rows, t.dk + r * Dp);
      product_over_keys<Pair>(false, rows, even, Dp, Pair ? t.dS_int : t.dS,
                              (Pair ? t.k_int : t.k_rows) + r / word * Dp, t.dq, r > 0);
    }
    deliver(s, inverse, g, entries + e, n, part.row, t.dq);
  }

  if (part.slot >= 0) {
    float* to = g.waiting + part.slot * 2 * s.size * Dp;
    std::memcpy(to, t.dk, static_cast<size_t>(keys * Dp) * sizeof(float));
    std::memcpy(to + s.size * Dp, t.dv, static_cast<size_t>(keys * Dp) * sizeof(float));
    return;
  }
  for (int64_t j = 0; j < keys; j++) {
    store_row(const_cast<char*>(p.tokens(g.dk, b, p.Tk, j0 + j, kv_head)), g.dk.dtype, t.dk + j * Dp, p.D, p.scale);
    store_row(const_cast<char*>(p.tokens(g.dv, b, p.Tk, j0 + j, kv_head)), g.dv.dtype, t.dv + j * Dp, p.D, 1.0f);
  }
}

// dK and dV of a block that several parts share, in the order of the parts; `first` is the first of them.
void sum_parts(const Selected& s, const Inverse& inverse, const BlockGradients& g, int64_t first) {
  const Problem& p = s.p;
  const Part& part = inverse.parts[first];
  const int64_t words = 2 * s.size * p.Dp, j0 = part.block * s.size, keys = smaller(s.size, p.Tk - j0);
  float* sum = g.waiting + part.slot * words;
  for (int64_t k = first + 1; k < inverse.count; k++) {
    if (inverse.parts[k].row != part.row || inverse.parts[k].block != part.block) break;
    const float* other = g.waiting + inverse.parts[k].slot * words;
    for (int64_t x = 0; x < words; x += W) store(sum + x, load(sum + x) + load(other + x));
  }
  const int64_t b = part.row / p.Hkv, kv_head = part.row % p.Hkv;
  const float* dv = sum + s.size * p.Dp;
  for (int64_t j = 0; j < keys; j++) {
    store_row(const_cast<char*>(p.tokens(g.dk, b, p.Tk, j0 + j, kv_head)), g.dk.dtype, sum + j * p.Dp, p.D, p.scale);
    store_row(const_cast<char*>(p.tokens(g.dv, b, p.Tk, j0 + j, kv_head)), g.dv.dtype, dv + j * p.Dp, p.D, 1.0f);
  }
}

template <bool Pair> void backward(const Selected& s, BlockGradients& g) {
  const Problem& p = s.p;
  const int64_t rows = p.B * p.Hkv, all = rows * p.Tq * s.n, T = p.Tq;
  const int64_t most = rows * s.blocks + all / queries_of_part + 1;   // parts; no more slots than that
  Inverse inverse = {};
  const int64_t part_bytes = most * static_cast<int64_t>(sizeof(Part));
  const int64_t bytes = all * 8 + rows * (s.blocks + 1 + T) * 4 + part_bytes + p.B * T * p.H * 4 + 64;
  char* at = static_cast<char*>(pool_scratch(0, 1, bytes));
  inverse.entries = reinterpret_cast<Entry*>(at), at += all * 8;
  inverse.offsets = reinterpret_cast<int32_t*>(at), at += rows * (s.blocks + 1) * 4;
  inverse.turn = reinterpret_cast<int32_t*>(at), at += rows * T * 4;
  inverse.parts = reinterpret_cast<Part*>(at), at += part_bytes;
  g.delta = reinterpret_cast<float*>(at);
  g.dq_sum = static_cast<float*>(pool_scratch(0, 2, (rows * T * p.group * p.Dp + 64) * 4));

  parallel(rows, [&](int64_t row, int) { invert(s, inverse, row); });
  share_out(s, inverse);
  g.waiting = static_cast<float*>(pool_scratch(0, 3, (inverse.slots * 2 * s.size * p.Dp + 64) * 4));
  parallel_range(p.B * T, 64, [&](int64_t begin, int64_t end, int thread) {
    float* room = static_cast<float*>(pool_scratch(thread, 0, (lanes * p.Dp + 64) * 4));
    for (int64_t token = begin; token < end; token++) prepare_token<Pair>(s, g, token, room);
  });
  const int64_t chunk = round_up(s.size, 2);
  parallel_in_order(inverse.count, [&](int64_t task, int thread) {
    float* memory = static_cast<float*>(pool_scratch(thread, 0, BackwardScratch::floats(p.Dp, chunk) * 4));
    part_gradients<Pair>(s, inverse, g, inverse.parts[task], BackwardScratch(memory, p.Dp, chunk));
  });
  if (inverse.slots)
    parallel(inverse.count, [&](int64_t k, int) {
      const Part& part = inverse.parts[k];
      const bool opens = k == 0 || inverse.parts[k - 1].row != part.row || inverse.parts[k - 1].block != part.block;
      if (part.slot >= 0 && opens) sum_parts(s, inverse, g, k);
    });
}

void block_attention_bwd(const Call& c) {
  Selected s = read_selected(c);
  Problem& p = s.p;
  BlockGradients g = {};
  const int64_t queries = p.H * p.D, keys = p.Hkv * p.D;
  g.dq = rows_of(c, 0, queries), g.dk = rows_of(c, 1, keys), g.dv = rows_of(c, 2, keys);
  g.dout = rows_of(c, 3, queries);
  p.q = rows_of(c, 4, queries), p.k = rows_of(c, 5, keys), p.v = rows_of(c, 6, keys), p.out = rows_of(c, 7, queries);
  p.lse = c.ptr<float>(8);
  s.index = c.ptr<const int32_t>(9);
  p.seg_q = p.seg_k = c.ptr<const int32_t>(10);
  if (has_bf16_dot && p.q.dtype == BF16) backward<has_bf16_dot>(s, g);
  else backward<false>(s, g);
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(block_attention_bwd, {"block_attention_bwd", block_attention_bwd})
