/**
 * Passes over rows, for decoding: R tokens of any sequences, [1, R, d]. Parts that look at single tokens (norms,
 * feed-forward, experts, heads) do what they always do; parts that look back keep what they need of each token in
 * pages, through the context's `rows`. All such state is per token: taking back a speculated token is a shorter length,
 * and sequences with the same beginning share its pages.
 */
import {
  type CacheFormat,
  pagedRecent,
  pagedWrite,
  quantise,
  type RowIndex,
  reshape,
  type Tensor,
} from '../tensor/index.ts';

/** State of one layer, asked for in the same order by every pass of a model. */
export interface RowState {
  readonly index: RowIndex;
  /** The next layer's keys and values. */
  keyValues(kvHeads: number, width: number): { readonly pool: Tensor; readonly format: CacheFormat };
  /** The next layer's plain vectors, f32 [pages, each, width]: `each` in a page, by default one a token. */
  vectors(width: number, each?: number): Tensor;
}

export interface RowPass extends RowState {
  /** What depends on parameters alone and is dear: computed once for all passes, asked for in the same order by each. */
  constant(make: () => Tensor): Tensor;
  /** What an encoder has read, one text a sequence; null for models without one. */
  readonly memory: RowState | null;
  /** Tokens that a row sees on average: for cost accounting alone. */
  readonly seen: number;
}

/**
 * An f32 matrix [n, k] or [E, n, k] for products in rows: in blocks, a row's sums, and the choices that depend on them, do
 * not depend on how many rows there are. Outside of such passes, the matrix itself.
 */
export const evenForRows = (rows: RowPass | null, w: Tensor): Tensor =>
  rows ? rows.constant(() => quantise(w, 'f32x16')) : w;

/**
 * A layer's vectors of the last `count` tokens, oldest first: f32 [R, count, ...], zeros before a sequence's start. x
 * [1, R, ...] are the rows' own, which are kept for those to come.
 */
export function recent(rows: RowPass, x: Tensor, count: number): Tensor {
  const [, R, ...shape] = x.shape;
  const width = shape.reduce((a, b) => a * b, 1);
  const pool = rows.vectors(width);
  pagedWrite(pool, reshape(x, [R, width]), rows.index);
  return reshape(pagedRecent(pool, rows.index, count), [R, count, ...shape]);
}
