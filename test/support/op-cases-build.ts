// Building blocks of op cases: what a case is, random inputs, and index arithmetic for expected values.
import type { Device } from '../../src/backend/device.ts';
import type { DType, ElementType } from '../../src/backend/dtype.ts';
import type { Tensor } from '../../src/tensor/index.ts';
import { type Rng, stored } from './kernel-cases/build.ts';

/** Plain numbers in row-major order. */
export interface Nd {
  readonly shape: readonly number[];
  readonly data: ArrayLike<number>;
}

export interface CaseInput extends Nd {
  readonly dtype: DType;
  /** Whether gradients with respect to it are tested. */
  readonly grad: boolean;
}

/** One call of public op functions on given inputs. */
export interface OpCase {
  /** The row of the op table that the case is for. */
  readonly op: string;
  readonly label: string;
  readonly inputs: readonly CaseInput[];
  run(x: readonly Tensor[], device: Device): Tensor[];
  /** What the outputs should be, worked out from the inputs without the engine. */
  readonly expect?: (x: readonly Nd[]) => Nd[];
  /** Too large for finite differences: only compared between devices. */
  readonly large: boolean;
  /** Products round their operands to bf16 even where all tensors are f32. */
  readonly bf16Products: boolean;
  /** Absolute error allowed besides the relative one, where large terms cancel. */
  readonly slack: number;
}

export type Extra = Partial<Pick<OpCase, 'expect' | 'large' | 'bf16Products' | 'slack'>> & { readonly note?: string };

export function opCase(op: string, inputs: readonly CaseInput[], run: OpCase['run'], extra: Extra = {}): OpCase {
  const { note, expect, large = false, bf16Products = false, slack = 0 } = extra;
  const shown = inputs.map((x) => `${x.dtype}[${x.shape.join(',')}]`).join(' ');
  return { op, label: `${op} ${shown}${note ? ` ${note}` : ''}`, inputs, run, expect, large, bf16Products, slack };
}

export const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

type Draw = (k: number) => number;

function values(shape: readonly number[], dtype: DType, draw: Draw): Float64Array {
  return Float64Array.from({ length: sizeOf(shape) }, (_, k) => stored(dtype as ElementType, draw(k)));
}

/** A float input with gradient; its values are exactly what the dtype stores. */
export const float = (shape: readonly number[], dtype: DType, draw: Draw): CaseInput => ({
  shape,
  dtype,
  data: values(shape, dtype, draw),
  grad: true,
});

/** An input without gradient, of any dtype. */
export const constant = (shape: readonly number[], dtype: DType, draw: Draw): CaseInput => ({
  shape,
  dtype,
  data: values(shape, dtype, draw),
  grad: false,
});

export const normals =
  (rng: Rng, scale = 1): Draw =>
  () =>
    scale * rng.normal();
/** Either sign, no closer to 0 than 0.1: for functions with a kink or pole at 0. */
export const awayFromZero =
  (rng: Rng): Draw =>
  () =>
    rng.pick([-1, 1]) * rng.uniform(0.1, 2);
export const positive =
  (rng: Rng): Draw =>
  () =>
    rng.uniform(0.2, 3);
/** n values that differ by 1/8 or more, each exact in bf16: for sorts and extremes (n up to 256). */
export function distinct(rng: Rng, n: number): Draw {
  const order = rng.shuffled(Array.from({ length: n }, (_, k) => (k - Math.floor(n / 2)) / 8));
  return (k) => order[k % n];
}
export const integers =
  (rng: Rng, lo: number, hi: number): Draw =>
  () =>
    rng.int(lo, hi);

/** An array from a function of the index. */
export function nd(shape: readonly number[], f: (index: number[]) => number): Nd {
  const data = new Float64Array(sizeOf(shape));
  const index = shape.map(() => 0);
  for (let k = 0; k < data.length; k++) {
    data[k] = f(index.slice());
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
  }
  return { shape, data };
}

/** The element at an index. Leading axes that are missing and axes of size 1 repeat, as in NumPy. */
export function get(x: Nd, index: readonly number[]): number {
  const skip = index.length - x.shape.length;
  let at = 0;
  for (let k = 0; k < x.shape.length; k++) at = at * x.shape[k] + (x.shape[k] === 1 ? 0 : index[k + skip]);
  return x.data[at];
}

/** The shape that operands broadcast to. */
export function broadcast(...shapes: (readonly number[])[]): number[] {
  const rank = Math.max(...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, k) => {
    const sizes = shapes.map((s) => s[k - rank + s.length] ?? 1);
    return sizes.find((n) => n !== 1) ?? 1;
  });
}

export const FLOATS: readonly DType[] = ['f32', 'bf16'];
