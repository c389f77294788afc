// Which instruction-set level this CPU and its operating system can run. Kernel files are compiled once for each level.
#pragma once
#include <string>

namespace ansatz {

enum Level { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };

// A level counts only when the CPU has every extension its kernels were compiled with, and the operating system saves
// the registers it uses across context switches.
bool level_supported(Level level);
Level best_level();
const char* level_name(Level level);

std::string cpu_name();   // the brand string, or "unknown CPU"

}  // namespace ansatz
