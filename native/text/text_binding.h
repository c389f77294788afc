// What the Node-API classes of this folder share.
#pragma once
#include <napi.h>

#include <string>
#include <vector>

#include "bpe_encoder.h"

namespace ansatz::text {

Napi::Function define_encoder(Napi::Env env);
Napi::Function define_trainer(Napi::Env env);

inline Span span_of(const Napi::Value& value) {
  const Napi::Uint8Array array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}
inline std::string bytes_of(const Napi::Value& value) {
  const Span span = span_of(value);
  return std::string(reinterpret_cast<const char*>(span.data), span.size);
}
inline std::vector<Span> spans_of(const Napi::Array& array) {
  std::vector<Span> spans(array.Length());
  for (uint32_t k = 0; k < array.Length(); k++) spans[k] = span_of(array.Get(k));
  return spans;
}
inline std::vector<uint32_t> integers_of(const Napi::Value& value) {
  const Napi::Uint32Array array = value.As<Napi::Uint32Array>();
  return std::vector<uint32_t>(array.Data(), array.Data() + array.ElementLength());
}
// { kind, maxDigits, ignoreCase }
inline Pattern pattern_of(const Napi::Object& o) {
  Pattern pattern;
  pattern.kind = static_cast<Pattern::Kind>(o.Get("kind").As<Napi::Number>().Int32Value());
  pattern.max_digits = o.Get("maxDigits").As<Napi::Number>().Uint32Value();
  pattern.ignore_case = o.Get("ignoreCase").As<Napi::Boolean>().Value();
  return pattern;
}
inline Napi::Int32Array to_array(Napi::Env env, const std::vector<int32_t>& ids) {
  Napi::Int32Array array = Napi::Int32Array::New(env, ids.size());
  if (!ids.empty()) std::memcpy(array.Data(), ids.data(), ids.size() * sizeof(int32_t));
  return array;
}

// Runs work() off the JavaScript thread, then resolves a promise with finish(env). `keep` holds the JavaScript objects
// (and so the memory) that the work reads.
template <class Work, class Finish> class Background : public Napi::AsyncWorker {
 public:
  static Napi::Value start(Napi::Env env, const std::vector<Napi::Value>& keep, Work work, Finish finish) {
    auto* background = new Background(env, std::move(work), std::move(finish));   // deletes itself when it has ended
    const Napi::Array kept = Napi::Array::New(env, keep.size());
    for (uint32_t k = 0; k < keep.size(); k++) kept.Set(k, keep[k]);
    background->kept_ = Napi::Persistent(kept.As<Napi::Object>());
    background->Queue();
    return background->deferred_.Promise();
  }

 private:
  Background(Napi::Env env, Work work, Finish finish)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), work_(std::move(work)),
        finish_(std::move(finish)) {}
  void Execute() override { work_(); }
  void OnOK() override { deferred_.Resolve(finish_(Env())); }

  Napi::Promise::Deferred deferred_;
  Napi::ObjectReference kept_;
  Work work_;
  Finish finish_;
};
template <class Work, class Finish>
Napi::Value run_in_background(Napi::Env env, const std::vector<Napi::Value>& keep, Work work, Finish finish) {
  return Background<Work, Finish>::start(env, keep, std::move(work), std::move(finish));
}

}  // namespace ansatz::text
