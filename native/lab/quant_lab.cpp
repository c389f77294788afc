// Products with weights in blocks, without Node: exactness, and bandwidth beside a plain read of memory.
//
//   F="-std=c++17 -O2 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi -pthread"
//   L2="-mavx2 -mfma -mf16c -mbmi2"
//   L5="$L2 -mprefer-vector-width=512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mavx512vbmi"
//   for f in quant_matmul quant_pack quant_units quant_choice; do g++ $F -DANSATZ_LEVEL=portable -c native/cpu/$f.cpp -o /tmp/$f.portable.o
//     g++ $F $L2 -DANSATZ_LEVEL=avx2 -c native/cpu/$f.cpp -o /tmp/$f.avx2.o
//     g++ $F $L5 -DANSATZ_LEVEL=avx512 -c native/cpu/$f.cpp -o /tmp/$f.avx512.o; done
//   g++ $F $L5 native/lab/quant_lab.cpp native/core/pool.cpp /tmp/quant_*.o -o /tmp/quant_lab
//   /tmp/quant_lab check [cases] [seed]   every level against float64, every tensor at the end of a guarded page
//   /tmp/quant_lab read                   bandwidth of one row's product, and of a plain sum, in turns
//   /tmp/quant_lab rows [level]           speed by number of rows
//   /tmp/quant_lab units                  layers that use one unit of each block: bandwidth of records, and of controllers
//   /tmp/quant_lab peak                   byte and bf16 products a second that one core can do
#include <immintrin.h>
#include <sys/mman.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../core/kernel.h"
#include "../core/pool.h"

namespace ansatz {
#define ANSATZ_TABLES(family) extern const KernelTable table_##family##_portable, table_##family##_avx2, table_##family##_avx512;
ANSATZ_TABLES(quant_matmul)
ANSATZ_TABLES(quant_pack)
ANSATZ_TABLES(quant_units)
ANSATZ_TABLES(quant_choice)
void raise(ErrorCode code, int64_t value, int64_t limit) {
  std::fprintf(stderr, "raise(%d): %lld, limit %lld\n", code, (long long)value, (long long)limit);
}
}  // namespace ansatz
using namespace ansatz;

static const char* const FORMATS[4] = {"q8", "q4", "bf16x16", "f32x16"};
static const int64_t TILE_BYTES[4] = {1088, 576, 2048, 4096};
static int64_t packed_bytes(int f, int64_t n, int64_t k) { return (n + 15) / 16 * ((k + 63) / 64) * TILE_BYTES[f]; }

static KernelFn find(const KernelTable& t, const char* name) {
  for (int k = 0; k < t.count; k++)
    if (!std::strcmp(t.entries[k].name, name)) return t.entries[k].fn;
  std::abort();
}
struct Level { const char* name; KernelFn matmul, pack, unpack; };
#define ANSATZ_LAB_LEVEL(l) {#l, find(table_quant_matmul_##l, "quant_matmul"), find(table_quant_pack_##l, "quant_pack"), find(table_quant_pack_##l, "quant_unpack")}
static const Level LEVELS[3] = {ANSATZ_LAB_LEVEL(portable), ANSATZ_LAB_LEVEL(avx2), ANSATZ_LAB_LEVEL(avx512)};

static std::mt19937_64 rng(1);
static int64_t pick(int64_t lo, int64_t hi) { return lo + int64_t(rng() % uint64_t(hi - lo + 1)); }
static float gauss() { return std::normal_distribution<float>()(rng); }
static float bf16_round(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  u = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
  std::memcpy(&x, &u, 4);
  return x;
}

// Memory that ends where a page without access begins.
struct Guarded {
  char* base;
  int64_t total, bytes;
  explicit Guarded(int64_t n) : bytes(n) {
    const int64_t pages = (n + 4095) / 4096 + 1;
    total = pages * 4096;
    base = static_cast<char*>(mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base + total - 4096, 4096, PROT_NONE);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base, total); }
  char* data() const { return base + total - 4096 - bytes; }
  float* floats() const { return reinterpret_cast<float*>(data()); }
};

static void call(KernelFn fn, std::vector<void*> p, std::vector<int32_t> t, std::vector<int64_t> i, std::vector<double> f = {}) {
  fn(Call{p.data(), t.data(), i.data(), f.data(), int32_t(p.size()), int32_t(i.size()), int32_t(f.size())});
}

static int failures = 0;
static void expect(bool ok, const std::string& what) {
  if (!ok && ++failures <= 20) std::printf("FAIL %s\n", what.c_str());
}

static void check_one() {
  const int f = int(pick(0, 3));
  const int64_t R = pick(0, 3) ? pick(1, 20) : pick(1, 80), N = pick(1, 150), K = pick(0, 3) ? pick(1, 300) : pick(1, 1500);
  const bool compute = pick(0, 1), bias = pick(0, 1), addend = pick(0, 1);
  const double alpha = pick(0, 1) ? 1 : 0.37;
  Guarded w(N * K * 4), back(N * K * 4), x(R * K * 4), b(N * 4), add(R * N * 4), packed(packed_bytes(f, N, K));
  const float unit = std::exp(2 * gauss());
  for (int64_t k = 0; k < N * K; k++) w.floats()[k] = gauss() * unit;
  for (int64_t k = 0; k < R * K; k++) x.floats()[k] = gauss() * std::exp(gauss());
  for (int64_t k = 0; k < N; k++) b.floats()[k] = gauss();
  for (int64_t k = 0; k < R * N; k++) add.floats()[k] = gauss();
  const int packer = int(pick(0, 2));
  call(LEVELS[packer].pack, {packed.data(), w.data(), nullptr}, {U8, F32, F32}, {1, N, K, f});
  call(LEVELS[packer].unpack, {back.data(), packed.data()}, {F32, U8}, {1, N, K, f});
  double e2 = 0, w2 = 0;
  for (int64_t k = 0; k < N * K; k++) e2 += std::pow(back.floats()[k] - w.floats()[k], 2), w2 += std::pow(w.floats()[k], 2);
  const double bound[4] = {0.0075, 0.12, 0.0022, 0};
  expect(std::sqrt(e2) <= bound[f] * std::sqrt(w2), std::string(FORMATS[f]) + " round trip " + std::to_string(std::sqrt(e2 / w2)));
  // What the product should be: activations quantised in float64 by the documented rule, sums in float64.
  std::vector<double> a(size_t(R * K));
  for (int64_t r = 0; r < R; r++)
    for (int64_t k0 = 0; k0 < K; k0 += 32) {
      float top = 0;
      const int64_t k1 = std::min(K, k0 + 32);
      for (int64_t k = k0; k < k1; k++) top = std::max(top, std::fabs(x.floats()[r * K + k]));
      for (int64_t k = k0; k < k1; k++) {
        const float v = x.floats()[r * K + k];
        a[size_t(r * K + k)] = f <= 1 ? (top > 0 ? double(std::nearbyint(v * (127.0f / top))) * double(top / 127.0f) : 0)
                                      : f == 2 && compute ? bf16_round(v) : v;
      }
    }
  std::vector<float> levels[3];
  for (int l = 0; l < 3; l++) {
    Guarded y(R * N * 4), alone(N * 4);
    call(LEVELS[l].matmul, {y.data(), x.data(), packed.data(), bias ? b.data() : nullptr, addend ? add.data() : nullptr},
         {F32, F32, U8, F32, F32}, {R, N, K, f, compute}, {alpha});
    levels[l].assign(y.floats(), y.floats() + R * N);
    for (int64_t r = 0; r < R; r++)
      for (int64_t n = 0; n < N; n++) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < K; k++) {
          const double t = a[size_t(r * K + k)] * back.floats()[n * K + k];
          sum += t, size += std::fabs(t);
        }
        const double want = alpha * sum + (bias ? b.floats()[n] : 0) + (addend ? add.floats()[r * N + n] : 0);
        const double allowed = 4e-7 * std::sqrt(double(K)) * size * alpha + 1e-6 * std::fabs(want) + 1e-6;
        const float got = y.floats()[r * N + n];
        expect(std::fabs(got - want) <= allowed, std::string(FORMATS[f]) + " " + LEVELS[l].name + " R" + std::to_string(R) +
               " N" + std::to_string(N) + " K" + std::to_string(K) + ": " + std::to_string(got) + " for " + std::to_string(want));
      }
    const int64_t r = pick(0, R - 1);
    Guarded one(K * 4), more(N * 4);
    std::memcpy(one.data(), x.floats() + r * K, size_t(K) * 4);
    std::memcpy(more.data(), add.floats() + r * N, size_t(N) * 4);
    call(LEVELS[l].matmul, {alone.data(), one.data(), packed.data(), bias ? b.data() : nullptr, addend ? more.data() : nullptr},
         {F32, F32, U8, F32, F32}, {1, N, K, f, compute}, {alpha});
    expect(!std::memcmp(alone.data(), y.floats() + r * N, size_t(N) * 4),
           std::string(FORMATS[f]) + " " + LEVELS[l].name + ": a row alone differs, R " + std::to_string(R));
  }
  for (int64_t k = 0; f != 2 && k < R * N; k++)
    expect(levels[1][size_t(k)] == levels[2][size_t(k)], std::string(FORMATS[f]) + ": avx2 and avx512 differ");
}

#include "quant_lab_speed.h"

int main(int argc, char** argv) {
  pool_keep_hot(true);   // as in a replayed program
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "read") speed_read();
  else if (what == "peak") peak();
  else if (what == "units") speed_units();
  else if (what == "rows") {
    int level = 2;
    for (int l = 0; l < 3; l++)
      if (argc > 2 && !std::strcmp(argv[2], LEVELS[l].name)) level = l;
    speed_rows(level);
  } else {
    const int cases = argc > 2 ? std::atoi(argv[2]) : 300;
    if (argc > 3) rng.seed(uint64_t(std::atoll(argv[3])));
    for (int k = 0; k < cases; k++) check_one();
    std::printf("%d cases, %d failures\n", cases, failures);
  }
  return failures > 0;
}
