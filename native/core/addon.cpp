// Node-API binding of the CPU device: memory, eager calls, replayed programs. No arithmetic happens here.
#define NAPI_VERSION 8
#include <napi.h>

#include <cstring>
#include <string>

#include "isa.h"
#include "mapped.h"
#include "memory.h"
#include "pool.h"
#include "program.h"
#include "registry.h"
#include "replay.h"

Napi::Object init_text(Napi::Env env, Napi::Object exports);   // native/text

namespace {

using namespace ansatz;

// Each JavaScript thread that loads the addon writes its eager calls into a command buffer of its own.
struct Instance {
  double* commands = nullptr;
  Napi::ObjectReference keep;
};

std::string describe(const Failure& f) {
  const auto& names = kernel_names();
  const std::string kernel = f.kernel >= 0 && f.kernel < static_cast<int>(names.size()) ? names[f.kernel] : "?";
  if (f.code == INDEX_OUT_OF_RANGE)
    return kernel + ": index " + std::to_string(f.value) + " out of range: limit " + std::to_string(f.limit);
  return kernel + ": unsupported argument " + std::to_string(f.value);
}

void* address(const Napi::Value& v) {
  return reinterpret_cast<void*>(static_cast<uintptr_t>(v.As<Napi::Number>().DoubleValue()));
}

// attach(Float64Array): where this thread's eager calls will be written.
Napi::Value attach(const Napi::CallbackInfo& info) {
  auto* instance = info.Env().GetInstanceData<Instance>();
  auto words = info[0].As<Napi::Float64Array>();
  instance->keep = Napi::Persistent(info[0].As<Napi::Object>());
  instance->commands = words.Data();
  return info.Env().Undefined();
}

// exec(): runs the call in the command buffer. Raw Node-API: this is the eager path's fixed cost.
napi_value exec(napi_env env, napi_callback_info) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  Failure failure;
  replay_drain();
  {
    std::lock_guard<std::mutex> lock(device_mutex());
    failure = run_now(static_cast<Instance*>(data)->commands);
  }
  if (failure.code != OK) napi_throw_range_error(env, "ANSATZ_KERNEL", describe(failure).c_str());
  return nullptr;
}

Napi::Value allocate(const Napi::CallbackInfo& info) {
  void* p = memory_allocate(static_cast<int64_t>(info[0].As<Napi::Number>().DoubleValue()));
  return Napi::Number::New(info.Env(), static_cast<double>(reinterpret_cast<uintptr_t>(p)));
}

Napi::Value release(const Napi::CallbackInfo& info) {
  memory_release(address(info[0]), static_cast<int64_t>(info[1].As<Napi::Number>().DoubleValue()));
  return info.Env().Undefined();
}

// map(fd, bytes, path) -> address, 0 when the file cannot be mapped
Napi::Value map(const Napi::CallbackInfo& info) {
  const std::string path = info[2].As<Napi::String>().Utf8Value();
  const auto bytes = static_cast<int64_t>(info[1].As<Napi::Number>().DoubleValue());
  void* p = file_map(info[0].As<Napi::Number>().Int32Value(), bytes, path.c_str());
  return Napi::Number::New(info.Env(), static_cast<double>(reinterpret_cast<uintptr_t>(p)));
}

Napi::Value unmap(const Napi::CallbackInfo& info) {
  replay_drain();   // a replay asked for earlier may still read there
  file_unmap(address(info[0]), static_cast<int64_t>(info[1].As<Napi::Number>().DoubleValue()));
  return info.Env().Undefined();
}

struct Span { void* data; size_t bytes; };
Span span(const Napi::Value& v) {
  const auto array = v.As<Napi::TypedArray>();
  return {static_cast<char*>(array.ArrayBuffer().Data()) + array.ByteOffset(), array.ByteLength()};
}

Napi::Value write(const Napi::CallbackInfo& info) {
  const Span s = span(info[1]);
  replay_drain();   // a replay asked for earlier may still read what is overwritten here
  if (s.bytes) std::memcpy(address(info[0]), s.data, s.bytes);
  return info.Env().Undefined();
}

Napi::Value read(const Napi::CallbackInfo& info) {
  const Span s = span(info[1]);
  replay_drain();   // a replay asked for earlier may be writing there
  std::lock_guard<std::mutex> lock(device_mutex());
  if (s.bytes) std::memcpy(s.data, address(info[0]), s.bytes);
  return info.Env().Undefined();
}

// program(Float64Array words) -> external
Napi::Value program(const Napi::CallbackInfo& info) {
  const auto words = info[0].As<Napi::Float64Array>();
  auto* p = new Program;
  if (!p->load(words.Data(), static_cast<int64_t>(words.ElementLength()))) {
    delete p;
    Napi::Error::New(info.Env(), "malformed program").ThrowAsJavaScriptException();
    return info.Env().Undefined();
  }
  return Napi::External<Program>::New(info.Env(), p, [](Napi::Env, Program* q) { delete q; });
}

// run(program, profile: boolean) -> Promise<Float64Array | undefined>
Napi::Value run(const Napi::CallbackInfo& info) {
  const napi_value promise = replay(info.Env(), info[0], info[1].As<Napi::Boolean>().Value(), describe);
  return Napi::Value(info.Env(), promise);
}

Napi::Value kernels(const Napi::CallbackInfo& info) {
  const auto& names = kernel_names();
  auto out = Napi::Array::New(info.Env(), names.size());
  for (uint32_t k = 0; k < names.size(); k++) out.Set(k, names[k]);
  return out;
}

Napi::Value facts(const Napi::CallbackInfo& info) {
  auto out = Napi::Object::New(info.Env());
  const auto levels = available_levels();
  auto list = Napi::Array::New(info.Env(), levels.size());
  for (uint32_t k = 0; k < levels.size(); k++) list.Set(k, levels[k]);
  out.Set("cpu", cpu_name());
  out.Set("level", current_level());
  out.Set("levels", list);
  out.Set("threads", pool_threads());
  out.Set("cachedBytes", static_cast<double>(memory_cached_bytes()));
  return out;
}

Napi::Value use_level(const Napi::CallbackInfo& info) {
  std::lock_guard<std::mutex> lock(device_mutex());
  return Napi::Boolean::New(info.Env(), set_level(info[0].As<Napi::String>().Utf8Value()));
}

Napi::Value use_threads(const Napi::CallbackInfo& info) {
  std::lock_guard<std::mutex> lock(device_mutex());
  pool_resize(info[0].As<Napi::Number>().Int32Value());
  return info.Env().Undefined();
}

Napi::Value trim(const Napi::CallbackInfo& info) {
  memory_trim();
  return info.Env().Undefined();
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Instance);
  replay_init(env);
  exports.Set("attach", Napi::Function::New(env, attach));
  napi_value fn;
  napi_create_function(env, "exec", NAPI_AUTO_LENGTH, exec, nullptr, &fn);
  exports.Set("exec", Napi::Value(env, fn));
  exports.Set("allocate", Napi::Function::New(env, allocate));
  exports.Set("release", Napi::Function::New(env, release));
  exports.Set("map", Napi::Function::New(env, map));
  exports.Set("unmap", Napi::Function::New(env, unmap));
  exports.Set("write", Napi::Function::New(env, write));
  exports.Set("read", Napi::Function::New(env, read));
  exports.Set("program", Napi::Function::New(env, program));
  exports.Set("run", Napi::Function::New(env, run));
  exports.Set("kernels", Napi::Function::New(env, kernels));
  exports.Set("facts", Napi::Function::New(env, facts));
  exports.Set("useLevel", Napi::Function::New(env, use_level));
  exports.Set("useThreads", Napi::Function::New(env, use_threads));
  exports.Set("trim", Napi::Function::New(env, trim));
  init_text(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(ansatz, init)
