/** Cross-entropy on logits, and fused with the output projection so that logits are never stored. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import { gradEnabled } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { cast, scaleBy } from './binary.ts';
import { show, wantDType, wantFloat } from './common.ts';
import { wantsGradient } from './frozen.ts';
import { type Compute, matmul } from './matmul.ts';
import { dequantise, isBlock } from './quant.ts';
import { concat, reshape, slice } from './shape.ts';

/** Targets with this id do not count. */
export const IGNORE = -1;

interface CrossEntropyParams {
  readonly smoothing: number;
  /** Coefficient of lse^2, which keeps logits from drifting (z-loss; Chowdhery et al. 2022). */
  readonly zcoef: number;
  readonly ignore: number;
}

const rowsOf = (logits: Tensor): [number, number] => [
  logits.size / logits.shape[logits.rank - 1],
  logits.shape[logits.rank - 1],
];

/** Inputs: logits [..., V], targets i32 [...]. Outputs: loss and log-sum-exp per row, f32. */
const crossEntropyOp = defineOp<CrossEntropyParams>({
  name: 'cross_entropy',
  infer: ([x, target]) => {
    wantFloat(x, 'cross_entropy');
    wantDType(target, 'i32', 'cross_entropy', 'targets');
    const shape = x!.shape.slice(0, -1);
    if (show(shape) !== show(target!.shape))
      throw new AnsatzError(`cross_entropy: targets ${show(target!.shape)} for logits ${show(x!.shape)}`);
    return [
      { shape, dtype: 'f32' },
      { shape, dtype: 'f32' },
    ];
  },
  launch: ([x, target], [loss, lse], p) => ({
    kernel: 'cross_entropy',
    args: [loss.arg(), lse.arg(), x!.arg(), target!.arg()],
    ints: [...rowsOf(x!), p.ignore],
    floats: [p.smoothing, p.zcoef],
  }),
  flops: ([x]) => 4 * x!.size,
  gradient: ({ inputs: [x, target], outputs: [, lse], grads: [dloss], params }) => [
    apply(crossEntropyBwd, [x, lse, target, dloss], params)[0],
    null,
  ],
});
const crossEntropyBwd = defineOp<CrossEntropyParams>({
  name: 'cross_entropy_bwd',
  infer: ([x]) => [{ shape: x!.shape, dtype: x!.dtype }],
  launch: ([x, lse, target, dloss], [dx], p) => ({
    kernel: 'cross_entropy_bwd',
    args: [dx.arg(), x!.arg(), lse!.arg(), target!.arg(), dloss!.arg()],
    ints: [...rowsOf(x!), p.ignore],
    floats: [p.smoothing, p.zcoef],
  }),
  flops: ([x]) => 4 * x!.size,
});

/** Cross-entropy of each row, f32; 0 where the target is ignored. */
export const crossEntropy = (
  logits: Tensor,
  targets: Tensor,
  options: { smoothing?: number; zLoss?: number; ignore?: number } = {},
): Tensor =>
  apply(crossEntropyOp, [logits, targets], {
    smoothing: options.smoothing ?? 0,
    zcoef: options.zLoss ?? 0,
    ignore: options.ignore ?? IGNORE,
  })[0];

interface LinearLossParams {
  readonly zcoef: number;
  readonly logitScale: number;
  readonly compute: Compute;
  readonly ignore: number;
  /** Whether gradients are computed along with the loss. */
  readonly grads: boolean;
}

/**
 * Inputs: h [rows, d], w [V, d], targets i32 [rows], rowscale f32 [rows] or null.
 * Outputs: loss per row; with `grads`, d(sum(rowscale loss))/dh and /dw, made in the same sweep over the logits.
 */
const linearLossOp: Op<LinearLossParams> = defineOp<LinearLossParams>({
  name: 'linear_cross_entropy',
  infer: ([h, w, target, rowscale], p) => {
    wantFloat(h, 'linear_cross_entropy');
    wantFloat(w, 'linear_cross_entropy');
    wantDType(target, 'i32', 'linear_cross_entropy', 'targets');
    wantDType(rowscale, 'f32', 'linear_cross_entropy', 'row scales');
    if (h!.rank !== 2 || w!.rank !== 2 || h!.shape[1] !== w!.shape[1] || target!.size !== h!.shape[0])
      throw new AnsatzError(
        `linear_cross_entropy: h ${show(h!.shape)}, w ${show(w!.shape)}, targets ${show(target!.shape)} do not fit`,
      );
    return [
      { shape: [h!.shape[0]], dtype: 'f32' },
      ...(p.grads
        ? [
            { shape: h!.shape, dtype: h!.dtype },
            { shape: w!.shape, dtype: 'f32' as const },
          ]
        : []),
    ];
  },
  launch: ([h, w, target, rowscale], [loss, dh, dw], p) => ({
    kernel: 'linear_cross_entropy',
    args: [
      loss.arg(),
      dh?.arg() ?? null,
      dw?.arg() ?? null,
      h!.arg(),
      w!.arg(),
      target!.arg(),
      rowscale?.arg() ?? null,
    ],
    ints: [h!.shape[0], h!.shape[1], w!.shape[0], p.ignore, p.compute === 'bf16' ? 1 : 0],
    floats: [p.zcoef, p.logitScale],
  }),
  flops: ([h, w], _, p) => (p.grads ? 6 : 2) * h!.shape[0] * h!.shape[1] * w!.shape[0],
  // For a use of the rows other than their weighted sum: the logits are made again, weighted by what is asked for.
  gradient: ({ inputs: [h, w, target], grads: [drows], params, needs }) => {
    const [, dh, dw] = apply(linearLossOp, [h, w, target, drows], { ...params, grads: true });
    return [needs(0) ? dh : null, needs(1) ? cast(dw, w!.dtype) : null, null, null];
  },
});

/** sum(rowscale * loss) as one number, with the gradients already at hand. */
const weightedLossOp = defineOp<Record<string, never>>({
  name: 'weighted_loss',
  // Inputs: loss rows, rowscale, what the loss was made from, and as many gradients. The tape sees the former; the
  // latter are what it multiplies.
  infer: () => [{ shape: [], dtype: 'f32' }],
  launch: ([loss, rowscale], [y]) => ({
    kernel: 'matmul',
    args: [y.arg(), loss!.arg(), rowscale!.arg(), null, null],
    ints: [1, 1, 1, loss!.size, 0, 0, 0, 0, 0, 0],
    floats: [1],
  }),
  flops: ([loss]) => 2 * loss!.size,
  bytes: ([loss]) => 8 * loss!.size,
  gradient: ({ inputs: [loss, , ...rest], grads: [g], needs }) => {
    const n = rest.length / 2;
    const [from, grads] = [rest.slice(0, n), rest.slice(n)];
    return [
      null,
      needs(1) ? scaleBy(loss!, g!) : null,
      ...from.map((t, k) => (needs(2 + k) ? cast(scaleBy(grads[k]!, g!), t!.dtype) : null)),
      ...grads.map(() => null),
    ];
  },
});

/**
 * sum(rowscale * rows), for losses that make their gradients in the forward pass: `grads` are those of the result with
 * respect to `from`, or empty when none were made.
 */
export const weightedLoss = (
  rows: Tensor,
  rowscale: Tensor,
  from: readonly Tensor[],
  grads: readonly Tensor[],
): Tensor => apply(weightedLossOp, [rows, rowscale, ...from, ...from.map((_, k) => grads[k] ?? null)], {})[0];

export interface LinearLossOptions {
  zLoss?: number;
  /** Factor on the logits. */
  logitScale?: number;
  compute?: Compute;
  ignore?: number;
}

/**
 * Cross-entropy of h w^T without storing the logits: they are made in chunks of rows, and their gradient is used up
 * within the chunk. Returns sum(rowscale * loss) (a scalar) and the unscaled loss of each row.
 * h [..., d], w [V, d], targets i32 [...], rowscale f32 [...].
 */
export function linearCrossEntropy(
  h: Tensor,
  w: Tensor,
  targets: Tensor,
  rowscale: Tensor,
  options: LinearLossOptions = {},
): { loss: Tensor; rows: Tensor } {
  const d = h.shape[h.rank - 1];
  const flat = reshape(h, [h.size / d, d]);
  if (isBlock(w.dtype)) {
    // Training goes through a frozen head: its values are there for as long as the loss is computed.
    if (wantsGradient([h])) return linearCrossEntropy(h, dequantise(w), targets, rowscale, options);
    return blockLoss(flat, w, targets, rowscale, options);
  }
  const grads = gradEnabled() && (h.requiresGrad || w.requiresGrad);
  const p: LinearLossParams = {
    zcoef: options.zLoss ?? 0,
    logitScale: options.logitScale ?? 1,
    compute: options.compute ?? 'f32',
    ignore: options.ignore ?? IGNORE,
    grads,
  };
  const weights = reshape(rowscale, [flat.shape[0]]);
  const [rows, dh, dw] = apply(linearLossOp, [flat, w, reshape(targets, [flat.shape[0]]), weights], p);
  const loss = weightedLoss(rows, weights, [flat, w], grads ? [dh, dw] : []);
  return { loss, rows: reshape(rows, targets.shape) };
}

/** Logits that exist at a time, for heads in blocks. */
const BLOCK_LOGITS = 16 << 20;

/** The same with w in blocks, whose products only inference needs: logits of a few rows after another. */
function blockLoss(
  h: Tensor,
  w: Tensor,
  targets: Tensor,
  rowscale: Tensor,
  { zLoss, logitScale = 1, compute = 'f32', ignore }: LinearLossOptions,
): { loss: Tensor; rows: Tensor } {
  const n = h.shape[0];
  const step = Math.max(16, Math.floor(BLOCK_LOGITS / w.shape[0]));
  const flat = reshape(targets, [n]);
  const parts: Tensor[] = [];
  for (let at = 0; at === 0 || at < n; at += step) {
    const [x, t] = n <= step ? [h, flat] : [h, flat].map((whole) => slice(whole, 0, at, Math.min(n, at + step)));
    const logits = matmul(x, w, { transB: true, alpha: logitScale, compute, out: 'f32' });
    parts.push(crossEntropy(logits, t, { zLoss, ignore }));
  }
  const rows = parts.length === 1 ? parts[0] : concat(parts, 0);
  return { loss: weightedLoss(rows, reshape(rowscale, [n]), [], []), rows: reshape(rows, targets.shape) };
}
