/**
 * State of sequences in pages, for decoding: keys and values with attention over them, and plain vectors a token.
 *
 * A pass computes R rows: tokens of any sequences. `Rows` says which token of which sequence each row is, and a page
 * table where the tokens of a sequence lie. Pages are written in place; what a row reads depends on its own sequence
 * alone (docs/kernels.md, `paged_*`).
 */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType, wantFloat } from './common.ts';

/** Bits of a key or value in the cache. */
export const CACHE_FORMATS = ['f32', 'bf16', 'int8', 'f16'] as const;
export type CacheFormat = (typeof CACHE_FORMATS)[number];
const cellBytes: Record<CacheFormat, number> = { f32: 4, bf16: 2, int8: 1, f16: 2 };

/** Which tokens the rows of a pass are. */
export interface RowIndex {
  /** i32 [sequences, pages]: the pages of each sequence, in order. */
  readonly table: Tensor;
  /** i32 [R]: a row's sequence (a row of the table); -1: the row stands for nothing. */
  readonly sequence: Tensor;
  /** i32 [R]: place of the row's token in its sequence. */
  readonly position: Tensor;
  /** i32 [R]: the last place that the row sees; its own, unless it sees ahead. */
  readonly reach: Tensor;
  /** Tokens of a page: a multiple of 32. */
  readonly page: number;
}

/** Bytes of one page of keys and values (native/cpu/paged_format.h). */
export function pageBytes(kvHeads: number, width: number, page: number, format: CacheFormat): number {
  const padded = Math.ceil(width / 16) * 16;
  const head = (width + padded) * page * cellBytes[format] + (format === 'int8' ? 8 * page : 0);
  return kvHeads * Math.ceil(head / 64) * 64;
}

interface KvParams {
  readonly format: CacheFormat;
  readonly page: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly width: number;
  /** Elements between rows of queries, and of keys and values. */
  readonly stride: number;
  /** Where keys and values start in their tensors. */
  readonly keyAt: number;
  readonly valueAt: number;
  readonly window: number;
  readonly scale: number;
}

function checkRows(name: string, [table, sequence, position, reach]: readonly Tensor[], R: number): void {
  for (const t of [table, sequence, position, reach]) wantDType(t, 'i32', name, 'the page table and row indices');
  if (table.rank !== 2) throw new AnsatzError(`${name}: the page table must be [sequences, pages]`);
  for (const t of [sequence, position, reach])
    if (t.size !== R) throw new AnsatzError(`${name}: indices of ${t.size} rows for ${R} rows`);
}

function checkPool(name: string, pool: Tensor, p: KvParams): void {
  wantDType(pool, 'u8', name, 'the pool');
  if (p.page < 32 || p.page % 32) throw new AnsatzError(`${name}: pages of ${p.page} tokens are not a multiple of 32`);
  const bytes = pageBytes(p.kvHeads, p.width, p.page, p.format);
  if (pool.rank !== 2 || pool.shape[1] !== bytes)
    throw new AnsatzError(`${name}: the pool ${show(pool.shape)} should be [pages, ${bytes}]`);
}

const formatCode = (f: CacheFormat): number => CACHE_FORMATS.indexOf(f);

/** Inputs: pool (updated), keys, values, table, sequence, position. */
const appendOp = defineOp<KvParams>({
  name: 'paged_append',
  inPlace: true,
  infer: ([pool, k, v, table, sequence, position], p) => {
    wantFloat(k, 'paged_append');
    if (k!.dtype !== v!.dtype) throw new AnsatzError('paged_append: keys and values must share a dtype');
    checkPool('paged_append', pool!, p);
    checkRows('paged_append', [table!, sequence!, position!, position!], sequence!.size);
    return [];
  },
  launch: ([pool, k, v, table, sequence, position], _, p) => ({
    kernel: 'paged_append',
    args: [pool!.arg(), k!.arg(p.keyAt), v!.arg(p.valueAt), table!.arg(), sequence!.arg(), position!.arg()],
    ints: [sequence!.size, p.kvHeads, p.width, p.page, table!.shape[1], formatCode(p.format), p.stride, p.stride],
  }),
  flops: () => 0,
  bytes: ([, , , , sequence], _, p) => (pageBytes(p.kvHeads, p.width, p.page, p.format) / p.page) * sequence!.size * 3,
});

/** Inputs: queries, pool, bias?, table, sequence, position, reach. */
const attendOp = defineOp<KvParams & { readonly seen: number }>({
  name: 'paged_attention',
  infer: ([q, pool, bias, table, sequence, position, reach], p) => {
    wantFloat(q, 'paged_attention');
    checkPool('paged_attention', pool!, p);
    const R = sequence!.size;
    checkRows('paged_attention', [table!, sequence!, position!, reach!], R);
    if (bias) {
      wantDType(bias, 'f32', 'paged_attention', 'the bias');
      if (bias.rank !== 2 || bias.shape[0] !== p.heads)
        throw new AnsatzError(`paged_attention: bias ${show(bias.shape)} should be [${p.heads}, distances]`);
    }
    return [{ shape: [R, p.heads, p.width], dtype: q!.dtype }];
  },
  launch: ([q, pool, bias, table, sequence, position, reach], [out], p) => ({
    kernel: 'paged_attention',
    args: [
      out.arg(),
      q!.arg(),
      pool!.arg(),
      bias?.arg() ?? null,
      table!.arg(),
      sequence!.arg(),
      position!.arg(),
      reach!.arg(),
    ],
    ints: [
      sequence!.size,
      p.heads,
      p.kvHeads,
      p.width,
      p.page,
      table!.shape[1],
      formatCode(p.format),
      p.stride,
      p.heads * p.width,
      p.window,
      bias?.shape[1] ?? 0,
    ],
    floats: [p.scale],
  }),
  flops: ([, , , , sequence], _, p) => 4 * sequence!.size * p.heads * p.width * p.seen,
  bytes: ([, , , , sequence], [out], p) =>
    (pageBytes(p.kvHeads, p.width, p.page, p.format) / p.page) * sequence!.size * p.seen + out.size * 4,
});

export interface PagedOptions {
  readonly heads: number;
  readonly kvHeads: number;
  readonly width: number;
  readonly format: CacheFormat;
  /** A row sees keys less than this far back; 0: all. */
  readonly window?: number;
  /** Factor on q.k; by default 1/sqrt(width). */
  readonly scale?: number;
  /** f32 [heads, distances]: added to logits by distance, the last entry for distance 0; farther ones take the first. */
  readonly bias?: Tensor | null;
  /** Keys that a row sees on average: for cost accounting alone. */
  readonly seen?: number;
}

const kvParams = (o: PagedOptions, page: number, stride: number, keyAt: number, valueAt: number): KvParams => ({
  format: o.format,
  page,
  heads: o.heads,
  kvHeads: o.kvHeads,
  width: o.width,
  stride,
  keyAt,
  valueAt,
  window: o.window ?? 0,
  scale: o.scale ?? 1 / Math.sqrt(o.width),
});

/** Puts keys and values, f32 or bf16 [R, kvHeads, width], into the pages of the rows' tokens. */
export function pagedAppend(pool: Tensor, k: Tensor, v: Tensor, rows: RowIndex, o: PagedOptions): void {
  const params = kvParams(o, rows.page, o.kvHeads * o.width, 0, 0);
  noGrad(() => apply(appendOp, [pool, k, v, rows.table, rows.sequence, rows.position], params));
}

/** Attention of queries [R, heads, width] to what their sequences have in `pool`. Gives [R, heads, width]. */
export function pagedAttention(q: Tensor, pool: Tensor, rows: RowIndex, o: PagedOptions): Tensor {
  const params = { ...kvParams(o, rows.page, o.heads * o.width, 0, 0), seen: o.seen ?? 1 };
  const { table, sequence, position, reach } = rows;
  return noGrad(() => apply(attendOp, [q, pool, o.bias ?? null, table, sequence, position, reach], params)[0]);
}

/**
 * Both on one packed tensor [R, heads + 2 kvHeads, width]: the rows' keys and values join the pages, then every row
 * attends to what its sequence has up to its reach.
 */
export function pagedSelfAttention(qkv: Tensor, pool: Tensor, rows: RowIndex, o: PagedOptions): Tensor {
  const stride = (o.heads + 2 * o.kvHeads) * o.width;
  const at = o.heads * o.width;
  const params = kvParams(o, rows.page, stride, at, at + o.kvHeads * o.width);
  const { table, sequence, position, reach } = rows;
  return noGrad(() => {
    apply(appendOp, [pool, qkv, qkv, table, sequence, position], params);
    const inputs = [qkv, pool, o.bias ?? null, table, sequence, position, reach];
    return apply(attendOp, inputs, { ...params, seen: o.seen ?? 1 })[0];
  });
}

interface VectorParams {
  readonly page: number;
  readonly back: number;
}

function checkVectors(name: string, pool: Tensor, page: number): void {
  wantDType(pool, 'f32', name, 'the pool');
  if (pool.rank !== 3 || pool.shape[1] !== page)
    throw new AnsatzError(`${name}: the pool ${show(pool.shape)} should be [pages, ${page}, width]`);
}

/** Inputs: pool f32 [pages, page, width] (updated), x [R, width], table, sequence, position. */
const writeOp = defineOp<VectorParams>({
  name: 'paged_write',
  inPlace: true,
  infer: ([pool, x, table, sequence, position], p) => {
    checkVectors('paged_write', pool!, p.page);
    checkRows('paged_write', [table!, sequence!, position!, position!], sequence!.size);
    if (x!.size !== sequence!.size * pool!.shape[2])
      throw new AnsatzError(`paged_write: ${show(x!.shape)} does not fill ${sequence!.size} rows of ${pool!.shape[2]}`);
    return [];
  },
  launch: ([pool, x, table, sequence, position], _, p) => ({
    kernel: 'paged_write',
    args: [pool!.arg(), x!.arg(), table!.arg(), sequence!.arg(), position!.arg()],
    ints: [sequence!.size, pool!.shape[2], p.page, table!.shape[1]],
  }),
  flops: () => 0,
  bytes: ([, x]) => 2 * x!.size * 4,
});

/** Inputs: pool, table, sequence, position. */
const readOp = defineOp<VectorParams>({
  name: 'paged_read',
  infer: ([pool, table, sequence, position], p) => {
    checkVectors('paged_read', pool!, p.page);
    checkRows('paged_read', [table!, sequence!, position!, position!], sequence!.size);
    return [{ shape: [sequence!.size, pool!.shape[2]], dtype: 'f32' }];
  },
  launch: ([pool, table, sequence, position], [out], p) => ({
    kernel: 'paged_read',
    args: [out.arg(), pool!.arg(), table!.arg(), sequence!.arg(), position!.arg()],
    ints: [sequence!.size, pool!.shape[2], p.page, table!.shape[1], p.back],
  }),
  flops: () => 0,
  bytes: (_, [out]) => 2 * out.size * 4,
});

/** Stores a vector of each row's token. */
export const pagedWrite = (pool: Tensor, x: Tensor, rows: RowIndex): void => {
  noGrad(() => apply(writeOp, [pool, x, rows.table, rows.sequence, rows.position], { page: rows.page, back: 0 }));
};

/** The vectors `back` tokens before the rows' own, f32 [R, width]; zeros before a sequence's start. */
export const pagedRead = (pool: Tensor, rows: RowIndex, back: number): Tensor =>
  noGrad(() => apply(readOp, [pool, rows.table, rows.sequence, rows.position], { page: rows.page, back })[0]);
