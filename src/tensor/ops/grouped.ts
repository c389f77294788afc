/** Rows brought together by group and back (route.ts), and products with one matrix a group. */
import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { cast } from './binary.ts';
import { like, sameShape, show, wantDType, wantFloat } from './common.ts';
import { frozenGrouped, wantsGradient } from './frozen.ts';
import type { Compute } from './matmul.ts';
import { isBlock, quantGroupedMatmul } from './quant.ts';
import type { Routing } from './route.ts';
import { affine } from './unary.ts';

/** Inputs: x [n, d], pick, slot. */
const gatherRows: Op<{ out: DType }> = defineOp<{ out: DType }>({
  name: 'gather_rows',
  infer: ([x, pick, slot], p) => {
    wantFloat(x, 'gather_rows');
    if (x!.rank !== 2 || x!.shape[0] !== slot!.shape[0])
      throw new AnsatzError(`gather_rows: rows ${show(x!.shape)} for ${slot!.shape[0]} routed tokens`);
    return [{ shape: [pick!.size, x!.shape[1]], dtype: p.out }];
  },
  launch: ([x, pick, slot], [y]) => ({
    kernel: 'gather_rows',
    args: [y.arg(), x!.arg(), pick!.arg()],
    ints: [pick!.size, x!.shape[1], slot!.size, slot!.shape[1]],
  }),
  flops: () => 0,
  gradient: ({ inputs: [x, pick, slot], grads: [dy] }) => [
    apply(combineRows, [dy, null, null, slot, pick], { alpha: 1, out: x!.dtype })[0],
    null,
    null,
  ],
});

interface CombineParams {
  readonly alpha: number;
  readonly out: DType;
}

/** Inputs: y [R, d], w f32 [n, k] or null, addend [n, d] or null, slot, pick. */
const combineRows: Op<CombineParams> = defineOp<CombineParams>({
  name: 'combine_rows',
  infer: ([y, w, addend, slot, pick], p) => {
    for (const t of [y, addend]) wantFloat(t, 'combine_rows');
    wantDType(w, 'f32', 'combine_rows', 'weights');
    const shape = [slot!.shape[0], y!.shape[1]];
    if (y!.rank !== 2 || y!.shape[0] !== pick!.size)
      throw new AnsatzError(`combine_rows: ${show(y!.shape)} for ${pick!.size} grouped rows`);
    if (w && !sameShape(w.shape, slot!.shape))
      throw new AnsatzError(`combine_rows: weights ${show(w.shape)} for choices ${show(slot!.shape)}`);
    if (addend && !sameShape(addend.shape, shape))
      throw new AnsatzError(`combine_rows: addend ${show(addend.shape)} for output ${show(shape)}`);
    return [{ shape, dtype: p.out }];
  },
  launch: ([y, w, addend, slot], [out], p) => ({
    kernel: 'combine_rows',
    args: [out.arg(), y!.arg(), slot!.arg(), w?.arg() ?? null, addend?.arg() ?? null],
    ints: [...slot!.shape, y!.shape[1], y!.shape[0]],
    floats: [p.alpha],
  }),
  flops: ([y, w]) => (w ? 2 : 1) * y!.size,
  gradient: ({ inputs: [y, w, addend, slot, pick], grads: [dout], params, needs }) => {
    const daddend = addend && needs(2) ? cast(dout!, addend.dtype) : null;
    if (!w) {
      const dy = apply(gatherRows, [dout, pick, slot], { out: y!.dtype })[0];
      return [params.alpha === 1 ? dy : affine(dy, params.alpha, 0), null, daddend, null, null];
    }
    const [dy, dw] = apply(combineBwd, [y, w, dout, slot, pick], { alpha: params.alpha });
    return [dy, dw, daddend, null, null];
  },
});

const combineBwd = defineOp<{ alpha: number }>({
  name: 'combine_rows_bwd',
  infer: ([y, w]) => [...like([y]), ...like([w])],
  launch: ([y, w, dout, slot, pick], [dy, dw], p) => ({
    kernel: 'combine_rows_bwd',
    args: [dy.arg(), dw.arg(), y!.arg(), slot!.arg(), pick!.arg(), w!.arg(), dout!.arg()],
    ints: [...slot!.shape, y!.shape[1], y!.shape[0]],
    floats: [p.alpha],
  }),
  flops: ([y]) => 3 * y!.size,
});

/** Rows of x [n, d] as they stand in groups: [R, d]; unused rows are 0. */
export const groupRows = (x: Tensor, routing: Routing, out: DType = x.dtype): Tensor =>
  apply(gatherRows, [x, routing.pick, routing.slot], { out })[0];

/**
 * addend[t] + alpha sum_j weights[t, j] y[row of choice j of t]: grouped rows back at their tokens, [n, d].
 * Dropped choices add nothing. weights f32 [n, k]; null: all 1.
 */
export const combineGroups = (
  y: Tensor,
  weights: Tensor | null,
  routing: Routing,
  options: { addend?: Tensor | null; alpha?: number; out?: DType } = {},
): Tensor => {
  const { addend = null, alpha = 1, out = addend?.dtype ?? y.dtype } = options;
  return apply(combineRows, [y, weights, addend, routing.slot, routing.pick], { alpha, out })[0];
};

interface GroupedParams {
  readonly transB: boolean;
  readonly alpha: number;
  readonly compute: Compute;
  readonly out: DType;
  readonly most: number;
}

/** Inputs: x [R, K], w [E, N, K] (transB) or [E, K, N], offsets. */
const groupedOp: Op<GroupedParams> = defineOp<GroupedParams>({
  name: 'grouped_matmul',
  infer: ([x, w, offsets], p) => {
    for (const t of [x, w]) wantFloat(t, 'grouped_matmul');
    wantDType(offsets, 'i32', 'grouped_matmul', 'offsets');
    const K = w!.shape[p.transB ? 2 : 1];
    if (x!.rank !== 2 || w!.rank !== 3 || x!.shape[1] !== K || offsets!.size !== w!.shape[0] + 1)
      throw new AnsatzError(
        `grouped_matmul: rows ${show(x!.shape)}, matrices ${show(w!.shape)}${p.transB ? ' transposed' : ''} and ${offsets!.size} offsets do not fit`,
      );
    return [{ shape: [x!.shape[0], w!.shape[p.transB ? 1 : 2]], dtype: p.out }];
  },
  launch: ([x, w, offsets], [y], p) => ({
    kernel: 'grouped_matmul',
    args: [y.arg(), x!.arg(), w!.arg(), offsets!.arg()],
    ints: [x!.shape[0], w!.shape[0], y.shape[1], x!.shape[1], +p.transB, p.most, p.compute === 'bf16' ? 1 : 0],
    floats: [p.alpha],
  }),
  // A row meets one matrix, however many there are.
  flops: ([x], [y]) => 2 * x!.size * y.shape[1],
  gradient: ({ inputs: [x, w, offsets], grads: [dy], params: p, needs }) => {
    const { alpha, compute } = p;
    const dx = needs(0) ? apply(groupedOp, [dy, w, offsets], { ...p, transB: !p.transB, out: x!.dtype })[0] : null;
    const [a, b] = p.transB ? [dy, x] : [x, dy];
    const dw = needs(1) ? apply(weightOp, [a, b, offsets], { alpha, compute, out: w!.dtype })[0] : null;
    return [dx, dw, null];
  },
});

/** Inputs: a [R, M], b [R, N], offsets. */
const weightOp = defineOp<{ alpha: number; compute: Compute; out: DType }>({
  name: 'grouped_matmul_weight',
  infer: ([a, b, offsets], p) => [{ shape: [offsets!.size - 1, a!.shape[1], b!.shape[1]], dtype: p.out }],
  launch: ([a, b, offsets], [dw], p) => ({
    kernel: 'grouped_matmul_weight',
    args: [dw.arg(), a!.arg(), b!.arg(), offsets!.arg()],
    ints: [a!.shape[0], dw.shape[0], dw.shape[1], dw.shape[2], p.compute === 'bf16' ? 1 : 0],
    floats: [p.alpha],
  }),
  flops: ([a, b]) => 2 * a!.size * b!.shape[1],
});

/** A_e^T B_e over the rows of each group e: a [R, M], b [R, N] -> f32 [E, M, N]; zeros where a group is empty. */
export const groupedProducts = (
  a: Tensor,
  b: Tensor,
  groups: Pick<Routing, 'offsets'>,
  compute: Compute = 'f32',
): Tensor => apply(weightOp, [a, b, groups.offsets], { alpha: 1, compute, out: 'f32' })[0];

/**
 * alpha x W_e (or alpha x W_e^T) for the rows x of each group e: x [R, K], w [E, K, N] (transB: [E, N, K]) -> [R, N].
 * A row's result does not depend on how many rows its group has.
 */
export function groupedMatmul(
  x: Tensor,
  w: Tensor,
  groups: Pick<Routing, 'offsets' | 'most'>,
  options: { transB?: boolean; alpha?: number; compute?: Compute; out?: DType } = {},
): Tensor {
  if (isBlock(w.dtype)) {
    if (!options.transB)
      throw new AnsatzError(`grouped_matmul: ${w.dtype} weights ${show(w.shape)} multiply as x W^T only`, {
        hint: 'use transB with weights [experts, out, in], or dequantise() them',
      });
    const { alpha = 1, compute = x.dtype === 'bf16' ? 'bf16' : 'f32', out = x.dtype } = options;
    if (wantsGradient([x]))
      return frozenGrouped(x, w, { alpha, compute, out }, (rows, plain, transB, type) =>
        groupedMatmul(rows, plain, groups, { transB, alpha, compute, out: type }),
      );
    return quantGroupedMatmul(x, w, groups.offsets, { alpha, compute, out });
  }
  return apply(groupedOp, [x, w, groups.offsets], {
    transB: options.transB ?? false,
    alpha: options.alpha ?? 1,
    compute: options.compute ?? (x.dtype === 'bf16' || w.dtype === 'bf16' ? 'bf16' : 'f32'),
    out: options.out ?? (x.dtype === 'bf16' && w.dtype === 'bf16' ? 'bf16' : 'f32'),
    most: groups.most,
  })[0];
}
