// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Element k depends on (seed, step, stream, k) alone, so any thread may draw any part.
#include "random_philox.h"

namespace ansatz {
namespace {

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
      const int64_t n = least(kBlock, end - at);
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
      const int64_t n = least(kBlock, end - at);
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
