// Replays programs on a native thread of their own, in the order asked for, and settles a promise for each.
#pragma once
#include <node_api.h>

#include <string>

#include "program.h"

namespace ansatz {

using DescribeFn = std::string (*)(const Failure&);

// Once for each environment (the main thread, each worker), before its first replay: an environment that goes away
// takes its replays with it.
void replay_init(napi_env env);

// Returns when all replays asked for so far have run. Eager calls and host copies go through it first, so that the
// device works in the order in which JavaScript asked, awaited or not.
void replay_drain();

// program: the external of a Program, which stays alive until its promise settles. With `profile` the promise gives a
// Float64Array of nanoseconds. Null with a JavaScript exception pending when it cannot be queued.
napi_value replay(napi_env env, napi_value program, bool profile, DescribeFn describe);

}  // namespace ansatz
