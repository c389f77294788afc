// What the Node-API classes of this folder share.
#pragma once
#include <napi.h>

#include <cstring>
#include <string>
#include <vector>

#include "bpe_encoder.h"

namespace ansatz::text {

Napi::Function define_encoder(Napi::Env env);
Napi::Function define_trainer(Napi::Env env);

// A worker that is being terminated refuses to read properties and to make arrays: values come back empty, and to ask an
// empty value for anything ends the process. Nobody sees the results then, so zeros and empty lists do.
inline Napi::Value get(const Napi::Object& o, const char* name) { return o.IsEmpty() ? Napi::Value() : o.Get(name); }
inline int64_t number_of(const Napi::Value& value) {
  return value.IsEmpty() ? 0 : value.As<Napi::Number>().Int64Value();
}
inline bool flag_of(const Napi::Value& value) { return !value.IsEmpty() && value.As<Napi::Boolean>().Value(); }
inline Span span_of(const Napi::Value& value) {
  if (value.IsEmpty()) return {nullptr, 0};
  const Napi::Uint8Array array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}
inline std::string bytes_of(const Napi::Value& value) {
  const Span span = span_of(value);
  return span.data ? std::string(reinterpret_cast<const char*>(span.data), span.size) : std::string();
}
inline std::vector<Span> spans_of(const Napi::Array& array) {
  std::vector<Span> spans(array.Length());
  for (uint32_t k = 0; k < spans.size(); k++) spans[k] = span_of(array.Get(k));
  return spans;
}
inline std::vector<uint32_t> integers_of(const Napi::Value& value) {
  if (value.IsEmpty()) return {};
  const Napi::Uint32Array array = value.As<Napi::Uint32Array>();
  return std::vector<uint32_t>(array.Data(), array.Data() + array.ElementLength());
}
// The 256 tokens of single bytes.
inline void byte_ids_of(const Napi::Value& value, uint32_t (&to)[256]) {
  const std::vector<uint32_t> ids = integers_of(value);
  for (size_t k = 0; k < 256; k++) to[k] = k < ids.size() ? ids[k] : 0;
}
// { kind, maxDigits, ignoreCase }
inline Pattern pattern_of(const Napi::Value& value) {
  const Napi::Object o = value.As<Napi::Object>();
  Pattern pattern;
  pattern.kind = static_cast<Pattern::Kind>(number_of(get(o, "kind")));
  pattern.max_digits = static_cast<uint32_t>(number_of(get(o, "maxDigits")));
  pattern.ignore_case = flag_of(get(o, "ignoreCase"));
  return pattern;
}
inline Napi::Int32Array to_array(Napi::Env env, const std::vector<int32_t>& ids) {
  Napi::Int32Array array = Napi::Int32Array::New(env, ids.size());
  if (!ids.empty() && !array.IsEmpty()) std::memcpy(array.Data(), ids.data(), ids.size() * sizeof(int32_t));
  return array;
}

// Runs work() off the JavaScript thread, then resolves a promise with finish(env). `keep` holds the JavaScript objects
// (and so the memory) that the work reads; an environment that goes away waits for the work first.
template <class Work, class Finish> class Background : public Napi::AsyncWorker {
 public:
  static Napi::Value start(Napi::Env env, const std::vector<Napi::Value>& keep, Work work, Finish finish) {
    napi_deferred deferred;
    napi_value promise;   // bare: Napi::Promise::Deferred is left uninitialised where JavaScript is being terminated
    if (napi_create_promise(env, &deferred, &promise) != napi_ok) return Napi::Value();
    auto* background = new Background(env, deferred, std::move(work), std::move(finish));   // deletes itself at its end
    const Napi::Array kept = Napi::Array::New(env, keep.size());
    for (uint32_t k = 0; k < keep.size(); k++) kept.Set(k, keep[k]);
    background->kept_ = Napi::Persistent(kept.As<Napi::Object>());
    background->Queue();
    return Napi::Value(env, promise);
  }

 private:
  Background(Napi::Env env, napi_deferred deferred, Work work, Finish finish)
      : Napi::AsyncWorker(env), deferred_(deferred), work_(std::move(work)), finish_(std::move(finish)) {}
  void Execute() override { work_(); }
  void OnOK() override { napi_resolve_deferred(Env(), deferred_, finish_(Env())); }

  napi_deferred deferred_;
  Napi::ObjectReference kept_;
  Work work_;
  Finish finish_;
};
template <class Work, class Finish>
Napi::Value run_in_background(Napi::Env env, const std::vector<Napi::Value>& keep, Work work, Finish finish) {
  return Background<Work, Finish>::start(env, keep, std::move(work), std::move(finish));
}

}  // namespace ansatz::text
