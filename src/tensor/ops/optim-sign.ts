/** Updates with one state tensor: Lion, Nesterov momentum, and the step along a direction that was worked out before. */
import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';

function check(op: string, f32: readonly (Tensor | null)[], like: Tensor, others: readonly (Tensor | null)[]): void {
  for (const t of f32) wantDType(t, 'f32', op, 'the parameter, its state and the scalars');
  for (const t of others)
    if (t && !sameShape(t.shape, like.shape))
      throw new AnsatzError(`${op}: ${show(t.shape)} beside ${show(like.shape)}`);
}

export interface LionParams {
  readonly lrMult: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly decay: number;
}

/** Inputs: p and m (updated), g, scalars. */
const lionOp = defineOp<LionParams>({
  name: 'lion',
  inPlace: true,
  infer: ([p, m, g, scalars]) => {
    check('lion', [p, m, scalars], p!, [m, g]);
    return [];
  },
  launch: ([p, m, g, scalars], _, c) => ({
    kernel: 'lion',
    args: [p!.arg(), m!.arg(), g!.arg(), scalars!.arg()],
    ints: [p!.size],
    floats: [c.lrMult, c.beta1, c.beta2, c.decay],
  }),
  flops: ([p]) => 10 * p!.size,
  bytes: ([p, , g]) => p!.size * 16 + g!.storage.memory.bytes,
});
/** Lion (Chen et al. 2023) on one tensor. */
export const lion = (p: Tensor, m: Tensor, g: Tensor, scalars: Tensor, options: LionParams): void => {
  noGrad(() => apply(lionOp, [p, m, g, scalars], options));
};

/** Inputs: m (updated), g, scalars. Output: the direction u. */
const momentumOp = defineOp<{ out: DType }>({
  name: 'momentum',
  infer: ([m, g, scalars], p) => {
    check('momentum', [m, scalars], m!, [g]);
    return [{ shape: m!.shape, dtype: p.out }];
  },
  launch: ([m, g, scalars], [u]) => ({
    kernel: 'momentum',
    args: [u.arg(), m!.arg(), g!.arg(), scalars!.arg()],
    ints: [m!.size],
  }),
  flops: ([m]) => 6 * m!.size,
});
/** m = mu m + (1 - mu) g in place, with the momentum mu in the scalars; gives (1 - mu) g + mu m. */
export const momentum = (m: Tensor, g: Tensor, scalars: Tensor, out: DType = 'f32'): Tensor =>
  noGrad(() => apply(momentumOp, [m, g, scalars], { out })[0]);

export interface UpdateParams {
  readonly lrMult: number;
  /** Factor on the direction. */
  readonly scale: number;
  readonly decay: number;
}

/** Inputs: p (updated), u, scalars. */
const applyUpdateOp = defineOp<UpdateParams>({
  name: 'apply_update',
  inPlace: true,
  infer: ([p, u, scalars]) => {
    check('apply_update', [p, scalars], p!, [u]);
    wantFloat(u, 'apply_update');
    return [];
  },
  launch: ([p, u, scalars], _, c) => ({
    kernel: 'apply_update',
    args: [p!.arg(), u!.arg(), scalars!.arg()],
    ints: [p!.size],
    floats: [c.lrMult, c.scale, c.decay],
  }),
  flops: ([p]) => 5 * p!.size,
  bytes: ([p, u]) => p!.size * 8 + u!.storage.memory.bytes,
});
/** p -= lr lrMult (scale u + decay p), in place. */
export const applyUpdate = (p: Tensor, u: Tensor, scalars: Tensor, options: UpdateParams): void => {
  noGrad(() => apply(applyUpdateOp, [p, u, scalars], options));
};
