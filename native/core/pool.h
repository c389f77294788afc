// Persistent thread pool. The thread that calls run() takes part, N-1 workers join it.
//
// Tasks are numbered; a task's result must not depend on which thread ran it, so that results are bit-identical for
// any thread count: split work by fixed sizes, never by the number of threads, and combine partial results in order.
#pragma once
#include <cstdint>

namespace ansatz {

using TaskFn = void (*)(void* context, int64_t task, int thread);

// Runs fn(context, 0..tasks-1, thread) and returns when all are done. Each thread begins with a run of neighbouring tasks,
// the same for the same number of tasks, and then helps the others: what one kernel leaves in a core's cache, the next
// finds there. thread is in [0, pool_threads()), unique among the concurrently running tasks: use it to pick scratch
// memory. Not re-entrant (no run() inside a task).
//
// `in_order`: tasks start in ascending order instead, and a thread holds one at a time, so that a task may wait for a
// lower-numbered one, and long tasks can come first.
void pool_run(int64_t tasks, TaskFn fn, void* context, bool in_order);
int pool_threads();
void pool_resize(int threads);   // takes effect at once; only while nothing runs
void pool_shutdown();            // ends the workers and frees the scratch memory; runs go on with one thread

// Workers spin between runs while a program is being replayed (true), and sleep soon after otherwise (false).
void pool_keep_hot(bool hot);

// Scratch memory of one thread, 64-byte aligned, grows and stays; its contents last until the thread asks again.
// Slot 0..3 are independent buffers.
void* pool_scratch(int thread, int slot, int64_t bytes);

namespace {
// parallel(n, [&](int64_t task, int thread) { ... }): a lambda over the pool. One task runs in place.
template <class F> inline void parallel(int64_t tasks, const F& f, bool in_order = false) {
  if (tasks <= 0) return;
  pool_run(tasks, [](void* c, int64_t task, int thread) { (*static_cast<const F*>(c))(task, thread); },
           const_cast<void*>(static_cast<const void*>(&f)), in_order);
}
template <class F> inline void parallel_in_order(int64_t tasks, const F& f) { parallel(tasks, f, true); }
// parallel_range(n, grain, [&](int64_t begin, int64_t end, int thread) { ... }): fixed-size pieces of [0, n).
template <class F> inline void parallel_range(int64_t n, int64_t grain, const F& f) {
  const int64_t tasks = (n + grain - 1) / grain;
  parallel(tasks, [&](int64_t task, int thread) {
    const int64_t begin = task * grain, end = begin + grain < n ? begin + grain : n;
    f(begin, end, thread);
  });
}
}  // namespace
}  // namespace ansatz
