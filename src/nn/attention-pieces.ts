/** Causal attention to sequences that positions cannot turn at once: queries go in pieces, each with its own origin. */
import { attention, concat, matmul, permute, reshape, slice, split, type Tensor } from '../tensor/index.ts';
import type { ForwardContext } from './context.ts';
import type { Positions, TurnPiece } from './slots.ts';

/** Queries of a piece; a key is turned once for each piece that sees it, against that many products. */
export const PIECE = 4096;

interface Packed {
  readonly heads: number;
  readonly kvHeads: number;
  readonly window: number;
  readonly scale: number;
  readonly positions: Positions;
}

/** Attention of the queries from `first` to `last` of q to all keys that they may see. q, k, v [B, T, heads, D]. */
export function attendPiece(
  [q, k, v]: readonly Tensor[],
  first: number,
  last: number,
  turn: TurnPiece,
  o: Packed,
  c: ForwardContext,
): Tensor {
  const from = o.window ? Math.max(0, first - o.window + 1) : 0;
  const rows = (t: Tensor, begin: number): Tensor => slice(t, 1, begin, last);
  const { bias } = o.positions;
  return attention(turn(rows(q, first), 'query', 0, c), turn(rows(k, from), 'key', from - first, c), rows(v, from), {
    causal: true,
    window: o.window,
    scale: o.scale,
    segments: c.segments && rows(c.segments, first),
    keySegments: c.segments && rows(c.segments, from),
    bias: bias ? bias(c.positionParams, o.heads, last - first, last - from, c) : null,
  });
}

/** Attention on a packed [B,T,heads+2kvHeads,D] that has not been turned. Gives [B,T,heads,D]. */
export function attendInPieces(qkv: Tensor, turn: TurnPiece, o: Packed, c: ForwardContext, size: number): Tensor {
  const parts = split(qkv, [o.heads, o.kvHeads, o.kvHeads], 2);
  const t = qkv.shape[1];
  const pieces: Tensor[] = [];
  for (let first = 0; first < t; first += size)
    pieces.push(attendPiece(parts, first, Math.min(t, first + size), turn, o, c));
  return pieces.length === 1 ? pieces[0] : concat(pieces, 1);
}

/** scale q.k of all pairs, f32 [B*kvHeads, heads/kvHeads*T, T]: what attention kernels never store, for measurements. */
export function attentionLogits(qkv: Tensor, heads: number, kvHeads: number, scale: number): Tensor {
  const [b, t, , d] = qkv.shape;
  const rows = (first: number, n: number): Tensor => permute(slice(qkv, 2, first, first + n), [0, 2, 1, 3]);
  const q = reshape(rows(0, heads), [b * kvHeads, (heads / kvHeads) * t, d]);
  const k = reshape(rows(heads, kvHeads), [b * kvHeads, t, d]);
  return matmul(q, k, { transB: true, alpha: scale, out: 'f32' });
}
