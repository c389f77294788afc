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

// A job's tasks are dealt out as a run of neighbours for each thread, which claims them one by one, and takes those of
// others when it has none left. What a thread claims, reports and reads of the job lies in one cache line of its own: a
// kernel of a few microseconds costs the worker's line going there and back, which takes 50 to 400 ns between cores, and
// no counter that all of them fight for. The caller only waits for claimed tasks: a worker that the operating system has
// not scheduled delays nothing, so a busy machine stays usable.
//
// word = job number << 32 | (2^31 + tasks left). A claim subtracts one; it is valid if the low half was above 2^31, and
// then the share cannot be reused before that task is reported done. A worker joins a job when its own word has another
// number than before, with tasks in it or without.
constexpr uint64_t none_left = uint64_t(1) << 31;
constexpr uint64_t low_half = 0xffffffffu;
constexpr int max_threads = 1024;

struct alignas(64) Share {
  std::atomic<uint64_t> word{none_left};
  TaskFn fn = nullptr;
  void* context = nullptr;
  int64_t end = 0;                // one after the last task
  std::atomic<int64_t> done{0};   // tasks that this thread has ever done, anybody's; nobody else writes it
};

struct Pool {
  std::vector<std::thread> workers;
  std::vector<Scratch> scratch;
  Share* shares = nullptr;       // one a thread; never freed, a late claim may still look
  int capacity = 0;
  std::atomic<int> threads{1};   // changes only while nothing runs; may be read at any time
  // The caller's own.
  uint32_t number = 0;
  int64_t asked = 0;             // tasks of all jobs so far

  alignas(64) std::atomic<bool> hot{false};
  std::atomic<bool> stop{false};
  std::atomic<int> sleepers{0};

  alignas(64) std::mutex sleep_mutex;
  std::condition_variable wake;

  // Runs tasks of a share until none is left.
  static void take(Share& from, Share& own, int thread) {
    while ((from.word.load(std::memory_order_relaxed) & low_half) > none_left) {
      const uint64_t left = from.word.fetch_sub(1, std::memory_order_acquire) & low_half;
      if (left <= none_left) return;
      from.fn(from.context, from.end - static_cast<int64_t>(left - none_left), thread);
      own.done.store(own.done.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    }
  }

  // A thread's own tasks, then those of the others.
  void work(int thread) {
    const int n = threads.load(std::memory_order_relaxed);
    for (int k = 0; k < n; k++) take(shares[(thread + k) % n], shares[thread], thread);
  }

  static uint32_t number_of(uint64_t word) { return static_cast<uint32_t>(word >> 32); }

  void worker(int thread, uint32_t seen) {
    Share& own = shares[thread];
    int spins = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      const uint32_t now = number_of(own.word.load(std::memory_order_acquire));
      if (now != seen) {
        seen = now;
        work(thread);
        spins = 0;
        continue;
      }
      relax();
      // A program replays back-to-back kernels: spin longer (about a millisecond) while it runs, else sleep soon.
      const int limit = hot.load(std::memory_order_relaxed) ? 50000 : 2000;
      if (++spins < limit) continue;
      std::unique_lock<std::mutex> lock(sleep_mutex);
      sleepers.fetch_add(1, std::memory_order_seq_cst);
      wake.wait(lock, [&] {
        return number_of(own.word.load(std::memory_order_seq_cst)) != seen || stop.load(std::memory_order_seq_cst);
      });
      sleepers.fetch_sub(1, std::memory_order_seq_cst);
      spins = 0;
    }
  }

  void wake_sleepers() {
    if (sleepers.load(std::memory_order_relaxed) == 0) return;
    std::lock_guard<std::mutex> lock(sleep_mutex);
    wake.notify_all();
  }

  void deal(int thread, int64_t begin, int64_t end, TaskFn fn, void* context) {
    Share& s = shares[thread];
    s.fn = fn, s.context = context, s.end = end;
    s.word.store(uint64_t(number) << 32 | (none_left + static_cast<uint64_t>(end - begin)), std::memory_order_release);
  }

  // `in_order`: all tasks are the caller's share, so that everybody claims them by number.
  void run(int64_t tasks, TaskFn fn, void* context, bool in_order) {
    const int64_t n = threads.load(std::memory_order_relaxed), used = tasks < n ? tasks : n;
    number++;
    asked += tasks;
    if (in_order) deal(0, 0, tasks, fn, context);
    for (int64_t k = used - 1; k >= 0; k--) {
      const int64_t part = tasks / used, longer = tasks % used;
      const int64_t begin = k * part + (k < longer ? k : longer), end = begin + part + (k < longer ? 1 : 0);
      if (!in_order) deal(static_cast<int>(k), begin, end, fn, context);
      else if (k > 0) deal(static_cast<int>(k), 0, 0, fn, context);
    }
    // Nothing orders the words above before this look: a worker that falls asleep in this very moment may be missed, and
    // sleeps until the second look or the next job. Its tasks are done by others meanwhile. (A fence would make every job
    // wait until all of the workers' lines have come here.)
    wake_sleepers();
    take(shares[0], shares[0], 0);
    wake_sleepers();
    work(0);
    for (int spins = 0; !finished(static_cast<int>(n));) {
      if (++spins < 2000) relax();
      else std::this_thread::yield();   // a worker was preempted inside its task: let it run
    }
  }

  bool finished(int n) const {
    int64_t done = 0;
    for (int k = 0; k < n; k++) done += shares[k].done.load(std::memory_order_acquire);
    return done == asked;
  }

  void start(int n) {
    const int wanted = n < 1 ? 1 : (n > max_threads ? max_threads : n);
    scratch.resize(wanted);
    if (wanted > capacity) {
      shares = new Share[wanted];   // nothing runs, and nobody claims: the old ones are of no use
      capacity = wanted;
    }
    for (int k = 0; k < capacity; k++) shares[k].done.store(0);
    asked = 0;
    stop.store(false);
    try {
      for (int k = 1; k < wanted; k++) {
        const uint32_t seen = number_of(shares[k].word.load());
        workers.emplace_back([this, k, seen] { worker(k, seen); });
      }
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

void pool_run(int64_t tasks, TaskFn fn, void* context, bool in_order) {
  Pool& p = get();
  if (tasks == 1 || p.threads.load(std::memory_order_relaxed) == 1) {
    for (int64_t task = 0; task < tasks; task++) fn(context, task, 0);
    return;
  }
  p.run(tasks, fn, context, in_order);
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
