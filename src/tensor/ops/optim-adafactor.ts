/** Adafactor's update (Shazeer and Stern 2018), in place on one tensor. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType } from './common.ts';

export interface AdafactorParams {
  readonly lrMult: number;
  /** Added to squared gradients. */
  readonly eps1: number;
  /** Least root mean square of the weights that a step is measured in. */
  readonly eps2: number;
  /** Largest root mean square of an update. */
  readonly clip: number;
  readonly decay: number;
}

/** What a tensor is to Adafactor: a batch of matrices (leading axes are the batch). */
export function matricesOf(shape: readonly number[]): { batch: number; rows: number; cols: number } {
  const cols = shape[shape.length - 1] ?? 1;
  const rows = shape[shape.length - 2] ?? 1;
  return { batch: shape.slice(0, -2).reduce((a, b) => a * b, 1), rows, cols };
}

/** Inputs: p, then r [batch, rows] and c [batch, cols] or else v (p's shape), all updated; g, scalars. */
const adafactorOp = defineOp<AdafactorParams>({
  name: 'adafactor',
  inPlace: true,
  infer: ([p, r, c, v, g, scalars]) => {
    for (const t of [p, r, c, v, scalars]) wantDType(t, 'f32', 'adafactor', 'the parameter, its state and the scalars');
    const { batch, rows, cols } = matricesOf(p!.shape);
    const fits = r ? r.size === batch * rows && c?.size === batch * cols && !v : v && sameShape(v.shape, p!.shape);
    if (!fits || !sameShape(g!.shape, p!.shape))
      throw new AnsatzError(`adafactor: gradient ${show(g!.shape)} or state do not fit a parameter ${show(p!.shape)}`);
    return [];
  },
  launch: ([p, r, c, v, g, scalars], _, o) => {
    const { batch, rows, cols } = matricesOf(p!.shape);
    return {
      kernel: 'adafactor',
      args: [p!.arg(), r?.arg() ?? null, c?.arg() ?? null, v?.arg() ?? null, g!.arg(), scalars!.arg()],
      ints: [batch, rows, cols],
      floats: [o.lrMult, o.eps1, o.eps2, o.clip, o.decay],
    };
  },
  flops: ([p]) => 16 * p!.size,
  bytes: ([p, , , v, g]) => p!.size * (v ? 24 : 12) + 3 * g!.storage.memory.bytes,
});
/** With `r` and `c` second moments are factored; with `v` they are whole. scalars[3] is 1 - beta2 of this step. */
export const adafactor = (
  p: Tensor,
  state: { r: Tensor; c: Tensor } | { v: Tensor },
  g: Tensor,
  scalars: Tensor,
  options: AdafactorParams,
): void => {
  const [r, c, v] = 'v' in state ? [null, null, state.v] : [state.r, state.c, null];
  noGrad(() => apply(adafactorOp, [p, r, c, v, g, scalars], options));
};
