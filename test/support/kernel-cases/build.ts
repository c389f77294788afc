// Building blocks of the case generators: seeded random numbers, tensors, cases.
import type { ElementType } from '../../../src/backend/dtype.ts';
import { bf16Bits, bf16Value } from '../../../src/backend/dtype.ts';
import type { KernelCase, TensorSpec, Tolerance } from './types.ts';

/** mulberry32: small, seeded, good enough to draw test data. */
export class Rng {
  private state: number;

  constructor(seed: number | string) {
    this.state =
      typeof seed === 'number'
        ? seed >>> 0
        : [...seed].reduce((h, c) => Math.imul(h ^ c.charCodeAt(0), 16777619), 2166136261);
  }

  /** Uniform in [0, 1). */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let z = Math.imul(this.state ^ (this.state >>> 15), this.state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  }

  uniform(lo: number, hi: number): number {
    return lo + (hi - lo) * this.next();
  }

  /** Integer in [lo, hi], both included. */
  int(lo: number, hi: number): number {
    return lo + Math.floor(this.next() * (hi - lo + 1));
  }

  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next());
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.next() * items.length)];
  }

  shuffled<T>(items: readonly T[]): T[] {
    const out = [...items];
    for (let k = out.length - 1; k > 0; k--) {
      const other = this.int(0, k);
      [out[k], out[other]] = [out[other], out[k]];
    }
    return out;
  }
}

export const FLOATS = ['f32', 'bf16'] as const;
export const EXACT: Tolerance = { rtol: 0, atol: 0, l2: 0 };
export const tolerance = (rtol: number, atol: number, l2: number = Math.max(rtol, atol)): Tolerance => ({
  rtol,
  atol,
  l2,
});

/** 1 to 40 covers every remainder of every vector width; then block edges, and sizes that are split over threads. */
export const LENGTHS = [0, ...Array.from({ length: 40 }, (_, k) => k + 1), 63, 64, 65, 1000, 5000, 100_003];

export const floatDtype = (rng: Rng): ElementType => rng.pick(FLOATS);
export const contiguous = (dims: readonly number[]): number[] => dims.map((_, axis) => sizeOf(dims.slice(axis + 1)));
export const sizeOf = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);

/** The value that a dtype stores for x. */
export function stored(dtype: ElementType, x: number): number {
  if (dtype === 'f32') return Math.fround(x);
  if (dtype === 'bf16') return bf16Value(bf16Bits(x));
  return dtype === 'i32' ? x | 0 : x & 255;
}

/** An input of n values drawn by `draw`. */
export function input(dtype: ElementType, n: number, draw: (k: number) => number): TensorSpec {
  const data = dtype === 'i32' ? new Int32Array(n) : dtype === 'u8' ? new Uint8Array(n) : new Float64Array(n);
  for (let k = 0; k < n; k++) data[k] = stored(dtype, draw(k));
  return { dtype, length: n, data, role: 'in' };
}

/** An input of normally distributed values. */
export const gaussian = (rng: Rng, dtype: ElementType, n: number, scale = 1): TensorSpec =>
  input(dtype, n, () => scale * rng.normal());

/** n normally distributed values in rows of `used`, `stride` apart; what lies between them is NaN and not to be used. */
export const gapped = (rng: Rng, dtype: ElementType, n: number, stride: number, used: number): TensorSpec =>
  input(dtype, n, (k) => (stride > used && k % stride >= used ? Number.NaN : rng.normal()));

export const output = (dtype: ElementType, n: number): TensorSpec => ({ dtype, length: n, data: null, role: 'out' });

/** A tensor that the kernel updates, or of which it must leave a part alone. */
export const updated = (spec: TensorSpec): TensorSpec => ({ ...spec, role: 'inout' });

/** An output that lies in argument `arg`. */
export const outputIn = (arg: number, dtype: ElementType, n: number, offset = 0): TensorSpec => ({
  ...output(dtype, n),
  alias: { arg, offset },
});

export function makeCase(
  kernel: string,
  parts: Omit<KernelCase, 'kernel' | 'label' | 'f' | 'tolerance'> & {
    readonly f?: readonly number[];
    readonly tolerance?: Tolerance;
    readonly note?: string;
  },
): KernelCase {
  const { note, f = [], tolerance: tol = EXACT, ...rest } = parts;
  const dtypes = parts.p.map((spec) => (spec ? spec.dtype + (spec.alias ? `@${spec.alias.arg}` : '') : '-'));
  const label = `${kernel}(${dtypes.join(' ')}) i=[${parts.i}] f=[${f}]${note ? ` ${note}` : ''}`;
  return { kernel, label, f, tolerance: tol, ...rest };
}
