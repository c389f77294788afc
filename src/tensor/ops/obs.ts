/**
 * One-shot rounding and removal of a matrix's weights in which later columns make up for the errors of earlier ones:
 * the solver that GPTQ (Frantar et al. 2022) and SparseGPT (Frantar and Alistarh 2023) share.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType } from './common.ts';

const BLOCK = 64;

/** Inputs: H f32 [K, K], order i32 [K] or null. */
const factorOp = defineOp<{ damp: number }>({
  name: 'inverse_factor',
  infer: ([h, order]) => {
    wantDType(h, 'f32', 'inverse_factor', 'H');
    wantDType(order, 'i32', 'inverse_factor', 'the order');
    const [k] = h!.shape;
    if (h!.rank !== 2 || h!.shape[1] !== k || (order && order.size !== k))
      throw new AnsatzError(`inverse_factor: H ${show(h!.shape)} and an order of ${order?.size ?? 'none'} do not fit`);
    const padded = Math.ceil(k / BLOCK) * BLOCK;
    return [
      { shape: [k, k], dtype: 'f32' },
      { shape: [padded, padded * 8], dtype: 'u8' },
    ];
  },
  launch: ([h, order], [u, work], p) => ({
    kernel: 'inverse_factor',
    args: [u.arg(), work.arg(), h!.arg(), order?.arg() ?? null],
    ints: [h!.shape[0]],
    floats: [p.damp],
  }),
  flops: ([h]) => (2 / 3) * h!.shape[0] ** 3,
});

/**
 * U of inv(H + damp mean(diag H) I) = U^T U, upper triangular, in both triangles of an f32 [K, K]. Columns of H whose
 * diagonal is 0 get a 1 there. Worked out in float64; all NaN when H is not positive definite.
 * @param order i32 [K]: rows and columns of H in the order in which they are taken
 */
export const inverseFactor = (h: Tensor, damp: number, order: Tensor | null = null): Tensor =>
  apply(factorOp, [h, order], { damp })[0];

/** What becomes of weights: rounded to q8 or q4 in groups of 32, and which are removed. */
export interface RoundParams {
  readonly to?: 'q8' | 'q4' | null;
  /** Share of each row's weights that is removed, in every block of 128 columns alike. */
  readonly sparsity?: number;
  /** Remove `least` of every `among` consecutive weights. */
  readonly pattern?: { readonly least: number; readonly among: number } | null;
  /** Weights that are 0 stay 0. */
  readonly keepZeros?: boolean;
}

const formats = { q8: 0, q4: 1 } as const;

/** Inputs: w f32 [N, K], U f32 [K, K], order i32 [K] or null. */
const roundOp = defineOp<Required<RoundParams>>({
  name: 'obs_round',
  infer: ([w, u, order], p) => {
    wantDType(w, 'f32', 'obs_round', 'weights');
    wantDType(u, 'f32', 'obs_round', 'U');
    wantDType(order, 'i32', 'obs_round', 'the order');
    const [n, k] = w!.shape;
    if (w!.rank !== 2 || !sameShape(u!.shape, [k, k]) || (order && order.size !== k))
      throw new AnsatzError(`obs_round: weights ${show(w!.shape)}, U ${show(u!.shape)} do not fit`);
    if (order && p.pattern) throw new AnsatzError('obs_round: a pattern of columns wants them in their own order');
    return [
      { shape: [n, k], dtype: 'f32' },
      ...(p.to ? [{ shape: [n, Math.ceil(k / 32)], dtype: 'f32' as const }] : []),
    ];
  },
  launch: ([w, u, order], [out, scales], p) => ({
    kernel: 'obs_round',
    args: [out.arg(), scales?.arg() ?? null, w!.arg(), u!.arg(), order?.arg() ?? null],
    ints: [...w!.shape, p.to ? formats[p.to] : 2, p.pattern?.least ?? 0, p.pattern?.among ?? 0, +p.keepZeros],
    floats: [p.sparsity],
  }),
  flops: ([w]) => w!.size * w!.shape[1],
});

/**
 * Weights [N, K] as they are after rounding or removing, column by column, with the errors of each row moved to its
 * later columns along U (inverseFactor). `scales` are those of the groups of 32, for quantise().
 * @param order the order that U was made with; the columns of a group must stand together in it
 */
export function obsRound(
  w: Tensor,
  u: Tensor,
  { to = null, sparsity = 0, pattern = null, keepZeros = false }: RoundParams,
  order: Tensor | null = null,
): { w: Tensor; scales: Tensor | null } {
  const [out, scales = null] = apply(roundOp, [w, u, order], { to, sparsity, pattern, keepZeros });
  return { w: out, scales };
}
