/**
 * Attention within chunks of tokens that hash alike (Reformer, Kitaev et al. 2020).
 *
 * Shapes: B batch, T tokens, H heads, D width of a head.
 */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import {
  choose,
  type ForwardContext,
  type Mixer,
  type ParamSpec,
  type RowPass,
  type SlotContext,
  tap,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix, packed, vector, writeBranch } from '../../nn/linear.ts';
import {
  fill,
  type LshChunks,
  lshAttention,
  lshHash,
  lshSort,
  MAX_ROUNDS,
  noGrad,
  normal,
  pagedLshAttention,
  pagedLshWrite,
  reshape,
  type Tensor,
} from '../../tensor/index.ts';
import { bucketFactors } from './sizing.ts';

const even = z
  .int()
  .min(1)
  .refine((n) => n === 1 || n % 2 === 0, 'buckets must be even, or 1 for none');

export const lshSchema = z.strictObject({
  heads: z.int().positive(),
  /** Width of a head; by default width / heads. */
  headWidth: z.int().positive().optional(),
  /** Tokens of a chunk. */
  chunk: z.int().positive().default(64),
  /** Rounds of hashing in training, and in evaluation (by default as many). */
  rounds: z.int().min(1).max(MAX_ROUNDS).default(2),
  evalRounds: z.int().min(1).max(MAX_ROUNDS).optional(),
  /** By default twice the number of chunks. 1: no hashing, chunks of neighbours. */
  buckets: even.optional(),
  /** Chunks before its own that a query sees. */
  lookBack: z.int().min(0).default(1),
  /** A pair that several rounds see counts once, as in softmax over the union; false counts it each time, as Trax. */
  dedupe: z.boolean().default(true),
  /** Queries see keys of their own bucket only, as in the paper's formula; both codebases let them see the whole chunk. */
  ownBucket: z.boolean().default(false),
  bias: z.boolean().default(false),
  dropout: z.number().min(0).lt(1).default(0),
});
export type LshOptions = z.output<typeof lshSchema>;

/** What a pass decided: which tokens share chunks, and their buckets where the mask asks for them. */
interface Chosen {
  readonly chunks: LshChunks;
  readonly buckets: Tensor | null;
}

export function buildLsh(o: LshOptions, context: SlotContext): Mixer {
  const { dims, positions, scales, layer } = context;
  const { heads, bias } = o;
  const d = o.headWidth ?? context.headWidth;
  if (positions.bias)
    throw new AnsatzError('lsh attention has no biases by distance: its keys stand anywhere', {
      hint: 'use positions rope, learned or none',
    });
  if (positions.pieces)
    throw new AnsatzError('lsh attention turns queries and keys alike: these positions turn them apart', {
      hint: 'use positions rope, learned or none',
    });
  const choice = (qv: Tensor, c: ForwardContext): Chosen => {
    const [, t] = qv.shape;
    const rounds = c.training ? o.rounds : (o.evalRounds ?? o.rounds);
    const { segments } = c;
    const factors = bucketFactors(t, o.chunk, o.buckets);
    if (factors.length === 0)
      return { chunks: lshSort(qv, { heads, rounds, chunk: o.chunk, segments }), buckets: null };
    const axes = factors.reduce((n, f) => n + f / 2, 0);
    const rotations = c.random
      ? normal(c.random, [heads, rounds, axes, d], c.nextStream())
      : fixedRotations(c, rounds, axes);
    const buckets = lshHash(qv, heads, rotations, factors);
    const count = factors.reduce((n, f) => n * f, 1);
    return { chunks: lshSort(qv, { heads, rounds, chunk: o.chunk, buckets, count, segments }), buckets };
  };

  const inChunks = (qv: Tensor, c: ForwardContext): Tensor => {
    const { chunks, buckets } = choose(c, () => noGrad(() => choice(qv, c)));
    tap(c, `blocks.${layer}.attention.chunks`, () => chunks.place);
    const { lookBack, dedupe } = o;
    return lshAttention(qv, chunks, {
      ...{ scale, lookBack, dedupe, buckets: o.ownBucket ? buckets : null, segments: c.segments },
    });
  };
  // Outside training every pass hashes by the same rotations.
  const fixedRotations = (c: ForwardContext, rounds: number, axes: number): Tensor =>
    normal({ tensor: fill(c.device, [4], 1 + layer, 'i32') }, [heads, rounds, axes, d], 0);
  // Keys have length 1 where those of plain attention have about sqrt(d).
  const scale = scales.attention(d) * Math.sqrt(d);

  /** Rows qv [1,R,2H,d] look at tokens that share a bucket with them, or without hashing, at their chunks. */
  const overRows = (qv: Tensor, c: ForwardContext, rows: RowPass): Tensor => {
    const { index } = rows;
    const rounds = o.evalRounds ?? o.rounds;
    const factors = bucketFactors(dims.context, o.chunk, o.buckets);
    const hashes = factors.length > 0;
    const axes = factors.reduce((n, f) => n + f / 2, 0);
    const pools = {
      tokens: rows.vectors(2 * heads * d),
      buckets: hashes ? rows.vectors(index.page, heads * rounds) : null,
    };
    const buckets = hashes
      ? lshHash(
          qv,
          heads,
          rows.constant(() => fixedRotations(c, rounds, axes)),
          factors,
        )
      : null;
    pagedLshWrite(pools, qv, buckets, index);
    return pagedLshAttention(qv, pools, index, {
      ...{ rounds, scale, chunk: o.chunk, lookBack: o.lookBack, most: rounds * o.chunk * (1 + o.lookBack) },
      ...{ fill: !o.ownBucket, dedupe: o.dedupe, seen: rows.seen },
    });
  };

  return {
    params: {
      qv: packed([heads * d, heads * d], dims.width),
      out: matrix(dims.width, heads * d, 1 / Math.sqrt(2 * dims.depth)),
      ...(bias ? { qvBias: vector(2 * heads * d, 0), outBias: vector(dims.width, 0) } : {}),
    } as Record<string, ParamSpec>,
    forward: (p, x, residual, c) => {
      if (c.visible || c.keep)
        throw new AnsatzError('lsh attention follows the causal mask and documents only', {
          hint: "use attention 'full' where queries see ahead or keys are dropped",
        });
      const [b, t] = x.shape;
      let qv = linear(x, tensorOf(p, 'qv'), c, { bias: bias ? tensorOf(p, 'qvBias') : null });
      qv = reshape(qv, [b, t, 2 * heads, d]);
      // Queries are the only heads that turn: as keys they carry the same turn.
      if (positions.rotate) qv = positions.rotate(qv, heads, 0, c);
      const mixed = c.rows ? overRows(qv, c, c.rows) : inChunks(qv, c);
      return writeBranch(reshape(mixed, [b, t, heads * d]), tensorOf(p, 'out'), residual, c, {
        bias: bias ? tensorOf(p, 'outBias') : null,
        scale: scales.branch,
        dropout: o.dropout,
      });
    },
  };
}
