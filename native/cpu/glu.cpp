// Gated feed-forward halves: out = act(gate) * up, x = [gate | up] along each row (Shazeer, arXiv 2002.05202).
#include "elementwise_act.h"
#include "elementwise_loops.h"

namespace ansatz {
namespace {

template <class Act, class T> void forward(void* out_, const void* gate_, const void* up_, int64_t n) {
  T* out = static_cast<T*>(out_);
  const T *gate = static_cast<const T*>(gate_), *up = static_cast<const T*>(up_);
  int64_t k = 0;
  for (; k + W <= n; k += W) store(out + k, Act::value(load(gate + k)) * load(up + k));
  if (k < n) store_n(out + k, Act::value(load_n(gate + k, n - k)) * load_n(up + k, n - k), n - k);
}

template <class Act, class T>
void backward(void* dgate_, void* dup_, const void* gate_, const void* up_, const void* dy_, int64_t n) {
  T *dgate = static_cast<T*>(dgate_), *dup = static_cast<T*>(dup_);
  const T *gate = static_cast<const T*>(gate_), *up = static_cast<const T*>(up_), *dy = static_cast<const T*>(dy_);
  vf f, d;
  int64_t k = 0;
  for (; k + W <= n; k += W) {
    const vf u = load(up + k), g = load(dy + k);
    Act::both(load(gate + k), f, d);
    store(dgate + k, g * u * d);
    store(dup + k, g * f);
  }
  if (k < n) {
    const vf u = load_n(up + k, n - k), g = load_n(dy + k, n - k);
    Act::both(load_n(gate + k, n - k), f, d);
    store_n(dgate + k, g * u * d, n - k);
    store_n(dup + k, g * f, n - k);
  }
}

struct Loops {
  void (*forward_f32)(void*, const void*, const void*, int64_t);
  void (*forward_bf16)(void*, const void*, const void*, int64_t);
  void (*backward_f32)(void*, void*, const void*, const void*, const void*, int64_t);
  void (*backward_bf16)(void*, void*, const void*, const void*, const void*, int64_t);
};
template <class Act> constexpr Loops loops_of() {
  return {forward<Act, float>, forward<Act, bf16>, backward<Act, float>, backward<Act, bf16>};
}
// Indexed by the kernel's `act`.
constexpr Loops acts[] = {loops_of<Silu>(),    loops_of<Gelu>(),     loops_of<Relu>(),
                          loops_of<Sigmoid>(), loops_of<Identity>(), loops_of<GeluErf>()};

// Calls f(at_out, at_gate, n) for the pieces of rows that make up outputs [begin, end).
template <class F> ANSATZ_INLINE void for_pieces(int64_t begin, int64_t end, int64_t h, int64_t most, const F& f) {
  int64_t row = begin / h, column = begin - row * h;
  for (int64_t at = begin; at < end;) {
    const int64_t n = least(least(h - column, end - at), most);
    f(at, row * 2 * h + column, n);
    at += n;
    column += n;
    if (column == h) column = 0, row++;
  }
}

ANSATZ_INLINE char* address(void* p, int64_t at, int64_t size) { return static_cast<char*>(p) + at * size; }

void glu(const Call& c) {
  void *out = c.p[0], *x = c.p[1];
  const int32_t to = c.t[0], tx = c.t[1];
  const int64_t rows = c.i[0], h = c.i[1], size = dtype_size(to);
  const Loops& loops = acts[c.i[2]];
  parallel_range(rows * h, kHeavyGrain, [&](int64_t begin, int64_t end, int) {
    if (to == tx) {
      const auto loop = to == F32 ? loops.forward_f32 : loops.forward_bf16;
      for_pieces(begin, end, h, kHeavyGrain, [&](int64_t at, int64_t gate, int64_t n) {
        loop(address(out, at, size), address(x, gate, size), address(x, gate + h, size), n);
      });
      return;
    }
    alignas(64) float sg[kBlock], su[kBlock], so[kBlock];
    for_pieces(begin, end, h, kBlock, [&](int64_t at, int64_t gate, int64_t n) {
      loops.forward_f32(target(out, to, at, so), fetch(x, tx, gate, n, sg), fetch(x, tx, gate + h, n, su), n);
      finish(out, to, at, n, so);
    });
  });
}

void glu_bwd(const Call& c) {
  void *dx = c.p[0], *x = c.p[1], *dy = c.p[2];
  const int32_t td = c.t[0], tx = c.t[1], ty = c.t[2];
  const int64_t rows = c.i[0], h = c.i[1], size = dtype_size(td);
  const Loops& loops = acts[c.i[2]];
  parallel_range(rows * h, kHeavyGrain, [&](int64_t begin, int64_t end, int) {
    if (td == tx && tx == ty) {
      const auto loop = td == F32 ? loops.backward_f32 : loops.backward_bf16;
      for_pieces(begin, end, h, kHeavyGrain, [&](int64_t at, int64_t gate, int64_t n) {
        loop(address(dx, gate, size), address(dx, gate + h, size), address(x, gate, size), address(x, gate + h, size),
             address(dy, at, size), n);
      });
      return;
    }
    alignas(64) float sg[kBlock], su[kBlock], sy[kBlock], sdg[kBlock], sdu[kBlock];
    for_pieces(begin, end, h, kBlock, [&](int64_t at, int64_t gate, int64_t n) {
      loops.backward_f32(target(dx, td, gate, sdg), target(dx, td, gate + h, sdu), fetch(x, tx, gate, n, sg),
                         fetch(x, tx, gate + h, n, su), fetch(dy, ty, at, n, sy), n);
      finish(dx, td, gate, n, sdg);
      finish(dx, td, gate + h, n, sdu);
    });
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(glu, {"glu", glu}, {"glu_bwd", glu_bwd})
