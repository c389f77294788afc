/**
 * Encoder and decoder tokens as one row: of every segment its encoder tokens, then its decoder tokens; padding at the end,
 * where no token's past holds it. So attention, convolutions and recurrences of a causal decoder run from what was read
 * to what is said without meeting a foreign token or padding, however rows are packed.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { VisiblePairs } from '../../model/model.ts';
import { concat, embedding, fill, joinSegments, reshape, type Tensor } from '../../tensor/index.ts';
import type { Streams } from '../reversible/index.ts';

export interface JoinedRows {
  /** [B, N, d]: both streams, with the same decoder vectors in each. */
  readonly streams: Streams;
  /** i32 [B, N]. */
  readonly segments: Tensor;
  /** i32 [B, N]: counted from 0 in every segment. */
  readonly positions: Tensor;
  /** i32 [B, T]: rows of decoder tokens in [B N, d]. */
  readonly place: Tensor;
}

/** `readers`: segment of the decoder that each encoder token belongs to; null with null segments: one text a row. */
export function joinRows(read: Streams, x: Tensor, readers: Tensor | null, segments: Tensor | null): JoinedRows {
  if (!segments !== !readers)
    throw new AnsatzError('layout terraformer: the decoder needs segments where what it reads has readers');
  const ones = (t: Tensor): Tensor => fill(t.device, t.shape.slice(0, 2), 1, 'i32');
  const joined = joinSegments(readers ?? ones(read[0]), segments ?? ones(x));
  const row = (e: Tensor): Tensor => takeRows(concat([e, x], 1), joined.from);
  const first = row(read[0]);
  return { ...joined, streams: [first, read[1] === read[0] ? first : row(read[1])] };
}

/** Rows of x [B, N, d] by their number among all B N. */
export const takeRows = (x: Tensor, rows: Tensor): Tensor =>
  embedding(reshape(x, [x.shape[0] * x.shape[1], x.shape[2]]), rows);

/** Pairs that a causal decoder sees in the joined rows: a segment's encoder tokens n see n (n + 1) / 2. */
export function pairsOf(pairs: VisiblePairs | undefined, read: Tensor): number | undefined {
  if (pairs?.encoder === undefined || pairs.cross === undefined || pairs.self === undefined) return undefined;
  return (pairs.encoder + read.shape[1]) / 2 + pairs.cross + pairs.self;
}
