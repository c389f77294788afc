/** Pages and rows as all ops over paged state see them. */
import { AnsatzError } from '../../backend/errors.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType } from './common.ts';

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

/** Indices of R rows, and the page table. */
export function checkRows(name: string, indices: readonly Tensor[], R: number, table: Tensor | null): void {
  for (const t of [table, ...indices]) wantDType(t, 'i32', name, 'the page table and row indices');
  if (table && table.rank !== 2) throw new AnsatzError(`${name}: the page table must be [sequences, pages]`);
  for (const t of indices) if (t.size !== R) throw new AnsatzError(`${name}: indices of ${t.size} rows for ${R} rows`);
}

/** A pool of keys and values: u8 [pages, bytes]. */
export function checkKeyValues(
  name: string,
  pool: Tensor,
  p: { readonly kvHeads: number; readonly width: number; readonly page: number; readonly format: CacheFormat },
): void {
  wantDType(pool, 'u8', name, 'the pool');
  if (p.page < 32 || p.page % 32) throw new AnsatzError(`${name}: pages of ${p.page} tokens are not a multiple of 32`);
  const bytes = pageBytes(p.kvHeads, p.width, p.page, p.format);
  if (pool.rank !== 2 || pool.shape[1] !== bytes)
    throw new AnsatzError(`${name}: the pool ${show(pool.shape)} should be [pages, ${bytes}]`);
}

/** A pool of vectors: f32 [pages, each, width]. */
export function checkVectors(name: string, pool: Tensor, each: number, width?: number): void {
  wantDType(pool, 'f32', name, 'the pool');
  if (pool.rank !== 3 || pool.shape[1] !== each || (width !== undefined && pool.shape[2] !== width))
    throw new AnsatzError(`${name}: the pool ${show(pool.shape)} should be [pages, ${each}, ${width ?? 'width'}]`);
}
