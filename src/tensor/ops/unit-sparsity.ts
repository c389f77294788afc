/** Sparse activations without a controller: statistical top-k, the L1 term, and monitors. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { like, sameShape, show, wantDType, wantFloat } from './common.ts';

type None = Record<string, never>;
const rowsOf = (x: Tensor): [number, number] => [x.size / Math.max(1, x.shape[x.rank - 1]), x.shape[x.rank - 1]];

const topkBwd = defineOp<{ c: number }>({
  name: 'stat_topk_bwd',
  infer: (inputs) => like(inputs),
  launch: ([x, y, mean, std, dy], [dx], p) => ({
    kernel: 'stat_topk_bwd',
    args: [dx, x, y, mean, std, dy].map((t) => t!.arg()),
    ints: rowsOf(x!),
    floats: [p.c],
  }),
  flops: ([x]) => 7 * x!.size,
});

const topkOp = defineOp<{ c: number }>({
  name: 'stat_topk',
  infer: ([x]) => {
    wantFloat(x, 'stat_topk');
    const rows = x!.shape.slice(0, -1);
    return [
      { shape: x!.shape, dtype: x!.dtype },
      { shape: rows, dtype: 'f32' },
      { shape: rows, dtype: 'f32' },
    ];
  },
  launch: ([x], [y, mean, std], p) => ({
    kernel: 'stat_topk',
    args: [y, mean, std, x!].map((t) => t.arg()),
    ints: rowsOf(x!),
    floats: [p.c],
  }),
  flops: ([x]) => 6 * x!.size,
  gradient: ({ inputs: [x], outputs: [y, mean, std], grads: [dy], params }) => [
    dy ? apply(topkBwd, [x, y, mean, std, dy], params)[0] : null,
  ],
});

/**
 * relu(x - theta) with theta = mean + c std over the last axis: of normally distributed scores a share 1 - Phi(c) stays
 * (You et al. 2025). No sort; the gradient runs through the mean and the deviation as well.
 */
export const statTopk = (x: Tensor, c: number): Tensor => apply(topkOp, [x], { c })[0];

/** Phi^-1(p), the standard normal quantile: bisection on the complementary error function's tail, to 1e-12. */
export function normalQuantile(p: number): number {
  if (!(p > 0 && p < 1)) throw new AnsatzError(`normalQuantile: ${p} is not in (0, 1)`);
  let [lo, hi] = [-9, 9];
  while (hi - lo > 1e-12) {
    const mid = (lo + hi) / 2;
    if (normalCdf(mid) < p) lo = mid;
    else hi = mid;
  }
  return (lo + hi) / 2;
}

/** Phi(x) by the series x + x^3/3 + x^5/15 + ..., times the density (Abramowitz and Stegun 26.2.11). */
function normalCdf(x: number): number {
  let [term, sum] = [x, x];
  for (let k = 3; Math.abs(term) > 1e-17 * Math.abs(sum) && k < 400; k += 2) sum += term *= (x * x) / k;
  return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}

const absSumBwd = defineOp<None>({
  name: 'abs_sum_bwd',
  infer: (inputs) => like(inputs),
  launch: ([x, g, addend], [dx]) => ({
    kernel: 'abs_sum_bwd',
    args: [dx.arg(), x!.arg(), g!.arg(), addend?.arg() ?? null],
    ints: [x!.size],
  }),
  flops: ([x]) => x!.size,
});

const absSumOp = defineOp<None>({
  name: 'abs_sum',
  infer: ([x]) => {
    wantFloat(x, 'abs_sum');
    return [{ shape: [], dtype: 'f32' }];
  },
  launch: ([x], [y]) => ({ kernel: 'abs_sum', args: [y.arg(), x!.arg()], ints: [x!.size] }),
  flops: ([x]) => 2 * x!.size,
  gradient: ({ inputs: [x], grads: [g], take }) => [apply(absSumBwd, [x, g, take(0)], {})[0]],
});

/** Sum of |x| over all elements, a scalar in f32. */
export const absSum = (x: Tensor): Tensor => apply(absSumOp, [x], {})[0];

const nonzeroOp = defineOp<None>({
  name: 'nonzero_share',
  infer: ([x]) => {
    wantFloat(x, 'nonzero_share');
    return [{ shape: [x!.shape[x!.rank - 1]], dtype: 'f32' }];
  },
  launch: ([x], [y]) => ({ kernel: 'nonzero_share', args: [y.arg(), x!.arg()], ints: rowsOf(x!) }),
  flops: ([x]) => x!.size,
});

/** Share of rows in which each element of the last axis is not 0: f32 [F]. */
export const nonzeroShare = (x: Tensor): Tensor => noGrad(() => apply(nonzeroOp, [x], {})[0]);

const trackOp = defineOp<{ decay: number }>({
  name: 'track',
  inPlace: true,
  infer: ([state, x]) => {
    wantDType(state, 'f32', 'track', 'the state');
    if (!sameShape(state!.shape, x!.shape))
      throw new AnsatzError(`track: ${show(x!.shape)} into ${show(state!.shape)}`);
    return [];
  },
  launch: ([state, x], _, p) => ({
    kernel: 'add_scaled',
    args: [state!.arg(), state!.arg(), x!.arg()],
    ints: [state!.size],
    floats: [p.decay, 1 - p.decay],
  }),
  flops: ([state]) => 3 * state!.size,
});

/** state = decay state + (1 - decay) x, in place: a running mean for monitors. */
export const track = (state: Tensor, x: Tensor, decay: number): void => {
  noGrad(() => apply(trackOp, [state, x], { decay }));
};
