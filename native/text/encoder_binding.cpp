// BpeEncoder for JavaScript. Arguments come checked from src/data/tokenizer.
#include "text_binding.h"

namespace ansatz::text {
namespace {

EncoderSpec spec_of(const Napi::Object& o) {
  EncoderSpec spec;
  byte_ids_of(get(o, "byteIds"), spec.byte_ids);
  spec.merges = integers_of(get(o, "merges"));
  spec.pattern = pattern_of(get(o, "pattern"));
  spec.prefix = static_cast<EncoderSpec::Prefix>(number_of(get(o, "prefix")));

  // Words as one buffer: word k lies between ends[k - 1] and ends[k].
  const std::string bytes = bytes_of(get(o, "wordBytes"));
  const std::vector<uint32_t> ends = integers_of(get(o, "wordEnds")), ids = integers_of(get(o, "wordIds"));
  for (size_t k = 0, begin = 0; k < ids.size(); begin = ends[k++])
    spec.whole_words.emplace_back(bytes.substr(begin, ends[k] - begin), static_cast<int32_t>(ids[k]));

  const Napi::Array added = get(o, "added").As<Napi::Array>();
  for (uint32_t k = 0, count = added.IsEmpty() ? 0 : added.Length(); k < count; k++) {
    const Napi::Object a = added.Get(k).As<Napi::Object>();
    const auto flag = [&a](const char* name) { return flag_of(get(a, name)); };
    (flag("normalized") ? spec.normalized_added : spec.raw_added)
        .push_back({bytes_of(get(a, "bytes")), static_cast<int32_t>(number_of(get(a, "id"))), flag("singleWord"),
                    flag("lstrip"), flag("rstrip")});
  }
  return spec;
}

Napi::Array to_arrays(Napi::Env env, const std::vector<std::vector<int32_t>>& results) {
  Napi::Array out = Napi::Array::New(env, results.size());
  for (uint32_t k = 0; k < results.size(); k++) {
    const Napi::HandleScope scope(env);
    out.Set(k, to_array(env, results[k]));
  }
  return out;
}

class EncoderObject : public Napi::ObjectWrap<EncoderObject> {
 public:
  explicit EncoderObject(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<EncoderObject>(info), encoder_(spec_of(info[0].As<Napi::Object>())) {}

  // encode(bytes, match): Int32Array
  Napi::Value encode(const Napi::CallbackInfo& info) {
    return to_array(info.Env(), encoder_.encode(span_of(info[0]), match_of(info[1])));
  }
  // encodeBatch(texts, match, threads): Int32Array[]
  Napi::Value encode_batch(const Napi::CallbackInfo& info) {
    return to_arrays(info.Env(), encoder_.encode_batch(spans_of(info[0].As<Napi::Array>()), match_of(info[1]),
                                                       info[2].As<Napi::Number>().Int32Value()));
  }
  // encodeBatchAsync(texts, match, threads): Promise<Int32Array[]>. The texts must not change before it is settled.
  Napi::Value encode_batch_async(const Napi::CallbackInfo& info) {
    auto results = std::make_shared<std::vector<std::vector<int32_t>>>();
    return run_in_background(
        info.Env(), {info.This(), info[0]},
        [this, results, texts = spans_of(info[0].As<Napi::Array>()), match = match_of(info[1]),
         threads = info[2].As<Napi::Number>().Int32Value()] { *results = encoder_.encode_batch(texts, match, threads); },
        [results](Napi::Env env) -> Napi::Value { return to_arrays(env, *results); });
  }
  // encodePieces(bytes, ends): Int32Array
  Napi::Value encode_pieces(const Napi::CallbackInfo& info) {
    const Napi::Uint32Array ends = info[1].As<Napi::Uint32Array>();
    return to_array(info.Env(), encoder_.encode_pieces(span_of(info[0]), ends.Data(), ends.ElementLength()));
  }
  // splitAdded(bytes, normalized): Float64Array of (begin, end, id or -1)
  Napi::Value split_added(const Napi::CallbackInfo& info) {
    const std::vector<Section> sections =
        encoder_.split_added(span_of(info[0]), info[1].As<Napi::Boolean>().Value());
    Napi::Float64Array out = Napi::Float64Array::New(info.Env(), sections.size() * 3);
    for (size_t k = 0; k < (out.IsEmpty() ? 0 : sections.size()); k++) {
      out[3 * k] = static_cast<double>(sections[k].begin);
      out[3 * k + 1] = static_cast<double>(sections[k].end);
      out[3 * k + 2] = sections[k].id;
    }
    return out;
  }

 private:
  static Match match_of(const Napi::Value& value) {
    return static_cast<Match>(value.As<Napi::Number>().Int32Value());
  }
  const BpeEncoder encoder_;
};

}  // namespace

Napi::Function define_encoder(Napi::Env env) {
  return EncoderObject::DefineClass(
      env, "BpeEncoder",
      {EncoderObject::InstanceMethod<&EncoderObject::encode>("encode"),
       EncoderObject::InstanceMethod<&EncoderObject::encode_batch>("encodeBatch"),
       EncoderObject::InstanceMethod<&EncoderObject::encode_batch_async>("encodeBatchAsync"),
       EncoderObject::InstanceMethod<&EncoderObject::encode_pieces>("encodePieces"),
       EncoderObject::InstanceMethod<&EncoderObject::split_added>("splitAdded")});
}

}  // namespace ansatz::text
