/** Types of single elements, and of memory. bf16 is stored as the upper 16 bits of a float32. */
export type ElementType = 'f32' | 'bf16' | 'i32' | 'u8';

/**
 * Types of weight matrices in blocks of 16 rows (docs/quantised.md): what products of few rows read fastest. q8 and q4
 * are quantised in groups of 32. Their memory is bytes; only products, embeddings and (un)packing know the layout.
 */
export type BlockType = 'q8' | 'q4' | 'bf16x16' | 'f32x16';

export type DType = ElementType | BlockType;

/** Host arrays that carry each dtype's raw bits (bf16 as Uint16Array). */
export type HostArray = Float32Array | Uint16Array | Int32Array | Uint8Array;

/** Codes shared with native/core/kernel.h. */
export const dtypeCode: Record<ElementType, number> = { f32: 0, bf16: 1, i32: 2, u8: 3 };

/** Codes of native/cpu/quant.h. */
export const blockCode: Record<BlockType, number> = { q8: 0, q4: 1, bf16x16: 2, f32x16: 3 };

export const blockTypes: readonly BlockType[] = ['q8', 'q4', 'bf16x16', 'f32x16'];

export const isBlock = (dtype: DType): dtype is BlockType => dtype in blockCode;

const bytes: Record<DType, number> = {
  ...{ f32: 4, bf16: 2, i32: 4, u8: 1 },
  ...{ q8: 1 + 2 / 32, q4: 0.5 + 2 / 32, bf16x16: 2, f32x16: 4 },
};

/** Bytes an element takes. */
export const sizeOf = (dtype: DType): number => bytes[dtype];

/** What the memory of a tensor holds. Blocks are 16 rows by 64 columns: matrices are padded to whole ones. */
export function storageOf(dtype: DType, shape: readonly number[]): { dtype: ElementType; elements: number } {
  const sizes = isBlock(dtype)
    ? shape.map((n, k) =>
        k === shape.length - 1 ? Math.ceil(n / 64) * 64 : k === shape.length - 2 ? Math.ceil(n / 16) * 16 : n,
      )
    : shape;
  const elements = sizes.reduce((a, b) => a * b, 1);
  return isBlock(dtype) ? { dtype: 'u8', elements: elements * sizeOf(dtype) } : { dtype, elements };
}

export const isFloat = (dtype: DType): boolean => dtype === 'f32' || dtype === 'bf16';

/** A zeroed host array for `elements` values of a dtype. */
export function hostArray(dtype: ElementType, elements: number): HostArray {
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
export function toNumbers(dtype: ElementType, data: HostArray): Float32Array | Int32Array | Uint8Array {
  if (dtype !== 'bf16') return data as Float32Array | Int32Array | Uint8Array;
  const out = new Float32Array(data.length);
  for (let k = 0; k < data.length; k++) out[k] = bf16Value(data[k]);
  return out;
}

/** A host array of a dtype from numbers. */
export function fromNumbers(dtype: ElementType, values: ArrayLike<number>): HostArray {
  const out = hostArray(dtype, values.length);
  if (dtype === 'bf16') for (let k = 0; k < values.length; k++) out[k] = bf16Bits(values[k]);
  else for (let k = 0; k < values.length; k++) out[k] = values[k];
  return out;
}
