// Checks and times the matrix products and the fused loss of every instruction-set level this CPU has, without Node.
//
//   F="-std=c++17 -O2 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi -pthread"
//   L2="-mavx2 -mfma -mf16c -mbmi2"
//   L5="$L2 -mprefer-vector-width=512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mavx512vbmi"
//   for f in gemm linear_loss; do g++ $F -DANSATZ_LEVEL=portable -c native/cpu/$f.cpp -o /tmp/$f.portable.o
//     g++ $F $L2 -DANSATZ_LEVEL=avx2 -c native/cpu/$f.cpp -o /tmp/$f.avx2.o
//     g++ $F $L5 -DANSATZ_LEVEL=avx512 -c native/cpu/$f.cpp -o /tmp/$f.avx512.o; done
//   g++ $F native/lab/gemm_lab.cpp native/core/pool.cpp /tmp/gemm.*.o /tmp/linear_loss.*.o -o /tmp/gemm_lab
//   /tmp/gemm_lab check 2000 [seed]    random products and losses against float64
//   /tmp/gemm_lab bench [level] [name] GFLOP/s: best of many short runs (ANSATZ_THREADS sets the threads)
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "../core/kernel.h"
#include "../core/pool.h"

namespace ansatz {
extern const KernelTable table_gemm_portable, table_gemm_avx2, table_gemm_avx512;
extern const KernelTable table_linear_loss_portable, table_linear_loss_avx2, table_linear_loss_avx512;
void raise(ErrorCode code, int64_t value, int64_t limit) {
  std::fprintf(stderr, "raise(%d): %lld, limit %lld\n", code, (long long)value, (long long)limit);
}
}  // namespace ansatz
using namespace ansatz;

struct Level { const char* name; KernelFn matmul, loss; bool runs; };
static std::vector<Level> levels() {
  return {{"portable", table_gemm_portable.entries[0].fn, table_linear_loss_portable.entries[0].fn, true},
          {"avx2", table_gemm_avx2.entries[0].fn, table_linear_loss_avx2.entries[0].fn,
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
          {"avx512", table_gemm_avx512.entries[0].fn, table_linear_loss_avx512.entries[0].fn,
           __builtin_cpu_supports("avx512bf16") != 0}};
}

static std::mt19937_64 rng(1);
static int64_t pick(int64_t lo, int64_t hi) { return lo + static_cast<int64_t>(rng() % uint64_t(hi - lo + 1)); }
static double gauss() { return std::normal_distribution<double>()(rng); }

static uint16_t bf16_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static float bf16_float(uint16_t b) {
  const uint32_t u = static_cast<uint32_t>(b) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
static double rounded(double x, bool to_bf16) { return to_bf16 ? bf16_float(bf16_bits(float(x))) : x; }

// A tensor that ends exactly at a poisoned tail, so that writes past the end are seen.
struct Array {
  int32_t type = F32;
  int64_t n = 0;
  std::vector<char> bytes;
  Array() = default;
  Array(int64_t count, int32_t t) : type(t), n(count), bytes(size_t(count) * size() + 64, char(0x7b)) {
    for (int64_t k = 0; k < n; k++) set(k, gauss());
  }
  int64_t size() const { return type == BF16 ? 2 : 4; }
  void set(int64_t k, double x) {
    const float f = float(x);
    const uint16_t h = bf16_bits(f);
    if (type == BF16) std::memcpy(&bytes[size_t(k) * 2], &h, 2);
    else std::memcpy(&bytes[size_t(k) * 4], &f, 4);
  }
  double get(int64_t k) const {
    uint16_t h;
    float f;
    if (type == BF16) return std::memcpy(&h, &bytes[size_t(k) * 2], 2), bf16_float(h);
    return std::memcpy(&f, &bytes[size_t(k) * 4], 4), f;
  }
  void* data() { return bytes.data(); }
  bool tail_intact() const {
    for (int64_t k = n * size(); k < int64_t(bytes.size()); k++) if (bytes[size_t(k)] != char(0x7b)) return false;
    return true;
  }
};

static int failures = 0;
static void expect(bool ok, const std::string& what) {
  if (!ok && ++failures <= 20) std::printf("FAIL %s\n", what.c_str());
}

static void call(KernelFn fn, std::vector<Array*> tensors, std::vector<int64_t> ints, std::vector<double> reals) {
  std::vector<void*> p;
  std::vector<int32_t> t;
  for (Array* a : tensors) p.push_back(a ? a->data() : nullptr), t.push_back(a ? a->type : F32);
  fn(Call{p.data(), t.data(), ints.data(), reals.data(), int32_t(p.size()), int32_t(ints.size()), int32_t(reals.size())});
}

static int64_t odd_size(int64_t big) {
  switch (pick(0, 5)) {
    case 0: return pick(0, 3);
    case 1: return pick(1, 20);
    case 2: return 16 * pick(1, 8);
    case 3: return pick(0, 9) == 0 ? pick(1, big) : pick(1, 70);
    default: return pick(1, 150);
  }
}

static void check_matmul() {
  int64_t batch = pick(0, 2) ? 1 : pick(0, 7), M = odd_size(600), N = odd_size(600), K = odd_size(5000);
  if (pick(0, 49) == 0) batch = 1, M = pick(300, 900), N = pick(17, 90), K = pick(1000, 9000);   // tall, several passes of K
  const bool ta = rng() & 1, tb = rng() & 1, compute = rng() & 1;
  const auto type = [] { return rng() & 1 ? int32_t(BF16) : int32_t(F32); };
  const int64_t gap = pick(0, 1) * pick(0, 5);
  const int64_t sa = pick(0, 3) ? M * K + gap : 0, sb = pick(0, 2) ? K * N + gap : 0, sc = M * N + gap;
  const double alpha = pick(0, 1) ? 1.0 : 0.37;
  Array a(batch * (M * K + gap), type()), b(batch * (K * N + gap), type()), c0(batch * sc, type()), bias(N, type());
  Array other(batch * sc, type());
  const bool has_bias = rng() & 1;
  const int addend = int(pick(0, 2));   // none, another tensor, C itself
  std::vector<double> rows(size_t(M * K)), columns(size_t(N * K));
  std::vector<double> want(size_t(batch * sc)), scale(size_t(batch * sc));
  for (int64_t z = 0; z < batch; z++) {
    for (int64_t i = 0; i < M; i++)
      for (int64_t k = 0; k < K; k++) rows[size_t(i * K + k)] = rounded(a.get(z * sa + (ta ? k * M + i : i * K + k)), compute);
    for (int64_t j = 0; j < N; j++)
      for (int64_t k = 0; k < K; k++) columns[size_t(j * K + k)] = rounded(b.get(z * sb + (tb ? j * K + k : k * N + j)), compute);
    for (int64_t i = 0; i < M; i++)
      for (int64_t j = 0; j < N; j++) {
        double sum = 0, mag = 0;
        for (int64_t k = 0; k < K; k++) {
          const double x = rows[size_t(i * K + k)] * columns[size_t(j * K + k)];
          sum += x, mag += std::fabs(x);
        }
        const int64_t at = z * sc + i * N + j;
        const double add = addend == 0 ? 0 : addend == 1 ? other.get(at) : c0.get(at), bb = has_bias ? bias.get(j) : 0;
        want[size_t(at)] = alpha * sum + bb + add;
        scale[size_t(at)] = mag * alpha + std::fabs(bb) + std::fabs(add);
      }
  }
  for (const Level& level : levels()) {
    if (!level.runs) continue;
    std::string first;
    for (int threads : {1, 2, 3}) {
      pool_resize(threads);
      Array c = c0;
      call(level.matmul, {&c, &a, &b, has_bias ? &bias : nullptr, addend == 0 ? nullptr : addend == 1 ? &other : &c},
           {batch, M, N, K, ta, tb, sa, sb, sc, compute}, {alpha});
      char what[200];
      std::snprintf(what, sizeof what, "%s matmul batch %d M %d N %d K %d ta %d tb %d types %d%d%d compute %d addend %d thr %d",
                    level.name, int(batch), int(M), int(N), int(K), ta, tb, a.type, b.type, c.type, compute, addend, threads);
      bool ok = c.tail_intact();
      for (int64_t z = 0; z < batch; z++)
        for (int64_t e = 0; e < sc; e++) {
          const int64_t at = z * sc + e;
          if (e >= M * N) ok = ok && c.get(at) == c0.get(at);
          else ok = ok && std::fabs(c.get(at) - want[size_t(at)]) <=
                          scale[size_t(at)] * (3e-7 * std::sqrt(double(K + 4))) + (c.type == BF16 ? std::fabs(want[size_t(at)]) / 200 : 0) + 1e-30;
        }
      expect(ok, what);
      const std::string bits(c.bytes.begin(), c.bytes.end());
      if (threads == 1) first = bits;
      expect(bits == first, std::string(what) + ": differs from one thread");
    }
  }
}

// Wall time, or on one thread its CPU time, which other processes on the machine disturb less.
static double seconds() {
  timespec t;
  clock_gettime(pool_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

static const char* only = nullptr;
static void bench(const Level& level, const char* name, int64_t batch, int64_t M, int64_t N, int64_t K, bool ta, bool tb,
                  int32_t at, int32_t bt, int32_t ct, bool compute, bool addend = false) {
  if (only && !std::strstr(name, only)) return;
  Array a(batch * M * K, at), b(batch * N * K, bt), c(batch * M * N, ct), res(addend ? M * N : 0, F32);
  double best = 1e9;
  pool_keep_hot(true);
  for (double start = seconds(); seconds() - start < 0.15;) {
    const double t = seconds();
    call(level.matmul, {&c, &a, &b, nullptr, addend ? &res : nullptr}, {batch, M, N, K, ta, tb, M * K, K * N, M * N, compute}, {1.0});
    best = std::fmin(best, seconds() - t);
  }
  pool_keep_hot(false);
  std::printf("%-9s %-26s %4d x %5d %5d %5d  %8.1f GFLOP/s  %9.1f us\n", level.name, name, int(batch), int(M), int(N), int(K),
              2e-9 * double(batch * M * N * K) / best, best * 1e6);
}

#include "gemm_lab_loss.h"

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  if (mode == "check") {
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 500;
    if (argc > 3) rng.seed(uint64_t(std::atoll(argv[3])));
    for (int k = 0; k < rounds; k++) check_matmul();
    for (int k = 0; k < rounds / 10; k++) check_loss();
    std::printf("%d rounds, %d failures\n", rounds, failures);
    pool_shutdown();
    return failures != 0;
  }
  if (argc > 3) only = argv[3];
  for (const Level& l : levels()) {
    if (!l.runs || (argc > 2 && std::string(argv[2]) != l.name)) continue;
    const int32_t H = BF16, S = F32;
    bench(l, "bf16 square", 1, 1024, 1024, 1024, false, false, H, H, H, true);
    bench(l, "bf16 square", 1, 2048, 2048, 2048, false, false, H, H, H, true);
    bench(l, "bf16 square transB", 1, 1024, 1024, 1024, false, true, H, H, H, true);
    bench(l, "bf16 square transA", 1, 1024, 1024, 1024, true, false, H, H, H, true);
    bench(l, "bf16 odd", 1, 1023, 1025, 1021, false, true, H, H, H, true);
    bench(l, "f32 square", 1, 1024, 1024, 1024, false, false, S, S, S, false);
    bench(l, "f32 square", 1, 2048, 2048, 2048, false, false, S, S, S, false);
    bench(l, "f32 square transA transB", 1, 1024, 1024, 1024, true, true, S, S, S, false);
    for (int64_t n : {256, 768, 1024}) bench(l, "forward X W^T", 1, 2048, n, 256, false, true, H, S, H, true);
    bench(l, "forward X W^T", 1, 2048, 256, 1024, false, true, H, S, H, true);
    bench(l, "forward + f32 residual", 1, 2048, 256, 256, false, true, H, S, S, true, true);
    bench(l, "head", 1, 2048, 4096, 256, false, true, H, S, S, true);
    for (int64_t n : {256, 768, 1024}) bench(l, "input grad dY W", 1, 2048, 256, n, false, false, H, S, H, true);
    bench(l, "input grad dY W", 1, 2048, 1024, 256, false, false, H, S, H, true);
    for (int64_t n : {256, 768, 1024}) bench(l, "weight grad dY^T X", 1, n, 256, 2048, true, false, H, H, S, true);
    bench(l, "weight grad dY^T X", 1, 256, 1024, 2048, true, false, H, H, S, true);
    bench(l, "weight grad long", 1, 256, 256, 16384, true, false, H, H, S, true);
    for (int64_t m : {1, 4, 16}) bench(l, "thin", 1, m, 1024, 1024, false, true, S, S, S, false);
    for (int64_t m : {1, 4, 16}) bench(l, "thin", 1, m, 1024, 1024, false, true, H, H, H, true);
    bench(l, "narrow", 1, 2048, 4, 1024, false, false, H, H, H, true);
    bench(l, "batched small", 256, 64, 64, 64, false, false, H, H, H, true);
    bench(l, "batched small", 256, 32, 32, 32, false, true, S, S, S, false);
    bench_loss(l);
  }
  pool_shutdown();
}
