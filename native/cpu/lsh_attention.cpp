// Attention over chunks of tokens that were hashed together, `lsh_attention` and `lsh_attention_bwd` (docs/kernels.md;
// Kitaev et al. 2020). Products as in attention.cpp: on bfloat16 inputs with AVX-512 BF16 by vdpbf16ps.
#include "lsh_backward.h"
#include "lsh_forward.h"

namespace ansatz {
namespace {

// fn(slot, group, scratch memory, slots in it) for every group of the heads that go together.
template <class F> void each_group(const Lsh& p, int64_t heads, int64_t floats, const F& fn) {
  const int64_t slot_bytes = round_up((p.back + 1) * static_cast<int64_t>(sizeof(Slot)), 64);
  parallel(heads * p.groups, [&](int64_t task, int thread) {
    char* memory = static_cast<char*>(pool_scratch(thread, 0, slot_bytes + floats * 4));
    fn(task / p.groups, task % p.groups, reinterpret_cast<float*>(memory + slot_bytes),
       reinterpret_cast<Slot*>(memory));
  });
}

void lsh_attention(const Call& c) {
  const Lsh p = read_lsh(c, 2, 3);
  const Rows out = rows_of(c, 0, p.H * p.D);
  float* lse = c.ptr<float>(1);
  if (p.B * p.H * p.T == 0) return;
  const bool pair = has_bf16_dot && p.x.dtype == BF16;
  float* shared = p.R > 1 ? static_cast<float*>(pool_scratch(0, 1, Running::floats(p) * 4)) : nullptr;
  const Running run(p, shared);
  for (int64_t head0 = 0; head0 < p.B * p.H; head0 += p.together)
    for (int64_t r = 0; r < p.R; r++)
      each_group(p, smaller(p.together, p.B * p.H - head0), ForwardTask::floats(p),
                 [&](int64_t slot, int64_t group, float* memory, Slot* slots) {
                   if (pair)
                     forward_group<has_bf16_dot>(p, run, out, lse, head0 + slot, slot, r, group, memory, slots);
                   else forward_group<false>(p, run, out, lse, head0 + slot, slot, r, group, memory, slots);
                 });
}

constexpr int64_t token_grain = 256;

// fn(head, slot, first token, end) over the tokens of the heads that go together.
template <class F> void each_tokens(const Lsh& p, int64_t head0, int64_t heads, const F& fn) {
  const int64_t pieces = (p.T + token_grain - 1) / token_grain;
  parallel(heads * pieces, [&](int64_t task, int) {
    const int64_t slot = task / pieces, t0 = task % pieces * token_grain;
    fn(head0 + slot, slot, t0, smaller(t0 + token_grain, p.T));
  });
}

template <class T>
void delta_tokens(const Lsh& p, const LshGradients& g, const Rows& out, int64_t head, int64_t slot, int64_t t0,
                  int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    const int64_t token = p.H * p.D, at = ((head / p.H) * p.T + t) * token + head % p.H * p.D;
    if (t + tokens_ahead < p.T) {
      prefetch_row(g.dout.at(at + tokens_ahead * token), p.D * g.dout.width());
      prefetch_row(out.at(at + tokens_ahead * token), p.D * out.width());
    }
    g.delta[slot * p.T + t] =
        dot_rows(reinterpret_cast<const T*>(g.dout.at(at)), reinterpret_cast<const T*>(out.at(at)), p.D);
  }
}

void lsh_attention_bwd(const Call& c) {
  const Lsh p = read_lsh(c, 2, 5);
  if (p.B * p.H * p.T == 0) return;
  LshGradients g = {};
  g.dx = rows_of(c, 0, 2 * p.H * p.D), g.dout = rows_of(c, 1, p.H * p.D);
  const Rows out = rows_of(c, 3, p.H * p.D);
  g.lse = c.ptr<const float>(4);
  g.sums = static_cast<float*>(pool_scratch(0, 1, p.together * p.T * 3 * p.Dp * 4));
  g.spill = static_cast<float*>(pool_scratch(0, 2, p.together * p.groups * p.back * p.C * 2 * p.Dp * 4));
  g.delta = static_cast<float*>(pool_scratch(0, 3, p.together * p.T * 4));
  const bool half = p.x.dtype == BF16, pair = has_bf16_dot && half;
  for (int64_t head0 = 0; head0 < p.B * p.H; head0 += p.together) {
    const int64_t heads = smaller(p.together, p.B * p.H - head0);
    each_tokens(p, head0, heads, [&](int64_t head, int64_t slot, int64_t t0, int64_t t1) {
      if (half) delta_tokens<bf16>(p, g, out, head, slot, t0, t1);
      else delta_tokens<float>(p, g, out, head, slot, t0, t1);
    });
    for (int64_t r = 0; r < p.R; r++) {
      each_group(p, heads, BackwardTask::floats(p), [&](int64_t slot, int64_t group, float* memory, Slot* slots) {
        if (pair) backward_group<has_bf16_dot>(p, g, head0 + slot, slot, r, group, memory, slots);
        else backward_group<false>(p, g, head0 + slot, slot, r, group, memory, slots);
      });
      if (p.back > 0)
        parallel(heads * p.groups, [&](int64_t task, int) {
          add_spills(p, g, head0 + task / p.groups, task / p.groups, r, task % p.groups);
        });
    }
    each_tokens(p, head0, heads, [&](int64_t head, int64_t slot, int64_t t0, int64_t t1) {
      if (half) finish_tokens<bf16>(p, g, head, slot, t0, t1);
      else finish_tokens<float>(p, g, head, slot, t0, t1);
    });
  }
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(lsh_attention, {"lsh_attention", lsh_attention}, {"lsh_attention_bwd", lsh_attention_bwd})
