// The loss of a student against targets and against a teacher's distribution (Hinton et al. 2015), with its gradient by
// the student's logits in the same sweep. For one row, p_T(z) = softmax(z / T) over the first `shared` tokens:
//   ce = lse(s) - s[t] + zcoef lse(s)^2,   kl = sum p_T(t) (ln p_T(t) - ln p_T(s)),
//   loss = hard ce + soft T^2 kl,   d loss / d s = hard (softmax(s) (1 + 2 zcoef lse) - onehot) + soft T (p_T(s) - p_T(t)).
#include "linear_loss_rows.h"

namespace ansatz {
namespace {

constexpr int64_t DISTIL_ROWS = 4;

struct Softmax {
  float top, up;      // of z / T: exp((z - top) up) / sum
  float sum, log_sum;
};

ANSATZ_INLINE vf lanes_of(const float* x, int64_t j, int64_t n) {
  if (n - j >= W) return load(x + j);
  vf lane = splat(-__builtin_inff());
  std::memcpy(&lane, x + j, static_cast<size_t>(n - j) * 4);
  return lane;
}

Softmax softmax_of(const float* z, int64_t n, float up) {
  Softmax s;
  s.top = row_max(z, n);
  s.up = up;
  vf sum = {};
  for (int64_t j = 0; j < n; j += W) sum += exp_nonpositive((lanes_of(z, j, n) - s.top) * up);
  s.sum = hsum(sum);
  s.log_sum = vlog(splat(s.sum))[0];
  return s;
}

// P = ce f32 [rows], kl f32 [rows], ds f32 [rows, V], s f32 [rows, V], t f32 [rows, Vt], target i32 [rows],
// rowscale f32 [rows]; I = rows, V, Vt, shared, ignore; F = hard, soft, temperature, zcoef
void distil_loss(const Call& c) {
  const int64_t rows = c.i[0], V = c.i[1], Vt = c.i[2], shared = c.i[3], ignore = c.i[4];
  const float hard = static_cast<float>(c.f[0]), soft = static_cast<float>(c.f[1]);
  const float T = static_cast<float>(c.f[2]), zcoef = static_cast<float>(c.f[3]);
  const int32_t* const target = c.ptr<const int32_t>(5);
  for (int64_t r = 0; r < rows; r++)
    if (target[r] != ignore && (target[r] < 0 || target[r] >= V)) return raise(INDEX_OUT_OF_RANGE, target[r], V);
  parallel_range(rows, DISTIL_ROWS, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      float *const ce = c.ptr<float>(0) + r, *const kl = c.ptr<float>(1) + r, *const ds = c.ptr<float>(2) + r * V;
      const float *const s = c.ptr<const float>(3) + r * V, *const t = c.ptr<const float>(4) + r * Vt;
      if (target[r] == ignore) {
        *ce = *kl = 0;
        std::memset(ds, 0, static_cast<size_t>(V) * 4);
        continue;
      }
      const Softmax own = softmax_of(s, V, 1), student = softmax_of(s, shared, 1 / T), teacher = softmax_of(t, shared, 1 / T);
      const float lse = own.top + own.log_sum, scale = c.ptr<const float>(6)[r];
      *ce = lse - s[target[r]] + zcoef * lse * lse;
      const float grow = scale * hard * (1 + 2 * zcoef * lse) / own.sum;
      const float push = scale * soft * T / student.sum, pull = scale * soft * T / teacher.sum;
      vf apart = {};
      for (int64_t j = 0; j < V; j += W) {
        const vf z = lanes_of(s, j, V);
        vf g = exp_nonpositive(z - own.top) * grow;
        if (j < shared) {
          // What lies beyond the shared tokens is -inf in both, and counts nothing.
          const vf zs = lanes_of(s, j, shared), zt = lanes_of(t, j, shared);
          const vf pt = exp_nonpositive((zt - teacher.top) * teacher.up);
          const vf by = (zt - teacher.top) * teacher.up - (zs - student.top) * student.up;
          apart += select(zt > -__builtin_inff(), pt * by, splat(0.0f));
          const vf soft_part = exp_nonpositive((zs - student.top) * student.up) * push - pt * pull;
          g += select(zs > -__builtin_inff(), soft_part, splat(0.0f));
        }
        if (V - j >= W) store(ds + j, g);
        else store_n(ds + j, g, V - j);
      }
      ds[target[r]] -= scale * hard;
      *kl = hsum(apart) / teacher.sum - teacher.log_sum + student.log_sum;
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(distil_loss, {"distil_loss", distil_loss})
