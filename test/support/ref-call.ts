// Calls a reference kernel on plain arrays, and differentiates it numerically.
import type { ElementType } from '../../src/backend/dtype.ts';
import { type RefArray, refKernels } from '../../src/backend/ref/index.ts';

export interface PlainCall {
  readonly p: readonly (RefArray | null)[];
  readonly i: readonly number[];
  readonly f?: readonly number[];
}

const dtypeOf = (x: RefArray | null): ElementType =>
  x instanceof Int32Array ? 'i32' : x instanceof Uint8Array ? 'u8' : 'f32';

/** Runs a reference kernel; every array is a whole tensor. */
export function callRef(kernel: string, { p, i, f = [] }: PlainCall): void {
  refKernels[kernel]({ p, m: p, o: p.map(() => 0), t: p.map(dtypeOf), i, f });
}

export const floats = (n: number, draw: (k: number) => number): Float64Array =>
  Float64Array.from({ length: n }, (_, k) => draw(k));

/**
 * The gradient of sum(weight * out) with respect to x by central differences, where `out` is what `forward` fills in
 * from x. Fourth order: (8 (f(+h) - f(-h)) - (f(+2h) - f(-2h))) / 12h.
 */
export function numericalGradient(x: RefArray, forward: () => RefArray, weight: RefArray): Float64Array {
  const h = 1e-3;
  const value = () => {
    const out = forward();
    let sum = 0;
    for (let k = 0; k < out.length; k++) sum += weight[k] * out[k];
    return sum;
  };
  return floats(x.length, (k) => {
    const centre = x[k];
    const at = (step: number) => {
      x[k] = centre + step;
      return value();
    };
    const slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    x[k] = centre;
    return slope;
  });
}

/** Largest |a - b|. */
export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return Array.from(a).reduce(
    (worst, x, k) => Math.max(worst, Math.abs(x - b[k])),
    a.length === b.length ? 0 : Number.NaN,
  );
}
