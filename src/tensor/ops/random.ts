/** Counter-based random numbers (Philox4x32-10, Salmon et al. 2011): a value depends on seed, step, stream and index only. */
import type { Device } from '../../backend/device.ts';
import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import { type Shape, Tensor } from '../tensor.ts';
import { like, wantFloat } from './common.ts';

/** Random state in device memory, i32 [4]: seed and step as low and high halves. A replayed step reads it anew. */
export class RandomState {
  readonly tensor: Tensor;
  private seed: bigint;

  constructor(device: Device, seed: number | bigint) {
    this.seed = BigInt(seed);
    this.tensor = Tensor.from(device, new Int32Array(4), [4], 'i32').keep();
    this.setStep(0);
  }

  /** Every step draws different numbers. */
  setStep(step: number): void {
    const s = BigInt.asUintN(64, this.seed);
    const t = BigInt(step);
    const words = [s & 0xffffffffn, s >> 32n, t & 0xffffffffn, t >> 32n].map((w) => Number(BigInt.asIntN(32, w)));
    this.tensor.write(words);
  }
}

interface Draw {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly stream: number;
  readonly a: number;
  readonly b: number;
}

const draw = (kernel: string) =>
  defineOp<Draw>({
    name: kernel,
    infer: (_, p) => [{ shape: p.shape, dtype: p.dtype }],
    launch: ([state], [y], p) => ({
      kernel,
      args: [y.arg(), state!.arg()],
      ints: [y.size, p.stream],
      floats: [p.a, p.b],
    }),
    flops: (_, [y]) => 10 * y.size,
  });
const uniformOp = draw('uniform');
const normalOp = draw('normal');

/** Uniform in [lo, hi). Draws with different streams are independent. */
export const uniform = (
  state: RandomState,
  shape: Shape,
  stream: number,
  lo = 0,
  hi = 1,
  dtype: DType = 'f32',
): Tensor => apply(uniformOp, [state.tensor], { shape, dtype, stream, a: lo, b: hi })[0];
/** Normal with a mean and a standard deviation (Box-Muller). */
export const normal = (
  state: Pick<RandomState, 'tensor'>,
  shape: Shape,
  stream: number,
  mean = 0,
  std = 1,
  dtype: DType = 'f32',
): Tensor => apply(normalOp, [state.tensor], { shape, dtype, stream, a: mean, b: std })[0];

const dropoutOp: Op<{ p: number; stream: number }> = defineOp<{ p: number; stream: number }>({
  name: 'dropout',
  infer: (inputs) => {
    wantFloat(inputs[0], 'dropout');
    return like(inputs);
  },
  launch: ([x, state], [y], p) => ({
    kernel: 'dropout',
    args: [y.arg(), x!.arg(), state!.arg()],
    ints: [y.size, p.stream],
    floats: [p.p],
  }),
  flops: (_, [y]) => 11 * y.size,
  // The mask is drawn again from the same counters: nothing is stored.
  gradient: ({ inputs: [, state], grads: [dy], params }) => [apply(dropoutOp, [dy, state], params)[0], null],
});
/** Zeroes each element with probability p and scales the rest by 1/(1-p). */
export function dropout(x: Tensor, state: RandomState, p: number, stream: number): Tensor {
  if (!(p >= 0 && p < 1)) throw new AnsatzError(`dropout: probability ${p} is not in [0, 1)`);
  return p === 0 ? x : apply(dropoutOp, [x, state.tensor], { p, stream })[0];
}
