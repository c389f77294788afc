/** y = (conv(x W1) * x W2) W3 in most layers, attention in the rest. Shapes: B batch, T tokens, h inner width. */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import {
  buildSlot,
  type Mixer,
  type ParamSpec,
  type RowPass,
  recent,
  type SlotContext,
  slotSchema,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix, packed, vector, writeBranch } from '../../nn/linear.ts';
import { cast, mul, reshape, shortConv, slice, type Tensor } from '../../tensor/index.ts';
import { refuseMasks, shortTaps } from '../hyena/index.ts';

export const gatedConvSchema = z.strictObject({
  /** Tokens that the convolution sees: the present one and those before it. */
  kernel: z.int().min(1).max(16).default(4),
  /** Inner width; by default the model's. */
  hidden: z.int().positive().optional(),
  bias: z.boolean().default(false),
  dropout: z.number().min(0).lt(1).default(0),
  /** Every so many layers one has full attention: period - 1, 2 period - 1, ...; 0: none. */
  period: z.int().min(0).default(4),
  /** Of those attention layers. */
  heads: z.int().positive().optional(),
  kvHeads: z.int().positive().optional(),
  headWidth: z.int().positive().optional(),
  window: z.int().min(0).default(0),
});
export type GatedConvOptions = z.output<typeof gatedConvSchema>;

export const hasAttention = (o: Pick<GatedConvOptions, 'period'>, layer: number): boolean =>
  o.period > 0 && layer % o.period === o.period - 1;

/** The same for rows z [1,R,2h], whose convolutions read the kept vectors of the last tokens. */
function decode(rows: RowPass, z: Tensor, taps: Tensor, bias: Tensor | null): Tensor {
  const [, R, width] = z.shape;
  const [h, reach] = taps.shape;
  const { out } = shortConv(recent(rows, slice(z, 2, 0, h), reach), taps, { bias });
  const conv = reshape(slice(out, 1, reach - 1, reach), [1, R, h]);
  const y = mul(conv, slice(z, 2, h, width));
  return z.dtype === 'bf16' ? cast(y, 'bf16') : y;
}

export function buildGatedConv(o: GatedConvOptions, context: SlotContext): Mixer {
  const { dims, scales, layer } = context;
  const { width: d, depth } = dims;
  if (o.period > 0 && !o.heads)
    throw new AnsatzError(`gated-conv: every ${o.period} layers one has attention, and needs heads`, {
      hint: 'set attention.heads, or attention.period=0 for convolutions only',
    });
  if (hasAttention(o, layer)) {
    const { heads, kvHeads, headWidth, window, bias, dropout } = o;
    const full = slotSchema('attention').parse({
      ...{ kind: 'full', heads, window, bias, dropout },
      ...(kvHeads ? { kvHeads } : {}),
      ...(headWidth ? { headWidth } : {}),
    });
    return buildSlot('attention', full, context);
  }
  const h = o.hidden ?? d;
  return {
    params: {
      in: packed([h, h], d),
      short: shortTaps(h, o.kernel),
      out: matrix(d, h, 1 / Math.sqrt(2 * depth)),
      ...(o.bias ? { inBias: vector(2 * h, 0), shortBias: vector(h, 0), outBias: vector(d, 0) } : {}),
    } as Record<string, ParamSpec>,
    forward: (p, x, residual, c) => {
      refuseMasks('gated-conv', c);
      const [b, t] = x.shape;
      const bias = (name: string): Tensor | null => (o.bias ? tensorOf(p, name) : null);
      const z_BT2h = reshape(linear(x, tensorOf(p, 'in'), c, { bias: bias('inBias') }), [b, t, 2 * h]);
      const taps = tensorOf(p, 'short');
      const mixed = c.rows
        ? decode(c.rows, z_BT2h, taps, bias('shortBias'))
        : shortConv(z_BT2h, taps, { parts: 2, convolved: 1, bias: bias('shortBias'), segments: c.segments }).out;
      return writeBranch(mixed, tensorOf(p, 'out'), residual, c, {
        ...{ bias: bias('outBias'), scale: scales.branch, dropout: o.dropout },
      });
    },
  };
}

/** Parameters of a layer with convolution, and FLOPs of its products a token. */
export function gatedConvCosts(o: Pick<GatedConvOptions, 'kernel' | 'bias'> & { hidden: number }, width: number) {
  const { hidden: h, kernel, bias } = o;
  return {
    parameters: 3 * width * h + kernel * h + (bias ? 3 * h + width : 0),
    flops: 6 * width * h + 2 * kernel * h + h,
    /** Values that decoding keeps of the last tokens. */
    decodeState: (kernel - 1) * h,
  };
}
