/** Sixteen-bit floats on the host: f32 to and from IEEE half precision and bfloat16, rounding to nearest even. */

const one = new Float32Array(1);
const bits = new Uint32Array(one.buffer);

/** Largest finite half. */
export const HALF_MAX = 65504;

/** The half nearest to a number, as bits; beyond 65520 it is infinite. */
export function halfBits(x: number): number {
  one[0] = x;
  return halfOf(bits[0]);
}

/** The same from the number's own bits. */
function halfOf(x: number): number {
  const sign = (x >>> 16) & 0x8000;
  const u = x & 0x7fffffff;
  if (u > 0x7f800000) return sign | 0x7e00;
  if (u >= 0x47800000) return sign | 0x7c00; // 2^16 and more
  // Normal: the exponent's bias drops from 127 to 15 and 13 bits are rounded away; a carry moves on to the exponent.
  if (u >= 0x38800000) return sign | ((u - 0x38000000 + 0xfff + ((u >>> 13) & 1)) >>> 13);
  // Subnormal: a multiple of 2^-24. The product is exact, so only this rounding counts.
  bits[0] = u;
  const n = one[0] * 2 ** 24;
  const below = Math.floor(n);
  const rest = n - below;
  return sign | (rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below);
}

/** The value of a half. */
export function halfValue(half: number): number {
  const exponent = (half >>> 10) & 0x1f;
  const mantissa = half & 0x3ff;
  const sign = half & 0x8000 ? -1 : 1;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

export function toHalves(values: Float32Array): Uint16Array {
  const u = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let k = 0; k < u.length; k++) out[k] = halfOf(u[k]);
  return out;
}

/** Exact. */
export function fromHalves(halves: Uint16Array): Float32Array {
  const out = new Float32Array(halves.length);
  for (let k = 0; k < halves.length; k++) out[k] = halfValue(halves[k]);
  return out;
}

export function toBfloats(values: Float32Array): Uint16Array {
  const u = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let k = 0; k < u.length; k++) {
    const x = u[k];
    // NaN stays NaN: rounding could carry it to infinity.
    out[k] = (x & 0x7fffffff) > 0x7f800000 ? (x >>> 16) | 0x40 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16;
  }
  return out;
}

/** Exact. */
export function fromBfloats(halves: Uint16Array): Float32Array {
  const out = new Float32Array(halves.length);
  const u = new Uint32Array(out.buffer);
  for (let k = 0; k < halves.length; k++) u[k] = halves[k] << 16;
  return out;
}
