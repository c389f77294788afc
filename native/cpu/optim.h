// What the optimisers' files share: places in step_scalars (docs/kernels.md), and gradients of either float dtype.
#pragma once
#include "elementwise_math.h"
#include "reduce_rows.h"

namespace ansatz {
namespace {

enum StepScalar { RATE, GRADIENT_SCALE, CORRECTION1, CORRECTION2, FINITE, NORM, SKIPPED, MOMENTUM };

// Calls f with a typed pointer to a float tensor: f32 or bf16.
template <class F> ANSATZ_INLINE void with_float(void* base, int32_t t, const F& f) {
  if (t == F32) f(static_cast<float*>(base));
  else f(static_cast<bf16*>(base));
}

}  // namespace
}  // namespace ansatz
