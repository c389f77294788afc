// BpeTrainer for JavaScript. Arguments come checked from src/data/tokenizer.
#include "bpe_trainer.h"
#include "text_binding.h"

namespace ansatz::text {
namespace {

TrainerSpec spec_of(const Napi::Object& o) {
  TrainerSpec spec;
  spec.vocab_size = static_cast<uint32_t>(number_of(get(o, "vocabSize")));
  spec.min_frequency = static_cast<uint64_t>(number_of(get(o, "minFrequency")));
  byte_ids_of(get(o, "byteIds"), spec.byte_ids);
  const Napi::Array reserved = get(o, "reserved").As<Napi::Array>();
  for (uint32_t k = 0, count = reserved.IsEmpty() ? 0 : reserved.Length(); k < count; k++)
    spec.reserved.push_back(bytes_of(reserved.Get(k)));
  spec.pattern = pattern_of(get(o, "pattern"));
  return spec;
}

class TrainerObject : public Napi::ObjectWrap<TrainerObject> {
 public:
  explicit TrainerObject(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<TrainerObject>(info), trainer_(spec_of(info[0].As<Napi::Object>())) {}

  // addTexts(texts, threads)
  Napi::Value add_texts(const Napi::CallbackInfo& info) {
    if (free(info.Env()))
      trainer_.add_texts(spans_of(info[0].As<Napi::Array>()), info[1].As<Napi::Number>().Int32Value());
    return info.Env().Undefined();
  }
  // addTextsAsync(texts, threads): Promise<void>. The texts must not change before it is settled.
  Napi::Value add_texts_async(const Napi::CallbackInfo& info) {
    if (!free(info.Env())) return info.Env().Undefined();
    busy_ = true;
    return run_in_background(
        info.Env(), {info.This(), info[0]},
        [this, texts = spans_of(info[0].As<Napi::Array>()), threads = info[1].As<Napi::Number>().Int32Value()] {
          trainer_.add_texts(texts, threads);
        },
        [this](Napi::Env env) -> Napi::Value {
          busy_ = false;
          return env.Undefined();
        });
  }
  // addPieces(bytes, ends)
  Napi::Value add_pieces(const Napi::CallbackInfo& info) {
    const Napi::Uint32Array ends = info[1].As<Napi::Uint32Array>();
    if (free(info.Env())) trainer_.add_pieces(span_of(info[0]), ends.Data(), ends.ElementLength());
    return info.Env().Undefined();
  }
  // run(milliseconds): boolean, true when done
  Napi::Value run(const Napi::CallbackInfo& info) {
    if (!free(info.Env())) return info.Env().Undefined();
    return Napi::Boolean::New(info.Env(), trainer_.run(info[0].As<Napi::Number>().DoubleValue()));
  }
  // runAsync(): Promise<void>
  Napi::Value run_async(const Napi::CallbackInfo& info) {
    if (!free(info.Env())) return info.Env().Undefined();
    busy_ = true;
    return run_in_background(
        info.Env(), {info.This()}, [this] { trainer_.run(-1); },
        [this](Napi::Env env) -> Napi::Value {
          busy_ = false;
          return env.Undefined();
        });
  }
  // progress(): { bytes, tokens }, at any time
  Napi::Value progress(const Napi::CallbackInfo& info) {
    Napi::Object o = Napi::Object::New(info.Env());
    o.Set("bytes", static_cast<double>(trainer_.bytes_counted.load()));
    o.Set("tokens", trainer_.tokens_made.load());
    return o;
  }
  // merges(): Uint32Array of (left, right, product) in order
  Napi::Value merges(const Napi::CallbackInfo& info) {
    if (!free(info.Env())) return info.Env().Undefined();
    const std::vector<uint32_t>& merges = trainer_.merges();
    Napi::Uint32Array out = Napi::Uint32Array::New(info.Env(), merges.size());
    if (!merges.empty() && !out.IsEmpty()) std::memcpy(out.Data(), merges.data(), merges.size() * sizeof(uint32_t));
    return out;
  }

 private:
  bool free(Napi::Env env) const {
    if (busy_) Napi::Error::New(env, "this tokenizer trainer is still working").ThrowAsJavaScriptException();
    return !busy_;
  }
  BpeTrainer trainer_;
  bool busy_ = false;   // a background call uses trainer_
};

}  // namespace

Napi::Function define_trainer(Napi::Env env) {
  return TrainerObject::DefineClass(
      env, "BpeTrainer",
      {TrainerObject::InstanceMethod<&TrainerObject::add_texts>("addTexts"),
       TrainerObject::InstanceMethod<&TrainerObject::add_texts_async>("addTextsAsync"),
       TrainerObject::InstanceMethod<&TrainerObject::add_pieces>("addPieces"),
       TrainerObject::InstanceMethod<&TrainerObject::run>("run"),
       TrainerObject::InstanceMethod<&TrainerObject::run_async>("runAsync"),
       TrainerObject::InstanceMethod<&TrainerObject::progress>("progress"),
       TrainerObject::InstanceMethod<&TrainerObject::merges>("merges")});
}

}  // namespace ansatz::text
