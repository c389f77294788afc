/** Attention to tokens that hash alike, over the pages of sequences (lsh.ts). */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType, wantFloat } from './common.ts';
import { MAX_ROUNDS } from './lsh.ts';
import { checkRows, checkVectors, type RowIndex } from './paged-rows.ts';

/** What hashed attention keeps: query-keys at unit length and values, and buckets if there is hashing. */
export interface LshPools {
  /** f32 [pages, page, 2 heads D]. */
  readonly tokens: Tensor;
  /** f32 [pages, heads rounds, page]. */
  readonly buckets: Tensor | null;
}

/** Inputs: tokens, bucket pool?, x [1, R, 2 heads, D], buckets i32 [1, heads, rounds, R]?, table, sequence, position. */
const writeOp = defineOp<{ page: number }>({
  name: 'paged_lsh_write',
  inPlace: true,
  infer: ([tokens, kept, x, buckets, table, sequence, position], { page }) => {
    wantFloat(x, 'paged_lsh_write');
    wantDType(buckets, 'i32', 'paged_lsh_write', 'buckets');
    const [, R, heads2, D] = x!.shape;
    checkVectors('paged_lsh_write', tokens!, page, heads2 * D);
    checkRows('paged_lsh_write', [sequence!, position!], R, table);
    if (!kept !== !buckets) throw new AnsatzError('paged_lsh_write: buckets and their pool come together');
    if (kept && buckets) {
      checkVectors('paged_lsh_write', kept, buckets.shape[1] * buckets.shape[2], page);
      if (buckets.shape[1] !== heads2 / 2 || buckets.shape[3] !== R)
        throw new AnsatzError(`paged_lsh_write: buckets ${show(buckets.shape)} for ${show(x!.shape)}`);
    }
    return [];
  },
  launch: ([tokens, kept, x, buckets, table, sequence, position], _, { page }) => {
    const [, R, heads2, D] = x!.shape;
    return {
      kernel: 'paged_lsh_write',
      args: [tokens, kept, x, buckets, table, sequence, position].map((t) => t?.arg() ?? null),
      ints: [R, heads2 / 2, D, page, table!.shape[1], buckets?.shape[2] ?? 0],
    };
  },
  flops: ([, , x]) => 2 * x!.size,
});

/** Keeps query-keys and values x [1, R, 2 heads, D] of the rows, and their buckets i32 [1, heads, rounds, R]. */
export const pagedLshWrite = (pools: LshPools, x: Tensor, buckets: Tensor | null, rows: RowIndex): void => {
  const inputs = [pools.tokens, pools.buckets, x, buckets, rows.table, rows.sequence, rows.position];
  noGrad(() => apply(writeOp, inputs, { page: rows.page }));
};

export interface PagedLshOptions {
  readonly rounds: number;
  /** Tokens that a row looks at. */
  readonly most: number;
  /** Without buckets: tokens of a chunk, and chunks before its own that a row looks at. */
  readonly chunk: number;
  readonly lookBack: number;
  /** Whether tokens of other buckets fill up what is left. */
  readonly fill: boolean;
  readonly dedupe: boolean;
  readonly scale: number;
  /** Tokens that a row has before it, for cost accounting. */
  readonly seen: number;
}

/** Inputs: x [1, R, 2 heads, D], tokens, bucket pool?, table, sequence, position. */
const attendOp = defineOp<PagedLshOptions & { page: number }>({
  name: 'paged_lsh_attention',
  infer: ([x, tokens, buckets, table, sequence, position], p) => {
    wantFloat(x, 'paged_lsh_attention');
    const [, R, heads2, D] = x!.shape;
    checkVectors('paged_lsh_attention', tokens!, p.page, heads2 * D);
    if (buckets) checkVectors('paged_lsh_attention', buckets, (heads2 / 2) * p.rounds, p.page);
    checkRows('paged_lsh_attention', [sequence!, position!], R, table);
    if (heads2 % 2 || !(p.rounds >= 1 && p.rounds <= MAX_ROUNDS) || p.most < 1)
      throw new AnsatzError(`paged_lsh_attention: ${show(x!.shape)} in ${p.rounds} rounds`);
    return [{ shape: [R, heads2 / 2, D], dtype: x!.dtype }];
  },
  launch: ([x, tokens, buckets, table, sequence, position], [out], p) => ({
    kernel: 'paged_lsh_attention',
    args: [out, x, tokens, buckets, table, sequence, position].map((t) => t?.arg() ?? null),
    ints: [...[...out.shape, p.page, table!.shape[1], p.rounds, p.most], ...[p.chunk, p.lookBack, +p.fill, +p.dedupe]],
    floats: [p.scale],
  }),
  flops: (_, [out], p) => 4 * out.size * Math.min(p.most, p.seen),
  bytes: ([, , buckets], [out], p) =>
    8 * out.size * Math.min(p.most, p.seen) + (buckets ? 4 * out.shape[0] * out.shape[1] * p.rounds * p.seen : 0),
});

/**
 * Attention of rows x [1, R, 2 heads, D], which have been kept, to tokens before them: those that share a bucket in some
 * round, the latest first, then the latest others. Without buckets: those of their own chunk and of `lookBack` before
 * it. Gives [R, heads, D].
 */
export const pagedLshAttention = (x: Tensor, pools: LshPools, rows: RowIndex, o: PagedLshOptions): Tensor =>
  noGrad(() => {
    const { table, sequence, position, page } = rows;
    return apply(attendOp, [x, pools.tokens, pools.buckets, table, sequence, position], { ...o, page })[0];
  });
