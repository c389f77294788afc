/** One-dimensional convolution over time. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Inputs } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantFloat } from './common.ts';

export interface ConvOptions {
  stride?: number;
  dilation?: number;
  groups?: number;
  /** Zeros before and after the sequence. Causal: dilation (K-1) before, none after. */
  padLeft?: number;
  padRight?: number;
}
type Params = Required<ConvOptions> & { time: number; hasBias: boolean };

const outLength = (t: number, k: number, p: Params): number =>
  Math.floor((t + p.padLeft + p.padRight - p.dilation * (k - 1) - 1) / p.stride) + 1;

/** x [B,T,Cin] or its gradient's shape, w [Cout,Cin/groups,K]. */
function ints(b: number, t: number, w: Tensor, p: Params): number[] {
  const [cout, cg, k] = w.shape;
  return [b, t, cg * p.groups, cout, k, p.groups, p.stride, p.padLeft, p.dilation, outLength(t, k, p)];
}

const flops = (b: number, t: number, w: Tensor, p: Params): number => 2 * b * outLength(t, w.shape[2], p) * w.size;

const convOp = defineOp<Params>({
  name: 'conv1d',
  infer: ([x, w, bias], p) => {
    for (const t of [x, w, bias]) wantFloat(t, 'conv1d');
    if (x!.rank !== 3 || w!.rank !== 3)
      throw new AnsatzError(
        `conv1d: x ${show(x!.shape)} must be [B,T,Cin] and w ${show(w!.shape)} [Cout,Cin/groups,K]`,
      );
    const [cout, cg, k] = w!.shape;
    if (cg * p.groups !== x!.shape[2] || cout % p.groups)
      throw new AnsatzError(`conv1d: ${x!.shape[2]} -> ${cout} channels do not fit ${p.groups} groups of ${cg}`);
    if (bias && (bias.rank !== 1 || bias.shape[0] !== cout))
      throw new AnsatzError(`conv1d: bias ${show(bias.shape)} for ${cout} channels`);
    const t = outLength(x!.shape[1], k, p);
    if (t < 0)
      throw new AnsatzError(
        `conv1d: kernel of ${k} (dilation ${p.dilation}) is longer than ${x!.shape[1]} padded steps`,
      );
    return [{ shape: [x!.shape[0], t, cout], dtype: x!.dtype }];
  },
  launch: ([x, w, bias], [y], p) => ({
    kernel: 'conv1d',
    args: [y.arg(), x!.arg(), w!.arg(), bias?.arg() ?? null],
    ints: ints(x!.shape[0], x!.shape[1], w!, p),
  }),
  flops: ([x, w], _, p) => flops(x!.shape[0], x!.shape[1], w!, p),
  gradient: ({ inputs: [x, w, bias], grads: [dy], params, needs }) => {
    const p = { ...params, time: x!.shape[1], hasBias: bias !== null };
    const dx = needs(0) ? apply(bwdX, [w, dy, x], p)[0] : null;
    if (!needs(1) && !(bias && needs(2))) return [dx, null, null];
    const [dw, db] = apply(bwdW, [x, dy, w, bias], p);
    return [dx, dw, db ?? null];
  },
});

const bwdX = defineOp<Params>({
  name: 'conv1d_bwd_x',
  infer: ([, , x]: Inputs) => [{ shape: x!.shape, dtype: x!.dtype }],
  launch: ([w, dy], [dx], p) => ({
    kernel: 'conv1d_bwd_x',
    args: [dx.arg(), w!.arg(), dy!.arg()],
    ints: ints(dx.shape[0], dx.shape[1], w!, p),
  }),
  flops: ([w, dy], _, p) => flops(dy!.shape[0], p.time, w!, p),
});

const bwdW = defineOp<Params>({
  name: 'conv1d_bwd_w',
  infer: ([, , w, bias]: Inputs) => [
    { shape: w!.shape, dtype: w!.dtype },
    ...(bias ? [{ shape: bias.shape, dtype: bias.dtype }] : []),
  ],
  launch: ([x, dy], [dw, db], p) => ({
    kernel: 'conv1d_bwd_w',
    args: [dw.arg(), db?.arg() ?? null, x!.arg(), dy!.arg()],
    ints: ints(x!.shape[0], x!.shape[1], dw, p),
  }),
  flops: ([x], [dw], p) => flops(x!.shape[0], x!.shape[1], dw, p),
});

/** x [B,T,Cin], w [Cout,Cin/groups,K], bias [Cout] or null -> [B,Tout,Cout]. */
export function conv1d(x: Tensor, w: Tensor, bias: Tensor | null = null, options: ConvOptions = {}): Tensor {
  const p: Params = {
    stride: options.stride ?? 1,
    dilation: options.dilation ?? 1,
    groups: options.groups ?? 1,
    padLeft: options.padLeft ?? 0,
    padRight: options.padRight ?? 0,
    time: 0,
    hasBias: bias !== null,
  };
  if (p.stride < 1 || p.dilation < 1 || p.groups < 1 || p.padLeft < 0 || p.padRight < 0)
    throw new AnsatzError('conv1d: stride, dilation and groups must be positive, padding not negative');
  return apply(convOp, [x, w, bias], p)[0];
}
