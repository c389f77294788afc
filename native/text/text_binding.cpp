#include "text_binding.h"

// Called once for each JavaScript environment (the main thread, each worker) that loads the addon.
Napi::Object init_text(Napi::Env env, Napi::Object exports) {
  exports.Set("BpeEncoder", ansatz::text::define_encoder(env));
  exports.Set("BpeTrainer", ansatz::text::define_trainer(env));
  return exports;
}
