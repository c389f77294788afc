// Attention problems for the lab, and a naive float64 reference of docs/kernels.md's `attention` and `attention_bwd`.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../core/kernel.h"

using namespace ansatz;

inline std::mt19937 rng(1);
inline int pick(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(rng); }

// A float tensor [B][T][token] of which `parts` of D-wide heads start at `offset`; the rest must stay untouched.
struct Tensor {
  int32_t dtype = F32;
  std::vector<char> data;
  void resize(int64_t n, int32_t type) { dtype = type, data.assign(n * (type == BF16 ? 2 : 4) + 64, 0x5a); }
  double get(int64_t k) const {
    uint32_t u;
    if (dtype == BF16) { uint16_t h; std::memcpy(&h, &data[2 * k], 2); u = uint32_t(h) << 16; }
    else std::memcpy(&u, &data[4 * k], 4);
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  void set(int64_t k, float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    const uint16_t h = uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    if (dtype == BF16) std::memcpy(&data[2 * k], &h, 2);
    else std::memcpy(&data[4 * k], &u, 4);
  }
  void* at(int64_t k) { return &data[k * (dtype == BF16 ? 2 : 4)]; }
};

struct Case {
  int64_t B, Tq, Tk, H, Hkv, D, causal, window, bias_mode, segments, qkv_token, out_token, grad_token, q_at, k_at, v_at;
  int32_t dtype, grad_dtype, dout_dtype;
  double scale;
  Tensor qkv, kv, out, dout, dqkv, dkv;   // q lives in qkv; k and v in kv (the same layout, T = Tk)
  std::vector<float> lse, bias, dbias;
  std::vector<int32_t> seg_q, seg_k;
  void make() {
    std::normal_distribution<float> normal;
    q_at = 0, k_at = H * D, v_at = (H + Hkv) * D;
    qkv.resize(B * Tq * qkv_token, dtype), kv.resize(B * Tk * qkv_token, dtype), out.resize(B * Tq * out_token, dtype);
    dout.resize(B * Tq * out_token, dout_dtype);
    dqkv.resize(B * Tq * grad_token, grad_dtype), dkv.resize(B * Tk * grad_token, grad_dtype);
    for (Tensor* t : {&qkv, &kv, &dout})
      for (size_t k = 0; k < (t->data.size() - 64) / (t->dtype == BF16 ? 2 : 4); k++) t->set(k, normal(rng));
    lse.assign(B * H * Tq, 7.0f);
    bias.assign(bias_mode == 1 ? H * (Tq + Tk - 1) : bias_mode == 2 ? H * Tq * Tk : 0, 0.0f);
    for (auto& x : bias) x = normal(rng);
    dbias.assign(bias.size(), 7.0f);
    seg_q.resize(segments ? B * Tq : 0), seg_k.resize(segments ? B * Tk : 0);
    for (size_t k = 0, s = 0; k < seg_q.size(); k++) seg_q[k] = int(s += pick(0, segments) == 0) % 7;
    for (size_t k = 0, s = 0; k < seg_k.size(); k++) seg_k[k] = int(s += pick(0, segments) == 0) % 7;
    if (segments && Tq == Tk && pick(0, 3)) seg_k = seg_q;
  }
  std::vector<int64_t> integers() const {
    return {B, Tq, Tk, H, Hkv, D, qkv_token, qkv_token, qkv_token, out_token, causal, window, bias_mode,
            grad_token, grad_token, grad_token, out_token};
  }
  template <class T> static void* pointer(std::vector<T>& v) { return v.empty() ? nullptr : v.data(); }
  void run(const KernelTable& table, bool backward) {
    const auto ints = integers();
    void* fp[] = {out.data.data(), lse.data(), qkv.at(q_at), kv.at(k_at), kv.at(v_at), pointer(bias), pointer(seg_q),
                  pointer(seg_k)};
    const int32_t ft[] = {dtype, F32, dtype, dtype, dtype, F32, I32, I32};
    void* bp[] = {dqkv.at(q_at), dkv.at(k_at), dkv.at(v_at), pointer(dbias), dout.data.data(), fp[2], fp[3], fp[4],
                  fp[0], fp[1], fp[5], fp[6], fp[7]};
    const int32_t bt[] = {grad_dtype, grad_dtype, grad_dtype, F32, dout_dtype, dtype, dtype, dtype, dtype, F32, F32,
                          I32, I32};
    const Call forward{fp, ft, ints.data(), &scale, 8, 13, 1}, back{bp, bt, ints.data(), &scale, 13, 17, 1};
    for (int k = 0; k < table.count; k++)
      if (!std::strcmp(table.entries[k].name, backward ? "attention_bwd" : "attention"))
        table.entries[k].fn(backward ? back : forward);
  }
};

struct Reference { std::vector<double> out, lse, dq, dk, dv, dbias; };

inline Reference naive(const Case& c) {
  Reference r;
  const int64_t nq = c.B * c.Tq * c.H * c.D, nk = c.B * c.Tk * c.Hkv * c.D, group = c.H / c.Hkv;
  r.out.assign(nq, 0), r.dq.assign(nq, 0), r.dk.assign(nk, 0), r.dv.assign(nk, 0);
  r.lse.assign(c.lse.size(), 0), r.dbias.assign(c.bias.size(), 0);
  std::vector<double> p(c.Tk);
  for (int64_t b = 0; b < c.B; b++)
    for (int64_t h = 0; h < c.H; h++)
      for (int64_t i = 0; i < c.Tq; i++) {
        const int64_t q = (b * c.Tq + i) * c.qkv_token + c.q_at + h * c.D, o = ((b * c.Tq + i) * c.H + h) * c.D;
        const int64_t d0 = (b * c.Tq + i) * c.out_token + h * c.D, pos = i + c.Tk - c.Tq;
        const auto kv = [&](int64_t j) { return (b * c.Tk + j) * c.qkv_token + h / group * c.D; };
        const auto slot = [&](int64_t j) {
          return c.bias_mode == 1 ? h * (c.Tq + c.Tk - 1) + j - pos + c.Tk - 1 : (h * c.Tq + i) * c.Tk + j;
        };
        double sum = 0, max = -INFINITY;
        for (int64_t j = 0; j < c.Tk; j++) {
          const bool near = !c.window || (pos - j < c.window && (c.causal || j - pos < c.window));
          const bool seen = (!c.causal || j <= pos) && near &&
                            (!c.segments || c.seg_q[b * c.Tq + i] == c.seg_k[b * c.Tk + j]);
          p[j] = 0;
          for (int64_t d = 0; d < c.D; d++) p[j] += c.qkv.get(q + d) * c.kv.get(kv(j) + c.k_at + d);
          p[j] = seen ? p[j] * c.scale + (c.bias_mode ? c.bias[slot(j)] : 0) : -INFINITY;
          max = std::max(max, p[j]);
        }
        for (int64_t j = 0; j < c.Tk; j++) sum += p[j] = p[j] == -INFINITY ? 0 : std::exp(p[j] - max);
        r.lse[(b * c.H + h) * c.Tq + i] = sum > 0 ? max + std::log(sum) : -INFINITY;
        double delta = 0;
        for (int64_t j = 0; j < c.Tk; j++)
          for (int64_t d = 0; p[j] > 0 && d < c.D; d++) r.out[o + d] += p[j] / sum * c.kv.get(kv(j) + c.v_at + d);
        for (int64_t d = 0; d < c.D; d++) delta += r.out[o + d] * c.dout.get(d0 + d);
        for (int64_t j = 0; j < c.Tk; j++) {
          if (!(p[j] > 0)) continue;
          double dp = 0;
          const int64_t g = ((b * c.Tk + j) * c.Hkv + h / group) * c.D;
          for (int64_t d = 0; d < c.D; d++) dp += c.dout.get(d0 + d) * c.kv.get(kv(j) + c.v_at + d);
          const double ds = p[j] / sum * (dp - delta);
          if (c.bias_mode) r.dbias[slot(j)] += ds;
          for (int64_t d = 0; d < c.D; d++) {
            r.dv[g + d] += p[j] / sum * c.dout.get(d0 + d);
            r.dk[g + d] += c.scale * ds * c.qkv.get(q + d);
            r.dq[o + d] += c.scale * ds * c.kv.get(kv(j) + c.k_at + d);
          }
        }
      }
  return r;
}
