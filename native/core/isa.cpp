#include "isa.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <fstream>
#endif

namespace ansatz {
namespace {

std::string trimmed(const std::string& s) {
  const size_t begin = s.find_first_not_of(" \t"), end = s.find_last_not_of(" \t\n");
  return begin == std::string::npos ? std::string() : s.substr(begin, end - begin + 1);
}

#if defined(__x86_64__)

struct Regs { uint32_t a = 0, b = 0, c = 0, d = 0; };

// All zero where the leaf does not exist, so an absent leaf reads as "no features".
Regs cpuid(uint32_t leaf, uint32_t sub = 0) {
  Regs r;
  __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);
  return r;
}

// Extended control register 0: the register states that the operating system saves (Intel SDM vol. 1, 13.3). Written
// as an instruction because the intrinsic needs -mxsave. Only legal when CPUID reports OSXSAVE.
uint64_t xcr0() {
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return static_cast<uint64_t>(hi) << 32 | lo;
}

bool bit(uint32_t word, int k) { return word >> k & 1; }

Level detect() {
  const Regs l1 = cpuid(1), l7 = cpuid(7), l7s1 = cpuid(7, 1);
  if (!bit(l1.c, 27)) return PORTABLE;                                  // OSXSAVE
  const uint64_t state = xcr0();
  const bool ymm = (state & 0x06) == 0x06, zmm = (state & 0xe6) == 0xe6;   // xmm, ymm; opmask, zmm0-15 high, zmm16-31
  const bool avx2 = ymm && bit(l1.c, 28) && bit(l1.c, 12) && bit(l1.c, 29) &&   // AVX, FMA, F16C
                    bit(l7.b, 5) && bit(l7.b, 3) && bit(l7.b, 8);               // AVX2, BMI1, BMI2
  if (!avx2) return PORTABLE;
  const bool avx512 = zmm && bit(l7.b, 16) && bit(l7.b, 17) && bit(l7.b, 30) && bit(l7.b, 31) &&   // F, DQ, BW, VL
                      bit(l7.c, 1) && bit(l7.c, 11) && bit(l7s1.a, 5);                             // VBMI, VNNI, BF16
  return avx512 ? AVX512 : AVX2;
}

#else

Level detect() { return PORTABLE; }

#endif

}  // namespace

Level best_level() {
  static const Level level = detect();
  return level;
}

bool level_supported(Level level) { return level <= best_level(); }

const char* level_name(Level level) {
  switch (level) {
    case AVX512: return "avx512";
    case AVX2: return "avx2";
    default: return "portable";
  }
}

std::string cpu_name() {
  std::string name;
#if defined(__x86_64__)
  if (cpuid(0x80000000u).a >= 0x80000004u) {
    char brand[49] = {};
    for (uint32_t k = 0; k < 3; k++) {
      const Regs r = cpuid(0x80000002u + k);
      std::memcpy(brand + 16 * k, &r, 16);
    }
    name = brand;
  }
#elif defined(__APPLE__)
  char brand[128] = {};
  size_t size = sizeof brand - 1;
  if (sysctlbyname("machdep.cpu.brand_string", brand, &size, nullptr, 0) == 0) name = brand;
#else
  // arm64 kernels name the core in different keys, or only by numbers.
  std::ifstream info("/proc/cpuinfo");
  std::string line, part;
  while (name.empty() && std::getline(info, line)) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = trimmed(line.substr(0, colon)), value = trimmed(line.substr(colon + 1));
    if (key == "model name" || key == "Model" || key == "Hardware") name = value;
    if (part.empty() && key == "CPU part") part = "arm64 core, part " + value;
  }
  if (name.empty()) name = part;
#endif
  name = trimmed(name);
  return name.empty() ? "unknown CPU" : name;
}

}  // namespace ansatz
