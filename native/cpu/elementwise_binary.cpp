// Functions of two broadcast tensors, and selection.
//
// Rows (runs along the last dimension) go to a loop specialised for the strides (1,1), (1,0), (0,1); when rows are
// short, blocks of many rows are gathered first, so that the loop is entered once a block.
#include "elementwise_math.h"
#include "elementwise_shape.h"

namespace ansatz {
namespace {

enum Mode { BOTH, B_SCALAR, A_SCALAR };
using Loop = void (*)(void* out, const void* a, const void* b, int64_t n, Mode mode);

template <class Op, class T> void loop(void* out_, const void* a_, const void* b_, int64_t n, Mode mode) {
  T* out = static_cast<T*>(out_);
  const T *a = static_cast<const T*>(a_), *b = static_cast<const T*>(b_);
  const int64_t full = n - n % W, rest = n - full;
  if (mode == BOTH) {
    for (int64_t k = 0; k < full; k += W) store(out + k, Op::f(load(a + k), load(b + k)));
    if (rest) store_n(out + full, Op::f(load_n(a + full, rest), load_n(b + full, rest)), rest);
  } else if (mode == B_SCALAR) {
    const vf s = splat(to_float(*b));
    for (int64_t k = 0; k < full; k += W) store(out + k, Op::f(load(a + k), s));
    if (rest) store_n(out + full, Op::f(load_n(a + full, rest), s), rest);
  } else {
    const vf s = splat(to_float(*a));
    for (int64_t k = 0; k < full; k += W) store(out + k, Op::f(s, load(b + k)));
    if (rest) store_n(out + full, Op::f(s, load_n(b + full, rest)), rest);
  }
}

template <class Op> void loop_i32(void* out_, const void* a_, const void* b_, int64_t n, Mode mode) {
  int32_t* out = static_cast<int32_t*>(out_);
  const int32_t *a = static_cast<const int32_t*>(a_), *b = static_cast<const int32_t*>(b_);
  const int64_t sa = mode == A_SCALAR ? 0 : 1, sb = mode == B_SCALAR ? 0 : 1;
  for (int64_t k = 0; k < n; k++) out[k] = Op::f(a[k * sa], b[k * sb]);
}

struct Loops { Loop f32, bf16, i32; };   // bf16 may be null

constexpr int64_t kShortRow = 64;

// All three tensors hold T and are used in place; rows with other strides than 0 and 1 are gathered bitwise.
template <class T> void run_direct(const Call& c, const Shape<2>& shape, Loop f, int64_t begin, int64_t end) {
  T* out = c.ptr<T>(0);
  const T *a = c.ptr<T>(1), *b = c.ptr<T>(2);
  const int last = shape.nd - 1;
  const int64_t sa = shape.strides[0][last], sb = shape.strides[1][last];
  const bool copy_a = sa != 0 && sa != 1, copy_b = (sb != 0 && sb != 1) || (sa == 0 && sb == 0);
  const Mode mode = sa == 0 ? A_SCALAR : sb == 0 ? B_SCALAR : BOTH;
  alignas(64) T ta[kBlock], tb[kBlock];
  for_runs(shape, begin, end, copy_a || copy_b ? kBlock : end, [&](const int64_t* offset, int64_t at, int64_t n) {
    const T *pa = a + offset[0], *pb = b + offset[1];
    if (copy_a) {
      for (int64_t k = 0; k < n; k++) ta[k] = pa[k * sa];
      pa = ta;
    }
    if (copy_b) {
      for (int64_t k = 0; k < n; k++) tb[k] = pb[k * sb];
      pb = tb;
    }
    f(out + at, pa, pb, n, mode);
  });
}

// Any dtypes and strides: blocks of both operands as consecutive elements of E (float, or int32_t bitwise).
void run_blocks(const Call& c, const Shape<2>& shape, Loop f, int64_t begin, int64_t end) {
  const int last = shape.nd - 1;
  const int64_t sa = shape.strides[0][last], sb = shape.strides[1][last];
  const bool whole = c.t[0] == I32 && c.t[1] == I32 && c.t[2] == I32;
  const int32_t ta = whole ? F32 : c.t[1], tb = whole ? F32 : c.t[2], to = whole ? F32 : c.t[0];
  alignas(64) float fa[kBlock], fb[kBlock], fo[kBlock];
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t stop = least(end, block + kBlock);
    for_runs(shape, block, stop, kBlock, [&](const int64_t* offset, int64_t at, int64_t n) {
      gather_run(c.p[1], ta, offset[0], sa, n, fa + (at - block));
      gather_run(c.p[2], tb, offset[1], sb, n, fb + (at - block));
    });
    f(target(c.p[0], to, block, fo), fa, fb, stop - block, BOTH);
    finish(c.p[0], to, block, stop - block, fo);
  }
}

void run(const Call& c, const Loops& loops, int64_t grain) {
  Shape<2> shape;
  shape.nd = static_cast<int>(c.i[0]);
  for (int k = 0; k < shape.nd; k++) {
    shape.dims[k] = c.i[1 + k];
    shape.strides[0][k] = c.i[1 + shape.nd + k];
    shape.strides[1][k] = c.i[1 + 2 * shape.nd + k];
  }
  const int64_t n = shape.elements();
  if (n == 0) return;
  shape.collapse();
  const int32_t t = c.t[0];
  const bool same = c.t[1] == t && c.t[2] == t;
  const bool rows_long = shape.nd == 1 || shape.dims[shape.nd - 1] >= kShortRow;
  const Loop general = same && t == I32 ? loops.i32 : loops.f32;
  parallel_range(n, grain, [&](int64_t begin, int64_t end, int) {
    if (same && rows_long && t == F32) run_direct<float>(c, shape, loops.f32, begin, end);
    else if (same && rows_long && t == BF16 && loops.bf16) run_direct<bf16>(c, shape, loops.bf16, begin, end);
    else if (same && rows_long && t == I32) run_direct<int32_t>(c, shape, loops.i32, begin, end);
    else run_blocks(c, shape, general, begin, end);
  });
}

// Integers: sums and products wrap; division truncates, and by zero gives 0; a negative power truncates 1/a^-b.
ANSATZ_INLINE int32_t wrap(int64_t x) { return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(x))); }
int32_t power_i32(int32_t a, int32_t b) {
  if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;
  uint32_t result = 1, square = static_cast<uint32_t>(a);
  for (; b; b >>= 1, square *= square)
    if (b & 1) result *= square;
  return static_cast<int32_t>(result);
}
ANSATZ_INLINE vf truth(vi mask) { return (vf)(mask & (vi)splat(1.0f)); }

#define BINARY(name, real, whole, bf16_loop, grain)                                        \
  struct Real_##name { static ANSATZ_INLINE vf f(vf a, vf b) { return real; } };          \
  struct Whole_##name { static ANSATZ_INLINE int32_t f(int64_t a, int64_t b) { return whole; } }; \
  void k_##name(const Call& c) {                                                           \
    constexpr Loops loops = {loop<Real_##name, float>, bf16_loop, loop_i32<Whole_##name>}; \
    run(c, loops, grain);                                                                  \
  }

BINARY(add, a + b, wrap(a + b), (loop<Real_add, bf16>), kGrain)
BINARY(sub, a - b, wrap(a - b), (loop<Real_sub, bf16>), kGrain)
BINARY(mul, a * b, wrap(a * b), (loop<Real_mul, bf16>), kGrain)
BINARY(div, a / b, b == 0 ? 0 : wrap(a / b), nullptr, kGrain)
BINARY(maximum, select((a > b) | (a != a), a, b), wrap(a > b ? a : b), nullptr, kGrain)   // a NaN in either wins
BINARY(minimum, select((a < b) | (a != a), a, b), wrap(a < b ? a : b), nullptr, kGrain)
BINARY(pow, vpow(a, b), power_i32(static_cast<int32_t>(a), static_cast<int32_t>(b)), nullptr, 8192)
BINARY(eq, truth(a == b), a == b, nullptr, kGrain)
BINARY(ne, truth(a != b), a != b, nullptr, kGrain)
BINARY(lt, truth(a < b), a < b, nullptr, kGrain)
BINARY(le, truth(a <= b), a <= b, nullptr, kGrain)
BINARY(gt, truth(a > b), a > b, nullptr, kGrain)
BINARY(ge, truth(a >= b), a >= b, nullptr, kGrain)

void where(const Call& c) {
  Shape<3> shape;
  shape.nd = static_cast<int>(c.i[0]);
  for (int k = 0; k < shape.nd; k++) {
    shape.dims[k] = c.i[1 + k];
    for (int j = 0; j < 3; j++) shape.strides[j][k] = c.i[1 + (j + 1) * shape.nd + k];
  }
  const int64_t total = shape.elements();
  if (total == 0) return;
  shape.collapse();
  const int last = shape.nd - 1;
  const bool whole = c.t[0] == I32 && c.t[2] == I32 && c.t[3] == I32;   // integers are selected bitwise
  const int32_t types[3] = {c.t[1], whole ? F32 : c.t[2], whole ? F32 : c.t[3]}, to = whole ? F32 : c.t[0];
  parallel_range(total, kGrain, [&](int64_t begin, int64_t end, int) {
    alignas(64) float s[3][kBlock], so[kBlock];
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t n = least(kBlock, end - block);
      const float* in[3];
      for (int j = 0; j < 3; j++) {   // f32 rows that cover the block are used in place
        const bool in_place = types[j] == F32 && shape.nd == 1 && shape.strides[j][last] == 1;
        in[j] = in_place ? c.ptr<float>(j + 1) + block : s[j];
      }
      for_runs(shape, block, block + n, kBlock, [&](const int64_t* offset, int64_t at, int64_t m) {
        for (int j = 0; j < 3; j++)
          if (in[j] == s[j])
            gather_run(c.p[j + 1], types[j], offset[j], shape.strides[j][last], m, s[j] + (at - block));
      });
      float* out = target(c.p[0], to, block, so);
      int64_t k = 0;
      for (; k + W <= n; k += W) store(out + k, select(load(in[0] + k) != 0.0f, load(in[1] + k), load(in[2] + k)));
      if (const int64_t m = n - k)
        store_n(out + k, select(load_n(in[0] + k, m) != 0.0f, load_n(in[1] + k, m), load_n(in[2] + k, m)), m);
      finish(c.p[0], to, block, n, so);
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(elementwise_binary, {"add", k_add}, {"sub", k_sub}, {"mul", k_mul}, {"div", k_div},
  {"maximum", k_maximum}, {"minimum", k_minimum}, {"pow", k_pow}, {"eq", k_eq}, {"ne", k_ne}, {"lt", k_lt},
  {"le", k_le}, {"gt", k_gt}, {"ge", k_ge}, {"where", where})
