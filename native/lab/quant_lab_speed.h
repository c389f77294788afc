// Speeds of quant_lab.cpp: short samples in turns with a plain read of memory, since the machine is shared.
#pragma once

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
static double cpu() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}
static char* huge(int64_t bytes) {
  char* p = static_cast<char*>(std::aligned_alloc(2 << 20, (bytes + (2 << 20) - 1) / (2 << 20) * (2 << 20)));
  madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

static float sink;
static void plain_read(const char* p, int64_t bytes) {
  const int64_t pieces = pool_threads(), each = bytes / pieces / 512 * 512;
  parallel(pieces, [&](int64_t task, int) {
    const char* q = p + task * each;
    __m512 s[8] = {};
    for (int64_t k = 0; k < each; k += 512)
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) s[j] = _mm512_add_ps(s[j], _mm512_load_ps(q + k + j * 64));
    for (int j = 1; j < 8; j++) s[0] += s[j];
    sink = sink + s[0][0];
  });
}

// Weights of random codes with scales that keep the results finite.
static void fill(char* p, int f, int64_t bytes) {
  for (int64_t k = 0; k < bytes; k += 8) {
    const uint64_t r = rng();
    std::memcpy(p + k, &r, 8);
  }
  if (f == 2 || f == 3)
    for (int64_t k = 0; k < bytes; k += 2) {
      uint16_t u;
      std::memcpy(&u, p + k, 2);
      u = uint16_t((u & 0x807f) | 0x3f00);
      std::memcpy(p + k, &u, 2);
    }
  else
    for (int64_t t = 0; t < bytes; t += TILE_BYTES[f])
      for (int s = 0; s < 32; s++) {
        const uint16_t one = 0x3c00;
        std::memcpy(p + t + 2 * s, &one, 2);
      }
}

static void speed_read() {
  const int64_t total = int64_t(1) << 30;
  char* const memory = huge(total);
  for (int f = 0; f < 4; f++) {
    fill(memory, f, total / TILE_BYTES[f] * TILE_BYTES[f]);
    for (int64_t K : {1024, 2048, 4096}) {
      const int64_t N = f == 3 ? 16384 : 32768, bytes = packed_bytes(f, N, K), count = total / bytes;
      std::vector<float> x(size_t(K), 0.5f), y(static_cast<size_t>(N));
      double read = 0, ours = 0;
      // Short samples in turns, each of another piece of memory: the best are those that nobody disturbed.
      for (int64_t m = 0; m < 400 && m < 40 * count; m++) {
        char* const at = memory + m % count * bytes;
        char* const other = memory + (m + count / 2) % count * bytes;
        const double a = now();
        plain_read(other, bytes);
        const double b = now();
        call(LEVELS[2].matmul, {y.data(), x.data(), at, nullptr, nullptr}, {F32, F32, U8, F32, F32}, {1, N, K, f, 1}, {1});
        const double c = now();
        read = std::max(read, double(bytes) / (b - a) * 1e-9);
        ours = std::max(ours, double(bytes) / (c - b) * 1e-9);
      }
      std::printf("%-8s K %5lld  %6.1f MB a matrix  read %5.1f GB/s  product %5.1f GB/s  %5.1f%%\n", FORMATS[f], (long long)K,
                  double(bytes) * 1e-6, read, ours, 100 * ours / read);
      std::fflush(stdout);
    }
  }
}

static void speed_rows(int level) {
  const int64_t N = 4096, K = 4096;
  char* const memory = huge(packed_bytes(3, N, K) * 4);
  std::vector<float> x(size_t(1024 * K)), y(size_t(1024 * N));
  for (auto& v : x) v = gauss();
  for (int f = 0; f < 4; f++) {
    const int64_t bytes = packed_bytes(f, N, K), copies = packed_bytes(3, N, K) * 4 / bytes;
    fill(memory, f, bytes * copies);
    for (int64_t R : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64, 128, 512}) {
      // A sample goes over all copies where reading them is what counts: a copy that is still cached would flatter.
      const int64_t sweep = R <= 32 ? copies : 1;
      double best = 1e9, used = 1e9;
      int64_t m = 0;
      for (double end = now() + 0.5; now() < end;) {
        const double a = now(), c = cpu();
        for (int64_t k = 0; k < sweep; k++)
          call(LEVELS[level].matmul, {y.data(), x.data(), memory + m++ % copies * bytes, nullptr, nullptr}, {F32, F32, U8, F32, F32}, {R, N, K, f, 1}, {1});
        best = std::min(best, (now() - a) / double(sweep));
        used = std::min(used, (cpu() - c) / double(sweep));
      }
      if (pool_threads() == 1) best = used;   // what others take from the core does not count
      std::printf("%-8s R %4lld  %8.3f ms  %6.1f GB/s of weights  %7.1f Gop/s\n", FORMATS[f], (long long)R, best * 1e3,
                  double(bytes) / best * 1e-9, 2.0 * double(R * N * K) / best * 1e-9);
      std::fflush(stdout);
    }
  }
}

static void speed_units() {
  const KernelFn layer = find(table_quant_units_avx512, "sparse_units"), choose = find(table_quant_choice_avx512, "unit_choice");
  const char* const types[4] = {"q8", "q4", "bf16", "f32"};
  const int64_t total = int64_t(2) << 30;
  char* const memory = huge(total);
  struct Size { int64_t d, F, N, r; };
  for (const Size z : {Size{1024, 4096, 64, 16}, Size{4096, 16384, 64, 64}, Size{9216, 65536, 256, 32}})
    for (int f = 0; f < 4; f++) {
      const int64_t A = z.F / z.N, padded = (z.d + 63) / 64 * 64;
      const int64_t codes = f == 0 ? padded : f == 1 ? padded / 2 : f == 2 ? padded * 2 : padded * 4;
      const int64_t part = (codes + (f < 2 ? padded / 16 : 0) + 63) / 64 * 64, record = 2 * part;
      const int64_t copies = std::max(int64_t(1), std::min(int64_t(64), total / (z.F * record)));
      if (z.F * record > total) continue;
      for (int64_t k = 0; k < copies * z.F * record; k += 4) {
        // Values of about one, and scales too, whatever they are read as.
        const uint32_t r = uint32_t(rng());
        const uint32_t u = f == 3 ? (r & 0x807fffff) | 0x3f000000 : f == 2 ? (r & 0x807f807f) | 0x3f003f00 : r;
        std::memcpy(memory + k, &u, 4);
      }
      if (f < 2)
        for (int64_t q = 0; q < copies * z.F * 2; q++)
          for (int64_t g = 0; g < padded / 32; g++) {
            const uint16_t one = 0x3c00;
            std::memcpy(memory + q * part + codes + 2 * g, &one, 2);
          }
      for (int64_t R : {1, 8, 64}) {
        std::vector<float> x(size_t(R * z.d)), y(size_t(R * z.d));
        for (auto& v : x) v = gauss();
        std::vector<std::vector<int32_t>> choices(16, std::vector<int32_t>(size_t(R * A)));
        for (auto& c : choices) for (auto& v : c) v = int32_t(pick(0, z.N - 1));
        int32_t touched[4];
        double best = 0, read = 0, bytes = 0, time = 0;
        for (int m = 0; m < (R > 8 ? 30 : 200); m++) {
          char* const at = memory + m % copies * z.F * record;
          const double a = now();
          plain_read(memory + (m + copies / 2) % copies * z.F * record / 4096 * 4096, std::min(z.F * record, int64_t(16) << 20));
          const double b = now();
          call(layer, {y.data(), touched, x.data(), choices[size_t(m % 16)].data(), at, nullptr, nullptr, nullptr, nullptr, nullptr},
               {F32, I32, F32, I32, U8, F32, F32, F32, F32, F32}, {R, z.d, z.F, z.N, f, 0}, {1});
          const double c = now();
          const double n = double(touched[0] + touched[1]) * double(part);
          read = std::max(read, double(std::min(z.F * record, int64_t(16) << 20)) / (b - a) * 1e-9);
          if (n / (c - b) * 1e-9 > best) best = n / (c - b) * 1e-9, bytes = n, time = c - b;
        }
        std::printf("%-5s d %5lld F %6lld N %4lld  R %3lld  %8.2f MB touched in %8.1f us  %5.1f GB/s  (plain %5.1f)  %.0f%%\n", types[f],
                    (long long)z.d, (long long)z.F, (long long)z.N, (long long)R, bytes * 1e-6, time * 1e6, best, read, 100 * best / read);
        std::fflush(stdout);
      }
      if (f == 3 || f == 2) {
        const int64_t bytes = z.r * (z.d + z.F) * (f == 3 ? 4 : 2), n = total / bytes;
        std::vector<float> x(size_t(z.d), 0.1f);
        std::vector<int32_t> c(static_cast<size_t>(A));
        double best = 1e9;
        for (int m = 0; m < 300; m++) {
          char* const at = memory + m % n * bytes;
          const double a = now();
          call(choose, {c.data(), x.data(), at, at + z.r * z.d * (f == 3 ? 4 : 2), nullptr}, {I32, F32, f == 3 ? F32 : BF16, f == 3 ? F32 : BF16, F32},
               {1, z.d, z.r, z.F, z.N});
          best = std::min(best, now() - a);
        }
        std::printf("%-5s controller r %lld  %6.2f MB in %7.1f us  %5.1f GB/s\n", types[f], (long long)z.r, double(bytes) * 1e-6, best * 1e6, double(bytes) / best * 1e-9);
      }
    }
}

// Twelve independent sums keep two units of any usual latency busy.
#define ANSATZ_TWELVE(op)                                                                                      \
  op " %%zmm0, %%zmm0, %%zmm1\n" op " %%zmm0, %%zmm0, %%zmm2\n" op " %%zmm0, %%zmm0, %%zmm3\n"                  \
  op " %%zmm0, %%zmm0, %%zmm4\n" op " %%zmm0, %%zmm0, %%zmm5\n" op " %%zmm0, %%zmm0, %%zmm6\n"                  \
  op " %%zmm0, %%zmm0, %%zmm7\n" op " %%zmm0, %%zmm0, %%zmm8\n" op " %%zmm0, %%zmm0, %%zmm9\n"                  \
  op " %%zmm0, %%zmm0, %%zmm10\n" op " %%zmm0, %%zmm0, %%zmm11\n" op " %%zmm0, %%zmm0, %%zmm12\n"
template <class F> static void peak_of(const char* name, double ops, const F& twelve) {
  double best = 0;
  for (int round = 0; round < 20; round++) {
    const double a = cpu();
    for (int k = 0; k < 400000; k++) twelve();
    best = std::max(best, 400000 * 12 * ops / (cpu() - a) * 1e-9);
  }
  std::printf("%s: %.0f G/s a core\n", name, best);
}

static void peak() {
  peak_of("vpdpbusd, 128 operations", 128, [] { asm volatile(ANSATZ_TWELVE("vpdpbusd") ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12"); });
  peak_of("vdpbf16ps, 64 operations", 64, [] { asm volatile(ANSATZ_TWELVE("vdpbf16ps") ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12"); });
}
