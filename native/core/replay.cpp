#include "replay.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ansatz {
namespace {

struct Job {
  napi_env env;                        // the environment that asked
  napi_ref keep = nullptr;             // holds the program's external
  napi_deferred deferred = nullptr;
  napi_threadsafe_function done = nullptr;
  const Program* program = nullptr;
  DescribeFn describe = nullptr;
  std::vector<double> nanoseconds;
  bool profile = false;
  Failure failure;
};

// One thread for the process: replays use the whole pool, so two at once would only wait for each other.
class Engine {
 public:
  void submit(Job* job) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!started_) {
      started_ = true;
      std::thread([this] { loop(); }).detach();
    }
    queue_.push_back(job);
    unfinished_.fetch_add(1);
    wake_.notify_one();
  }

  // Returns when everything submitted so far has run: what comes next in program order may rely on it.
  void drain() {
    if (unfinished_.load(std::memory_order_acquire) == 0) return;
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return unfinished_.load() == 0; });
  }

  // On the environment's thread, while it is torn down. Afterwards nothing here uses its programs or functions: Node
  // frees both next, whatever references are held.
  void forget(napi_env env) {
    std::unique_lock<std::mutex> lock(mutex_);
    std::deque<Job*> others;
    for (Job* job : queue_)
      if (job->env == env) {
        delete job;
        unfinished_.fetch_sub(1);
      } else {
        others.push_back(job);
      }
    queue_.swap(others);
    if (running_ != env) return;
    stop_.store(true);
    idle_.wait(lock, [&] { return running_ != env; });
  }

 private:
  void loop() {
    for (;;) {
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        running_ = nullptr;
        idle_.notify_all();
        wake_.wait(lock, [this] { return !queue_.empty(); });
        job = queue_.front();
        queue_.pop_front();
        running_ = job->env;
        stop_.store(false);
      }
      {
        std::lock_guard<std::mutex> lock(device_mutex());
        job->failure = job->program->run(job->profile ? job->nanoseconds.data() : nullptr, stop_);
      }
      {
        std::lock_guard<std::mutex> lock(mutex_);
        unfinished_.fetch_sub(1);
        idle_.notify_all();
      }
      const napi_threadsafe_function done = job->done;   // settle() frees the job
      if (napi_call_threadsafe_function(done, job, napi_tsfn_blocking) == napi_ok)
        napi_release_threadsafe_function(done, napi_tsfn_release);
      else
        delete job;   // the environment is closing: `done` must not be used again
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::deque<Job*> queue_;
  napi_env running_ = nullptr;         // whose job the thread is at
  std::atomic<int> unfinished_{0};     // jobs queued or running
  std::atomic<bool> stop_{false};      // ends that job early
  bool started_ = false;
};

// On the JavaScript thread; env is null when the environment is going away. A worker that is being terminated refuses
// some calls (here and in replay()), and then nobody waits for the promise any more: Node-API is used bare, because its
// C++ wrapper ends the process where it cannot throw.
void settle(napi_env env, napi_value, void*, void* data) {
  const std::unique_ptr<Job> job(static_cast<Job*>(data));
  if (!env) return;
  napi_value value = nullptr;
  if (job->failure.code != OK) {
    napi_value message;
    const std::string text = job->describe(job->failure);
    napi_create_string_utf8(env, text.data(), text.size(), &message);
    if (napi_create_range_error(env, nullptr, message, &value) == napi_ok)
      napi_reject_deferred(env, job->deferred, value);
  } else {
    bool ok = napi_get_undefined(env, &value) == napi_ok;
    if (job->profile) {
      const size_t count = job->nanoseconds.size();
      napi_value buffer;
      void* to = nullptr;
      ok = napi_create_arraybuffer(env, count * sizeof(double), &to, &buffer) == napi_ok &&
           napi_create_typedarray(env, napi_float64_array, count, buffer, 0, &value) == napi_ok;
      if (ok && count) std::memcpy(to, job->nanoseconds.data(), count * sizeof(double));
    }
    if (ok) napi_resolve_deferred(env, job->deferred, value);
  }
  napi_delete_reference(env, job->keep);
}

Engine& engine() {
  static Engine* const e = new Engine;   // lives as long as the process: its thread is detached
  return *e;
}

}  // namespace

// Hooks run in reverse order of their making: after those of the functions in Job::done (which are freed only after all
// hooks), and before the environment frees its externals.
void replay_init(napi_env env) {
  napi_add_env_cleanup_hook(env, [](void* e) { engine().forget(static_cast<napi_env>(e)); }, env);
}

void replay_drain() { engine().drain(); }

napi_value replay(napi_env env, napi_value external, bool profile, DescribeFn describe) {
  std::unique_ptr<Job> job(new Job{env});
  void* program = nullptr;
  napi_value name, promise;
  if (napi_get_value_external(env, external, &program) != napi_ok) {
    napi_throw_type_error(env, nullptr, "not a program");
    return nullptr;
  }
  job->program = static_cast<const Program*>(program);
  job->describe = describe;
  job->profile = profile;
  if (profile) job->nanoseconds.assign(job->program->size(), 0.0);
  if (napi_create_string_utf8(env, "ansatz replay", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_promise(env, &job->deferred, &promise) != napi_ok ||
      napi_create_reference(env, external, 1, &job->keep) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, settle,
                                      &job->done) != napi_ok) {
    napi_throw_error(env, nullptr, "a replay cannot be queued");
    return nullptr;
  }
  engine().submit(job.release());
  return promise;
}

}  // namespace ansatz
