// The layout of weights in blocks (docs/quantised.md), one value at a time.
import { bf16Value } from '../dtype.ts';
import type { RefArray } from './types.ts';

export const [Q8, Q4, BF16X16, F32X16] = [0, 1, 2, 3];
export const GROUP = 32;
const [STRIP, TILE] = [16, 64];

/** Values of the codes of q4 in units of the scale. */
export const q4Levels: readonly number[] = [-127, -98, -77, -61, -47, -34, -22, -11, 0, 11, 23, 35, 49, 64, 82, 105];

const tileBytes = [64 + 2 * 512, 64 + 2 * 256, 2048, 4096];

export const matrixBytes = (format: number, n: number, k: number): number =>
  Math.ceil(n / STRIP) * Math.ceil(k / TILE) * tileBytes[format];

export interface Place {
  /** First byte of the tile's scales. */
  readonly scale: number;
  /** First byte of the value, and how far its bits are shifted in it. */
  readonly at: number;
  readonly shift: number;
}

/** Where a weight lies in its matrix. */
export function placeOf(format: number, row: number, k: number, K: number): Place {
  const tile = (Math.floor(row / STRIP) * Math.ceil(K / TILE) + Math.floor(k / TILE)) * tileBytes[format];
  const [r, i] = [row % STRIP, k % TILE];
  const group = Math.floor(i / GROUP);
  const scale = tile + 2 * (group * STRIP + r);
  if (format === F32X16) return { scale, at: tile + 4 * (i * STRIP + r), shift: 0 };
  if (format === BF16X16) return { scale, at: tile + 2 * (Math.floor(i / 2) * 32 + r * 2 + (i % 2)), shift: 0 };
  const g = i % GROUP;
  if (format === Q8) return { scale, at: tile + 64 + group * 512 + Math.floor(g / 4) * 64 + r * 4 + (g % 4), shift: 0 };
  return {
    scale,
    at: tile + 64 + group * 256 + Math.floor((g % 16) / 4) * 64 + r * 4 + (g % 4),
    shift: g < 16 ? 0 : 4,
  };
}

const half = (b: RefArray, at: number): number => bf16Value(b[at] | (b[at + 1] << 8));
const word = new DataView(new ArrayBuffer(4));

/** The value of a weight. */
export function weightAt(b: RefArray, format: number, row: number, k: number, K: number): number {
  const { scale, at, shift } = placeOf(format, row, k, K);
  if (format === Q8) return (b[at] - 128) * half(b, scale);
  if (format === Q4) return q4Levels[(b[at] >> shift) & 15] * half(b, scale);
  if (format === BF16X16) return half(b, at);
  for (let j = 0; j < 4; j++) word.setUint8(j, b[at + j]);
  return word.getFloat32(0, true);
}

/** Nearest integer, ties to even. */
export function nearestEven(x: number): number {
  const r = Math.round(x);
  return r - x === 0.5 && r % 2 !== 0 ? r - 1 : r;
}

/**
 * A row of activations as products with q8 and q4 see it: in groups of 32, to whole multiples of the largest magnitude
 * / 127. The steps are in float32, since a tie must fall the same way everywhere.
 */
export function quantisedRow(x: RefArray, offset: number, K: number): Float64Array {
  const out = new Float64Array(K);
  for (let k0 = 0; k0 < K; k0 += GROUP) {
    const k1 = Math.min(K, k0 + GROUP);
    let top = 0;
    let finite = true;
    for (let k = k0; k < k1; k++) {
      const v = Math.fround(x[offset + k]);
      finite &&= Number.isFinite(v);
      top = Math.max(top, Math.abs(v));
    }
    if (!finite) out.fill(Number.NaN, k0, k1);
    if (!finite || top <= 1e-30) continue;
    const up = Math.fround(127 / top);
    const scale = Math.fround(top / 127);
    for (let k = k0; k < k1; k++) out[k] = nearestEven(Math.fround(Math.fround(x[offset + k]) * up)) * scale;
  }
  return out;
}
