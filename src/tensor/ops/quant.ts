/**
 * Weights in blocks of 16 rows (docs/quantised.md): q8 and q4 quantised in groups of 32, bf16x16 and f32x16 with their
 * full precision. Made by quantise(), they stand in place of a weight [.., out, in] in matmul, groupedMatmul and
 * embedding. They are for inference: nothing here has a gradient.
 */
import { type BlockType, blockCode, type DType, isBlock, sizeOf } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Inputs } from '../op.ts';
import { gradEnabled } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';
import type { Compute } from './matmul.ts';

export { type BlockType, blockTypes, isBlock } from '../../backend/dtype.ts';

/** [.., out, in] as [batch, out, in]. */
function sizesOf(w: Tensor, op: string): { batch: number; n: number; k: number } {
  const [n, k] = [w.shape[w.rank - 2], w.shape[w.rank - 1]];
  if (w.rank < 2 || w.size === 0) throw new AnsatzError(`${op} wants weights [.., out, in], not ${show(w.shape)}`);
  return { batch: w.size / (n * k), n, k };
}

const formatOf = (w: Tensor, op: string): number => {
  if (!isBlock(w.dtype)) throw new AnsatzError(`${op} wants weights in blocks, not ${w.dtype}: quantise() makes them`);
  return blockCode[w.dtype];
};

function refuseGradient(op: string, inputs: Inputs, w: Tensor): void {
  if (gradEnabled() && inputs.some((t) => t?.requiresGrad))
    throw new AnsatzError(`${op}: there is no gradient through ${w.dtype} weights`, {
      hint: 'run inference inside noGrad(), or train with the f32 weights',
    });
}

/** Inputs: w float, scales f32 [.., out, ceil(in / 32)] or null. */
const packOp = defineOp<{ dtype: BlockType }>({
  name: 'quantise',
  infer: ([w, scales], p) => {
    wantFloat(w, 'quantise');
    wantDType(scales, 'f32', 'quantise', 'scales');
    const { n, k } = sizesOf(w!, 'quantise');
    if (scales && !sameShape(scales.shape, [...w!.shape.slice(0, -2), n, Math.ceil(k / 32)]))
      throw new AnsatzError(`quantise: scales ${show(scales.shape)} for weights ${show(w!.shape)} in groups of 32`);
    return [{ shape: w!.shape, dtype: p.dtype }];
  },
  launch: ([w, scales], [q], p) => {
    const { batch, n, k } = sizesOf(w!, 'quantise');
    const args = [q.arg(), w!.arg(), scales?.arg() ?? null];
    return { kernel: 'quant_pack', args, ints: [batch, n, k, blockCode[p.dtype]] };
  },
  // q4 tries 18 scales for each group, against 15 thresholds.
  flops: ([w, scales], _, p) => w!.size * (p.dtype === 'q4' ? (scales ? 45 : 18 * 50) : 4),
});

const unpackOp = defineOp<{ out: DType }>({
  name: 'dequantise',
  blocks: true,
  infer: ([q], p) => {
    formatOf(q!, 'dequantise');
    return [{ shape: q!.shape, dtype: p.out }];
  },
  launch: ([q], [w]) => {
    const { batch, n, k } = sizesOf(q!, 'dequantise');
    return { kernel: 'quant_unpack', args: [w.arg(), q!.arg()], ints: [batch, n, k, formatOf(q!, 'dequantise')] };
  },
  flops: ([q]) => q!.size,
});

/**
 * Weights [.., out, in] in blocks. q8 rounds to 255 even steps of each group of 32 inputs; q4 to 16 levels, with the
 * scale that fits the group best.
 * @param scales f32 [.., out, ceil(in / 32)]: the groups' scales, when another method has chosen them
 */
export const quantise = (w: Tensor, dtype: BlockType, scales: Tensor | null = null): Tensor =>
  apply(packOp, [w, scales], { dtype })[0];

/** Weights in blocks as plain ones. */
export const dequantise = (q: Tensor, out: 'f32' | 'bf16' = 'f32'): Tensor => apply(unpackOp, [q], { out })[0];

interface ProductParams {
  readonly alpha: number;
  readonly compute: Compute;
  readonly out: DType;
}

/** Inputs: x [R, in], w [out, in], bias [out] or null, addend [R, out] or null. */
const productOp = defineOp<ProductParams>({
  name: 'quant_matmul',
  blocks: true,
  infer: ([x, w, bias, addend], p) => {
    for (const t of [x, bias, addend]) wantFloat(t, 'matmul');
    formatOf(w!, 'matmul');
    const [n, k] = w!.shape;
    if (w!.rank !== 2 || x!.rank !== 2 || x!.shape[1] !== k)
      throw new AnsatzError(`matmul: ${show(x!.shape)} times ${w!.dtype} ${show(w!.shape)} transposed do not fit`);
    if (bias && (bias.rank !== 1 || bias.shape[0] !== n))
      throw new AnsatzError(`matmul: bias ${show(bias.shape)} for ${n} columns`);
    const shape = [x!.shape[0], n];
    if (addend && !sameShape(addend.shape, shape))
      throw new AnsatzError(`matmul: addend ${show(addend.shape)} for output ${show(shape)}`);
    return [{ shape, dtype: p.out }];
  },
  launch: ([x, w, bias, addend], [y], p) => ({
    kernel: 'quant_matmul',
    args: [y, x, w, bias, addend].map((t) => t?.arg() ?? null),
    ints: [x!.shape[0], ...w!.shape, formatOf(w!, 'matmul'), +(p.compute === 'bf16')],
    floats: [p.alpha],
  }),
  flops: ([x, w]) => 2 * x!.shape[0] * w!.size,
});

/** matmul() with transB of rows [R, in] and weights in blocks [out, in]. */
export function quantMatmul(
  x: Tensor,
  w: Tensor,
  bias: Tensor | null,
  addend: Tensor | null,
  p: ProductParams,
): Tensor {
  const inputs = [x, w, bias, addend];
  refuseGradient('matmul', inputs, w);
  return apply(productOp, inputs, p)[0];
}

/** Inputs: x [R, in], w [E, out, in], offsets i32 [E + 1]. */
const groupedOp = defineOp<ProductParams>({
  name: 'quant_grouped_matmul',
  blocks: true,
  infer: ([x, w, offsets], p) => {
    wantFloat(x, 'grouped_matmul');
    formatOf(w!, 'grouped_matmul');
    wantDType(offsets, 'i32', 'grouped_matmul', 'offsets');
    if (x!.rank !== 2 || w!.rank !== 3 || x!.shape[1] !== w!.shape[2] || offsets!.size !== w!.shape[0] + 1)
      throw new AnsatzError(
        `grouped_matmul: rows ${show(x!.shape)}, ${w!.dtype} matrices ${show(w!.shape)} transposed and ${offsets!.size} offsets do not fit`,
      );
    return [{ shape: [x!.shape[0], w!.shape[1]], dtype: p.out }];
  },
  launch: ([x, w, offsets], [y], p) => ({
    kernel: 'quant_grouped_matmul',
    args: [y.arg(), x!.arg(), w!.arg(), offsets!.arg()],
    ints: [x!.shape[0], ...w!.shape, formatOf(w!, 'grouped_matmul'), +(p.compute === 'bf16')],
    floats: [p.alpha],
  }),
  flops: ([x], [y]) => 2 * x!.size * y.shape[1],
  // Only matrices that have rows are read.
  bytes: ([x, w], [y]) => {
    const read = Math.min(1, x!.shape[0] / w!.shape[0]) * w!.size * sizeOf(w!.dtype);
    return read + x!.size * sizeOf(x!.dtype) + y.size * sizeOf(y.dtype);
  },
});

/** groupedMatmul() with transB of rows [R, in] and weights in blocks [E, out, in]. */
export function quantGroupedMatmul(x: Tensor, w: Tensor, offsets: Tensor, p: ProductParams): Tensor {
  refuseGradient('grouped_matmul', [x, w], w);
  return apply(groupedOp, [x, w, offsets], p)[0];
}

const embeddingOp = defineOp<{ out: DType }>({
  name: 'quant_embedding',
  blocks: true,
  infer: ([table, ids], p) => {
    formatOf(table!, 'embedding');
    wantDType(ids, 'i32', 'embedding', 'ids');
    if (table!.rank !== 2)
      throw new AnsatzError(`embedding: the table must be [rows, width], not ${show(table!.shape)}`);
    return [{ shape: [...ids!.shape, table!.shape[1]], dtype: p.out }];
  },
  launch: ([table, ids], [y]) => ({
    kernel: 'quant_embedding',
    args: [y.arg(), table!.arg(), ids!.arg()],
    ints: [ids!.size, table!.shape[1], table!.shape[0], formatOf(table!, 'embedding')],
  }),
  flops: (_, [y]) => y.size,
  bytes: ([table, ids], [y]) => ids!.size * 4 + y.size * (sizeOf(table!.dtype) + sizeOf(y.dtype)),
});

/** embedding() of a table in blocks [rows, width]. */
export function quantEmbedding(table: Tensor, ids: Tensor, out: DType): Tensor {
  return apply(embeddingOp, [table, ids], { out })[0];
}
