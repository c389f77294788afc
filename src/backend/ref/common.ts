// The few helpers that reference kernels of several families share.
import { bf16Bits, bf16Value } from '../dtype.ts';
import { AnsatzError } from '../errors.ts';
import type { RefArray } from './types.ts';
import { refOptions } from './types.ts';

/** Returns an id or index that comes from data, or throws if it lies outside [0, limit). */
export function checkIndex(value: number, limit: number): number {
  if (value < 0 || value >= limit) throw new AnsatzError(`index ${value} out of range: limit ${limit}`);
  return value;
}

/** Number of elements of a shape. */
export function product(dims: readonly number[]): number {
  return dims.reduce((a, b) => a * b, 1);
}

/**
 * Visits every index of `dims` in row-major order: visit(k, offsets), where k counts up and offsets[s] is the sum of
 * index * stride over the axes, for each of the stride lists.
 */
export function forEachIndex(
  dims: readonly number[],
  strides: readonly (readonly number[])[],
  visit: (k: number, offsets: readonly number[]) => void,
): void {
  const n = product(dims);
  const offsets = new Array<number>(strides.length);
  for (let k = 0; k < n; k++) {
    offsets.fill(0);
    for (let axis = dims.length - 1, rest = k; axis >= 0; axis--) {
      const index = rest % dims[axis];
      rest = (rest - index) / dims[axis];
      for (let s = 0; s < strides.length; s++) offsets[s] += index * strides[s][axis];
    }
    visit(k, offsets);
  }
}

/** Nearest bfloat16 (ties to even) of a number's float32 value. */
export const roundToBf16 = (x: number): number => bf16Value(bf16Bits(x));

/**
 * A dense rows x cols copy of a matrix, stored rows x cols or (transposed) cols x rows from `offset` on; rounded to
 * bfloat16 when compute = 1.
 */
export function operand(
  x: RefArray,
  offset: number,
  rows: number,
  cols: number,
  transposed: boolean,
  compute: number,
): Float64Array {
  const out = new Float64Array(rows * cols);
  const round = compute === 1 && refOptions.roundCompute;
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      const value = x[offset + (transposed ? c * rows + r : r * cols + c)];
      out[r * cols + c] = round ? roundToBf16(value) : value;
    }
  }
  return out;
}

/** log(sum(exp(x))) of the n numbers from `offset` on; -inf where all are -inf. */
export function logSumExp(x: RefArray, offset: number, n: number): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let k = 0; k < n; k++) max = Math.max(max, x[offset + k]);
  if (max === Number.NEGATIVE_INFINITY) return max;
  let sum = 0;
  for (let k = 0; k < n; k++) sum += Math.exp(x[offset + k] - max);
  return max + Math.log(sum);
}
