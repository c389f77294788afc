/** Causal convolutions with a filter a channel: as long as the sequence, by FFT, and of a few taps. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import type { Shape, Tensor } from '../tensor.ts';
import { like, sameShape, show, wantDType, wantFloat } from './common.ts';
import { zeros } from './create.ts';

/** Longest run of tokens that the kernel convolves directly when it may choose. */
export const DIRECT_LENGTH = 96;

/** Complex points of the transforms for n tokens: the least 2^a, 3 2^a or 5 2^a that holds them. */
export function fftPoints(n: number): number {
  const sizes = [16, 48, 80].map((m) => m * 2 ** Math.max(0, Math.ceil(Math.log2(n / m))));
  return Math.min(...sizes);
}

/** FLOPs of one transform of 2M real values (Cooley and Tukey's count). */
const transform = (points: number): number => 5 * points * Math.log2(2 * points);

/**
 * FLOPs for one channel and one sequence of `time` tokens in one segment. Segments only make it cheaper.
 * @param sequences share one filter's transform
 */
export function longConvFlops(time: number, taps: number, sequences: number, direct: boolean, skip: boolean): number {
  const add = skip ? 2 * time : 0;
  if (!direct && time > DIRECT_LENGTH) {
    const m = fftPoints(time);
    return (2 + 1 / sequences) * transform(m) + 6 * m + add;
  }
  const n = Math.min(taps, time);
  return 2 * (n * time - (n * (n - 1)) / 2) + add;
}

interface LongParams {
  readonly direct: boolean;
}

const longInts = (v: Tensor, h: Tensor, p: LongParams): number[] => [...v.shape, h.shape[0], +p.direct];

/** Inputs: v, h, beta?, dy, segments?. Outputs: dv, dh, dbeta?. */
const longBwd = defineOp<LongParams>({
  name: 'long_conv_bwd',
  infer: ([v, h, beta]) => [v, h, ...(beta ? [beta] : [])].map((t) => ({ shape: t!.shape, dtype: t!.dtype })),
  launch: ([v, h, beta, dy, seg], [dv, dh, dbeta], p) => ({
    kernel: 'long_conv_bwd',
    args: [dv, dh, dbeta ?? null, v, h, beta, dy, seg].map((t) => t?.arg() ?? null),
    ints: longInts(v!, h!, p),
  }),
  flops: ([v, h, beta], _, { direct }) => {
    const [b, t, c] = v!.shape;
    const add = beta ? 4 * t : 0;
    if (direct || t <= DIRECT_LENGTH) return b * c * (2 * longConvFlops(t, h!.shape[0], b, direct, false) + add);
    const m = fftPoints(t);
    return c * (b * (3 * transform(m) + 14 * m + add) + 2 * transform(m));
  },
});

const longOp = defineOp<LongParams>({
  name: 'long_conv',
  infer: ([v, h, beta, seg]) => {
    wantFloat(v, 'long_conv');
    wantDType(h, 'f32', 'long_conv', 'the filter');
    wantDType(beta, 'f32', 'long_conv', 'beta');
    wantDType(seg, 'i32', 'long_conv', 'segments');
    if (v!.rank !== 3 || h!.rank !== 2 || h!.shape[1] !== v!.shape[2] || (beta && beta.size !== v!.shape[2]))
      throw new AnsatzError(`long_conv: v ${show(v!.shape)} must be [B,T,C] and the filter ${show(h!.shape)} [taps,C]`);
    wantSegments(seg, v!.shape, 'long_conv');
    return like([v]);
  },
  launch: ([v, h, beta, seg], [y], p) => ({
    kernel: 'long_conv',
    args: [y, v, h, beta, seg].map((t) => t?.arg() ?? null),
    ints: longInts(v!, h!, p),
  }),
  flops: ([v, h, beta], _, p) => {
    const [b, t, c] = v!.shape;
    return b * c * longConvFlops(t, h!.shape[0], Math.max(1, b), p.direct, beta !== null);
  },
  gradient: ({ inputs: [v, h, beta, seg], grads: [dy], params }) => {
    const [dv, dh, dbeta] = apply(longBwd, [v, h, beta, dy, seg], params);
    return [dv, dh, dbeta ?? null, null];
  },
});

function wantSegments(seg: Tensor | null, x: Shape, op: string): void {
  if (seg && !sameShape(seg.shape, x.slice(0, 2)))
    throw new AnsatzError(`${op}: segments ${show(seg.shape)} should be ${show(x.slice(0, 2))}`);
}

/**
 * y[b,t,c] = beta[c] v[b,t,c] + sum over j of h[j,c] v[b,t-j,c], over tokens of t's own segment (without a break between
 * them). v [B,T,C], h [taps,C] f32. By FFT in O(T log T), with rounding noise of 1e-7 of the largest values that also
 * comes from later tokens; `direct` sums in O(T^2), and later tokens have no influence at all.
 */
export const longConv = (
  v: Tensor,
  h: Tensor,
  o: { beta?: Tensor | null; segments?: Tensor | null; direct?: boolean } = {},
): Tensor => apply(longOp, [v, h, o.beta ?? null, o.segments ?? null], { direct: o.direct ?? false })[0];

interface ShortParams {
  readonly parts: number;
  readonly convolved: number;
}

const shortInts = (z: Tensor, w: Tensor, p: ShortParams): number[] => {
  const [b, t, width] = z.shape;
  return [b, t, width / p.parts, p.parts, p.convolved, w.shape[1]];
};

/** Inputs: z, w, bias?, segments?, dout, drest?. Outputs: dz, dw, dbias?. */
const shortBwd = defineOp<ShortParams>({
  name: 'short_conv_bwd',
  infer: ([z, w, bias]) => [z, w, ...(bias ? [bias] : [])].map((t) => ({ shape: t!.shape, dtype: t!.dtype })),
  launch: ([z, w, bias, seg, dout, drest], [dz, dw, dbias], p) => ({
    kernel: 'short_conv_bwd',
    args: [dz, dw, dbias ?? null, z, w, bias, seg, dout, drest].map((t) => t?.arg() ?? null),
    ints: shortInts(z!, w!, p),
  }),
  // The factors of the product are computed once more.
  flops: ([z, w], _, p) => {
    const [b, t, width] = z!.shape;
    return b * t * (4 * w!.size + (p.parts > 1 ? (width / p.parts) * (2 + 4 * w!.shape[1]) : 0));
  },
});

const shortOp = defineOp<ShortParams>({
  name: 'short_conv',
  infer: ([z, w, bias, seg], { parts, convolved }) => {
    wantFloat(z, 'short_conv');
    for (const t of [w, bias]) wantDType(t, 'f32', 'short_conv', 'taps and bias');
    wantDType(seg, 'i32', 'short_conv', 'segments');
    const width = z!.shape[2];
    if (z!.rank !== 3 || width % parts || convolved > parts)
      throw new AnsatzError(`short_conv: z ${show(z!.shape)} must be [B,T,parts*D], ${parts} parts`);
    const d = width / parts;
    if (w!.rank !== 2 || w!.shape[0] !== convolved * d || (bias && bias.size !== w!.shape[0]))
      throw new AnsatzError(`short_conv: taps ${show(w!.shape)} for ${convolved * d} channels`);
    if (w!.shape[1] > 16) throw new AnsatzError(`short_conv: ${w!.shape[1]} taps, at most 16`);
    wantSegments(seg, z!.shape, 'short_conv');
    const [b, t] = z!.shape;
    const out = { shape: [b, t, d], dtype: z!.dtype };
    return parts > 2 ? [out, { ...out, shape: [b, t, (parts - 2) * d] }] : [out];
  },
  launch: ([z, w, bias, seg], [out, rest], p) => ({
    kernel: 'short_conv',
    args: [out, rest ?? null, z, w, bias, seg].map((t) => t?.arg() ?? null),
    ints: shortInts(z!, w!, p),
  }),
  flops: ([z, w], [out], p) => 2 * z!.shape[0] * z!.shape[1] * w!.size + (p.parts > 1 ? out.size : 0),
  gradient: ({ inputs: [z, w, bias, seg], outputs: [out], grads: [dout, drest], params }) => {
    const [dz, dw, dbias] = apply(
      shortBwd,
      [z, w, bias, seg, dout ?? zeros(out.device, out.shape, out.dtype), drest ?? null],
      params,
    );
    return [dz, dw, dbias ?? null, null];
  },
});

/** How a packed tensor is convolved: z [B,T,parts*D], of which the first `convolved` parts have taps. */
export interface ShortConvOptions {
  readonly parts?: number;
  readonly convolved?: number;
  readonly bias?: Tensor | null;
  readonly segments?: Tensor | null;
}

/**
 * Causal depthwise convolution c[t] = bias + sum over k of w[k] z[t-K+1+k] of the parts of z, in one pass with the product
 * of the last two: `out` [B,T,D] is that product (the only part, if there is one), `rest` [B,T,(parts-2)*D] the parts
 * before them, or null. Taps in another segment than t read zeros. w [convolved*D, K], K <= 16.
 */
export function shortConv(z: Tensor, w: Tensor, o: ShortConvOptions = {}): { out: Tensor; rest: Tensor | null } {
  const { parts = 1, convolved = parts } = o;
  const [out, rest] = apply(shortOp, [z, w, o.bias ?? null, o.segments ?? null], { parts, convolved });
  return { out, rest: rest ?? null };
}

interface WindowParams {
  readonly first: number;
  readonly last: number;
  readonly shift: number;
}

const windowOp: Op<WindowParams> = defineOp<WindowParams>({
  name: 'decay_window',
  infer: ([x]) => {
    wantDType(x, 'f32', 'decay_window', 'the filter');
    if (x!.rank !== 2) throw new AnsatzError(`decay_window: the filter ${show(x!.shape)} must be [taps,C]`);
    return like([x]);
  },
  launch: ([x], [y], p) => ({
    kernel: 'decay_window',
    args: [y.arg(), x!.arg()],
    ints: [...y.shape],
    floats: [p.first, p.last, p.shift],
  }),
  flops: (_, [y]) => 3 * y.size,
  gradient: ({ grads: [dy], params }) => [apply(windowOp, [dy], params)[0]],
});

/** x[t,c] (exp(-rate t) + shift), rates from `first` to `last` evenly over the channels. x [taps,C] f32. */
export const decayWindow = (x: Tensor, first: number, last: number, shift = 0): Tensor =>
  apply(windowOp, [x], { first, last, shift })[0];
