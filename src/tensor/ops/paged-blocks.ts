/** Attention to blocks of keys that rows choose by compressed ones, over the pages of sequences (block-attention.ts). */
import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType, wantFloat } from './common.ts';
import {
  CACHE_FORMATS,
  type CacheFormat,
  checkKeyValues,
  checkRows,
  checkVectors,
  pageBytes,
  type RowIndex,
} from './paged-rows.ts';

/** Compressed blocks: `length` tokens, one every `stride`. */
export interface BlockShape {
  readonly length: number;
  readonly stride: number;
}

/** Cells that a page has for the compressed blocks that end in it. */
export const cellsOf = (page: number, stride: number): number => Math.ceil(page / stride);

/** Inputs: sequence, position. */
const rowsOp = defineOp<BlockShape & { heads: number }>({
  name: 'paged_block_rows',
  infer: ([sequence, position]) => {
    checkRows('paged_block_rows', [sequence!, position!], sequence!.size, null);
    return [
      { shape: [sequence!.size], dtype: 'i32' },
      { shape: [2], dtype: 'i32' },
    ];
  },
  launch: ([sequence, position], [pick, offsets], p) => ({
    kernel: 'paged_block_rows',
    args: [pick.arg(), offsets.arg(), sequence!.arg(), position!.arg()],
    ints: [sequence!.size, p.length, p.stride, p.heads],
  }),
  flops: () => 0,
});

export interface BlockRows {
  /** i32 [R]: the rows at which a compressed block ends; -1 behind the last one. */
  readonly pick: Tensor;
  /** i32 [2]: 0 and the number of those rows, times the key heads: one group of grouped products. */
  readonly offsets: Tensor;
}

/** The rows at which a compressed block ends. */
export const pagedBlockRows = (rows: RowIndex, heads: number, { length, stride }: BlockShape): BlockRows =>
  noGrad(() => {
    const [pick, offsets] = apply(rowsOp, [rows.sequence, rows.position], { length, stride, heads });
    return { pick, offsets };
  });

interface GatherParams {
  readonly heads: number;
  readonly length: number;
  readonly page: number;
  readonly out: DType;
}

/** Inputs: pool f32 [pages, page, heads D], pick, table, sequence, position. */
const gatherOp = defineOp<GatherParams>({
  name: 'paged_block_gather',
  infer: ([pool, pick, table, sequence, position], p) => {
    checkVectors('paged_block_gather', pool!, p.page);
    checkRows('paged_block_gather', [pick!, sequence!, position!], sequence!.size, table);
    return [{ shape: [sequence!.size, p.heads, p.length, pool!.shape[2] / p.heads], dtype: p.out }];
  },
  launch: ([pool, pick, table, sequence, position], [out], p) => ({
    kernel: 'paged_block_gather',
    args: [out, pool, pick, table, sequence, position].map((t) => t!.arg()),
    ints: [sequence!.size, p.heads, out.shape[3], p.length, p.page, table!.shape[1]],
  }),
  flops: () => 0,
});

/** Vectors of the tokens of the blocks that end at the picked rows, [R, heads, length, D]: unset behind the last one. */
export const pagedBlockGather = (
  pool: Tensor,
  { pick }: BlockRows,
  rows: RowIndex,
  o: { heads: number; length: number; out: DType },
): Tensor =>
  noGrad(() => {
    const { table, sequence, position, page } = rows;
    return apply(gatherOp, [pool, pick, table, sequence, position], { ...o, page })[0];
  });

const writeOp = defineOp<BlockShape & { heads: number; width: number; page: number }>({
  name: 'paged_block_write',
  inPlace: true,
  infer: ([pool, k, v, pick, table, sequence, position], p) => {
    for (const t of [k, v]) wantFloat(t, 'paged_block_write');
    checkVectors('paged_block_write', pool!, cellsOf(p.page, p.stride), 2 * p.heads * p.width);
    checkRows('paged_block_write', [pick!, sequence!, position!], sequence!.size, table);
    if (k!.size !== sequence!.size * p.heads * p.width || v!.size !== k!.size)
      throw new AnsatzError(`paged_block_write: keys ${show(k!.shape)} and values ${show(v!.shape)} do not fit`);
    return [];
  },
  launch: ([pool, k, v, pick, table, sequence, position], _, p) => ({
    kernel: 'paged_block_write',
    args: [pool, k, v, pick, table, sequence, position].map((t) => t!.arg()),
    ints: [sequence!.size, p.heads, p.width, p.length, p.stride, p.page, table!.shape[1]],
  }),
  flops: () => 0,
});

/** Puts keys and values [R, heads, D] of the blocks that end at the picked rows into their cells. */
export const pagedBlockWrite = (
  pool: Tensor,
  k: Tensor,
  v: Tensor,
  { pick }: BlockRows,
  rows: RowIndex,
  o: BlockShape & { heads: number; width: number },
): void => {
  const { table, sequence, position, page } = rows;
  noGrad(() => apply(writeOp, [pool, k, v, pick, table, sequence, position], { ...o, page }));
};

export interface PagedChoice extends BlockShape {
  readonly kvHeads: number;
  /** As in blockSelect. */
  readonly size: number;
  readonly n: number;
  readonly initial: number;
  readonly local: number;
  readonly scale: number;
  /** Tokens that a row sees, for cost accounting. */
  readonly seen: number;
}

/** Inputs: q [R, H, D], pool f32 [pages, cells, 2 Hkv D], table, sequence, position. */
const chooseOp = defineOp<PagedChoice & { page: number }>({
  name: 'paged_block_choose',
  infer: ([q, pool, table, sequence, position], p) => {
    wantFloat(q, 'paged_block_choose');
    const [R, H, D] = q!.shape;
    checkVectors('paged_block_choose', pool!, cellsOf(p.page, p.stride), 2 * p.kvHeads * D);
    checkRows('paged_block_choose', [sequence!, position!], R, table);
    if (H % p.kvHeads || p.length % p.stride || p.size % p.stride || p.initial + p.local > p.n)
      throw new AnsatzError(
        `paged_block_choose: ${H} heads on ${p.kvHeads}, blocks of ${p.length} and ${p.size} every ${p.stride}, ${p.initial} + ${p.local} of ${p.n} fixed`,
      );
    return [
      { shape: q!.shape, dtype: q!.dtype },
      { shape: [R, p.kvHeads, p.n], dtype: 'i32' },
    ];
  },
  launch: ([q, pool, table, sequence, position], [out, index], p) => ({
    kernel: 'paged_block_choose',
    args: [out, index, q, pool, table, sequence, position].map((t) => t!.arg()),
    ints: [
      ...[...q!.shape.slice(0, 2), p.kvHeads, q!.shape[2], p.page, table!.shape[1], p.length, p.stride],
      ...[p.size, p.n, p.initial, p.local],
    ],
    floats: [p.scale],
  }),
  flops: ([q], _, p) => (4 * q!.size * p.seen) / p.stride,
  bytes: ([q], _, p) => (8 * q!.shape[0] * p.kvHeads * q!.shape[2] * p.seen) / p.stride,
});

/**
 * Attention of queries [R, H, D] to the compressed blocks that lie wholly at or before them, and the blocks of keys that
 * they choose by it, i32 [R, Hkv, n].
 */
export const pagedBlockChoose = (
  q: Tensor,
  pool: Tensor,
  rows: RowIndex,
  o: PagedChoice,
): { out: Tensor; index: Tensor } =>
  noGrad(() => {
    const { table, sequence, position, page } = rows;
    const [out, index] = apply(chooseOp, [q, pool, table, sequence, position], { ...o, page });
    return { out, index };
  });

interface AttendParams {
  readonly kvHeads: number;
  readonly format: CacheFormat;
  readonly page: number;
  readonly size: number;
  readonly scale: number;
}

/** Inputs: q, pool u8, index, table, sequence, position. */
const attendOp = defineOp<AttendParams>({
  name: 'paged_block_attention',
  infer: ([q, pool, index, table, sequence, position], p) => {
    wantFloat(q, 'paged_block_attention');
    const [R, H, D] = q!.shape;
    checkKeyValues('paged_block_attention', pool!, { ...p, width: D });
    checkRows('paged_block_attention', [sequence!, position!], R, table);
    wantDType(index, 'i32', 'paged_block_attention', 'lists');
    if (H % p.kvHeads || index!.shape[0] !== R || index!.shape[1] !== p.kvHeads)
      throw new AnsatzError(`paged_block_attention: lists ${show(index!.shape)} for queries ${show(q!.shape)}`);
    return [{ shape: q!.shape, dtype: q!.dtype }];
  },
  launch: ([q, pool, index, table, sequence, position], [out], p) => ({
    kernel: 'paged_block_attention',
    args: [out, q, pool, index, table, sequence, position].map((t) => t!.arg()),
    ints: [
      ...[...q!.shape.slice(0, 2), p.kvHeads, q!.shape[2], p.page, table!.shape[1]],
      ...[CACHE_FORMATS.indexOf(p.format), p.size, index!.shape[2]],
    ],
    floats: [p.scale],
  }),
  flops: ([q, , index], _, p) => 4 * q!.size * index!.shape[2] * p.size,
  bytes: ([q, , index], _, p) =>
    (pageBytes(p.kvHeads, q!.shape[2], p.page, p.format) / p.page) * q!.shape[0] * index!.shape[2] * p.size,
});

/** Attention of queries [R, H, D] to the keys of the blocks on their lists, up to their own token. Gives [R, H, D]. */
export const pagedBlockAttention = (
  q: Tensor,
  pool: Tensor,
  index: Tensor,
  rows: RowIndex,
  o: Omit<AttendParams, 'page'>,
): Tensor =>
  noGrad(() => {
    const { table, sequence, position, page } = rows;
    return apply(attendOp, [q, pool, index, table, sequence, position], { ...o, page })[0];
  });
