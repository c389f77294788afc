/** Reading and adding by index, sorting, selecting. */

import type { DType } from '../../backend/dtype.ts';
import { sizeOf } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { cast } from './binary.ts';
import { around, axisOf, like, show, wantDType, wantFloat } from './common.ts';
import { isBlock, quantEmbedding } from './quant.ts';

/** Rows of a table [rows, d] by ids: [...ids, d]. */
const embeddingOp = defineOp<{ out: DType }>({
  name: 'embedding',
  infer: ([table, ids], p) => {
    wantFloat(table, 'embedding');
    wantDType(ids, 'i32', 'embedding', 'ids');
    if (table!.rank !== 2)
      throw new AnsatzError(`embedding: the table must be [rows, width], not ${show(table!.shape)}`);
    return [{ shape: [...ids!.shape, table!.shape[1]], dtype: p.out }];
  },
  launch: ([table, ids], [y]) => ({
    kernel: 'embedding',
    args: [y.arg(), table!.arg(), ids!.arg()],
    ints: [ids!.size, table!.shape[1], table!.shape[0]],
  }),
  flops: () => 0,
  bytes: ([table, ids], [y]) => ids!.size * 4 + y.size * (sizeOf(table!.dtype) + sizeOf(y.dtype)),
  gradient: ({ inputs: [table, ids], grads: [dy] }) => [
    cast(apply(embeddingBwd, [ids, dy], { rows: table!.shape[0] })[0], table!.dtype),
    null,
  ],
});
const embeddingBwd = defineOp<{ rows: number }>({
  name: 'embedding_bwd',
  infer: ([, dy], p) => [{ shape: [p.rows, dy!.shape[dy!.rank - 1]], dtype: 'f32' }],
  launch: ([ids, dy], [dt], p) => ({
    kernel: 'embedding_bwd',
    args: [dt.arg(), ids!.arg(), dy!.arg()],
    ints: [ids!.size, dt.shape[1], p.rows],
  }),
  flops: ([, dy]) => dy!.size,
});
export const embedding = (
  table: Tensor,
  ids: Tensor,
  out: DType = isBlock(table.dtype) ? 'f32' : table.dtype,
): Tensor => (isBlock(table.dtype) ? quantEmbedding(table, ids, out) : apply(embeddingOp, [table, ids], { out })[0]);

interface AxisParams {
  readonly axis: number;
  /** Size of the axis on the side that is indexed. */
  readonly n: number;
}

const fitsAround = (a: Tensor, b: Tensor, axis: number): boolean =>
  a.rank === b.rank && a.shape.every((d, k) => k === axis || d === b.shape[k]);

/** out[o, j, i] = x[o, idx[o, j, i], i]. */
const gatherOp: Op<AxisParams> = defineOp<AxisParams>({
  name: 'gather',
  infer: ([x, idx], p) => {
    wantFloat(x, 'gather');
    wantDType(idx, 'i32', 'gather', 'indices');
    if (!fitsAround(x!, idx!, p.axis))
      throw new AnsatzError(`gather: indices ${show(idx!.shape)} do not fit ${show(x!.shape)} along ${p.axis}`);
    return [{ shape: idx!.shape, dtype: x!.dtype }];
  },
  launch: ([x, idx], [y], p) => {
    const { outer, n: m, inner } = around(idx!.shape, p.axis);
    return { kernel: 'gather', args: [y.arg(), x!.arg(), idx!.arg()], ints: [outer, p.n, m, inner] };
  },
  flops: () => 0,
  gradient: ({ inputs: [, idx], grads: [dy], params }) => [apply(scatterOp, [idx, dy], params)[0], null],
});
/** Zeros [.., n, ..] with x added at idx: the gradient of gather. */
const scatterOp: Op<AxisParams> = defineOp<AxisParams>({
  name: 'scatter_add',
  infer: ([idx, x], p) => {
    wantFloat(x, 'scatter_add');
    wantDType(idx, 'i32', 'scatter_add', 'indices');
    if (show(idx!.shape) !== show(x!.shape))
      throw new AnsatzError(`scatter_add: indices ${show(idx!.shape)} for values ${show(x!.shape)}`);
    return [{ shape: x!.shape.map((d, k) => (k === p.axis ? p.n : d)), dtype: x!.dtype }];
  },
  launch: ([idx, x], [y], p) => {
    const { outer, n: m, inner } = around(x!.shape, p.axis);
    return { kernel: 'scatter_add', args: [y.arg(), idx!.arg(), x!.arg()], ints: [outer, p.n, m, inner] };
  },
  flops: ([, x]) => x!.size,
  gradient: ({ inputs: [idx], grads: [dy], params }) => [null, apply(gatherOp, [dy, idx], params)[0]],
});
export function gather(x: Tensor, axis: number, idx: Tensor): Tensor {
  const a = axisOf(axis, x.rank, 'gather');
  return apply(gatherOp, [x, idx], { axis: a, n: x.shape[a] })[0];
}
export const scatterAdd = (x: Tensor, axis: number, idx: Tensor, n: number): Tensor =>
  apply(scatterOp, [idx, x], { axis: axisOf(axis, x.rank, 'scatter_add'), n })[0];

/** ids -> [..., classes] with a 1 at each id. */
const oneHotOp = defineOp<{ classes: number; dtype: DType }>({
  name: 'one_hot',
  infer: ([ids], p) => {
    wantDType(ids, 'i32', 'one_hot', 'ids');
    return [{ shape: [...ids!.shape, p.classes], dtype: p.dtype }];
  },
  launch: ([ids], [y], p) => ({ kernel: 'one_hot', args: [y.arg(), ids!.arg()], ints: [ids!.size, p.classes] }),
  flops: () => 0,
});
export const oneHot = (ids: Tensor, classes: number, dtype: DType = 'f32'): Tensor =>
  apply(oneHotOp, [ids], { classes, dtype })[0];

const lastAxis = (x: Tensor): [number, number] => {
  const n = x.shape[x.rank - 1];
  return [n === 0 ? 0 : x.size / n, n];
};

/** Stable sort of the last axis. Outputs values and where they came from. */
const sortOp = defineOp<{ descending: boolean }>({
  name: 'sort',
  infer: ([x]) => {
    wantFloat(x, 'sort');
    return [...like([x]), { shape: x!.shape, dtype: 'i32' }];
  },
  launch: ([x], [v, idx], p) => ({
    kernel: 'sort',
    args: [v.arg(), idx.arg(), x!.arg()],
    ints: [...lastAxis(x!), +p.descending],
  }),
  flops: ([x]) => x!.size * Math.max(1, Math.ceil(Math.log2(Math.max(2, x!.shape[x!.rank - 1])))),
  gradient: ({ inputs: [x], outputs: [, idx], grads: [dv] }) => [scatterAdd(dv!, -1, idx, x!.shape[x!.rank - 1])],
});
export function sort(x: Tensor, options: { descending?: boolean } = {}): { values: Tensor; indices: Tensor } {
  const [values, indices] = apply(sortOp, [x], { descending: options.descending ?? false });
  return { values, indices };
}
export const argsort = (x: Tensor, options: { descending?: boolean } = {}): Tensor => sort(x, options).indices;

/** The k largest of the last axis, largest first, ties to the lowest index. */
const topkOp = defineOp<{ k: number }>({
  name: 'topk',
  infer: ([x], p) => {
    wantFloat(x, 'topk');
    const n = x!.shape[x!.rank - 1];
    if (!Number.isInteger(p.k) || p.k < 0 || p.k > n) throw new AnsatzError(`topk: ${p.k} of ${n}`);
    const shape = [...x!.shape.slice(0, -1), p.k];
    return [
      { shape, dtype: x!.dtype },
      { shape, dtype: 'i32' },
    ];
  },
  launch: ([x], [v, idx], p) => ({
    kernel: 'topk',
    args: [v.arg(), idx.arg(), x!.arg()],
    ints: [...lastAxis(x!), p.k],
  }),
  flops: ([x]) => x!.size,
  gradient: ({ inputs: [x], outputs: [, idx], grads: [dv] }) => [scatterAdd(dv!, -1, idx, x!.shape[x!.rank - 1])],
});
export function topk(x: Tensor, k: number): { values: Tensor; indices: Tensor } {
  const [values, indices] = apply(topkOp, [x], { k });
  return { values, indices };
}
