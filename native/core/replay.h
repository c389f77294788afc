// Replays programs on a native thread of their own, in the order asked for, and settles a promise for each.
#pragma once
#include <napi.h>

#include <string>

#include "program.h"

namespace ansatz {

using DescribeFn = std::string (*)(const Failure&);

// The program stays alive until its promise settles. With `profile` the promise gives a Float64Array of nanoseconds.
Napi::Value replay(Napi::Env env, Napi::External<Program> program, bool profile, DescribeFn describe);

}  // namespace ansatz
