// Rotary position embedding (Su et al. 2021): pairs of dimensions of the first Hrot heads turn by angles that grow with
// the token's position; `rope` in docs/kernels.md. Tokens are independent, so pieces of 16 tokens are the unit of work.
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

typedef uint64_t vd __attribute__((vector_size(W * 4)));

// Lanes 0 and 1 change places, 2 and 3, and so on.
ANSATZ_INLINE vf swap_pairs(vf x) { return (vf)(((vd)x << 32) | ((vd)x >> 32)); }

// Pairs (k, k+half): both members are loaded before either is stored, so in place works.
template <class In, class Out>
void rotate_halves(Out* out, const In* x, const float* cosines, const float* sines, int64_t half) {
  int64_t k = 0;
  for (; k + W <= half; k += W) {
    const vf c = load(cosines + k), s = load(sines + k), x1 = load(x + k), x2 = load(x + half + k);
    store(out + k, x1 * c - x2 * s);
    store(out + half + k, x2 * c + x1 * s);
  }
  if (const int64_t n = half - k) {
    const vf c = load_n(cosines + k, n), s = load_n(sines + k, n), x1 = load_n(x + k, n), x2 = load_n(x + half + k, n);
    store_n(out + k, x1 * c - x2 * s, n);
    store_n(out + half + k, x2 * c + x1 * s, n);
  }
}

// Pairs (2k, 2k+1); cosines and sines arrive doubled, the sine with the sign of its lane.
template <class In, class Out>
void rotate_neighbours(Out* out, const In* x, const float* cosines, const float* sines, int64_t R) {
  int64_t k = 0;
  for (; k + W <= R; k += W) {
    const vf v = load(x + k);
    store(out + k, v * load(cosines + k) + swap_pairs(v) * load(sines + k));
  }
  if (const int64_t n = R - k) {
    const vf v = load_n(x + k, n);
    store_n(out + k, v * load_n(cosines + k, n) + swap_pairs(v) * load_n(sines + k, n), n);
  }
}

template <class In, class Out> ANSATZ_INLINE void copy_elements(Out* out, const In* x, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) store(out + k, load(x + k));
  if (k < n) store_n(out + k, load_n(x + k, n - k), n - k);
}
// Same type: the bits as they are; nothing at all in place.
template <class T> ANSATZ_INLINE void copy_elements(T* out, const T* x, int64_t n) {
  if (out != x && n > 0) std::memcpy(out, x, static_cast<size_t>(n) * sizeof(T));
}

struct Rotation {
  int64_t B, T, heads, rotated, D, R, max_position, token_x, token_out;
  bool interleaved, inverse;
  const float *cosines, *sines;
  const int32_t* positions;
};

template <class In, class Out>
void rotate_tokens(const Rotation& r, Out* out, const In* x, int64_t begin, int64_t end, float* angles) {
  const int64_t half = r.R / 2;
  float *c = angles, *s = angles + r.R;
  for (int64_t n = begin; n < end; n++) {
    const int64_t position = r.positions ? r.positions[n] : n % r.T;
    if (position < 0 || position >= r.max_position) {
      raise(INDEX_OUT_OF_RANGE, position, r.max_position);
      return;
    }
    const float *cosines = r.cosines + position * half, *sines = r.sines + position * half;
    const float sign = r.inverse ? -1.0f : 1.0f;
    // One token's angles serve all of its heads: put them into the order and sign that the loops want, once.
    for (int64_t k = 0; k < half; k++) {
      const float cosine = cosines[k], sine = sign * sines[k];
      if (r.interleaved) c[2 * k] = c[2 * k + 1] = cosine, s[2 * k] = -sine, s[2 * k + 1] = sine;
      else c[k] = cosine, s[k] = sine;
    }
    const In* from = x + n * r.token_x;
    Out* to = out + n * r.token_out;
    for (int64_t h = 0; h < r.rotated; h++, from += r.D, to += r.D) {
      if (r.interleaved) rotate_neighbours(to, from, c, s, r.R);
      else rotate_halves(to, from, c, s, half);
      copy_elements(to + r.R, from + r.R, r.D - r.R);
    }
    copy_elements(to, from, (r.heads - r.rotated) * r.D);
  }
}

void rope(const Call& c) {
  const Rotation r = {c.i[0], c.i[1], c.i[2], c.i[3], c.i[4], c.i[5], c.i[6], c.i[9], c.i[10], c.i[7] != 0, c.i[8] != 0,
                      c.ptr<const float>(2), c.ptr<const float>(3), c.ptr<const int32_t>(4)};
  const bool in_bf16 = c.t[1] == BF16, out_bf16 = c.t[0] == BF16;
  parallel_range(r.B * r.T, 16, [&](int64_t begin, int64_t end, int thread) {
    float* angles = static_cast<float*>(pool_scratch(thread, 0, 2 * (r.R + W) * 4));
    const auto run = [&](auto* out, const auto* x) { rotate_tokens(r, out, x, begin, end, angles); };
    if (in_bf16) out_bf16 ? run(c.ptr<bf16>(0), c.ptr<const bf16>(1)) : run(c.ptr<float>(0), c.ptr<const bf16>(1));
    else out_bf16 ? run(c.ptr<bf16>(0), c.ptr<const float>(1)) : run(c.ptr<float>(0), c.ptr<const float>(1));
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(rope, {"rope", rope})
