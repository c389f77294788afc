// What a reference kernel is: a plain function over float64 arrays. docs/kernels.md says what each name means.
import type { ElementType } from '../dtype.ts';

/** Storage of a tensor on the reference device: f32 and bf16 both live in a Float64Array and are never rounded. */
export type RefArray = Float64Array | Int32Array | Uint8Array;

export interface RefCall {
  /** Tensors: element 0 is the argument's first element, and the array runs on to the end of its memory. */
  readonly p: readonly (RefArray | null)[];
  /** The same tensors as whole memories and the offsets into them; negative strides step back before `p[k][0]`. */
  readonly m: readonly (RefArray | null)[];
  readonly o: readonly number[];
  readonly t: readonly ElementType[];
  readonly i: readonly number[];
  readonly f: readonly number[];
}

export type RefKernel = (call: RefCall) => void;

/**
 * `roundCompute`: products with compute = 1 round their operands to bfloat16 first, as other devices do. Switch it off
 * for finite differences, which a rounded (stepwise constant) function does not have.
 */
export const refOptions: { roundCompute: boolean } = { roundCompute: true };
