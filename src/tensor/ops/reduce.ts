/** Reductions along axes, and functions of rows (softmax and kin). */

import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type GradContext, type Op } from '../op.ts';
import { noGrad } from '../tape.ts';
import { type Shape, sizeOfShape, type Tensor } from '../tensor.ts';
import { add, cast, div, eq, mul, selected, sub } from './binary.ts';
import { around, axisOf, like, wantFloat } from './common.ts';
import { zeros } from './create.ts';
import { expand, permute, reshape } from './shape.ts';
import { affine, exp } from './unary.ts';

interface Axis {
  readonly axis: number;
}

const without = (shape: Shape, axis: number): number[] => shape.filter((_, k) => k !== axis);
const withOne = (shape: Shape, axis: number): number[] => shape.map((d, k) => (k === axis ? 1 : d));

/** Repeats a reduced tensor along the axis that was reduced. */
const spread = (y: Tensor, shape: Shape, axis: number): Tensor => expand(reshape(y, withOne(shape, axis)), shape);

type ReduceGradient = (c: GradContext<Axis>, dy: Tensor, x: Tensor) => Tensor;

function reduction(name: string, gradient?: ReduceGradient, dtype?: DType): Op<Axis> {
  return defineOp<Axis>({
    name,
    infer: ([x], p) => {
      wantFloat(x, name);
      return [{ shape: without(x!.shape, p.axis), dtype: dtype ?? x!.dtype }];
    },
    launch: ([x], [y], p) => {
      const { outer, n, inner } = around(x!.shape, p.axis);
      return { kernel: name, args: [y.arg(), x!.arg()], ints: [outer, n, inner] };
    },
    flops: ([x]) => x!.size,
    gradient: gradient && ((c) => [gradient(c, c.grads[0]!, c.inputs[0]!)]),
  });
}

/** Gradient of an extreme: shared equally among the elements that attain it. */
const extremeGradient: ReduceGradient = ({ outputs: [y], params: { axis } }, dy, x) => {
  const hit = noGrad(() => eq(x, spread(y, x.shape, axis)));
  const count = noGrad(() => sum(hit, [axis]));
  return selected(hit, spread(div(dy, count), x.shape, axis));
};

const sumOp = reduction('sum', ({ params }, dy, x) => spread(dy, x.shape, params.axis));
const meanOp = reduction('mean', ({ params }, dy, x) =>
  spread(affine(dy, 1 / x.shape[params.axis], 0), x.shape, params.axis),
);
const maxOp = reduction('max', extremeGradient);
const minOp = reduction('min', extremeGradient);
/** The product of the others, for each element: that of all non-zeros over its own, unless another one is zero. */
const prodOp: Op<Axis> = reduction('prod', ({ params }, dy, x) => {
  const all = (t: Tensor): Tensor => spread(t, x.shape, params.axis);
  const zero = zeros(x.device, [], x.dtype);
  const isZero = eq(x, zero);
  const nonZero = add(x, isZero);
  const otherZeros = sub(all(sum(isZero, [params.axis])), isZero);
  const [product] = apply(prodOp, [nonZero], params);
  return selected(eq(otherZeros, zero), div(all(mul(dy, product)), nonZero));
});
const argmaxOp = reduction('argmax', undefined, 'i32');
const argminOp = reduction('argmin', undefined, 'i32');

/** Reduces `axes` (all by default): brings them together, then reduces once. */
function reduceAxes(op: Op<Axis>, x: Tensor, axes: readonly number[] | undefined, keep: boolean): Tensor {
  const list = [...new Set((axes ?? x.shape.map((_, k) => k)).map((a) => axisOf(a, x.rank, op.name)))].sort(
    (a, b) => a - b,
  );
  const kept = x.shape.map((d, k) => (list.includes(k) ? 1 : d));
  if (list.length === 0) return x;
  const rest = x.shape.map((_, k) => k).filter((k) => !list.includes(k));
  const contiguous = list.every((a, k) => k === 0 || a === list[k - 1] + 1);
  const ordered = contiguous ? x : permute(x, [...rest, ...list]);
  const outer = contiguous ? sizeOfShape(x.shape.slice(0, list[0])) : sizeOfShape(rest.map((a) => x.shape[a]));
  const n = sizeOfShape(list.map((a) => x.shape[a]));
  const inner = contiguous ? sizeOfShape(x.shape.slice(list[list.length - 1] + 1)) : 1;
  const [y] = apply(op, [reshape(ordered, [outer, n, inner])], { axis: 1 });
  return reshape(y, keep ? kept : rest.map((a) => x.shape[a]));
}

export const sum = (x: Tensor, axes?: readonly number[], keep = false): Tensor => reduceAxes(sumOp, x, axes, keep);
export const mean = (x: Tensor, axes?: readonly number[], keep = false): Tensor => reduceAxes(meanOp, x, axes, keep);
export const max = (x: Tensor, axes?: readonly number[], keep = false): Tensor => reduceAxes(maxOp, x, axes, keep);
export const min = (x: Tensor, axes?: readonly number[], keep = false): Tensor => reduceAxes(minOp, x, axes, keep);
export const prod = (x: Tensor, axes?: readonly number[], keep = false): Tensor => reduceAxes(prodOp, x, axes, keep);
/** Index of the first extreme along one axis (i32). */
export const argmax = (x: Tensor, axis = -1): Tensor =>
  apply(argmaxOp, [x], { axis: axisOf(axis, x.rank, 'argmax') })[0];
export const argmin = (x: Tensor, axis = -1): Tensor =>
  apply(argminOp, [x], { axis: axisOf(axis, x.rank, 'argmin') })[0];

/** Sum of squares of all elements, [1] in f32. */
const sumsqOp = defineOp<Record<string, never>>({
  name: 'sumsq',
  infer: ([x]) => {
    wantFloat(x, 'sumsq');
    return [{ shape: [1], dtype: 'f32' }];
  },
  launch: ([x], [y]) => ({ kernel: 'sumsq', args: [y.arg(), x!.arg()], ints: [x!.size] }),
  flops: ([x]) => 2 * x!.size,
  gradient: ({ inputs: [x], grads: [dy] }) => [mul(affine(x!, 2, 0), cast(dy!, x!.dtype))],
});
export const sumsq = (x: Tensor): Tensor => apply(sumsqOp, [x], {})[0];

/** Running sum along an axis. */
const cumsumOp: Op<{ axis: number; reverse: boolean; exclusive: boolean }> = defineOp<{
  axis: number;
  reverse: boolean;
  exclusive: boolean;
}>({
  name: 'cumsum',
  infer: (inputs) => {
    wantFloat(inputs[0], 'cumsum');
    return like(inputs);
  },
  launch: ([x], [y], p) => {
    const { outer, n, inner } = around(x!.shape, p.axis);
    return { kernel: 'cumsum', args: [y.arg(), x!.arg()], ints: [outer, n, inner, +p.reverse, +p.exclusive] };
  },
  flops: ([x]) => x!.size,
  gradient: ({ grads: [dy], params }) => [apply(cumsumOp, [dy!], { ...params, reverse: !params.reverse })[0]],
});
export const cumsum = (x: Tensor, axis = -1, options: { reverse?: boolean; exclusive?: boolean } = {}): Tensor =>
  apply(cumsumOp, [x], {
    axis: axisOf(axis, x.rank, 'cumsum'),
    reverse: !!options.reverse,
    exclusive: !!options.exclusive,
  })[0];

const rowsOf = (t: Tensor): [number, number] => {
  const cols = t.shape[t.rank - 1];
  return [cols === 0 ? 0 : t.size / cols, cols];
};

type None = Record<string, never>;

function rowwise(name: string, backward: string): (x: Tensor) => Tensor {
  const bwd = defineOp<None>({
    name: backward,
    infer: (inputs) => like(inputs),
    launch: ([y, dy], [dx]) => ({ kernel: backward, args: [dx.arg(), y!.arg(), dy!.arg()], ints: rowsOf(dx) }),
    flops: (_, [dx]) => 4 * dx.size,
  });
  const op = defineOp<None>({
    name,
    infer: (inputs) => {
      wantFloat(inputs[0], name);
      if (inputs[0]!.rank === 0) throw new AnsatzError(`${name} wants at least one axis`);
      return like(inputs);
    },
    launch: ([x], [y]) => ({ kernel: name, args: [y.arg(), x!.arg()], ints: rowsOf(y) }),
    flops: (_, [y]) => 5 * y.size,
    gradient: ({ outputs: [y], grads: [dy] }) => [apply(bwd, [y, dy!], {})[0]],
  });
  return (x) => apply(op, [x], {})[0];
}

/** Over the last axis. */
export const softmax = rowwise('softmax', 'softmax_bwd');
export const logSoftmax = rowwise('log_softmax', 'log_softmax_bwd');

/** log sum exp over the last axis, in f32. */
const logsumexpOp = defineOp<None>({
  name: 'logsumexp',
  infer: ([x]) => {
    wantFloat(x, 'logsumexp');
    return [{ shape: x!.shape.slice(0, -1), dtype: 'f32' }];
  },
  launch: ([x], [y]) => ({ kernel: 'logsumexp', args: [y.arg(), x!.arg()], ints: rowsOf(x!) }),
  flops: ([x]) => 3 * x!.size,
  gradient: ({ inputs: [x], outputs: [y], grads: [dy] }) => {
    const axis = x!.rank - 1;
    const p = exp(sub(cast(x!, 'f32'), spread(y, x!.shape, axis)));
    return [cast(mul(spread(dy!, x!.shape, axis), p), x!.dtype)];
  },
});
export const logsumexp = (x: Tensor): Tensor => apply(logsumexpOp, [x], {})[0];
