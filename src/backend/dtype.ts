/** Element types of tensors. bf16 is stored as the upper 16 bits of a float32. */
export type DType = 'f32' | 'bf16' | 'i32' | 'u8';

/** Host arrays that carry each dtype's raw bits (bf16 as Uint16Array). */
export type HostArray = Float32Array | Uint16Array | Int32Array | Uint8Array;

/** Codes shared with native/core/kernel.h. */
export const dtypeCode: Record<DType, number> = { f32: 0, bf16: 1, i32: 2, u8: 3 };

const bytes: Record<DType, number> = { f32: 4, bf16: 2, i32: 4, u8: 1 };

export const sizeOf = (dtype: DType): number => bytes[dtype];

export const isFloat = (dtype: DType): boolean => dtype === 'f32' || dtype === 'bf16';

/** A zeroed host array for `elements` values of a dtype. */
export function hostArray(dtype: DType, elements: number): HostArray {
  switch (dtype) {
    case 'f32':
      return new Float32Array(elements);
    case 'bf16':
      return new Uint16Array(elements);
    case 'i32':
      return new Int32Array(elements);
    case 'u8':
      return new Uint8Array(elements);
  }
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** Rounds a number to bfloat16 bits (nearest even, NaN stays NaN). */
export function bf16Bits(x: number): number {
  f32[0] = x;
  const u = u32[0];
  if ((u & 0x7fffffff) > 0x7f800000) return ((u >>> 16) | 0x40) & 0xffff;
  return ((u + 0x7fff + ((u >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The float32 value of bfloat16 bits. */
export function bf16Value(bits: number): number {
  u32[0] = bits << 16;
  return f32[0];
}

/** Numbers from a host array of a dtype; a Float32Array view where that costs nothing. */
export function toNumbers(dtype: DType, data: HostArray): Float32Array | Int32Array | Uint8Array {
  if (dtype !== 'bf16') return data as Float32Array | Int32Array | Uint8Array;
  const out = new Float32Array(data.length);
  for (let k = 0; k < data.length; k++) out[k] = bf16Value(data[k]);
  return out;
}

/** A host array of a dtype from numbers. */
export function fromNumbers(dtype: DType, values: ArrayLike<number>): HostArray {
  const out = hostArray(dtype, values.length);
  if (dtype === 'bf16') for (let k = 0; k < values.length; k++) out[k] = bf16Bits(values[k]);
  else for (let k = 0; k < values.length; k++) out[k] = values[k];
  return out;
}
