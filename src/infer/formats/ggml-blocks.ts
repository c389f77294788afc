/**
 * ggml's block formats: 32 weights of a row share one half-precision scale. Every step rounds to f32 where ggml's
 * reference does, so that the bytes are the ones it would write.
 */
import { halfBits } from './floats.ts';

/** Weights of a block. */
export const BLOCK = 32;
export const Q8_0_BYTES = 34;
export const Q4_0_BYTES = 18;

const { fround } = Math;

/** roundf(): halves go away from zero, unlike Math.round(). */
const roundAway = (x: number): number => (x < 0 ? -Math.floor(0.5 - x) : Math.floor(x + 0.5));

/** Q8_0: `f16 d; i8 q[32]`, d = max|x| / 127, x = d q. Rows must be whole blocks. */
export function quantiseQ8_0(x: Float32Array): Uint8Array {
  const blocks = x.length / BLOCK;
  const out = new Uint8Array(blocks * Q8_0_BYTES);
  for (let b = 0; b < blocks; b++) {
    const first = b * BLOCK;
    let most = 0;
    for (let k = first; k < first + BLOCK; k++) most = Math.max(most, Math.abs(x[k]));
    const d = fround(most / 127);
    const inverse = d ? fround(1 / d) : 0;
    const at = b * Q8_0_BYTES;
    const half = halfBits(d);
    out[at] = half & 0xff;
    out[at + 1] = half >>> 8;
    for (let k = 0; k < BLOCK; k++) out[at + 2 + k] = roundAway(fround(x[first + k] * inverse)) & 0xff;
  }
  return out;
}

/**
 * Q4_0: `f16 d; u8 q[16]`, d = (the value largest in magnitude, with its sign) / -8, x = d (q - 8). Byte j holds value j
 * in its low half and value j + 16 in its high half.
 */
export function quantiseQ4_0(x: Float32Array): Uint8Array {
  const blocks = x.length / BLOCK;
  const out = new Uint8Array(blocks * Q4_0_BYTES);
  for (let b = 0; b < blocks; b++) {
    const first = b * BLOCK;
    let most = 0;
    let signed = 0;
    for (let k = first; k < first + BLOCK; k++) {
      const size = Math.abs(x[k]);
      if (size > most) [most, signed] = [size, x[k]];
    }
    const d = fround(signed / -8);
    const inverse = d ? fround(1 / d) : 0;
    const code = (value: number): number => Math.min(15, Math.trunc(fround(fround(value * inverse) + 8.5)));
    const at = b * Q4_0_BYTES;
    const half = halfBits(d);
    out[at] = half & 0xff;
    out[at + 1] = half >>> 8;
    for (let k = 0; k < BLOCK / 2; k++) out[at + 2 + k] = code(x[first + k]) | (code(x[first + BLOCK / 2 + k]) << 4);
  }
  return out;
}
