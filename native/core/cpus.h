// How many threads this process can run at once. The machine may have more CPUs than it is given: by an affinity mask
// (taskset, cpusets, batch systems) or by a quota of CPU time (containers). A pool of spinning threads above the quota
// would use it up within a fraction of each period, and stand still for the rest.
#pragma once
#include <thread>

#if defined(__linux__)
#include <sched.h>

#include <cstdio>
#include <string>
#endif

namespace ansatz {

#if defined(__linux__)
namespace cpus {

// "quota period" in microseconds, as cgroup v2 writes them in one file and v1 in two; 0 when there is no limit.
inline double limit_in(const std::string& folder, bool v2) {
  double quota = 0, period = 0;
  const auto read = [](const std::string& path, const char* format, double* a, double* b) {
    std::FILE* f = std::fopen(path.c_str(), "r");
    if (!f) return false;
    const int wanted = b ? 2 : 1, got = b ? std::fscanf(f, format, a, b) : std::fscanf(f, format, a);
    std::fclose(f);
    return got == wanted;   // "max" is not a number
  };
  const bool limited = v2 ? read(folder + "/cpu.max", "%lf %lf", &quota, &period)
                          : read(folder + "/cpu.cfs_quota_us", "%lf", &quota, nullptr) &&
                                read(folder + "/cpu.cfs_period_us", "%lf", &period, nullptr);
  return limited && quota > 0 && period > 0 ? quota / period : 0;   // v1 says -1 for none
}

// The smallest limit of this process's control group and those above it; 0 when there is none. A container sees its own
// group as the root.
inline double quota() {
  double least = 0;
  std::FILE* f = std::fopen("/proc/self/cgroup", "r");
  if (!f) return 0;
  char line[4096];
  while (std::fgets(line, sizeof line, f)) {   // hierarchy:controllers:/path
    std::string text(line);
    while (!text.empty() && (text.back() == '\n' || text.back() == '/')) text.pop_back();
    const size_t first = text.find(':'), second = text.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + text.substr(first + 1, second - first - 1) + ",";
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (std::string path = text.substr(second + 1);; path.resize(path.rfind('/'))) {
      const double limit = limit_in(root + path, v2);
      if (limit > 0 && (least == 0 || limit < least)) least = limit;
      if (path.rfind('/') == std::string::npos) break;
    }
  }
  std::fclose(f);
  return least;
}

}  // namespace cpus
#endif

inline int usable_cpus() {
  int count = static_cast<int>(std::thread::hardware_concurrency());   // 0 when unknown
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  const double quota = cpus::quota();
  if (quota > 0 && quota < count) count = static_cast<int>(quota);
#endif
  return count < 1 ? 1 : count;
}

}  // namespace ansatz
