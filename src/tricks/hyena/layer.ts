/**
 * The Hyena operator of order N: projections, short convolutions, and N - 1 times a long convolution and a gate.
 *
 * Shapes: B batch, T tokens, d width; z [B,T,(N+1)d] packs x0, ..., x(N-1), v.
 */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import {
  type ForwardContext,
  type Mixer,
  type ParamSpec,
  type ParamTree,
  type RowPass,
  recent,
  type SlotContext,
  tap,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix, packed, vector, writeBranch } from '../../nn/linear.ts';
import {
  cast,
  longConv,
  mul,
  pagedConv,
  pagedWrite,
  reshape,
  shortConv,
  slice,
  type Tensor,
} from '../../tensor/index.ts';
import { type FilterOptions, filterParams, implicitFilters } from './filter.ts';

export const hyenaSchema = z.strictObject({
  /** N: gates; there are N - 1 long convolutions. */
  order: z.int().min(2).default(2),
  /** Taps of the short convolutions. */
  shortKernel: z.int().min(1).max(16).default(3),
  /** Tokens that a filter reaches back; by default the model's context. */
  reach: z.int().positive().optional(),
  /** Width of the filter's network, and the number of frequencies of its features. */
  filterWidth: z.int().positive().default(64),
  bands: z.int().positive().default(16),
  /** omega of the network's sines at the start; it is trained. */
  frequency: z.number().positive().default(14),
  /** The window falls to 0.01 after this share of the reach in the slowest channel, and in the fastest. */
  slow: z.number().positive().default(1.5),
  fast: z.number().positive().default(0.3),
  /** Added to the window: above 0, filters do not vanish. */
  shift: z.number().min(0).default(0),
  /** Factor on the learning rate of the filters. */
  filterRate: z.number().positive().default(1),
  /** beta of every channel at the start; by default each is drawn from N(0, 1). */
  skip: z.number().optional(),
  bias: z.boolean().default(true),
  dropout: z.number().min(0).lt(1).default(0),
  /** fft, or the sums themselves: O(T^2), without rounding noise from later tokens. */
  convolution: z.enum(['fft', 'direct']).default('fft'),
});
export type HyenaOptions = z.output<typeof hyenaSchema>;

/** The filter's part of the options. */
export const filterOptions = (o: HyenaOptions, width: number, context: number): FilterOptions => ({
  ...{ width, filters: o.order - 1, reach: o.reach ?? context, filterWidth: o.filterWidth, bands: o.bands },
  ...{ frequency: o.frequency, slow: o.slow, fast: o.fast, target: 0.01, shift: o.shift, rate: o.filterRate },
});

/** Depthwise taps [channels, K] and their bias: a channel's values do not depend on the width, as with vectors. */
export const shortTaps = (channels: number, kernel: number): ParamSpec => ({
  shape: [channels, kernel],
  init: { kind: 'normal', std: 1 / Math.sqrt(kernel) },
  ...{ role: 'vector', fanIn: kernel, fanOut: channels, decay: false },
});

/** Convolutions look back over all tokens of a segment: masks that show or hide single tokens are not theirs. */
export function refuseMasks(kind: string, c: ForwardContext): void {
  if (c.visible || c.keep)
    throw new AnsatzError(`${kind}: its convolutions look back only, and see tokens that a mask hides`, {
      hint: "use attention 'full' where queries see ahead or keys are dropped",
    });
}

/** The short convolutions of rows z [1,R,C]: they read the kept vectors of the last tokens. */
function shortRows(
  rows: RowPass,
  z: Tensor,
  taps: Tensor,
  o: { parts: number; bias: Tensor | null },
): { out: Tensor; rest: Tensor | null } {
  const [, R] = z.shape;
  const K = taps.shape[1];
  const { out, rest } = shortConv(recent(rows, z, K), taps, o);
  const last = (y: Tensor): Tensor => reshape(cast(slice(y, 1, K - 1, K), z.dtype), [1, R, y.shape[2]]);
  return { out: last(out), rest: rest && last(rest) };
}

/** The long convolution of rows v [1,R,d] with all that their sequences have had. */
function longRows(rows: RowPass, v: Tensor, filter: Tensor, beta: Tensor): Tensor {
  const [, R, d] = v.shape;
  const pool = rows.vectors(d);
  pagedWrite(pool, reshape(v, [R, d]), rows.index);
  return reshape(pagedConv(pool, filter, rows.index, { beta, out: v.dtype, seen: rows.seen }), v.shape);
}

export function buildHyena(o: HyenaOptions, { dims, scales, layer }: SlotContext): Mixer {
  const { width: d, depth, context } = dims;
  const { order: N, bias } = o;
  const channels = (N + 1) * d;
  const filter = filterOptions(o, d, context);
  const params: Record<string, ParamSpec> = {
    in: packed(
      Array.from({ length: N + 1 }, () => d),
      d,
    ),
    short: shortTaps(channels, o.shortKernel),
    ...filterParams(filter),
    skip: { ...vector((N - 1) * d, o.skip ?? 0), ...(o.skip === undefined && { init: { kind: 'normal', std: 1 } }) },
    out: matrix(d, d, 1 / Math.sqrt(2 * depth)),
    ...(bias ? { inBias: vector(channels, 0), shortBias: vector(channels, 0), outBias: vector(d, 0) } : {}),
  };
  /** All taps that a text may need: the network runs when passes are opened, not for every token. */
  const keptFilters = (p: ParamTree, c: ForwardContext, rows: RowPass): Tensor[] =>
    Array.from({ length: N - 1 }, (_, k) =>
      rows.constant(() => implicitFilters(p, c.device, Math.min(context, filter.reach), filter)[k]),
    );
  const biasOf = (p: ParamTree, name: string): Tensor | null => (bias ? tensorOf(p, `${name}Bias`) : null);

  return {
    params,
    forward: (p, x, residual, c) => {
      refuseMasks('hyena', c);
      const [b, t] = x.shape;
      const { segments } = c;
      const packedZ = reshape(linear(x, tensorOf(p, 'in'), c, { bias: biasOf(p, 'in') }), [b, t, channels]);
      tap(c, `blocks.${layer}.attention.pre`, () => packedZ);
      const taps = tensorOf(p, 'short');
      const options = { parts: N + 1, bias: biasOf(p, 'short') };
      const short = c.rows
        ? shortRows(c.rows, packedZ, taps, options)
        : shortConv(packedZ, taps, { ...options, segments });
      const filters = c.rows
        ? keptFilters(p, c, c.rows)
        : implicitFilters(p, c.device, Math.min(t, filter.reach), filter);
      tap(c, `blocks.${layer}.attention.filter`, () => filters[0]);
      // short.out is v times the last gate; the other gates come in turn, x0 last.
      const part = (y: Tensor, axis: number, k: number): Tensor => (N === 2 ? y : slice(y, axis, k * d, (k + 1) * d));
      let v = short.out;
      for (let k = 0; k < N - 1; k++) {
        const beta = part(tensorOf(p, 'skip'), 0, k);
        v = c.rows
          ? longRows(c.rows, v, filters[k], beta)
          : longConv(v, filters[k], { beta, segments, direct: o.convolution === 'direct' });
        v = mul(v, part(short.rest!, 2, N - 2 - k));
      }
      tap(c, `blocks.${layer}.attention.mixed`, () => v);
      return writeBranch(v, tensorOf(p, 'out'), residual, c, {
        ...{ bias: biasOf(p, 'out'), scale: scales.branch, dropout: o.dropout },
      });
    },
  };
}
