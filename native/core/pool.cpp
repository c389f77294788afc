#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "cpus.h"

namespace ansatz {
namespace {

// Tells the core that this is a spin loop.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Scratch {
  void* data[4] = {nullptr, nullptr, nullptr, nullptr};
  int64_t bytes[4] = {0, 0, 0, 0};
};

// A job is open while its ticket counts tasks that nobody has claimed. The caller only waits for claimed tasks: a
// worker that the operating system has not scheduled delays nothing, so a busy machine stays usable.
//
// ticket = job number << 32 | (2^31 + tasks left). A claim subtracts one; it is valid if the low half was above 2^31,
// and then the job's slot cannot be reused before that task is reported done.
constexpr uint64_t none_left = uint64_t(1) << 31;
constexpr uint64_t low_half = 0xffffffffu;
constexpr int max_threads = 1024;

struct Job {
  TaskFn fn;
  void* context;
  int64_t tasks;
};

struct Pool {
  std::vector<std::thread> workers;
  std::vector<Scratch> scratch;
  std::atomic<int> threads{1};   // changes only while nothing runs; may be read at any time
  Job job{};

  // Each field that is polled sits on a cache line of its own.
  alignas(64) std::atomic<uint64_t> ticket{none_left};
  alignas(64) std::atomic<int64_t> done{0};
  alignas(64) std::atomic<bool> hot{false};
  std::atomic<bool> stop{false};

  alignas(64) std::mutex sleep_mutex;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};

  bool open(std::memory_order order = std::memory_order_relaxed) const {
    return (ticket.load(order) & low_half) > none_left;
  }

  // Runs tasks until none is left.
  void take_tasks(int thread) {
    while (open()) {
      const uint64_t left = ticket.fetch_sub(1, std::memory_order_acquire) & low_half;
      if (left <= none_left) return;
      const Job j = job;
      j.fn(j.context, j.tasks - static_cast<int64_t>(left - none_left), thread);
      done.fetch_add(1, std::memory_order_release);
    }
  }

  void worker(int thread) {
    int spins = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      if (open()) {
        take_tasks(thread);
        spins = 0;
        continue;
      }
      relax();
      // A program replays back-to-back kernels: spin longer (about a millisecond) while it runs, else sleep soon.
      const int limit = hot.load(std::memory_order_relaxed) ? 50000 : 2000;
      if (++spins < limit) continue;
      std::unique_lock<std::mutex> lock(sleep_mutex);
      // Either run() sees this sleeper or the sleeper sees run()'s ticket: both orders are total.
      sleepers.fetch_add(1, std::memory_order_seq_cst);
      wake.wait(lock, [&] { return open(std::memory_order_seq_cst) || stop.load(); });
      sleepers.fetch_sub(1);
      spins = 0;
    }
  }

  void run(int64_t tasks, TaskFn fn, void* context) {
    job = Job{fn, context, tasks};
    done.store(0, std::memory_order_relaxed);
    const uint64_t number = (ticket.load(std::memory_order_relaxed) >> 32) + 1;
    ticket.store((number << 32) | (none_left + static_cast<uint64_t>(tasks)), std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(sleep_mutex);
      wake.notify_all();
    }
    take_tasks(0);
    for (int spins = 0; done.load(std::memory_order_acquire) < tasks;) {
      if (++spins < 2000) relax();
      else std::this_thread::yield();   // a worker was preempted inside its task: let it run
    }
  }

  void start(int n) {
    const int wanted = n < 1 ? 1 : (n > max_threads ? max_threads : n);
    scratch.resize(wanted);
    stop.store(false);
    try {
      for (int k = 1; k < wanted; k++) workers.emplace_back([this, k] { worker(k); });
    } catch (const std::system_error&) {
      // the system allows no more threads: go on with those there are
    }
    threads = static_cast<int>(workers.size()) + 1;
  }

  void shut() {
    {
      std::lock_guard<std::mutex> lock(sleep_mutex);
      stop.store(true);
    }
    wake.notify_all();
    for (auto& w : workers) w.join();
    workers.clear();
    threads = 1;
    for (auto& s : scratch)
      for (int k = 0; k < 4; k++) {
        std::free(s.data[k]);
        s.data[k] = nullptr;
        s.bytes[k] = 0;
      }
  }
};

int default_threads() {
  if (const char* env = std::getenv("ANSATZ_THREADS")) {
    const int n = std::atoi(env);
    if (n > 0) return n;
  }
  return usable_cpus();
}

// Never destroyed: threads may still compute while the process exits.
Pool& get() {
  static Pool* const pool = [] {
    Pool* p = new Pool;
    p->start(default_threads());
    return p;
  }();
  return *pool;
}

}  // namespace

void pool_run(int64_t tasks, TaskFn fn, void* context) {
  Pool& p = get();
  if (tasks == 1 || p.threads.load(std::memory_order_relaxed) == 1) {
    for (int64_t task = 0; task < tasks; task++) fn(context, task, 0);
    return;
  }
  p.run(tasks, fn, context);
}

int pool_threads() { return get().threads; }

void pool_resize(int threads) {
  Pool& p = get();
  if (threads == p.threads) return;
  p.shut();
  p.start(threads);
}

void pool_shutdown() { get().shut(); }

void pool_keep_hot(bool hot) { get().hot.store(hot, std::memory_order_relaxed); }

void* pool_scratch(int thread, int slot, int64_t bytes) {
  Scratch& s = get().scratch[thread];
  if (s.bytes[slot] < bytes) {
    std::free(s.data[slot]);
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    s.data[slot] = std::aligned_alloc(4096, rounded);
    s.bytes[slot] = rounded;
  }
  return s.data[slot];
}

}  // namespace ansatz
