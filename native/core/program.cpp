#include "program.h"

#include <chrono>

#include "pool.h"
#include "registry.h"

namespace ansatz {
namespace {

std::atomic<int32_t> error_code{0};
int64_t error_value = 0, error_limit = 0;

constexpr int max_args = 64;

Failure take_failure(int kernel) {
  Failure failure;
  failure.code = static_cast<ErrorCode>(error_code.load(std::memory_order_acquire));
  if (failure.code == OK) return failure;
  failure.value = error_value;
  failure.limit = error_limit;
  failure.kernel = kernel;
  error_code.store(0);
  return failure;
}

}  // namespace

void raise(ErrorCode code, int64_t value, int64_t limit) {
  static std::mutex guard;
  std::lock_guard<std::mutex> lock(guard);
  if (error_code.load(std::memory_order_relaxed)) return;
  error_value = value;
  error_limit = limit;
  error_code.store(code, std::memory_order_release);
}

std::mutex& device_mutex() {
  static std::mutex mutex;
  return mutex;
}

Failure run_now(const double* w) {
  void* pointers[max_args];
  int32_t dtypes[max_args];
  int64_t ints[max_args];
  const int kernel = static_cast<int>(w[0]);
  Call call;
  call.np = static_cast<int32_t>(w[1]);
  call.ni = static_cast<int32_t>(w[2]);
  call.nf = static_cast<int32_t>(w[3]);
  const KernelFn fn = kernel_at(kernel);
  if (!fn || call.np > max_args || call.ni > max_args) return Failure{UNSUPPORTED, kernel, 0, kernel};
  const double* at = w + 4;
  for (int k = 0; k < call.np; k++, at += 2) {
    pointers[k] = reinterpret_cast<void*>(static_cast<uintptr_t>(at[0]));
    dtypes[k] = static_cast<int32_t>(at[1]);
  }
  for (int k = 0; k < call.ni; k++) ints[k] = static_cast<int64_t>(*at++);
  call.p = pointers;
  call.t = dtypes;
  call.i = ints;
  call.f = at;
  fn(call);
  return error_code.load(std::memory_order_relaxed) ? take_failure(kernel) : Failure{};
}

bool Program::load(const double* words, int64_t count) {
  const double* at = words;
  const double* const end = words + count;
  while (at < end) {
    if (end - at < 4) return false;
    Step s;
    s.kernel = static_cast<int>(at[0]);
    s.fn = kernel_at(s.kernel);
    s.np = static_cast<int32_t>(at[1]);
    s.ni = static_cast<int32_t>(at[2]);
    s.nf = static_cast<int32_t>(at[3]);
    at += 4;
    if (!s.fn || end - at < 2 * s.np + s.ni + s.nf) return false;
    s.p = static_cast<int64_t>(pointers_.size());
    s.t = static_cast<int64_t>(dtypes_.size());
    s.i = static_cast<int64_t>(ints_.size());
    s.f = static_cast<int64_t>(floats_.size());
    for (int k = 0; k < s.np; k++, at += 2) {
      pointers_.push_back(reinterpret_cast<void*>(static_cast<uintptr_t>(at[0])));
      dtypes_.push_back(static_cast<int32_t>(at[1]));
    }
    for (int k = 0; k < s.ni; k++) ints_.push_back(static_cast<int64_t>(*at++));
    for (int k = 0; k < s.nf; k++) floats_.push_back(*at++);
    steps_.push_back(s);
  }
  return true;
}

Failure Program::run(double* nanoseconds, const std::atomic<bool>& stop) const {
  using clock = std::chrono::steady_clock;
  pool_keep_hot(true);
  Failure failure;
  auto last = clock::now();
  for (size_t k = 0; k < steps_.size() && !stop.load(std::memory_order_relaxed); k++) {
    const Step& s = steps_[k];
    const Call call{pointers_.data() + s.p, dtypes_.data() + s.t, ints_.data() + s.i, floats_.data() + s.f,
                    s.np, s.ni, s.nf};
    s.fn(call);
    if (error_code.load(std::memory_order_relaxed)) {
      failure = take_failure(s.kernel);
      break;
    }
    if (nanoseconds) {
      const auto now = clock::now();
      nanoseconds[k] = std::chrono::duration<double, std::nano>(now - last).count();
      last = now;
    }
  }
  pool_keep_hot(false);
  return failure;
}

}  // namespace ansatz
