// Filling, conversion, and functions with constants.
#include "elementwise_loops.h"
#include "elementwise_math.h"

namespace ansatz {
namespace {

template <class T> void fill_range(T* p, int64_t n, float value) {
  const vf v = splat(value);
  int64_t k = 0;
  for (; k + W <= n; k += W) store(p + k, v);
  for (; k < n; k++) store_one(p + k, value);
}

void fill(const Call& c) {
  void* out = c.p[0];
  const int32_t t = c.t[0];
  const double value = c.f[0];
  const int32_t whole = t == I32 ? static_cast<int32_t>(value) : 0;   // not through float: every int32 is exact
  const uint8_t byte = t == U8 ? static_cast<uint8_t>(static_cast<int64_t>(value)) : 0;
  parallel_range(c.i[0], kGrain, [&](int64_t begin, int64_t end, int) {
    const int64_t n = end - begin;
    if (t == F32) fill_range(static_cast<float*>(out) + begin, n, static_cast<float>(value));
    else if (t == BF16) fill_range(static_cast<bf16*>(out) + begin, n, static_cast<float>(value));
    else if (t == U8) std::memset(static_cast<char*>(out) + begin, byte, static_cast<size_t>(n));
    else for (int64_t k = begin; k < end; k++) static_cast<int32_t*>(out)[k] = whole;
  });
}

void iota(const Call& c) {
  void* out = c.p[0];
  const int32_t t = c.t[0];
  const double start = c.f[0], step = c.f[1];
  parallel_range(c.i[0], kGrain, [&](int64_t begin, int64_t end, int) {
    if (t == I32) {
      int32_t* p = static_cast<int32_t*>(out);
      for (int64_t k = begin; k < end; k++) p[k] = static_cast<int32_t>(start + step * static_cast<double>(k));
    } else {
      for (int64_t k = begin; k < end; k++)
        write_one(out, t, k, static_cast<float>(start + step * static_cast<double>(k)));
    }
  });
}

void cast(const Call& c) {
  void* out = c.p[0];
  const void* x = c.p[1];
  const int32_t to = c.t[0], tx = c.t[1];
  parallel_range(c.i[0], kGrain, [&](int64_t begin, int64_t end, int) {
    const int64_t n = end - begin, size = dtype_size(tx);
    if (to == tx) {
      std::memmove(static_cast<char*>(out) + begin * size, static_cast<const char*>(x) + begin * size,
                   static_cast<size_t>(n * size));
    } else if (to == F32) {
      fetch(x, tx, begin, n, static_cast<float*>(out) + begin);
    } else if (tx == F32) {
      finish(out, to, begin, n, static_cast<const float*>(x) + begin);
    } else if (to == U8 && tx == I32) {   // not through float: the low byte of a large integer must survive
      for (int64_t k = begin; k < end; k++)
        static_cast<uint8_t*>(out)[k] = static_cast<uint8_t>(static_cast<const int32_t*>(x)[k]);
    } else {
      alignas(64) float s[kBlock];
      for (int64_t at = begin; at < end; at += kBlock) {
        const int64_t m = least(kBlock, end - at);
        finish(out, to, at, m, fetch(x, tx, at, m, s));
      }
    }
  });
}

struct Affine {
  float a, b;
  ANSATZ_INLINE vf operator()(vf x) const { return a * x + b; }
};
void affine(const Call& c) {
  map1(c, Affine{static_cast<float>(c.f[0]), static_cast<float>(c.f[1])});
}

struct Clamp {
  float lo, hi;
  ANSATZ_INLINE vf operator()(vf x) const {   // NaN fails both comparisons and passes through
    return select(x < lo, splat(lo), select(x > hi, splat(hi), x));
  }
};
void clamp(const Call& c) {
  map1(c, Clamp{static_cast<float>(c.f[0]), static_cast<float>(c.f[1])});
}

// Small integer powers by multiplication; everything else through vpow.
template <int e> struct Power {
  ANSATZ_INLINE vf operator()(vf x) const {
    const vf x2 = x * x;
    const vf y = e == 2 || e == -2 ? x2 : e == 3 ? x2 * x : e == 4 ? x2 * x2 : x;
    return e < 0 ? 1.0f / y : y;
  }
};
struct PowerSqrt {   // C's pow gives +0 at -0 and +inf at -inf
  ANSATZ_INLINE vf operator()(vf x) const { return select(x == -__builtin_inff(), -x, vsqrt(x + 0.0f)); }
};
struct PowerAny {
  float e;
  ANSATZ_INLINE vf operator()(vf x) const { return vpow(x, splat(e)); }
};
void powc(const Call& c) {
  const double e = c.f[0];
  if (e == 1) map1(c, Power<1>{});
  else if (e == 2) map1(c, Power<2>{});
  else if (e == 3) map1(c, Power<3>{});
  else if (e == 4) map1(c, Power<4>{});
  else if (e == -1) map1(c, Power<-1>{});
  else if (e == -2) map1(c, Power<-2>{});
  else if (e == 0.5) map1(c, PowerSqrt{});
  else map1(c, PowerAny{static_cast<float>(e)}, kHeavyGrain);
}

struct Scale {
  float s;
  ANSATZ_INLINE vf operator()(vf x) const { return x * s; }
};
void scale_by(const Call& c) {
  map1_hot(c, Scale{static_cast<float>(static_cast<double>(c.ptr<float>(2)[0]) * c.f[0])});
}

struct AddScaled {
  float ca, cb;
  ANSATZ_INLINE vf operator()(vf a, vf b) const { return ca * a + cb * b; }
};
void add_scaled(const Call& c) {
  map2_hot(c, AddScaled{static_cast<float>(c.f[0]), static_cast<float>(c.f[1])});
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(elementwise, {"fill", fill}, {"iota", iota}, {"cast", cast}, {"affine", affine}, {"clamp", clamp},
  {"powc", powc}, {"scale_by", scale_by}, {"add_scaled", add_scaled})
