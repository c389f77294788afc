// One call of a kernel with concrete data: what the walk-the-table test runs on a device and on the reference.
import type { ElementType } from '../../../src/backend/dtype.ts';
import type { RefArray } from '../../../src/backend/ref/types.ts';

export interface TensorSpec {
  readonly dtype: ElementType;
  readonly length: number;
  /** Values, already rounded to the dtype so that device and reference see the same; null = an output, poisoned. */
  readonly data: RefArray | null;
  readonly role: 'in' | 'out' | 'inout';
  /** Element of `data` that the argument points at, for tensors read backwards. Default 0. */
  readonly origin?: number;
  /** The tensor lies inside argument `arg`, from its element `offset` on (in-place calls, packed tensors). */
  readonly alias?: { readonly arg: number; readonly offset: number };
  /** Elements whose value the contract leaves open. */
  readonly open?: readonly number[];
}

/**
 * Error that the arithmetic may have in f32, per element (atol + rtol |ref|) and over the tensor (relative L2 norm).
 * Rounding to a bf16 output comes on top. All zero: the output must be the reference rounded to its dtype, exactly.
 */
export interface Tolerance {
  readonly rtol: number;
  readonly atol: number;
  readonly l2: number;
}

export interface KernelCase {
  readonly kernel: string;
  readonly label: string;
  readonly p: readonly (TensorSpec | null)[];
  readonly i: readonly number[];
  readonly f: readonly number[];
  readonly tolerance: Tolerance;
  /** How the message of the error that the call must raise ends; its outputs are then not looked at. */
  readonly error?: string;
}

export type CaseGenerator = (kernel: string, rng: import('./build.ts').Rng) => KernelCase[];
