/** Optimiser updates: in place on parameters and their state, reading step scalars from device memory. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType } from './common.ts';

/** Places in the f32 [8] tensor of step scalars (docs/kernels.md). */
export const SCALARS = {
  learningRate: 0,
  gradScale: 1,
  correction1: 2,
  correction2: 3,
  finite: 4,
  gradNorm: 5,
  skipped: 6,
} as const;

/** From per-tensor sums of squares: the global norm, the clipping factor, and whether all is finite. */
const clipScaleOp = defineOp<{ maxNorm: number; extra: number }>({
  name: 'clip_scale',
  inPlace: true,
  infer: ([scalars, sums]) => {
    wantDType(scalars, 'f32', 'clip_scale', 'scalars');
    wantDType(sums, 'f32', 'clip_scale', 'sums');
    return [];
  },
  launch: ([scalars, sums], _, p) => ({
    kernel: 'clip_scale',
    args: [scalars!.arg(), sums!.arg()],
    ints: [sums!.size],
    floats: [p.maxNorm, p.extra],
  }),
  flops: ([, sums]) => 2 * sums!.size,
});
/** maxNorm 0 does not clip. `extra` multiplies every gradient (1 / accumulated micro-batches). */
export const clipScale = (scalars: Tensor, sums: Tensor, maxNorm: number, extra = 1): void => {
  noGrad(() => apply(clipScaleOp, [scalars, sums], { maxNorm, extra }));
};

export interface AdamWParams {
  readonly lrMult: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly decay: number;
}

/** Inputs, all updated but g and scalars: p, m, v, g, scalars, bf16 shadow of p or null. */
const adamwOp = defineOp<AdamWParams>({
  name: 'adamw',
  inPlace: true,
  infer: ([p, m, v, g, scalars, shadow]) => {
    for (const [t, what] of [
      [p, 'the parameter'],
      [m, 'm'],
      [v, 'v'],
      [scalars, 'scalars'],
    ] as const)
      wantDType(t, 'f32', 'adamw', what);
    wantDType(shadow, 'bf16', 'adamw', 'the shadow');
    for (const t of [m, v, g, shadow])
      if (t && !sameShape(t.shape, p!.shape))
        throw new AnsatzError(`adamw: ${show(t.shape)} for a parameter ${show(p!.shape)}`);
    return [];
  },
  launch: ([p, m, v, g, scalars, shadow], _, c) => ({
    kernel: 'adamw',
    args: [p!.arg(), m!.arg(), v!.arg(), g!.arg(), scalars!.arg(), shadow?.arg() ?? null],
    ints: [p!.size],
    floats: [c.lrMult, c.beta1, c.beta2, c.eps, c.decay],
  }),
  flops: ([p]) => 16 * p!.size,
  bytes: ([p, , , g]) => p!.size * 24 + g!.storage.memory.bytes,
});
/** AdamW (Loshchilov and Hutter 2019) on one tensor. */
export const adamw = (
  p: Tensor,
  m: Tensor,
  v: Tensor,
  g: Tensor,
  scalars: Tensor,
  shadow: Tensor | null,
  options: AdamWParams,
): void => {
  noGrad(() => apply(adamwOp, [p, m, v, g, scalars, shadow], options));
};

/** acc += g, in place: gradients of several micro-batches. */
const accumulateOp = defineOp<Record<string, never>>({
  name: 'accumulate',
  inPlace: true,
  infer: ([acc, g]) => {
    wantDType(acc, 'f32', 'accumulate', 'the accumulator');
    if (!sameShape(acc!.shape, g!.shape))
      throw new AnsatzError(`accumulate: ${show(g!.shape)} into ${show(acc!.shape)}`);
    return [];
  },
  launch: ([acc, g]) => ({
    kernel: 'add_scaled',
    args: [acc!.arg(), acc!.arg(), g!.arg()],
    ints: [acc!.size],
    floats: [1, 1],
  }),
  flops: ([acc]) => acc!.size,
});
export const accumulate = (acc: Tensor, g: Tensor): void => {
  noGrad(() => apply(accumulateOp, [acc, g], {}));
};

/** Sets every element, in place. */
const assignOp = defineOp<{ value: number }>({
  name: 'assign',
  inPlace: true,
  infer: () => [],
  launch: ([t], _, p) => ({ kernel: 'fill', args: [t!.arg()], ints: [t!.size], floats: [p.value] }),
  flops: () => 0,
  bytes: ([t]) => t!.storage.memory.bytes,
});
export const assign = (t: Tensor, value: number): void => {
  noGrad(() => apply(assignOp, [t], { value }));
};
