// Calls decoded from the words that TypeScript writes, run one at a time (eager) or as a list (a captured step).
//
// Words of one call, all doubles (addresses and integers are exact below 2^53):
//   kernel id, np, ni, nf, (address, dtype) x np, ints, floats
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "kernel.h"

namespace ansatz {

struct Failure { ErrorCode code = OK; int64_t value = 0, limit = 0; int kernel = -1; };

class Program {
 public:
  // False when the words are malformed.
  bool load(const double* words, int64_t count);
  // Runs every call; stops at the first failure, and between two calls once `stop` is set. nanoseconds[k] receives each
  // call's time when not null.
  Failure run(double* nanoseconds, const std::atomic<bool>& stop) const;
  int size() const { return static_cast<int>(steps_.size()); }

 private:
  struct Step { KernelFn fn; int kernel; int64_t p, t, i, f; int32_t np, ni, nf; };
  std::vector<Step> steps_;
  std::vector<void*> pointers_;
  std::vector<int32_t> dtypes_;
  std::vector<int64_t> ints_;
  std::vector<double> floats_;
};

// Decodes and runs the call at `words` at once.
Failure run_now(const double* words);

// One kernel or program at a time: eager calls from any thread and replays exclude each other.
std::mutex& device_mutex();

}  // namespace ansatz
