// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Element k depends on (seed, step, stream, k) alone, so any thread may draw any part. Lane j of the vectors holds the
// four words of counter block first + j.
#include "elementwise_math.h"
#include "elementwise_shuffle.h"

namespace ansatz {
namespace {

struct Stream { uint32_t key0, key1, stream, step; };

Stream stream_of(const int32_t* state, int64_t stream) {
  return {static_cast<uint32_t>(state[0]), static_cast<uint32_t>(state[1]) ^ static_cast<uint32_t>(state[3]),
          static_cast<uint32_t>(stream), static_cast<uint32_t>(state[2])};
}

typedef uint64_t vw __attribute__((vector_size(W * 4)));

// The 64-bit products of the even lanes of x with m (upper halves of the 64-bit lanes do not matter).
ANSATZ_INLINE vw multiply_even(vw x, uint32_t m) {
#if defined(__AVX512F__)
  return (vw)_mm512_maskz_mul_epu32(0xff, (__m512i)x, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  return (vw)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
#else
  return (x & 0xffffffffull) * static_cast<uint64_t>(m);
#endif
}
// Little-endian lanes, as everywhere this code runs: even 32-bit lanes are the low halves.
ANSATZ_INLINE void multiply(vu x, uint32_t m, vu& high, vu& low) {
  const vw even = multiply_even((vw)x, m), odd = multiply_even((vw)x >> 32, m);
  high = (vu)((even >> 32) | (odd & ~0xffffffffull));
  low = (vu)((even & 0xffffffffull) | (odd << 32));
}

ANSATZ_INLINE void philox(const Stream& s, int64_t first, vu w[4]) {
  vu lane;
  for (int j = 0; j < W; j++) lane[j] = static_cast<uint32_t>(j);
  w[0] = static_cast<uint32_t>(first) + lane;
  w[1] = static_cast<uint32_t>(first >> 32) - (vu)(w[0] < lane);   // the mask is -1 where the low half wrapped
  w[2] = vu{} + s.stream;
  w[3] = vu{} + s.step;
  uint32_t k0 = s.key0, k1 = s.key1;
  for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
    vu high0, low0, high1, low1;
    multiply(w[0], 0xd2511f53u, high0, low0);
    multiply(w[2], 0xcd9e8d57u, high1, low1);
    const vu w1 = w[1], w3 = w[3];
    w[0] = high1 ^ w1 ^ k0;
    w[1] = low1;
    w[2] = high0 ^ w3 ^ k1;
    w[3] = low0;
  }
}

// Word j of block b is element 4b + j: interleaves the four vectors.
ANSATZ_INLINE void interleave(vf w[4]) {
  vu a0, a1, b0, b1, r[4];
  zip((vu)w[0], (vu)w[2], a0, a1);   // lanes 0,2,0,2,...
  zip((vu)w[1], (vu)w[3], b0, b1);   // lanes 1,3,1,3,...
  zip(a0, b0, r[0], r[1]);
  zip(a1, b1, r[2], r[3]);
  for (int k = 0; k < 4; k++) w[k] = (vf)r[k];
}

ANSATZ_INLINE vf unit(vu word) {   // [0, 1) in steps of 2^-24
  return __builtin_convertvector((vi)(word >> 8), vf) * 5.9604644775390625e-8f;
}

constexpr int64_t kDraw = 4 * W;        // elements of one vector of blocks
constexpr int64_t kRandomGrain = 16384;  // a multiple of kDraw, so every task starts at a whole block

// Box-Muller: r = sqrt(-2 ln(1 - u0)), angle 2 pi u1. The angle is reduced exactly: u1 is a multiple of 2^-24.
ANSATZ_INLINE void box_muller(vu word0, vu word1, vf& c, vf& s) {
  const vf r = vsqrt(-2.0f * vlog(1.0f - unit(word0)));
  const vf turns = unit(word1);
  const vi q = __builtin_convertvector(turns * 4.0f + 0.5f, vi);
  const vf angle = (turns - __builtin_convertvector(q, vf) * 0.25f) * 6.2831853071795865f;
  const vf sine = sin_poly(angle), cosine = cos_poly(angle);
  c = r * quadrant(q + 1, sine, cosine);
  s = r * quadrant(q, sine, cosine);
}

// Fills [0, n) of out from draw(first_block, w[4]), which leaves w in element order.
template <class Draw> void generate(const Call& c, const Draw& draw) {
  void* out = c.p[0];
  const int32_t t = c.t[0];
  parallel_range(c.i[0], kRandomGrain, [&](int64_t begin, int64_t end, int) {
    alignas(64) float block[kBlock];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t n = min64(kBlock, end - at);
      for (int64_t k = 0; k < n; k += kDraw) {
        vf w[4];
        draw((at + k) / 4, w);
        for (int j = 0; j < 4; j++) store(block + k + j * W, w[j]);
      }
      if (t == F32) std::memcpy(static_cast<float*>(out) + at, block, static_cast<size_t>(n) * 4);
      else finish(out, t, at, n, block);
    }
  });
}

// P = out, state; I = n, stream; F = lo, hi
void uniform(const Call& c) {
  const Stream s = stream_of(c.ptr<int32_t>(1), c.i[1]);
  const float lo = static_cast<float>(c.f[0]), width = static_cast<float>(c.f[1] - c.f[0]);
  generate(c, [&](int64_t first, vf* w) ANSATZ_LAMBDA {
    vu words[4];
    philox(s, first, words);
    for (int j = 0; j < 4; j++) w[j] = lo + width * unit(words[j]);
    interleave(w);
  });
}

// P = out, state; I = n, stream; F = mean, std
void normal(const Call& c) {
  const Stream s = stream_of(c.ptr<int32_t>(1), c.i[1]);
  const float mean = static_cast<float>(c.f[0]), deviation = static_cast<float>(c.f[1]);
  generate(c, [&](int64_t first, vf* w) ANSATZ_LAMBDA {
    vu words[4];
    philox(s, first, words);
    box_muller(words[0], words[1], w[0], w[1]);
    box_muller(words[2], words[3], w[2], w[3]);
    for (int j = 0; j < 4; j++) w[j] = mean + deviation * w[j];
    interleave(w);
  });
}

// P = out, x, state; I = n, stream; F = p
void dropout(const Call& c) {
  void* out = c.p[0];
  const void* x = c.p[1];
  const int32_t to = c.t[0], tx = c.t[1];
  const Stream s = stream_of(c.ptr<int32_t>(2), c.i[1]);
  const double p = c.f[0];
  const int32_t threshold = static_cast<int32_t>(::ceil(p * 16777216.0));   // u >= p, exactly, on the 24-bit word
  const float scale = static_cast<float>(1.0 / (1.0 - p));
  parallel_range(c.i[0], kRandomGrain, [&](int64_t begin, int64_t end, int) {
    alignas(64) float keep[kBlock], sx[kBlock], so[kBlock];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t n = min64(kBlock, end - at);
      for (int64_t k = 0; k < n; k += kDraw) {
        vu words[4];
        vf w[4];
        philox(s, (at + k) / 4, words);
        for (int j = 0; j < 4; j++) w[j] = (vf)((vi)(words[j] >> 8) >= threshold);
        interleave(w);
        for (int j = 0; j < 4; j++) store(keep + k + j * W, w[j]);
      }
      const float* in = fetch(x, tx, at, n, sx);
      float* o = target(out, to, at, so);
      int64_t k = 0;
      for (; k + W <= n; k += W) store(o + k, select((vi)load(keep + k), load(in + k) * scale, splat(0.0f)));
      if (k < n) store_n(o + k, select((vi)load(keep + k), load_n(in + k, n - k) * scale, splat(0.0f)), n - k);
      finish(out, to, at, n, so);
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(random, {"uniform", uniform}, {"normal", normal}, {"dropout", dropout})
