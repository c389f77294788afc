/** Views and copies that move values without changing them. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { type Shape, sizeOfShape, type Tensor } from '../tensor.ts';
import { reduceTo } from './binary.ts';
import { axisOf, broadcastShapes, broadcastStrides, collapse, sameShape, show, stridesOf } from './common.ts';

/** The same values under another shape; shares the storage. One size may be -1. */
const reshapeOp = defineOp<{ shape: Shape }>({
  name: 'reshape',
  view: true,
  infer: ([x], p) => [{ shape: p.shape, dtype: x!.dtype }],
  launch: () => [],
  flops: () => 0,
  gradient: ({ inputs: [x], grads: [dy] }) => [reshape(dy!, x!.shape)],
});
export function reshape(x: Tensor, shape: Shape): Tensor {
  const known = shape.reduce((n, d) => (d === -1 ? n : n * d), 1);
  const full = shape.map((d) => (d === -1 ? x.size / known : d));
  if (sizeOfShape(full) !== x.size || !full.every(Number.isInteger))
    throw new AnsatzError(`reshape: ${show(x.shape)} (${x.size} elements) does not fit ${show(shape)}`);
  if (sameShape(full, x.shape)) return x;
  return apply(reshapeOp, [x], { shape: full })[0];
}

/** Axes in another order (a copy). */
const permuteOp = defineOp<{ order: readonly number[] }>({
  name: 'permute',
  infer: ([x], p) => [{ shape: p.order.map((a) => x!.shape[a]), dtype: x!.dtype }],
  launch: ([x], [y], p) => {
    const own = stridesOf(x!.shape);
    const c = collapse(y.shape, [p.order.map((a) => own[a])]);
    return { kernel: 'strided_read', args: [y.arg(), x!.arg()], ints: [c.dims.length, ...c.dims, ...c.strides[0]] };
  },
  flops: () => 0,
  gradient: ({ grads: [dy], params }) => {
    const inverse = new Array<number>(params.order.length);
    params.order.forEach((a, k) => {
      inverse[a] = k;
    });
    return [permute(dy!, inverse)];
  },
});
export function permute(x: Tensor, order: readonly number[]): Tensor {
  if (order.length !== x.rank || new Set(order).size !== x.rank || order.some((a) => a < 0 || a >= x.rank))
    throw new AnsatzError(`permute: [${order.join(', ')}] is no order of the axes of ${show(x.shape)}`);
  return apply(permuteOp, [x], { order })[0];
}
export function transpose(x: Tensor, a = -1, b = -2): Tensor {
  const order = x.shape.map((_, k) => k);
  const [i, j] = [axisOf(a, x.rank, 'transpose'), axisOf(b, x.rank, 'transpose')];
  [order[i], order[j]] = [order[j], order[i]];
  return permute(x, order);
}

/** Repeats along broadcast axes (a copy). */
const expandOp = defineOp<{ shape: Shape }>({
  name: 'expand',
  infer: ([x], p) => {
    if (!sameShape(broadcastShapes(x!.shape, p.shape, 'expand'), p.shape))
      throw new AnsatzError(`expand: ${show(x!.shape)} does not broadcast to ${show(p.shape)}`);
    return [{ shape: p.shape, dtype: x!.dtype }];
  },
  launch: ([x], [y]) => {
    const c = collapse(y.shape, [broadcastStrides(x!.shape, y.shape)]);
    return { kernel: 'strided_read', args: [y.arg(), x!.arg()], ints: [c.dims.length, ...c.dims, ...c.strides[0]] };
  },
  flops: () => 0,
  gradient: ({ inputs: [x], grads: [dy] }) => [reduceTo(dy!, x!.shape)],
});
export const expand = (x: Tensor, shape: Shape): Tensor => apply(expandOp, [x], { shape })[0];

interface Region {
  /** First index and stride of the region along each axis, and its shape. */
  readonly start: readonly number[];
  readonly step: readonly number[];
  readonly shape: Shape;
}

/** Reads a strided region. */
const sliceOp = defineOp<Region>({
  name: 'slice',
  infer: ([x], p) => [{ shape: p.shape, dtype: x!.dtype }],
  launch: ([x], [y], p) => {
    const { first, strides } = region(x!.shape, p);
    const c = collapse(p.shape, [strides]);
    return {
      kernel: 'strided_read',
      args: [y.arg(), x!.arg(first)],
      ints: [c.dims.length, ...c.dims, ...c.strides[0]],
    };
  },
  flops: () => 0,
  bytes: (_, [y]) => 2 * y.storage.memory.bytes,
  gradient: ({ inputs: [x], grads: [dy], params }) => [embed(dy!, x!.shape, params)],
});

/** Zeros of a shape with x written into a region of it: what a slice's gradient is, and what padding does. */
const embedOp = defineOp<{ outer: Shape; region: Region; value: number }>({
  name: 'embed',
  infer: ([x], p) => [{ shape: p.outer, dtype: x!.dtype }],
  launch: ([x], [y], p) => {
    const { first, strides } = region(p.outer, p.region);
    const c = collapse(p.region.shape, [strides]);
    return [
      { kernel: 'fill', args: [y.arg()], ints: [y.size], floats: [p.value] },
      { kernel: 'strided_write', args: [y.arg(first), x!.arg()], ints: [c.dims.length, ...c.dims, ...c.strides[0]] },
    ];
  },
  flops: () => 0,
  gradient: ({ grads: [dy], params }) => [apply(sliceOp, [dy!], params.region)[0]],
});

function region(shape: Shape, p: Region): { first: number; strides: number[] } {
  const own = stridesOf(shape);
  let first = 0;
  for (let k = 0; k < own.length; k++) if (p.shape[k] > 0) first += p.start[k] * own[k];
  return { first: sizeOfShape(p.shape) === 0 ? 0 : first, strides: own.map((s, k) => s * p.step[k]) };
}

const embed = (x: Tensor, outer: Shape, r: Region, value = 0): Tensor =>
  apply(embedOp, [x], { outer, region: r, value })[0];

/** Elements begin, begin+step, ... below end along one axis; negative begin and end count from the end. */
export function slice(x: Tensor, axis: number, begin: number, end: number = Number.MAX_SAFE_INTEGER, step = 1): Tensor {
  const a = axisOf(axis, x.rank, 'slice');
  const n = x.shape[a];
  const clip = (v: number): number => Math.max(0, Math.min(n, v < 0 ? v + n : v));
  const [from, to] = [clip(begin), clip(end)];
  if (!Number.isInteger(step) || step < 1) throw new AnsatzError(`slice: step ${step} must be a positive integer`);
  const count = Math.max(0, Math.ceil((to - from) / step));
  const r: Region = {
    start: x.shape.map((_, k) => (k === a ? from : 0)),
    step: x.shape.map((_, k) => (k === a ? step : 1)),
    shape: x.shape.map((d, k) => (k === a ? count : d)),
  };
  return apply(sliceOp, [x], r)[0];
}

/** Parts of the given sizes along an axis. */
export function split(x: Tensor, sizes: readonly number[], axis: number): Tensor[] {
  const a = axisOf(axis, x.rank, 'split');
  if (sizes.reduce((s, v) => s + v, 0) !== x.shape[a])
    throw new AnsatzError(`split: sizes ${sizes.join(' + ')} do not add up to ${x.shape[a]}`);
  let at = 0;
  return sizes.map((n) => slice(x, a, at, (at += n)));
}

/** Adds `before` and `after` elements of a constant along an axis. */
export function pad(x: Tensor, axis: number, before: number, after: number, value = 0): Tensor {
  const a = axisOf(axis, x.rank, 'pad');
  if (before < 0 || after < 0) throw new AnsatzError(`pad: ${before} and ${after} must not be negative`);
  const outer = x.shape.map((d, k) => (k === a ? d + before + after : d));
  return embed(
    x,
    outer,
    { start: x.shape.map((_, k) => (k === a ? before : 0)), step: x.shape.map(() => 1), shape: x.shape },
    value,
  );
}

/** Joins tensors along an axis. */
const concatOp = defineOp<{ axis: number }>({
  name: 'concat',
  infer: (inputs, p) => {
    const [x] = inputs;
    for (const t of inputs)
      if (t!.rank !== x!.rank || t!.dtype !== x!.dtype || t!.shape.some((d, k) => k !== p.axis && d !== x!.shape[k]))
        throw new AnsatzError(
          `concat: ${show(t!.shape)} ${t!.dtype} does not join ${show(x!.shape)} ${x!.dtype} along ${p.axis}`,
        );
    const total = inputs.reduce((n, t) => n + t!.shape[p.axis], 0);
    return [{ shape: x!.shape.map((d, k) => (k === p.axis ? total : d)), dtype: x!.dtype }];
  },
  launch: (inputs, [y], p) => {
    const own = stridesOf(y.shape);
    let at = 0;
    return inputs.map((t) => {
      const c = collapse(t!.shape, [own]);
      const call = {
        kernel: 'strided_write',
        args: [y.arg(t!.size ? at * own[p.axis] : 0), t!.arg()],
        ints: [c.dims.length, ...c.dims, ...c.strides[0]],
      };
      at += t!.shape[p.axis];
      return call;
    });
  },
  flops: () => 0,
  gradient: ({ inputs, grads: [dy], params }) =>
    split(
      dy!,
      inputs.map((t) => t!.shape[params.axis]),
      params.axis,
    ),
});
export function concat(tensors: readonly Tensor[], axis: number): Tensor {
  if (tensors.length === 0) throw new AnsatzError('concat: nothing to join');
  return apply(concatOp, tensors, { axis: axisOf(axis, tensors[0].rank, 'concat') })[0];
}

/** Joins tensors along a new axis. */
export const stack = (tensors: readonly Tensor[], axis = 0): Tensor =>
  concat(
    tensors.map((t) => reshape(t, [...t.shape.slice(0, axis), 1, ...t.shape.slice(axis)])),
    axis,
  );
