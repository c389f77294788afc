/** Attention of each query to a few blocks of keys that it chooses by their compressed keys (Yuan et al. 2025). */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Inputs } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';

/** Query heads that share a key head fill the lanes of a tile. */
const MOST_SHARING = 64;

const arg = (t: Tensor | null): ReturnType<Tensor['arg']> | null => t?.arg() ?? null;

interface Heads {
  readonly b: number;
  readonly t: number;
  readonly h: number;
  readonly hkv: number;
  readonly d: number;
}

function headsOf(op: string, q: Tensor, k: Tensor): Heads {
  for (const x of [q, k]) {
    wantFloat(x, op);
    if (x.rank !== 4) throw new AnsatzError(`${op}: ${show(x.shape)} must be [batch, tokens, heads, width]`);
  }
  const [b, t, h, d] = q.shape;
  const hkv = k.shape[2];
  if (q.dtype !== k.dtype || k.shape[0] !== b || k.shape[3] !== d)
    throw new AnsatzError(`${op}: queries ${show(q.shape)} and keys ${show(k.shape)} do not fit`);
  if (hkv === 0 || h % hkv || h / hkv > MOST_SHARING)
    throw new AnsatzError(`${op}: ${h} query heads do not share ${hkv} key heads, at most ${MOST_SHARING} to one`);
  return { b, t, h, hkv, d };
}

function wantSegments(op: string, seg: Tensor | null, b: number, t: number): void {
  wantDType(seg, 'i32', op, 'segments');
  if (seg && !sameShape(seg.shape, [b, t]))
    throw new AnsatzError(`${op}: segments ${show(seg.shape)} should be [${b}, ${t}]`);
}

interface Params {
  /** Tokens of a block. */
  readonly size: number;
  readonly scale: number;
}

/** Keys that all queries of a row see when every query has `n` blocks of `size`, or as many as there are: the last
 * block of a list is the query's own, up to itself. */
export function chosenPairs(tokens: number, size: number, n: number): number {
  let pairs = 0;
  for (let t = 0; t < tokens; t++) pairs += (Math.min(n, Math.floor(t / size) + 1) - 1) * size + (t % size) + 1;
  return pairs;
}

const flopsOf = (q: Tensor, index: Tensor, size: number): number =>
  chosenPairs(q.shape[1], size, index.shape[3]) * q.shape[0] * q.shape[2] * q.shape[3];

/** Inputs: q, k, v, index, segments?. Outputs: out and the log-sum-exp of each row. */
const attentionOp = defineOp<Params>({
  name: 'block_attention',
  infer: ([q, k, v, index, seg], p) => {
    const { b, t, h, hkv } = headsOf('block_attention', q!, k!);
    if (!sameShape(k!.shape, v!.shape) || v!.dtype !== k!.dtype || k!.shape[1] !== t)
      throw new AnsatzError(`block_attention: keys ${show(k!.shape)}, values ${show(v!.shape)} for ${t} queries`);
    wantDType(index, 'i32', 'block_attention', 'the lists');
    if (index!.rank !== 4 || !sameShape(index!.shape.slice(0, 3), [b, t, hkv]))
      throw new AnsatzError(`block_attention: lists ${show(index!.shape)} should be [${b}, ${t}, ${hkv}, places]`);
    wantSegments('block_attention', seg, b, t);
    if (!(p.scale > 0)) throw new AnsatzError(`block_attention: scale ${p.scale} must be positive`);
    return [
      { shape: q!.shape, dtype: q!.dtype },
      { shape: [b, h, t], dtype: 'f32' },
    ];
  },
  launch: ([q, k, v, index, seg], [out, lse], p) => ({
    kernel: 'block_attention',
    args: [out, lse, q, k, v, index, seg].map(arg),
    ints: ints(q!, k!, index!, p),
    floats: [p.scale],
  }),
  // What a list of full length sees; the scores of hidden keys are not counted.
  flops: ([q, , , index], _, p) => 4 * flopsOf(q!, index!, p.size),
  gradient: ({ inputs: [q, k, v, index, seg], outputs: [out, lse], grads: [dout], params }) => [
    ...apply(bwdOp, [dout, q, k, v, out, lse, index, seg], params),
    null,
    null,
  ],
});

function ints(q: Tensor, k: Tensor, index: Tensor, p: Params): number[] {
  const [b, t, h, d] = q.shape;
  return [b, t, h, k.shape[2], d, p.size, index.shape[3]];
}

const bwdOp = defineOp<Params>({
  name: 'block_attention_bwd',
  infer: ([, q, k, v]: Inputs) => [q, k, v].map((x) => ({ shape: x!.shape, dtype: x!.dtype })),
  launch: ([dout, q, k, v, out, lse, index, seg], [dq, dk, dv], p) => ({
    kernel: 'block_attention_bwd',
    args: [dq, dk, dv, dout, q, k, v, out, lse, index, seg].map(arg),
    ints: ints(q!, k!, index!, p),
    floats: [p.scale],
  }),
  // Five products where the forward pass has two: the scores are computed again.
  flops: ([, q, , , , , index], _, p) => 10 * flopsOf(q!, index!, p.size),
});

export interface BlockAttentionOptions {
  readonly size: number;
  /** Factor on q.k; by default 1/sqrt(D). */
  readonly scale?: number;
  /** i32 [B, T]: a query sees keys of its own segment only. */
  readonly segments?: Tensor | null;
}

/**
 * softmax(scale q k^T) v over the keys of chosen blocks, up to the query itself. q [B,T,H,D], k and v [B,T,Hkv,D]; index
 * i32 [B,T,Hkv,n] lists blocks of `size` keys, ascending, none beyond the query's own, -1 in places that are left.
 */
export const blockAttention = (q: Tensor, k: Tensor, v: Tensor, index: Tensor, o: BlockAttentionOptions): Tensor =>
  apply(attentionOp, [q, k, v, index, o.segments ?? null], {
    size: o.size,
    scale: o.scale ?? 1 / Math.sqrt(q.shape[3]),
  })[0];

export interface BlockSelectOptions {
  /** Tokens of a compressed block and between two of them, tokens of a block of keys. */
  readonly length: number;
  readonly stride: number;
  readonly size: number;
  /** Blocks chosen, of which the first `initial` and the last `local` always are. */
  readonly n: number;
  readonly initial: number;
  readonly local: number;
  readonly scale?: number;
  /** i32 [B, T] and, of compressed blocks, [B, blocks]. */
  readonly segments?: Tensor | null;
  readonly blockSegments?: Tensor | null;
}

type SelectParams = Required<Omit<BlockSelectOptions, 'segments' | 'blockSegments'>> & {
  /** Whether the importances are wanted too. */
  readonly importance: boolean;
};

/** Inputs: q, compressed keys, lse, segments?, block segments?. Outputs: lists, and importances if wanted. */
const selectOp = defineOp<SelectParams>({
  name: 'block_select',
  infer: ([q, kc, lse, seg, segC], p) => {
    const { b, t, h, hkv } = headsOf('block_select', q!, kc!);
    const count = kc!.shape[1];
    if (count !== compressedBlocks(t, p.length, p.stride))
      throw new AnsatzError(`block_select: ${count} compressed blocks of ${t} tokens (${p.length} every ${p.stride})`);
    if (!sameShape(lse!.shape, [b, h, t]) || lse!.dtype !== 'f32')
      throw new AnsatzError(`block_select: log-sum-exp ${show(lse!.shape)} should be f32 [${b}, ${h}, ${t}]`);
    if (p.length % p.stride || p.size % p.stride)
      throw new AnsatzError(`block_select: stride ${p.stride} must divide blocks of ${p.length} and of ${p.size}`);
    if (p.initial + p.local > p.n)
      throw new AnsatzError(`block_select: ${p.initial} + ${p.local} fixed blocks for ${p.n} places`);
    wantSegments('block_select', seg, b, t);
    wantSegments('block_select', segC, b, count);
    if (!seg !== !segC) throw new AnsatzError('block_select: segments of tokens and of blocks come together');
    const lists = { shape: [b, t, hkv, p.n], dtype: 'i32' } as const;
    return p.importance ? [lists, { shape: [b, t, hkv, Math.ceil(t / p.size)], dtype: 'f32' }] : [lists];
  },
  launch: ([q, kc, lse, seg, segC], [index, importance], p) => {
    const [b, t, h, d] = q!.shape;
    const [, count, hkv] = kc!.shape;
    return {
      kernel: 'block_select',
      args: [index, importance ?? null, q, kc, lse, seg, segC].map(arg),
      ints: [b, t, h, hkv, d, count, p.length, p.stride, p.size, p.n, p.initial, p.local],
      floats: [p.scale],
    };
  },
  // The scores of the compressed keys once more.
  flops: ([q], _, p) => 2 * compressedPairs(q!.shape[1], p.length, p.stride) * q!.shape[0] * q!.shape[2] * q!.shape[3],
});

/** Blocks of `length` tokens, one every `stride`, that lie wholly in a row. */
export const compressedBlocks = (tokens: number, length: number, stride: number): number =>
  tokens < length ? 0 : Math.floor((tokens - length) / stride) + 1;

/** Pairs of a query and a compressed block that lies wholly before or at it, in a row. */
export function compressedPairs(tokens: number, length: number, stride: number): number {
  let pairs = 0;
  for (let t = 0; t < tokens; t++) pairs += compressedBlocks(t + 1, length, stride);
  return pairs;
}

function select(q: Tensor, kc: Tensor, lse: Tensor, o: BlockSelectOptions, importance: boolean): Tensor[] {
  const { length, stride, size, n, initial, local, scale = 1 / Math.sqrt(q.shape[3]) } = o;
  const inputs = [q, kc, lse, o.segments ?? null, o.blockSegments ?? null];
  return noGrad(() => apply(selectOp, inputs, { length, stride, size, n, initial, local, scale, importance }));
}

/**
 * Lists of the blocks of keys that queries attend to, i32 [B,T,Hkv,n]: the n most important, ties to the lowest, by the
 * probabilities of the queries' attention to compressed keys [B,blocks,Hkv,D], of which lse [B,H,T] is the
 * log-sum-exp, summed over the heads that share keys. Discrete: no gradient.
 */
export const blockSelect = (q: Tensor, kc: Tensor, lse: Tensor, o: BlockSelectOptions): Tensor =>
  select(q, kc, lse, o, false)[0];

/** The importances behind blockSelect, f32 [B,T,Hkv,blocks]: T x T/size numbers, for measurements. */
export const blockImportance = (q: Tensor, kc: Tensor, lse: Tensor, o: BlockSelectOptions): Tensor =>
  select(q, kc, lse, o, true)[1];
