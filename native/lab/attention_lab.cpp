// Attention against a naive float64 reference on random problems at every instruction-set level, and its speed.
//
//   cd native; x86="-mavx2 -mfma -mf16c -mbmi2"; x512="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16"
//   k() { g++ -std=c++17 -O2 -ffp-contract=fast -fno-math-errno -fno-trapping-math -DANSATZ_LEVEL=$*; }
//   k portable -c cpu/attention.cpp -o /tmp/a0.o; k avx2 $x86 -c cpu/attention.cpp -o /tmp/a1.o
//   k avx512 $x86 $x512 -c cpu/attention.cpp -o /tmp/a2.o
//   g++ -std=c++17 -O2 lab/attention_lab.cpp core/pool.cpp /tmp/a?.o -pthread -o /tmp/attention_lab
//
//   /tmp/attention_lab check [cases] [seed]
//   /tmp/attention_lab time [level] [f32|bf16] [B,T,H,D[,window]]...
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "../core/pool.h"
#include "attention_reference.h"

namespace ansatz {
extern const KernelTable table_attention_portable, table_attention_avx2, table_attention_avx512;
void raise(ErrorCode, int64_t value, int64_t limit) { std::printf("raise %ld %ld\n", long(value), long(limit)); }
}  // namespace ansatz

static const struct { const char* name; const KernelTable* table; } levels[] = {
    {"portable", &table_attention_portable}, {"avx2", &table_attention_avx2}, {"avx512", &table_attention_avx512}};

// Largest error over tokens x width values, relative to the reference's largest value (at least 1).
template <class Get> static double error(const Get& get, const std::vector<double>& ref, int64_t width) {
  double worst = 0, size = 1;
  for (int64_t k = 0; k < int64_t(ref.size()); k++) {
    const double x = get(k / width, k % width), e = x == ref[k] ? 0 : std::fabs(x - ref[k]);   // -inf equals -inf
    worst = e > worst || std::isnan(e) ? e : worst;
    if (std::isfinite(ref[k])) size = std::max(size, std::fabs(ref[k]));
  }
  return worst / size;
}
static double error(const Tensor& t, const std::vector<double>& ref, int64_t width, int64_t token, int64_t at) {
  return error([&](int64_t n, int64_t d) { return t.get(n * token + at + d); }, ref, width);
}
static double error(const std::vector<float>& x, const std::vector<double>& ref) {
  return error([&](int64_t n, int64_t) { return double(x[n]); }, ref, 1);
}
// Whether the parts of the tokens that belong to nobody still hold what they held.
static bool untouched(const Tensor& t, int64_t tokens, int64_t token, int64_t from) {
  const int64_t size = t.dtype == BF16 ? 2 : 4;
  for (int64_t k = 0; k < tokens * token * size; k++)
    if (k % (token * size) >= from * size && t.data[k] != 0x5a) return false;
  for (size_t k = t.data.size() - 64; k < t.data.size(); k++)
    if (t.data[k] != 0x5a) return false;
  return true;
}

static Case random_case() {
  Case c = {};
  const int dims[] = {1, 3, 8, 16, 20, 32, 33, 48, 64, 64, 65, 80, 96, 128, 256};
  c.B = pick(1, 3), c.Hkv = pick(1, 3), c.H = c.Hkv * pick(1, 3), c.D = dims[pick(0, 14)];
  c.Tk = pick(0, 3) ? pick(1, 150) : pick(1, 700), c.Tq = pick(0, 1) ? c.Tk : pick(1, 150);
  c.causal = pick(0, 1), c.window = pick(0, 1) ? 0 : pick(0, 1) ? pick(1, 40) : pick(40, 400);
  c.bias_mode = pick(0, 2), c.segments = pick(0, 1) ? pick(1, 90) : 0;
  c.dtype = pick(0, 1) ? BF16 : F32;
  c.grad_dtype = pick(0, 3) ? c.dtype : F32, c.dout_dtype = pick(0, 3) ? c.dtype : F32;
  c.qkv_token = (c.H + 2 * c.Hkv) * c.D + pick(0, 1) * pick(0, 9), c.out_token = c.H * c.D + pick(0, 1) * pick(0, 9);
  c.grad_token = (c.H + 2 * c.Hkv) * c.D + pick(0, 1) * pick(0, 9);
  c.scale = pick(0, 5) ? 1 / std::sqrt(double(c.D)) : pick(0, 1) ? -0.3 : 0.0;
  c.make();
  return c;
}

static int check(int cases) {
  double worst[3][2][6] = {};
  int bad = 0;
  for (int n = 0; n < cases; n++) {
    Case c = random_case();
    const Reference ref = naive(c);
    for (int l = 0; l < 3; l++) {
      std::vector<char> kept;
      for (int threads : {2, 1, 3}) {
        Case x = c;
        pool_resize(threads);
        x.run(*levels[l].table, false), x.run(*levels[l].table, true);
        const double e[6] = {error(x.out, ref.out, c.H * c.D, c.out_token, 0), error(x.lse, ref.lse),
                             error(x.dqkv, ref.dq, c.H * c.D, c.grad_token, 0),
                             error(x.dkv, ref.dk, c.Hkv * c.D, c.grad_token, c.k_at),
                             error(x.dkv, ref.dv, c.Hkv * c.D, c.grad_token, c.v_at), error(x.dbias, ref.dbias)};
        bool fine = untouched(x.out, c.B * c.Tq, c.out_token, c.H * c.D) &&
                    untouched(x.dqkv, c.B * c.Tq, c.grad_token, c.H * c.D) &&
                    untouched(x.dkv, c.B * c.Tk, c.grad_token, (c.H + 2 * c.Hkv) * c.D);
        for (int k = 0; k < 6; k++) {
          double& w = worst[l][c.dtype == BF16][k];
          w = e[k] > w || std::isnan(e[k]) ? e[k] : w;
          fine = fine && e[k] < (c.dtype == BF16 ? 2e-2 : 2e-5);
        }
        std::vector<char> bits = x.out.data;
        for (auto* v : {&x.dqkv.data, &x.dkv.data}) bits.insert(bits.end(), v->begin(), v->end());
        bits.insert(bits.end(), (char*)x.dbias.data(), (char*)(x.dbias.data() + x.dbias.size()));
        if (kept.empty()) kept = bits;
        if (bits != kept || !fine) {
          bad++;
          std::printf("BAD %s dtype%d B%ld Tq%ld Tk%ld H%ld/%ld D%ld causal%ld window%ld bias%ld segments%ld scale%g:",
                      levels[l].name, c.dtype, c.B, c.Tq, c.Tk, c.H, c.Hkv, c.D, c.causal, c.window, c.bias_mode,
                      c.segments, c.scale);
          for (double x : e) std::printf(" %.1e", x);
          std::printf(" same bits %d, %d threads\n", bits == kept, threads);
        }
      }
    }
  }
  std::printf("worst error         out     lse     dq      dk      dv      dbias\n");
  for (int l = 0; l < 3; l++)
    for (int t = 0; t < 2; t++) {
      std::printf("%-8s dtype %-4s", levels[l].name, t ? "bf16" : "f32");
      for (double x : worst[l][t]) std::printf(" %.1e", x);
      std::printf("\n");
    }
  std::printf("%d cases, %d bad\n", cases, bad);
  return bad != 0;
}

static void time_case(const KernelTable& table, int32_t dtype, const std::array<int64_t, 5>& shape) {
  const auto [B, T, H, D, window] = shape;
  Case c = {};
  c.B = B, c.Tq = c.Tk = T, c.H = c.Hkv = H, c.D = D, c.causal = 1, c.dtype = c.grad_dtype = c.dout_dtype = dtype;
  c.qkv_token = c.grad_token = 3 * H * D, c.out_token = H * D, c.scale = 1 / std::sqrt(double(D));
  c.window = window;
  c.make();
  c.kv = c.qkv;
  double best[2] = {1e9, 1e9};
  const auto start = std::chrono::steady_clock::now();
  for (int n = 0; n < 5 || std::chrono::steady_clock::now() - start < std::chrono::milliseconds(1500); n++)
    for (int k = 0; k < 2; k++) {
      const auto t0 = std::chrono::steady_clock::now();
      c.run(table, k);
      best[k] = std::min(best[k], std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count());
    }
  const double flop = 2.0 * B * H * T * T * D;   // two products, causal half (a window is not counted)
  std::printf("B=%ld T=%ld H=%ld D=%ld: forward %.3f ms (%.0f GFLOP/s), backward %.3f ms (%.0f), both %.3f ms\n", B, T,
              H, D, best[0] * 1e3, flop / best[0] * 1e-9, best[1] * 1e3, 2.5 * flop / best[1] * 1e-9,
              (best[0] + best[1]) * 1e3);
}

int main(int argc, char** argv) {
  if (argc > 1 && !std::strcmp(argv[1], "check")) {
    rng.seed(argc > 3 ? std::atoi(argv[3]) : 1);
    return check(argc > 2 ? std::atoi(argv[2]) : 100);
  }
  const char* level = argc > 2 ? argv[2] : "avx512";
  const int32_t dtype = argc > 3 && !std::strcmp(argv[3], "f32") ? F32 : BF16;
  pool_keep_hot(true);
  std::vector<std::array<int64_t, 5>> shapes;
  for (int k = 4; k < argc; k++) {
    std::array<int64_t, 5> s = {0, 0, 0, 0, 0};
    if (std::sscanf(argv[k], "%ld,%ld,%ld,%ld,%ld", &s[0], &s[1], &s[2], &s[3], &s[4]) >= 4) shapes.push_back(s);
  }
  if (shapes.empty()) shapes = {{8, 256, 4, 64, 0}, {2, 1024, 4, 64, 0}, {1, 4096, 4, 64, 0}, {1, 8192, 1, 64, 0}};
  for (const auto& l : levels)
    for (const auto& s : shapes)
      if (!std::strcmp(l.name, level)) time_case(*l.table, dtype, s);
  pool_shutdown();
}
