// Drivers for contiguous elementwise kernels. An operation is a functor on vectors; its loop is instantiated for f32
// (any other dtype goes through blocks, see block.h) and, where the kernel is hot, for bf16 directly.
#pragma once
#include "block.h"

namespace ansatz {
namespace {

// Kernels whose arithmetic outweighs their memory traffic use smaller tasks.
constexpr int64_t kHeavyGrain = 16384;

template <class T, class Op> void loop1(void* out_, const void* x_, int64_t n, const void* op_) {
  T* out = static_cast<T*>(out_);
  const T* x = static_cast<const T*>(x_);
  const Op op = *static_cast<const Op*>(op_);
  int64_t k = 0;
  for (; k + W <= n; k += W) store(out + k, op(load(x + k)));
  if (k < n) store_n(out + k, op(load_n(x + k, n - k)), n - k);
}

template <class T, class Op> void loop2(void* out_, const void* a_, const void* b_, int64_t n, const void* op_) {
  T* out = static_cast<T*>(out_);
  const T* a = static_cast<const T*>(a_);
  const T* b = static_cast<const T*>(b_);
  const Op op = *static_cast<const Op*>(op_);
  int64_t k = 0;
  for (; k + W <= n; k += W) store(out + k, op(load(a + k), load(b + k)));
  if (k < n) store_n(out + k, op(load_n(a + k, n - k), load_n(b + k, n - k)), n - k);
}

using Loop1 = void (*)(void*, const void*, int64_t, const void*);
using Loop2 = void (*)(void*, const void*, const void*, int64_t, const void*);

// out = op(x) over P = out, x and I = n. narrow_loop (bf16 to bf16) may be null.
inline void run1(const Call& c, Loop1 wide, Loop1 narrow_loop, const void* op, int64_t grain) {
  void* out = c.p[0];
  const void* x = c.p[1];
  const int32_t to = c.t[0], tx = c.t[1];
  parallel_range(c.i[0], grain, [&](int64_t begin, int64_t end, int) {
    if (to == F32 && tx == F32)
      return wide(static_cast<float*>(out) + begin, static_cast<const float*>(x) + begin, end - begin, op);
    if (to == BF16 && tx == BF16 && narrow_loop)
      return narrow_loop(static_cast<bf16*>(out) + begin, static_cast<const bf16*>(x) + begin, end - begin, op);
    alignas(64) float sx[kBlock], so[kBlock];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t n = least(kBlock, end - at);
      wide(target(out, to, at, so), fetch(x, tx, at, n, sx), n, op);
      finish(out, to, at, n, so);
    }
  });
}

// out = op(a, b) over P = out, a, b and I = n, all contiguous.
inline void run2(const Call& c, Loop2 wide, Loop2 narrow_loop, const void* op, int64_t grain) {
  void* out = c.p[0];
  const void *a = c.p[1], *b = c.p[2];
  const int32_t to = c.t[0], ta = c.t[1], tb = c.t[2];
  parallel_range(c.i[0], grain, [&](int64_t begin, int64_t end, int) {
    if (to == F32 && ta == F32 && tb == F32)
      return wide(static_cast<float*>(out) + begin, static_cast<const float*>(a) + begin,
                  static_cast<const float*>(b) + begin, end - begin, op);
    if (to == BF16 && ta == BF16 && tb == BF16 && narrow_loop)
      return narrow_loop(static_cast<bf16*>(out) + begin, static_cast<const bf16*>(a) + begin,
                         static_cast<const bf16*>(b) + begin, end - begin, op);
    alignas(64) float sa[kBlock], sb[kBlock], so[kBlock];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t n = least(kBlock, end - at);
      wide(target(out, to, at, so), fetch(a, ta, at, n, sa), fetch(b, tb, at, n, sb), n, op);
      finish(out, to, at, n, so);
    }
  });
}

template <class Op> void map1(const Call& c, const Op& op, int64_t grain = kGrain) {
  run1(c, loop1<float, Op>, nullptr, &op, grain);
}
template <class Op> void map1_hot(const Call& c, const Op& op, int64_t grain = kGrain) {
  run1(c, loop1<float, Op>, loop1<bf16, Op>, &op, grain);
}
template <class Op> void map2(const Call& c, const Op& op, int64_t grain = kGrain) {
  run2(c, loop2<float, Op>, nullptr, &op, grain);
}
template <class Op> void map2_hot(const Call& c, const Op& op, int64_t grain = kGrain) {
  run2(c, loop2<float, Op>, loop2<bf16, Op>, &op, grain);
}

}  // namespace
}  // namespace ansatz
