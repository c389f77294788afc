// What surrounds the three branches of block-sparse attention (docs/kernels.md): overlapping blocks of tokens laid out
// as rows and their adjoint, the masks of compressed blocks, and the gated sum.
#include "../core/pool.h"
#include "simd.h"

namespace ansatz {
namespace {

struct Blocks {
  int64_t B, T, count, H, D, length, stride;
  explicit Blocks(const Call& c)
      : B(c.i[0]), T(c.i[1]), count(c.i[2]), H(c.i[3]), D(c.i[4]), length(c.i[5]), stride(c.i[6]) {}
};

template <class T> ANSATZ_INLINE void copy_row(T* out, const T* x, int64_t n) {
  std::memcpy(out, x, static_cast<size_t>(n) * sizeof(T));
}

template <class T> void unfold(const Blocks& s, T* out, const T* x) {
  parallel(s.B * s.count, [&](int64_t block, int) {
    const int64_t b = block / s.count, t0 = block % s.count * s.stride;
    T* to = out + block * s.H * s.length * s.D;
    for (int64_t h = 0; h < s.H; h++)
      for (int64_t i = 0; i < s.length; i++, to += s.D)
        copy_row(to, x + ((b * s.T + t0 + i) * s.H + h) * s.D, s.D);
  });
}

// A token sums over the blocks that hold it, in order.
template <class T> void fold(const Blocks& s, T* dx, const T* dout) {
  parallel_range(s.B * s.T, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; token++) {
      const int64_t b = token / s.T, t = token % s.T;
      const int64_t first = t < s.length ? 0 : (t - s.length) / s.stride + 1;
      const int64_t last = t / s.stride < s.count ? t / s.stride : s.count - 1;
      for (int64_t h = 0; h < s.H; h++) {
        T* to = dx + (token * s.H + h) * s.D;
        for (int64_t d = 0; d < s.D; d += W) {
          const int64_t n = s.D - d < W ? s.D - d : W;
          vf sum = {};
          for (int64_t k = first; k <= last; k++) {
            const T* from = dout + (((b * s.count + k) * s.H + h) * s.length + t - k * s.stride) * s.D + d;
            sum += n == W ? load(from) : load_n(from, n);
          }
          if (n == W) store(to + d, sum);
          else store_n(to + d, sum, n);
        }
      }
    }
  });
}

void unfold_blocks(const Call& c) {
  if (c.t[0] == BF16) unfold(Blocks(c), c.ptr<bf16>(0), c.ptr<const bf16>(1));
  else unfold(Blocks(c), c.ptr<float>(0), c.ptr<const float>(1));
}

void fold_blocks(const Call& c) {
  if (c.t[0] == BF16) fold(Blocks(c), c.ptr<bf16>(0), c.ptr<const bf16>(1));
  else fold(Blocks(c), c.ptr<float>(0), c.ptr<const float>(1));
}

void block_masks(const Call& c) {
  const int64_t B = c.i[0], T = c.i[1], count = c.i[2], length = c.i[3], stride = c.i[4];
  int32_t *visible = c.ptr<int32_t>(0), *segment = c.ptr<int32_t>(1);
  const int32_t* seg = c.ptr<const int32_t>(2);
  parallel_range(B * T, 4096, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; k++) {
      const int64_t whole = k % T + 1 - length;
      visible[k] = whole < 0 ? -1 : static_cast<int32_t>(whole / stride);
    }
  });
  if (!segment) return;
  parallel_range(B * count, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; k++) {
      const int32_t* s = seg + k / count * T + k % count * stride;
      bool mixed = false;
      for (int64_t i = 1; i < length; i++) mixed |= s[i] != s[0];
      segment[k] = mixed ? INT32_MIN : s[0];
    }
  });
}

constexpr int branches = 3;

struct Gated {
  int64_t tokens, H, D;
  explicit Gated(const Call& c) : tokens(c.i[0]), H(c.i[1]), D(c.i[2]) {}
};

// T: dtype of the branches, G: of the gates.
template <class T, class G> void gate_sum(const Call& c) {
  const Gated s(c);
  T* out = c.ptr<T>(0);
  const T* y[branches] = {c.ptr<const T>(1), c.ptr<const T>(2), c.ptr<const T>(3)};
  const G* gates = c.ptr<const G>(4);
  parallel_range(s.tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin * s.H; row < end * s.H; row++) {
      const G* gate = gates + row / s.H * branches * s.H + row % s.H;
      const float g0 = to_float(gate[0]), g1 = to_float(gate[s.H]), g2 = to_float(gate[2 * s.H]);
      const int64_t at = row * s.D;
      int64_t d = 0;
      for (; d + W <= s.D; d += W)
        store(out + at + d, load(y[0] + at + d) * g0 + load(y[1] + at + d) * g1 + load(y[2] + at + d) * g2);
      if (const int64_t n = s.D - d; n > 0)
        store_n(out + at + d,
                load_n(y[0] + at + d, n) * g0 + load_n(y[1] + at + d, n) * g1 + load_n(y[2] + at + d, n) * g2, n);
    }
  });
}

template <class T, class G> void gate_sum_bwd(const Call& c) {
  const Gated s(c);
  T* dy[branches] = {c.ptr<T>(0), c.ptr<T>(1), c.ptr<T>(2)};
  G* dgates = c.ptr<G>(3);
  const T* dout = c.ptr<const T>(4);
  const T* y[branches] = {c.ptr<const T>(5), c.ptr<const T>(6), c.ptr<const T>(7)};
  const G* gates = c.ptr<const G>(8);
  parallel_range(s.tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin * s.H; row < end * s.H; row++) {
      const int64_t gate = row / s.H * branches * s.H + row % s.H, at = row * s.D;
      for (int k = 0; k < branches; k++) {
        const float g = to_float(gates[gate + k * s.H]);
        vf sum = {};
        int64_t d = 0;
        for (; d + W <= s.D; d += W) {
          const vf up = load(dout + at + d);
          sum += up * load(y[k] + at + d);
          store(dy[k] + at + d, up * g);
        }
        if (const int64_t n = s.D - d; n > 0) {
          const vf up = load_n(dout + at + d, n);
          sum += up * load_n(y[k] + at + d, n);
          store_n(dy[k] + at + d, up * g, n);
        }
        store_one(dgates + gate + k * s.H, hsum(sum));
      }
    }
  });
}

void gate_branches(const Call& c) {
  const bool low = c.t[0] == BF16, low_gate = c.t[4] == BF16;
  if (low) low_gate ? gate_sum<bf16, bf16>(c) : gate_sum<bf16, float>(c);
  else low_gate ? gate_sum<float, bf16>(c) : gate_sum<float, float>(c);
}

void gate_branches_bwd(const Call& c) {
  const bool low = c.t[4] == BF16, low_gate = c.t[8] == BF16;
  if (low) low_gate ? gate_sum_bwd<bf16, bf16>(c) : gate_sum_bwd<bf16, float>(c);
  else low_gate ? gate_sum_bwd<float, bf16>(c) : gate_sum_bwd<float, float>(c);
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(block_parts, {"unfold_blocks", unfold_blocks}, {"fold_blocks", fold_blocks},
               {"block_masks", block_masks}, {"gate_branches", gate_branches},
               {"gate_branches_bwd", gate_branches_bwd})
