/** Shape arithmetic shared by the op rows. */

import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import type { Aval, Inputs } from '../op.ts';
import type { Shape, Tensor } from '../tensor.ts';

export const show = (shape: Shape): string => `[${shape.join(', ')}]`;

export const sameShape = (a: Shape, b: Shape): boolean => {
  if (a.length !== b.length) return false;
  for (let k = 0; k < a.length; k++) if (a[k] !== b[k]) return false;
  return true;
};

/** Resolves a possibly negative axis. */
export function axisOf(axis: number, rank: number, op: string): number {
  const a = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || a < 0 || a >= rank)
    throw new AnsatzError(`${op}: axis ${axis} of a rank-${rank} tensor`);
  return a;
}

/** Sizes before, at and after an axis: a tensor seen as [outer, n, inner]. */
export function around(shape: Shape, axis: number): { outer: number; n: number; inner: number } {
  let outer = 1;
  let inner = 1;
  for (let k = 0; k < axis; k++) outer *= shape[k];
  for (let k = axis + 1; k < shape.length; k++) inner *= shape[k];
  return { outer, n: shape[axis], inner };
}

/** Row-major strides in elements. */
export function stridesOf(shape: Shape): number[] {
  const out = new Array<number>(shape.length);
  let s = 1;
  for (let k = shape.length - 1; k >= 0; k--) {
    out[k] = s;
    s *= shape[k];
  }
  return out;
}

/** NumPy's broadcasting of two shapes. */
export function broadcastShapes(a: Shape, b: Shape, op: string): number[] {
  const rank = Math.max(a.length, b.length);
  const out = new Array<number>(rank);
  for (let k = 1; k <= rank; k++) {
    const x = k <= a.length ? a[a.length - k] : 1;
    const y = k <= b.length ? b[b.length - k] : 1;
    if (x !== y && x !== 1 && y !== 1)
      throw new AnsatzError(`${op}: shapes ${show(a)} and ${show(b)} do not broadcast`);
    out[rank - k] = x === 1 ? y : x;
  }
  return out;
}

/** Strides that read a tensor of `shape` as if it had `target` (0 where it repeats). */
export function broadcastStrides(shape: Shape, target: Shape): number[] {
  const own = stridesOf(shape);
  const skip = target.length - shape.length;
  return target.map((n, k) => (k < skip || (shape[k - skip] === 1 && n !== 1) ? 0 : own[k - skip]));
}

/**
 * Merges neighbouring axes that every stride list walks evenly, and drops axes of size 1: the fewer axes, the longer
 * the kernels' inner loops. Returns at least one axis.
 */
export function collapse(
  dims: Shape,
  strides: readonly (readonly number[])[],
): { dims: number[]; strides: number[][] } {
  const outDims: number[] = [];
  const outStrides: number[][] = strides.map(() => []);
  for (let k = 0; k < dims.length; k++) {
    if (dims[k] === 1) continue;
    const last = outDims.length - 1;
    if (last >= 0 && strides.every((s, j) => outStrides[j][last] === s[k] * dims[k])) {
      outDims[last] *= dims[k];
      for (let j = 0; j < strides.length; j++) outStrides[j][last] = strides[j][k];
    } else {
      outDims.push(dims[k]);
      for (let j = 0; j < strides.length; j++) outStrides[j].push(strides[j][k]);
    }
  }
  if (outDims.length === 0) {
    outDims.push(1);
    for (const s of outStrides) s.push(1);
  }
  return { dims: outDims, strides: outStrides };
}

/** dtype of arithmetic between two tensors: f32 wins over bf16; integers only with integers. */
export function promote(a: DType, b: DType, op: string): DType {
  if (a === b) return a;
  const floats = (a === 'f32' || a === 'bf16') && (b === 'f32' || b === 'bf16');
  if (!floats) throw new AnsatzError(`${op}: ${a} and ${b} do not mix; cast() one of them`);
  return 'f32';
}

export function wantFloat(t: Tensor | null, op: string): void {
  if (t && t.dtype !== 'f32' && t.dtype !== 'bf16') throw new AnsatzError(`${op} wants a float tensor, not ${t.dtype}`);
}

export function wantDType(t: Tensor | null, dtype: DType, op: string, what: string): void {
  if (t && t.dtype !== dtype) throw new AnsatzError(`${op}: ${what} must be ${dtype}, not ${t.dtype}`);
}

export const like = (inputs: Inputs, k = 0): Aval[] => [{ shape: inputs[k]!.shape, dtype: inputs[k]!.dtype }];
