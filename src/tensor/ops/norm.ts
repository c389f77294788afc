/** Normalisation of the last axis. Statistics in f32 whatever the dtype. */

import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType, wantFloat } from './common.ts';

interface NormParams {
  readonly eps: number;
  readonly out: DType;
}

const rowsOf = (x: Tensor): [number, number] => [x.size / Math.max(1, x.shape[x.rank - 1]), x.shape[x.rank - 1]];

function check(op: string, x: Tensor, ...weights: (Tensor | null)[]): void {
  wantFloat(x, op);
  const d = x.shape[x.rank - 1];
  for (const w of weights) {
    wantDType(w, 'f32', op, 'its weight');
    if (w && (w.rank !== 1 || w.shape[0] !== d))
      throw new AnsatzError(`${op}: weight ${show(w.shape)} for rows of ${d}`);
  }
}

const rmsBwd = defineOp<{ eps: number }>({
  name: 'rms_norm_bwd',
  infer: ([x, w]) => [{ shape: x!.shape, dtype: x!.dtype }, ...(w ? [{ shape: w.shape, dtype: 'f32' as const }] : [])],
  launch: ([x, w, rstd, dy, addend], [dx, dw]) => ({
    kernel: 'rms_norm_bwd',
    args: [dx.arg(), dw?.arg() ?? null, x!.arg(), w?.arg() ?? null, rstd!.arg(), dy!.arg(), addend?.arg() ?? null],
    ints: rowsOf(x!),
  }),
  flops: ([x]) => 9 * x!.size,
});

/** Root-mean-square normalisation (Zhang and Sennrich 2019). Outputs y and 1/rms per row. */
const rmsOp = defineOp<NormParams>({
  name: 'rms_norm',
  infer: ([x, w], p) => {
    check('rms_norm', x!, w);
    return [
      { shape: x!.shape, dtype: p.out },
      { shape: x!.shape.slice(0, -1), dtype: 'f32' },
    ];
  },
  launch: ([x, w], [y, rstd], p) => ({
    kernel: 'rms_norm',
    args: [y.arg(), rstd.arg(), x!.arg(), w?.arg() ?? null],
    ints: rowsOf(x!),
    floats: [p.eps],
  }),
  flops: ([x]) => 4 * x!.size,
  gradient: ({ inputs: [x, w], outputs: [, rstd], grads: [dy], params, take }) => {
    const [dx, dw] = apply(rmsBwd, [x, w, rstd, dy, take(0)], { eps: params.eps });
    return [dx, dw ?? null];
  },
});

/** y = x / rms(x) * w over the last axis; w f32 [d] or null; `out` is y's dtype. */
export const rmsNorm = (x: Tensor, w: Tensor | null, options: { eps?: number; out?: DType } = {}): Tensor =>
  apply(rmsOp, [x, w], { eps: options.eps ?? 1e-6, out: options.out ?? x.dtype })[0];

const layerBwd = defineOp<{ eps: number }>({
  name: 'layer_norm_bwd',
  infer: ([x, w, b]) => [
    { shape: x!.shape, dtype: x!.dtype },
    ...(w ? [{ shape: w.shape, dtype: 'f32' as const }] : []),
    ...(b ? [{ shape: b.shape, dtype: 'f32' as const }] : []),
  ],
  launch: ([x, w, b, mean, rstd, dy, addend], [dx, ...rest]) => {
    const dw = w ? rest.shift()! : null;
    const db = b ? rest.shift()! : null;
    return {
      kernel: 'layer_norm_bwd',
      args: [
        dx.arg(),
        dw?.arg() ?? null,
        db?.arg() ?? null,
        x!.arg(),
        w?.arg() ?? null,
        mean!.arg(),
        rstd!.arg(),
        dy!.arg(),
        addend?.arg() ?? null,
      ],
      ints: rowsOf(x!),
    };
  },
  flops: ([x]) => 12 * x!.size,
});

/** Layer normalisation (Ba et al. 2016). Outputs y, mean and 1/std per row. */
const layerOp = defineOp<NormParams>({
  name: 'layer_norm',
  infer: ([x, w, b], p) => {
    check('layer_norm', x!, w, b);
    const rows = x!.shape.slice(0, -1);
    return [
      { shape: x!.shape, dtype: p.out },
      { shape: rows, dtype: 'f32' },
      { shape: rows, dtype: 'f32' },
    ];
  },
  launch: ([x, w, b], [y, mean, rstd], p) => ({
    kernel: 'layer_norm',
    args: [y.arg(), mean.arg(), rstd.arg(), x!.arg(), w?.arg() ?? null, b?.arg() ?? null],
    ints: rowsOf(x!),
    floats: [p.eps],
  }),
  flops: ([x]) => 7 * x!.size,
  gradient: ({ inputs: [x, w, b], outputs: [, mean, rstd], grads: [dy], params, take }) => {
    const [dx, ...rest] = apply(layerBwd, [x, w, b, mean, rstd, dy, take(0)], { eps: params.eps });
    return [dx, w ? rest.shift()! : null, b ? rest.shift()! : null];
  },
});

/** y = (x - mean) / std * w + b over the last axis; w and b f32 [d] or null. */
export const layerNorm = (
  x: Tensor,
  w: Tensor | null,
  b: Tensor | null,
  options: { eps?: number; out?: DType } = {},
): Tensor => apply(layerOp, [x, w, b], { eps: options.eps ?? 1e-5, out: options.out ?? x.dtype })[0];
