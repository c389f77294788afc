// Forward attention over hashed chunks. Rounds go one after the other and share one online softmax: a token keeps its
// maximum m, sum l and output O between rounds, so that combining rounds by their log-sum-exp needs no step of its own.
#pragma once
#include "lsh_tile.h"

namespace ansatz {
namespace {

// Between rounds, for the heads that go together: [head][T] rows.
struct Running {
  float *O, *max, *sum;
  static int64_t floats(const Lsh& p) { return p.together * p.T * (p.Dp + 2); }
  Running(const Lsh& p, float* at) {
    const int64_t rows = p.together * p.T;
    O = at, max = O + rows * p.Dp, sum = max + rows;
  }
};

struct ForwardTask {
  Slot* ring;                                   // back + 1 slots; chunk c stands in slot c mod (back + 1)
  float *q_t, *O, *S, *v_rows;
  static int64_t floats(const Lsh& p) {
    return (p.back + 1) * slot_floats(p, false) + 2 * lanes * p.Dp + key_tile * lanes + p.Cp * p.Dp + 64;
  }
  ForwardTask(const Lsh& p, float* at, Slot* slots) : ring(slots) {
    for (int64_t k = 0; k <= p.back; k++) at = place_slot(p, false, at, ring[k]);
    q_t = at, O = q_t + lanes * p.Dp, S = O + lanes * p.Dp, v_rows = S + key_tile * lanes;
  }
};

struct LaneState {
  alignas(64) float max[lanes];
  alignas(64) float sum[lanes];
  alignas(64) float rescale[lanes];
};

// Logits, then probabilities in the layout that the product with values reads (see softmax_tile). Returns whether a
// lane's maximum rose.
template <bool Pair>
bool softmax_stairs(const Lsh& p, const TileAt& at, const Stairs& s, float* S, LaneState& state) {
  bool rose = false;
  for (int64_t l = 0; l < s.width; l += 2 * W) {
    const int64_t nk = s.keys32[l / 32];
    const vf old0 = load(state.max + l), old1 = load(state.max + l + W);
    vf new0 = old0, new1 = old1;
    for (int64_t j = 0; j < nk; j++) {
      float* x = S + j * lanes + l;
      const vf x0 = logit(p, at, j, l, load(x)), x1 = logit(p, at, j, l + W, load(x + W));
      store(x, x0), store(x + W, x1);
      new0 = vmax(x0, new0), new1 = vmax(x1, new1);
    }
    const vf base0 = new0 == -infinity ? splat(0.0f) : new0, base1 = new1 == -infinity ? splat(0.0f) : new1;
    const vf scale0 = new0 == old0 ? splat(1.0f) : exp2_nonpositive(old0 - base0);
    const vf scale1 = new1 == old1 ? splat(1.0f) : exp2_nonpositive(old1 - base1);
    store(state.max + l, new0), store(state.max + l + W, new1);
    store(state.rescale + l, scale0), store(state.rescale + l + W, scale1);
    for (int64_t k = l; k < l + 2 * W; k++) rose |= state.rescale[k] != 1.0f;
    vf sum0 = {}, sum1 = {};
    for (int64_t j = 0; j < nk; j += 2) {
      const float* x = S + j * lanes + l;
      const vf p0 = exp2_nonpositive(load(x) - base0), p1 = exp2_nonpositive(load(x + W) - base1);
      const vf p2 = exp2_nonpositive(load(x + lanes) - base0), p3 = exp2_nonpositive(load(x + lanes + W) - base1);
      sum0 += p0 + p2, sum1 += p1 + p3;
      if (Pair) {
        float* out = S + (j / 2) * lanes + l;
        store(out, interleave_pair(p0, p2)), store(out + W, interleave_pair(p1, p3));
      } else {
        float* out = S + j * lanes + l;
        store(out, p0), store(out + W, p1), store(out + lanes, p2), store(out + lanes + W, p3);
      }
    }
    store(state.sum + l, load(state.sum + l) * scale0 + sum0);
    store(state.sum + l + W, load(state.sum + l + W) * scale1 + sum1);
  }
  return rose;
}

inline void begin_lanes(const Lsh& p, const Running& run, int64_t slot, const int32_t* pos, int64_t nq, bool fresh,
                        float* O, LaneState& state) {
  for (int64_t l = 0; l < lanes; l++) state.max[l] = -infinity, state.sum[l] = 0.0f;
  const int64_t rows = round_up(nq, 2);
  if (fresh) std::memset(O, 0, static_cast<size_t>(rows * p.Dp) * sizeof(float));
  for (int64_t l = 0; !fresh && l < rows; l++) {
    if (l == nq) {   // the row that makes them even
      std::memset(O + l * p.Dp, 0, static_cast<size_t>(p.Dp) * sizeof(float));
      break;
    }
    const int64_t t = slot * p.T + pos[l];
    state.max[l] = run.max[t], state.sum[l] = run.sum[t];
    std::memcpy(O + l * p.Dp, run.O + t * p.Dp, static_cast<size_t>(p.Dp) * sizeof(float));
  }
}

// A query that saw nothing in any round attends to itself: out = v, and its lse is -inf.
inline void finish_lanes(const Lsh& p, const Rows& out, float* lse, int64_t b, int64_t h, const int32_t* pos,
                         int64_t nq, const float* O, const LaneState& state) {
  alignas(64) float logs[lanes];
  for (int64_t l = 0; l < lanes; l += W) store(logs + l, load(state.max + l) * ln2 + vlog(load(state.sum + l)));
  for (int64_t l = 0; l < nq; l++) {
    const int64_t t = pos[l];
    char* to = out.at((b * p.T + t) * out.token + h * p.D);
    lse[(b * p.H + h) * p.T + t] = logs[l];
    if (state.sum[l] == 0.0f) std::memcpy(to, p.value(b, t, h), static_cast<size_t>(p.D * out.width()));
    else store_row(to, out.dtype, O + l * p.Dp, p.D, 1.0f / state.sum[l]);
  }
}

template <bool Pair>
void load_forward(const Lsh& p, const ForwardTask& t, Slot& s, int64_t b, int64_t h, int64_t r, int64_t chunk) {
  load_slot<Pair>(p, s, b, h, r, chunk);
  if (!Pair) return;
  std::memcpy(t.v_rows, s.v, static_cast<size_t>(s.n * p.Dp) * sizeof(bf16));
  interleave_rows(s.v, reinterpret_cast<const char*>(t.v_rows), p.Dp, s.n, p.Dp, p.Dp);
}

// The chunks of one group of one head in one round; `slot` is the head's place among those that go together.
template <bool Pair>
void forward_group(const Lsh& p, const Running& run, const Rows& out, float* lse, int64_t head, int64_t slot,
                   int64_t r, int64_t group, float* memory, Slot* slots) {
  const ForwardTask t(p, memory, slots);
  const int64_t b = head / p.H, h = head % p.H, Dp = p.Dp, Dw = Pair ? Dp / 2 : Dp, size = p.back + 1;
  const int64_t c0 = group * p.group, c1 = smaller(c0 + p.group, p.chunks);
  const auto ring = [&](int64_t c) -> Slot& { return t.ring[(c + size) % size]; };
  for (int64_t c = c0 - p.back; c < c0; c++) load_forward<Pair>(p, t, ring(c), b, h, r, p.wrap(c));
  LaneState state;
  for (int64_t c = c0; c < c1; c++) {
    Slot& own = ring(c);
    load_forward<Pair>(p, t, own, b, h, r, c);
    for (int64_t q0 = 0; q0 < own.n; q0 += lanes) {
      const int64_t nq = smaller(lanes, own.n - q0), width = round_up(nq, 2 * W);
      transpose_words(t.q_t, lanes, own.rows + q0 * Dw, Dw, width, Dw);
      begin_lanes(p, run, slot, own.pos + q0, nq, r == 0, t.O, state);
      for (int64_t d = 0; d <= p.back; d++) {
        const Slot& k = ring(c - d);
        for (int64_t k0 = 0; k0 < k.n; k0 += key_tile) {
          const Stairs s = stairs_of(own.pos + q0, nq, k.pos + k0, smaller(key_tile, k.n - k0));
          if (s.dark) break;
          stairs_over_dims<Pair>(s, Dw, k.rows + k0 * Dw, t.q_t, t.S);
          const bool rose = softmax_stairs<Pair>(p, TileAt{&own, &k, q0, k0, r}, s, t.S, state);
          const int64_t rows = round_up(nq, 2);
          for (int64_t l = 0; rose && l < rows; l++)
            for (int64_t e = 0; e < Dp; e += W)
              store(t.O + l * Dp + e, load(t.O + l * Dp + e) * state.rescale[l]);
          stairs_over_keys<Pair>(s, Dp, t.S, k.v + (Pair ? k0 / 2 : k0) * Dp, t.O);
        }
      }
      if (r == p.R - 1) {
        finish_lanes(p, out, lse, b, h, own.pos + q0, nq, t.O, state);
        continue;
      }
      for (int64_t l = 0; l < nq; l++) {
        const int64_t to = slot * p.T + own.pos[q0 + l];
        run.max[to] = state.max[l], run.sum[to] = state.sum[l];
        std::memcpy(run.O + to * Dp, t.O + l * Dp, static_cast<size_t>(Dp) * sizeof(float));
      }
    }
  }
}

}  // namespace
}  // namespace ansatz
