/** Matrix products: the op where a language model spends its time. */

import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { AdaptedTensor } from '../adapted.ts';
import { apply, defineOp } from '../op.ts';
import { type Shape, sizeOfShape, Tensor } from '../tensor.ts';
import { cast, reduceTo } from './binary.ts';
import { broadcastShapes, sameShape, show, wantFloat } from './common.ts';
import { frozenMatmul, wantsGradient } from './frozen.ts';
import { isBlock, quantMatmul } from './quant.ts';
import { expand, reshape } from './shape.ts';

/** Precision of the products: f32, or operands rounded to bf16 with f32 sums. */
export type Compute = 'f32' | 'bf16';

interface MatmulParams {
  readonly transA: boolean;
  readonly transB: boolean;
  readonly alpha: number;
  readonly compute: Compute;
  readonly out: DType;
}

interface Sizes {
  batch: number;
  m: number;
  n: number;
  k: number;
  strideA: number;
  strideB: number;
  shape: number[];
}

/** Inputs are [M,K] or [batch,M,K]; a missing or single batch is shared by all. */
function sizes(a: Tensor, b: Tensor, p: MatmulParams): Sizes {
  const [ra, rb] = [a.rank, b.rank];
  const [m, ka] = p.transA ? [a.shape[ra - 1], a.shape[ra - 2]] : [a.shape[ra - 2], a.shape[ra - 1]];
  const [kb, n] = p.transB ? [b.shape[rb - 1], b.shape[rb - 2]] : [b.shape[rb - 2], b.shape[rb - 1]];
  const [ba, bb] = [ra === 3 ? a.shape[0] : 1, rb === 3 ? b.shape[0] : 1];
  if (ka !== kb || (ba !== bb && ba !== 1 && bb !== 1))
    throw new AnsatzError(
      `matmul: ${show(a.shape)}${p.transA ? ' transposed' : ''} times ${show(b.shape)}${p.transB ? ' transposed' : ''} do not fit`,
    );
  const batch = ba === 1 ? bb : ba;
  const shape = ra === 3 || rb === 3 ? [batch, m, n] : [m, n];
  return { batch, m, n, k: ka, strideA: ba === 1 ? 0 : m * ka, strideB: bb === 1 ? 0 : n * kb, shape };
}

/** Inputs: A, B, bias [N] or null, addend (the output's shape) or null. */
const matmulOp = defineOp<MatmulParams>({
  name: 'matmul',
  infer: ([a, b, bias, addend], p) => {
    for (const t of [a, b, bias, addend]) wantFloat(t, 'matmul');
    const s = sizes(a!, b!, p);
    if (bias && (bias.rank !== 1 || bias.shape[0] !== s.n))
      throw new AnsatzError(`matmul: bias ${show(bias.shape)} for ${s.n} columns`);
    if (addend && !sameShape(addend.shape, s.shape))
      throw new AnsatzError(`matmul: addend ${show(addend.shape)} for output ${show(s.shape)}`);
    return [{ shape: s.shape, dtype: p.out }];
  },
  launch: ([a, b, bias, addend], [c], p) => {
    const s = sizes(a!, b!, p);
    return {
      kernel: 'matmul',
      args: [c.arg(), a!.arg(), b!.arg(), bias?.arg() ?? null, addend?.arg() ?? null],
      ints: [
        s.batch,
        s.m,
        s.n,
        s.k,
        +p.transA,
        +p.transB,
        s.strideA,
        s.strideB,
        s.m * s.n,
        p.compute === 'bf16' ? 1 : 0,
      ],
      floats: [p.alpha],
    };
  },
  flops: ([a, b], _, p) => {
    const s = sizes(a!, b!, p);
    return 2 * s.batch * s.m * s.n * s.k;
  },
  gradient: ({ inputs: [a, b, bias, addend], grads: [dc], params: p, needs }) => {
    const g = dc!;
    const { compute, alpha } = p;
    const product = (x: Tensor, y: Tensor, transA: boolean, transB: boolean, like: Tensor): Tensor => {
      const out = apply(matmulOp, [x, y, null, null], { transA, transB, alpha, compute, out: like.dtype })[0];
      return out.rank > like.rank ? reduceTo(out, like.shape) : out; // a matrix shared by a batch gets the sum
    };
    const da = !needs(0) ? null : p.transA ? product(b!, g, p.transB, true, a!) : product(g, b!, false, !p.transB, a!);
    const db = !needs(1) ? null : p.transB ? product(g, a!, true, p.transA, b!) : product(a!, g, !p.transA, false, b!);
    const dbias = bias && needs(2) ? cast(reduceTo(g, bias.shape), bias.dtype) : null;
    const dadd = addend && needs(3) ? cast(g, addend.dtype) : null;
    return [da, db, dbias, dadd];
  },
});

export interface MatmulOptions {
  transA?: boolean;
  transB?: boolean;
  /** Factor on the product. */
  alpha?: number;
  compute?: Compute;
  /** dtype of the result; by default f32 if any operand is f32. */
  out?: DType;
  /** [N], added to every row. */
  bias?: Tensor | null;
  /** Added to the result; the result's shape. */
  addend?: Tensor | null;
}

/**
 * alpha op(A) op(B) + bias + addend over the last two axes; leading axes are batches and broadcast.
 * A [..., M, K], B [..., K, N] (before transposition) give [..., M, N].
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  if (a.rank < 2 || b.rank < 2)
    throw new AnsatzError(`matmul wants matrices, got ${show(a.shape)} and ${show(b.shape)}`);
  if (isBlock(b.dtype)) return blockProduct(a, b, options);
  if (b instanceof AdaptedTensor) return adaptedProduct(a, b, options);
  const p: MatmulParams = {
    transA: options.transA ?? false,
    transB: options.transB ?? false,
    alpha: options.alpha ?? 1,
    compute: options.compute ?? (a.dtype === 'bf16' || b.dtype === 'bf16' ? 'bf16' : 'f32'),
    out: options.out ?? (a.dtype === 'bf16' && b.dtype === 'bf16' ? 'bf16' : 'f32'),
  };
  const { bias = null, addend = null } = options;
  // A stack of rows times one matrix is one tall product: no batches, full-size tiles.
  if (b.rank === 2 && a.rank > 2 && !p.transA) {
    const k = a.shape[a.rank - 1];
    const shape = [...a.shape.slice(0, -1), p.transB ? b.shape[0] : b.shape[1]];
    const rows = sizeOfShape(a.shape.slice(0, -1));
    const flatAddend = addend && reshape(addend, [rows, shape[shape.length - 1]]);
    return reshape(apply(matmulOp, [reshape(a, [rows, k]), b, bias, flatAddend], p)[0], shape);
  }
  const batch = broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2), 'matmul');
  const [x, y] = [threeD(a, batch), threeD(b, batch)];
  const lead = x.rank === 3 || y.rank === 3 ? [sizeOfShape(batch)] : [];
  const flatAddend = addend && reshape(addend, [...lead, ...addend.shape.slice(-2)]);
  const c = apply(matmulOp, [x, y, bias, flatAddend], p)[0];
  return reshape(c, [...batch, c.shape[c.rank - 2], c.shape[c.rank - 1]]);
}

/** Rows times a weight in blocks, which holds its outputs in rows. */
function blockProduct(a: Tensor, w: Tensor, options: MatmulOptions): Tensor {
  if (options.transA || !options.transB || w.rank !== 2)
    throw new AnsatzError(`matmul: a ${w.dtype} weight ${show(w.shape)} multiplies as x W^T only`, {
      hint: 'use transB with a weight [out, in], or dequantise() it',
    });
  const k = a.shape[a.rank - 1];
  const shape = [...a.shape.slice(0, -1), w.shape[0]];
  const rows = sizeOfShape(a.shape.slice(0, -1));
  const { bias = null, addend = null, alpha = 1, compute = a.dtype === 'bf16' ? 'bf16' : 'f32' } = options;
  const flatAddend = addend && reshape(addend, [rows, w.shape[0]]);
  const out = options.out ?? (a.dtype === 'bf16' ? 'bf16' : 'f32');
  const x = reshape(a, [rows, k]);
  const added = w instanceof AdaptedTensor ? lowRank(x, w, flatAddend, alpha, compute) : flatAddend;
  const product = wantsGradient([x, bias, added]) ? frozenMatmul : quantMatmul;
  return reshape(product(x, w, bias, added, { alpha, compute, out }), shape);
}

/** Rows times a weight with a difference beside it, for inference: the weight's own product takes the other as its addend. */
function adaptedProduct(a: Tensor, w: AdaptedTensor, options: MatmulOptions): Tensor {
  if (options.transA || !options.transB)
    throw new AnsatzError(`matmul: a weight ${show(w.shape)} with a difference multiplies as x W^T only`, {
      hint: 'use transB with a weight [out, in], or add the difference to it',
    });
  const { addend = null, alpha = 1, compute = a.dtype === 'bf16' ? 'bf16' : 'f32' } = options;
  const own = new Tensor(w.storage, w.dtype, w.shape, w.offset);
  return matmul(a, own, { ...options, compute, addend: lowRank(a, w, addend, alpha, compute) });
}

/** alpha scale (x A^T) B^T + addend, f32. */
function lowRank(x: Tensor, { a, b, scale }: AdaptedTensor, addend: Tensor | null, alpha: number, compute: Compute) {
  const low = matmul(x, a, { transB: true, compute, out: 'f32' });
  return matmul(low, b, { transB: true, alpha: alpha * scale, addend, compute, out: 'f32' });
}

/** Folds leading axes into one batch; keeps a matrix shared by all batches as it is. */
function threeD(t: Tensor, batch: Shape): Tensor {
  const [r, c] = t.shape.slice(-2);
  if (t.rank === 2) return t;
  const own = t.shape.slice(0, -2);
  if (sizeOfShape(own) === 1) return reshape(t, [r, c]);
  const full = sameShape(own, batch) ? t : expand(t, [...batch, r, c]);
  return reshape(full, [sizeOfShape(batch), r, c]);
}
