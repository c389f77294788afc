/** The factored ("multiplicative") dense layer of Jaszczur et al. 2021, its loss, and the convolution over modules. */
import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import { gradEnabled } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { reduceTo } from './binary.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';
import { IGNORE, weightedLoss } from './loss.ts';
import type { Compute } from './matmul.ts';
import { isBlock } from './quant.ts';
import { quantFactored } from './quant-rows.ts';
import { permute, reshape } from './shape.ts';

interface LinearParams {
  readonly compute: Compute;
  readonly out: DType;
}

const flag = (compute: Compute): number => (compute === 'bf16' ? 1 : 0);

function checkFactors(op: string, x: Tensor, D: Tensor, E: Tensor): void {
  wantFloat(x, op);
  for (const t of [D, E]) wantDType(t, 'f32', op, 'a factor');
  const d = x.shape[x.rank - 1];
  if (D.rank !== 2 || E.rank !== 2 || D.shape[1] !== d || E.shape[1] !== d)
    throw new AnsatzError(`${op}: x ${show(x.shape)}, D ${show(D.shape)} and E ${show(E.shape)} do not fit`);
}

const sizes = (x: Tensor, D: Tensor, E: Tensor): number[] => [x.shape[0], x.shape[1], D.shape[0], E.shape[0]];
const dense = (x: Tensor, D: Tensor, E: Tensor): number => 2 * x.shape[0] * x.shape[1] * D.shape[0] * E.shape[0];

const linearBwd = defineOp<LinearParams>({
  name: 'factored_linear_bwd',
  infer: ([x, D, E]) => [x, D, E].map((t) => ({ shape: t!.shape, dtype: t!.dtype })),
  launch: ([x, D, E, dy], [dx, dD, dE], p) => ({
    kernel: 'factored_linear_bwd',
    args: [dx, dD, dE, x, D, E, dy].map((t) => t!.arg()),
    ints: [...sizes(x!, D!, E!), flag(p.compute)],
  }),
  flops: ([x, D, E]) => 2 * dense(x!, D!, E!) + 4 * D!.shape[0] * E!.size,
});

/** Inputs: x [rows, d], D [S, d], E [M, d], bias [S M] or null. */
const linearOp = defineOp<LinearParams>({
  name: 'factored_linear',
  infer: ([x, D, E, bias], p) => {
    checkFactors('factored_linear', x!, D!, E!);
    wantDType(bias, 'f32', 'factored_linear', 'the bias');
    const n = D!.shape[0] * E!.shape[0];
    if (bias && bias.size !== n) throw new AnsatzError(`factored_linear: bias ${show(bias.shape)} for ${n} columns`);
    return [{ shape: [x!.shape[0], n], dtype: p.out }];
  },
  launch: ([x, D, E, bias], [y], p) => ({
    kernel: 'factored_linear',
    args: [y.arg(), x!.arg(), D!.arg(), E!.arg(), bias?.arg() ?? null],
    ints: [...sizes(x!, D!, E!), flag(p.compute)],
  }),
  flops: ([x, D, E]) => dense(x!, D!, E!),
  gradient: ({ inputs: [x, D, E, bias], grads: [dy], params, needs }) => {
    const [dx, dD, dE] = apply(linearBwd, [x, D, E, dy], params);
    return [dx, dD, dE, bias && needs(3) ? reduceTo(dy!, bias.shape) : null];
  },
});

/**
 * y[s M + m] = sum_i x[i] D[s,i] E[m,i] (+ bias): a dense layer of S M outputs whose weight is a product. x [..., d],
 * D [S, d], E [M, d] -> [..., S M]. As many multiplications as a dense layer, about 1/S of its weights.
 *
 * With E in blocks (quantise()), as inference wants it, each row is multiplied by D first and the product weight is never
 * formed: a row's result then does not depend on the rows that come with it.
 */
export function factoredLinear(
  x: Tensor,
  D: Tensor,
  E: Tensor,
  options: { bias?: Tensor | null; compute?: Compute; out?: DType } = {},
): Tensor {
  const d = x.shape[x.rank - 1];
  if (isBlock(E.dtype)) return blockRows(x, D, E, options);
  const [y] = apply(linearOp, [reshape(x, [x.size / d, d]), D, E, options.bias ?? null], {
    compute: options.compute ?? 'f32',
    out: options.out ?? x.dtype,
  });
  return reshape(y, [...x.shape.slice(0, -1), y.shape[1]]);
}

function blockRows(
  x: Tensor,
  D: Tensor,
  E: Tensor,
  { bias = null, compute = 'f32', out = x.dtype }: { bias?: Tensor | null; compute?: Compute; out?: DType },
): Tensor {
  const d = x.shape[x.rank - 1];
  const y = quantFactored(reshape(x, [x.size / d, d]), D, E, bias, { compute, out });
  return reshape(y, [...x.shape.slice(0, -1), y.shape[1]]);
}

interface LossParams {
  readonly vocab: number;
  readonly zcoef: number;
  readonly logitScale: number;
  readonly compute: Compute;
  readonly ignore: number;
  readonly grads: boolean;
}

/** Inputs: h [rows, d], D, E, targets, rowscale. Outputs: loss per row; with `grads` those of sum(rowscale loss). */
const lossOp = defineOp<LossParams>({
  name: 'factored_cross_entropy',
  infer: ([h, D, E, target, rowscale], p) => {
    const name = 'factored_cross_entropy';
    checkFactors(name, h!, D!, E!);
    wantDType(target, 'i32', name, 'targets');
    wantDType(rowscale, 'f32', name, 'row scales');
    if (h!.rank !== 2 || target!.size !== h!.shape[0])
      throw new AnsatzError(`${name}: h ${show(h!.shape)} and targets ${show(target!.shape)} do not fit`);
    if (p.vocab > D!.shape[0] * E!.shape[0])
      throw new AnsatzError(`${name}: ${D!.shape[0]} modules of ${E!.shape[0]} are less than ${p.vocab} tokens`);
    const rows = { shape: [h!.shape[0]], dtype: 'f32' as const };
    return [rows, ...(p.grads ? [h, D, E].map((t) => ({ shape: t!.shape, dtype: t!.dtype })) : [])];
  },
  launch: ([h, D, E, target, rowscale], [loss, dh, dD, dE], p) => ({
    kernel: 'factored_cross_entropy',
    args: [loss, dh, dD, dE, h, D, E, target, rowscale].map((t) => t?.arg() ?? null),
    ints: [...sizes(h!, D!, E!), p.vocab, p.ignore, flag(p.compute)],
    floats: [p.zcoef, p.logitScale],
  }),
  flops: ([h, D, E], _, p) => (p.grads ? 3 : 1) * dense(h!, D!, E!),
});

/**
 * Cross-entropy of factoredLinear(h, D, E) over the first `vocab` columns. Neither all logits nor the product weight are
 * ever stored. Returns sum(rowscale * loss) and the unscaled loss of each row.
 */
export function factoredCrossEntropy(
  h: Tensor,
  D: Tensor,
  E: Tensor,
  targets: Tensor,
  rowscale: Tensor,
  options: { vocab: number; zLoss?: number; logitScale?: number; compute?: Compute; ignore?: number },
): { loss: Tensor; rows: Tensor } {
  const d = h.shape[h.rank - 1];
  const flat = reshape(h, [h.size / d, d]);
  const weights = reshape(rowscale, [flat.shape[0]]);
  const p: LossParams = {
    vocab: options.vocab,
    zcoef: options.zLoss ?? 0,
    logitScale: options.logitScale ?? 1,
    compute: options.compute ?? 'f32',
    ignore: options.ignore ?? IGNORE,
    grads: gradEnabled() && (h.requiresGrad || D.requiresGrad || E.requiresGrad),
  };
  const [rows, ...grads] = apply(lossOp, [flat, D, E, reshape(targets, [flat.shape[0]]), weights], p);
  return { loss: weightedLoss(rows, weights, [flat, D, E], grads), rows: reshape(rows, targets.shape) };
}

interface ConvParams {
  readonly compute: Compute;
  readonly reverse: boolean;
}

const convInts = (x: Tensor, w: readonly number[], p: ConvParams): number[] => {
  const [O, K, J, C] = w;
  return [...x.shape.slice(0, 3), C, O, K, J, +p.reverse, flag(p.compute)];
};
const convFlops = (x: Tensor, w: readonly number[]): number => 2 * x.size * w[0] * w[1] * w[2];

const convBwdW = defineOp<ConvParams & { shape: readonly number[] }>({
  name: 'module_conv_bwd_w',
  infer: (_, p) => [{ shape: p.shape, dtype: 'f32' }],
  launch: ([x, dy, seg], [dw], p) => ({
    kernel: 'module_conv_bwd_w',
    args: [dw.arg(), x!.arg(), dy!.arg(), seg?.arg() ?? null],
    ints: convInts(x!, p.shape, p),
  }),
  flops: ([x], _, p) => convFlops(x!, p.shape),
});

/** Inputs: x [B,T,S,C], w [O,K,J,C], bias [O] or null, segments i32 [B,T] or null. */
const convOp: Op<ConvParams> = defineOp<ConvParams>({
  name: 'module_conv',
  infer: ([x, w, bias, seg]) => {
    wantFloat(x, 'module_conv');
    wantDType(w, 'f32', 'module_conv', 'the kernel');
    wantDType(bias, 'f32', 'module_conv', 'the bias');
    wantDType(seg, 'i32', 'module_conv', 'segments');
    if (x!.rank !== 4 || w!.rank !== 4 || w!.shape[3] !== x!.shape[3] || w!.shape[2] % 2 === 0)
      throw new AnsatzError(
        `module_conv: x ${show(x!.shape)} must be [B,T,S,C] and w ${show(w!.shape)} [O,K,J,C] with J odd`,
      );
    if (bias && bias.size !== w!.shape[0])
      throw new AnsatzError(`module_conv: bias ${show(bias.shape)} for ${w!.shape[0]} channels`);
    if (seg && !sameShape(seg.shape, x!.shape.slice(0, 2)))
      throw new AnsatzError(`module_conv: segments ${show(seg.shape)} for x ${show(x!.shape)}`);
    return [{ shape: [...x!.shape.slice(0, 3), w!.shape[0]], dtype: x!.dtype }];
  },
  launch: ([x, w, bias, seg], [y], p) => ({
    kernel: 'module_conv',
    args: [y.arg(), x!.arg(), w!.arg(), bias?.arg() ?? null, seg?.arg() ?? null],
    ints: convInts(x!, w!.shape, p),
  }),
  flops: ([x, w]) => convFlops(x!, w!.shape),
  gradient: ({ inputs: [x, w, bias, seg], grads: [dy], params: p, needs }) => [
    // The adjoint is the same convolution, running back in time, with input and output channels exchanged.
    needs(0) ? apply(convOp, [dy, permute(w!, [3, 1, 2, 0]), null, seg], { ...p, reverse: !p.reverse })[0] : null,
    needs(1) ? apply(convBwdW, [x, dy, seg], { ...p, shape: w!.shape })[0] : null,
    bias && needs(2) ? reduceTo(dy!, bias.shape) : null,
    null,
  ],
});

/**
 * Causal convolution over K steps of time and J neighbouring modules, its weights shared by all modules. x [B,T,S,C],
 * w [O,K,J,C] (the last k is the present), bias [O] -> [B,T,S,O]. Steps before the start or in another segment, and
 * modules beyond the ends, count as zeros.
 */
export const moduleConv = (
  x: Tensor,
  w: Tensor,
  bias: Tensor | null,
  options: { segments?: Tensor | null; compute?: Compute } = {},
): Tensor =>
  apply(convOp, [x, w, bias, options.segments ?? null], { compute: options.compute ?? 'f32', reverse: false })[0];
