// Attention that never stores Tq x Tk: `attention` and `attention_bwd` (docs/kernels.md). On bfloat16 inputs with
// AVX-512 BF16 the products run on vdpbf16ps with float32 sums (probabilities and dS are rounded to bfloat16 for them);
// everything else is float32.
#include "attention_backward.h"
#include "attention_forward.h"

namespace ansatz {
namespace {

// `visible` and `keep`, which most callers leave out altogether.
void read_masks(Problem& p, const Call& c, int first) {
  if (c.np > first) p.visible = c.ptr<const int32_t>(first);
  if (c.np > first + 1) p.keep = c.ptr<const int32_t>(first + 1);
}

void attention(const Call& c) {
  Problem p = read_problem(c);
  p.out = rows_of(c, 0, c.i[9]);
  p.lse = c.ptr<float>(1);
  p.q = rows_of(c, 2, c.i[6]), p.k = rows_of(c, 3, c.i[7]), p.v = rows_of(c, 4, c.i[8]);
  p.bias = c.ptr<const float>(5);
  p.seg_q = c.ptr<const int32_t>(6), p.seg_k = c.ptr<const int32_t>(7);
  read_masks(p, c, 8);
  const bool pair = has_bf16_dot && p.q.dtype == BF16;
  // Blocks of a head that share packed keys: as many as still leave 64 tasks. Late blocks see the most keys under a
  // causal mask: start them first, so that the last to finish are short.
  const int64_t heads = p.B * p.H;
  int64_t together = max_blocks_together;
  while (together > 1 && heads * ((p.blocks + together - 1) / together) < 64) together /= 2;
  const int64_t groups = (p.blocks + together - 1) / together;
  parallel_in_order(heads * groups, [&](int64_t task, int thread) {
    const int64_t first = (groups - 1 - task / heads) * together, last = smaller(first + together, p.blocks);
    const int64_t b = task % heads / p.H, h = task % p.H;
    float* memory = static_cast<float*>(pool_scratch(thread, 0, ForwardScratch::floats(p.Dp) * 4));
    if (pair) forward_blocks<has_bf16_dot>(p, b, h, first, last, memory);
    else forward_blocks<false>(p, b, h, first, last, memory);
  });
}

// Batches stay inside a task when they add to the same dbias.
void backward_task(const Problem& p, const Gradients& g, int64_t b0, int64_t b1, int64_t kv_head, int64_t c, bool pair,
                   float* memory) {
  const int64_t c0 = c * g.chunk, n = smaller(g.chunk, p.Tk - c0), h0 = kv_head * p.group;
  if (g.dbias && p.bias_mode == bias_relative) {
    const int64_t length = strip_length(p, g.chunk);
    for (int64_t h = h0; h < h0 + p.group; h++)
      std::memset(g.strips + (h * g.chunks + c) * length, 0, static_cast<size_t>(length) * sizeof(float));
  }
  if (g.dbias && p.bias_mode == bias_full)
    for (int64_t row = h0 * p.Tq; row < (h0 + p.group) * p.Tq; row++)
      std::memset(g.dbias + row * p.Tk + c0, 0, static_cast<size_t>(n) * sizeof(float));
  const BackwardScratch t(memory, p.Dp, g.chunk);
  std::memset(t.bias_tile, 0, static_cast<size_t>(key_tile * bias_row) * sizeof(float));
  for (int64_t b = b0; b < b1; b++) {
    if (pair) backward_chunk<has_bf16_dot>(p, g, b, kv_head, c, memory);
    else backward_chunk<false>(p, g, b, kv_head, c, memory);
  }
}

void attention_bwd(const Call& c) {
  Problem p = read_problem(c);
  Gradients g = {};
  p.q = rows_of(c, 5, c.i[6]), p.k = rows_of(c, 6, c.i[7]), p.v = rows_of(c, 7, c.i[8]);
  p.out = rows_of(c, 8, c.i[9]);
  p.lse = c.ptr<float>(9);
  p.bias = c.ptr<const float>(10);
  p.seg_q = c.ptr<const int32_t>(11), p.seg_k = c.ptr<const int32_t>(12);
  read_masks(p, c, 13);
  g.dq = rows_of(c, 0, c.i[13]), g.dk = rows_of(c, 1, c.i[14]), g.dv = rows_of(c, 2, c.i[15]);
  g.dbias = p.bias_mode ? c.ptr<float>(3) : nullptr;
  g.dout = rows_of(c, 4, c.i[16]);

  // A chunk's packed keys and values, dK and dV should stay in the second-level cache.
  g.chunk = p.Dp <= 128 ? 256 : 128;
  g.chunks = larger(1, (p.Tk + g.chunk - 1) / g.chunk);
  const int64_t blocks = p.B * p.H * p.blocks;
  if (g.chunks > 1) {
    g.dq_sum = static_cast<float*>(pool_scratch(0, 1, p.B * p.H * p.Tq * p.Dp * 4));
    g.turn = static_cast<int32_t*>(pool_scratch(0, 2, blocks * 4));
    for (int64_t k = 0; k < blocks; k++) g.turn[k] = -1;
  }
  if (g.dbias && p.bias_mode == bias_relative)
    g.strips = static_cast<float*>(pool_scratch(0, 3, p.H * g.chunks * strip_length(p, g.chunk) * 4));

  const bool pair = has_bf16_dot && p.q.dtype == BF16;
  const int64_t batches = g.dbias ? 1 : p.B, per_chunk = batches * p.Hkv;
  parallel_in_order(g.chunks * per_chunk, [&](int64_t task, int thread) {
    const int64_t chunk = g.chunks - 1 - task / per_chunk, b = task % per_chunk / p.Hkv, kv_head = task % p.Hkv;
    float* memory = static_cast<float*>(pool_scratch(thread, 0, BackwardScratch::floats(p.Dp, g.chunk) * 4));
    backward_task(p, g, b, g.dbias ? p.B : b + 1, kv_head, chunk, pair, memory);
  });
  if (g.dbias && p.bias_mode == bias_relative)
    parallel(p.H, [&](int64_t h, int) { reduce_strips(p, h, g.chunk, g.strips, g.dbias); });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(attention, {"attention", attention}, {"attention_bwd", attention_bwd})
