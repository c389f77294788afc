/**
 * Attention over chunks of tokens that hash alike (Kitaev et al. 2020): hashing, chunks, and attention within them.
 * Queries serve as keys too. Nothing of size T x T exists.
 *
 * Shapes: B batch, T tokens, H heads, D width of a head, R rounds of hashing.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Inputs } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';

/** Rounds that kernels count. */
export const MAX_ROUNDS = 16;

interface HashParams {
  readonly heads: number;
  readonly rounds: number;
  readonly factors: readonly number[];
}

const axesOf = (factors: readonly number[]): number => factors.reduce((n, f) => n + f / 2, 0);

const hashOp = defineOp<HashParams>({
  name: 'lsh_hash',
  infer: ([x, rotations], { heads, rounds, factors }) => {
    wantFloat(x, 'lsh_hash');
    wantDType(rotations, 'f32', 'lsh_hash', 'rotations');
    if (factors.length < 1 || factors.length > 2 || factors.some((f) => !Number.isInteger(f) || f < 2 || f % 2))
      throw new AnsatzError(`lsh_hash: bucket factors ${show(factors)} are not one or two even numbers`);
    if (x!.rank !== 4 || x!.shape[2] < heads)
      throw new AnsatzError(`lsh_hash: ${show(x!.shape)} does not begin with ${heads} heads of queries`);
    const want = [heads, rounds, axesOf(factors), x!.shape[3]];
    if (!sameShape(rotations!.shape, want))
      throw new AnsatzError(`lsh_hash: rotations ${show(rotations!.shape)} should be ${show(want)}`);
    return [{ shape: [x!.shape[0], heads, rounds, x!.shape[1]], dtype: 'i32' }];
  },
  launch: ([x, rotations], [buckets], { heads, rounds, factors }) => {
    const [B, T, all, D] = x!.shape;
    return {
      kernel: 'lsh_hash',
      args: [buckets.arg(), x!.arg(), rotations!.arg()],
      ints: [B, T, heads, D, rounds, factors[0], factors[1] ?? 0, all * D],
    };
  },
  flops: ([x], [buckets], { factors }) => 2 * buckets.size * axesOf(factors) * x!.shape[3],
});

/**
 * Buckets i32 [B,H,R,T] of the first `heads` heads of x [B,T,>=H,D]: in each round the nearest of f random axes and
 * their opposites (f/2 axes for a factor f). With two factors f1, f2 the bucket is b1 + f1 b2. rotations f32
 * [H, R, sum f/2, D].
 */
export const lshHash = (x: Tensor, heads: number, rotations: Tensor, factors: readonly number[]): Tensor =>
  apply(hashOp, [x, rotations], { heads, rounds: rotations.shape[1], factors })[0];

export interface LshChunks {
  /** i32 [B,H,R,T]: tokens chunk by chunk, in order of position within a chunk. */
  readonly order: Tensor;
  /** i32 [B,H,R,T]: the chunk of each token. */
  readonly place: Tensor;
  readonly chunk: number;
}

interface SortParams {
  readonly heads: number;
  readonly rounds: number;
  readonly buckets: number;
  readonly chunk: number;
}

/** Inputs: a tensor [B,T,...] that gives the sizes, buckets?, segments?. */
const sortOp = defineOp<SortParams>({
  name: 'lsh_sort',
  infer: ([like, buckets, segments], p) => {
    const [B, T] = like!.shape;
    const shape = [B, p.heads, p.rounds, T];
    wantDType(buckets, 'i32', 'lsh_sort', 'buckets');
    wantDType(segments, 'i32', 'lsh_sort', 'segments');
    if (!Number.isInteger(p.chunk) || p.chunk < 1) throw new AnsatzError(`lsh_sort: chunks of ${p.chunk} tokens`);
    if (buckets && !sameShape(buckets.shape, shape))
      throw new AnsatzError(`lsh_sort: buckets ${show(buckets.shape)} should be ${show(shape)}`);
    if (segments && !sameShape(segments.shape, [B, T]))
      throw new AnsatzError(`lsh_sort: segments ${show(segments.shape)} should be ${show([B, T])}`);
    return [
      { shape, dtype: 'i32' },
      { shape, dtype: 'i32' },
    ];
  },
  launch: ([like, buckets, segments], [order, place], p) => ({
    kernel: 'lsh_sort',
    args: [order.arg(), place.arg(), buckets?.arg() ?? null, segments?.arg() ?? null],
    ints: [like!.shape[0], like!.shape[1], p.heads, p.rounds, p.buckets, p.chunk],
  }),
  flops: (_, [order]) => 2 * order.size,
  bytes: ([, buckets], [order]) => 4 * (2 * order.size + (buckets?.size ?? 0)),
});

/**
 * Chunks of `chunk` tokens in order of (document, bucket, position); the last one may be short. Without buckets the
 * order is that of positions. `like` is any tensor [B,T,...].
 */
export function lshSort(
  like: Tensor,
  o: {
    readonly heads: number;
    readonly rounds: number;
    readonly chunk: number;
    /** i32 [B,H,R,T], below `count`. */
    readonly buckets?: Tensor | null;
    readonly count?: number;
    readonly segments?: Tensor | null;
  },
): LshChunks {
  const { heads, rounds, chunk, buckets = null, count = 1, segments = null } = o;
  const [order, place] = apply(sortOp, [like, buckets, segments], { heads, rounds, chunk, buckets: count });
  return { order, place, chunk };
}

export interface LshAttentionOptions {
  /** Factor on q.k, keys of unit length. */
  readonly scale: number;
  /** Chunks before its own that a query sees, around the end of the round. */
  readonly lookBack?: number;
  /** Whether a pair that N rounds see counts once (logit less ln N) instead of N times. */
  readonly dedupe?: boolean;
  /** i32 [B,H,R,T]: queries see keys of their own bucket only. */
  readonly buckets?: Tensor | null;
  readonly segments?: Tensor | null;
}

interface Params {
  readonly chunk: number;
  readonly back: number;
  readonly dedupe: boolean;
  readonly scale: number;
}

const intsOf = (inputs: Inputs, p: Params): number[] => {
  const [B, T, heads2, D] = inputs[0]!.shape;
  return [B, T, heads2 / 2, D, inputs[1]!.shape[2], p.chunk, p.back, +p.dedupe];
};

/**
 * Pairs that are computed in a round of a row: a chunk's own pairs under the causal mask, and half of those with the
 * chunks that it looks back to. Exact for the former; the latter depend on the data, and are half on average where
 * hashes do not depend on positions.
 */
export function lshPairs(tokens: number, chunk: number, lookBack: number): number {
  const chunks = Math.ceil(tokens / chunk);
  const size = (c: number): number => Math.min(chunk, tokens - c * chunk);
  let pairs = 0;
  for (let c = 0; c < chunks; c++) {
    pairs += (size(c) * (size(c) - 1)) / 2;
    for (let d = 1; d <= Math.min(lookBack, chunks - 1); d++) pairs += (size(c) * size((c - d + chunks) % chunks)) / 2;
  }
  return pairs;
}

const flopsOf = (perPair: number, inputs: Inputs, p: Params): number => {
  const [B, T, heads2, D] = inputs[0]!.shape;
  return perPair * D * B * (heads2 / 2) * inputs[1]!.shape[2] * lshPairs(T, p.chunk, p.back);
};

/** Inputs: x, order, place, buckets?, segments?. Outputs: out and the log-sum-exp over all rounds. */
const attentionOp = defineOp<Params>({
  name: 'lsh_attention',
  infer: ([x, order, place, buckets, segments], p) => {
    wantFloat(x, 'lsh_attention');
    for (const t of [order, place, buckets, segments]) wantDType(t, 'i32', 'lsh_attention', 'order, place and masks');
    const [B, T, heads2, D] = x!.shape;
    if (x!.rank !== 4 || heads2 % 2)
      throw new AnsatzError(`lsh_attention: ${show(x!.shape)} is not [batch, tokens, query-keys and values, width]`);
    const rounds = order!.shape[2];
    const shape = [B, heads2 / 2, rounds, T];
    for (const t of [order, place, buckets])
      if (t && !sameShape(t.shape, shape))
        throw new AnsatzError(`lsh_attention: ${show(t.shape)} should be ${show(shape)}`);
    if (segments && !sameShape(segments.shape, [B, T]))
      throw new AnsatzError(`lsh_attention: segments ${show(segments.shape)} should be ${show([B, T])}`);
    if (!(rounds >= 1 && rounds <= MAX_ROUNDS))
      throw new AnsatzError(`lsh_attention: ${rounds} rounds are not between 1 and ${MAX_ROUNDS}`);
    if (!Number.isInteger(p.back) || p.back < 0) throw new AnsatzError(`lsh_attention: looks back ${p.back} chunks`);
    return [
      { shape: [B, T, heads2 / 2, D], dtype: x!.dtype },
      { shape: [B, heads2 / 2, T], dtype: 'f32' },
    ];
  },
  launch: (inputs, outputs, p) => ({
    kernel: 'lsh_attention',
    args: [...outputs, ...inputs].map((t) => t?.arg() ?? null),
    ints: intsOf(inputs, p),
    floats: [p.scale],
  }),
  flops: (inputs, _, p) => flopsOf(4, inputs, p),
  gradient: ({ inputs, outputs: [out, lse], grads: [dout], params }) => {
    const [x, ...rest] = inputs;
    return [apply(attentionBwd, [x, ...rest, dout, out, lse], params)[0], null, null, null, null];
  },
});

const attentionBwd = defineOp<Params>({
  name: 'lsh_attention_bwd',
  infer: ([x]) => [{ shape: x!.shape, dtype: x!.dtype }],
  launch: (inputs, [dx], p) => {
    const [x, order, place, buckets, segments, dout, out, lse] = inputs;
    return {
      kernel: 'lsh_attention_bwd',
      args: [dx, dout, x, out, lse, order, place, buckets, segments].map((t) => t?.arg() ?? null),
      ints: intsOf(inputs, p),
      floats: [p.scale],
    };
  },
  // Five products where the forward pass has two: the scores are computed again.
  flops: (inputs, _, p) => flopsOf(10, inputs, p),
});

/**
 * Causal attention within chunks, all rounds in one softmax. x [B,T,2H,D]: query-keys, then values; gives [B,T,H,D].
 * A query sees earlier keys of its chunk and of the chunks that it looks back to, in any round; itself only if there
 * are none.
 */
export function lshAttention(x: Tensor, chunks: LshChunks, o: LshAttentionOptions): Tensor {
  const { scale, lookBack = 1, dedupe = true, buckets = null, segments = null } = o;
  const params = { chunk: chunks.chunk, back: lookBack, dedupe, scale };
  return apply(attentionOp, [x, chunks.order, chunks.place, buckets, segments], params)[0];
}
