#include "replay.h"

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ansatz {
namespace {

struct Job {
  Napi::Promise::Deferred deferred;
  Napi::ObjectReference keep;          // the program's external
  napi_threadsafe_function done = nullptr;
  const Program* program;
  DescribeFn describe;
  std::vector<double> nanoseconds;
  bool profile;
  Failure failure;
  explicit Job(Napi::Env env) : deferred(Napi::Promise::Deferred::New(env)) {}
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
    wake_.notify_one();
  }

 private:
  void loop() {
    for (;;) {
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !queue_.empty(); });
        job = queue_.front();
        queue_.pop_front();
      }
      {
        std::lock_guard<std::mutex> lock(device_mutex());
        job->failure = job->program->run(job->profile ? job->nanoseconds.data() : nullptr);
      }
      const napi_threadsafe_function done = job->done;   // settle() frees the job
      napi_call_threadsafe_function(done, job, napi_tsfn_blocking);
      napi_release_threadsafe_function(done, napi_tsfn_release);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job*> queue_;
  bool started_ = false;
};

// On the JavaScript thread. env is null when the environment is going away.
void settle(napi_env raw, napi_value, void*, void* data) {
  std::unique_ptr<Job> job(static_cast<Job*>(data));
  if (!raw) {
    job->keep.SuppressDestruct();
    return;
  }
  const Napi::Env env(raw);
  Napi::HandleScope scope(env);
  if (job->failure.code != OK) {
    job->deferred.Reject(Napi::RangeError::New(env, job->describe(job->failure)).Value());
  } else if (job->profile) {
    auto out = Napi::Float64Array::New(env, job->nanoseconds.size());
    for (size_t k = 0; k < job->nanoseconds.size(); k++) out[k] = job->nanoseconds[k];
    job->deferred.Resolve(out);
  } else {
    job->deferred.Resolve(env.Undefined());
  }
}

Engine& engine() {
  static Engine* e = new Engine;   // lives as long as the process: its thread is detached
  return *e;
}

}  // namespace

Napi::Value replay(Napi::Env env, Napi::External<Program> program, bool profile, DescribeFn describe) {
  auto* job = new Job(env);
  job->keep = Napi::Persistent(program.As<Napi::Object>());
  job->program = program.Data();
  job->describe = describe;
  job->profile = profile;
  if (profile) job->nanoseconds.assign(job->program->size(), 0.0);
  napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "ansatz replay"), 0, 1, nullptr,
                                  nullptr, nullptr, settle, &job->done);
  const Napi::Promise promise = job->deferred.Promise();
  engine().submit(job);
  return promise;
}

}  // namespace ansatz
