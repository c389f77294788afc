/**
 * One attention over encoder and decoder: keys and values of both, made by the same matrices, under one softmax (T5Gemma
 * 2). Parameters are those of attention `full`, so that a decoder's checkpoint starts it off without new weights.
 */
import { AnsatzError } from '../../backend/errors.ts';
import {
  type ForwardContext,
  type Module,
  type ParamTree,
  type RowPass,
  type SlotContext,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix, packed, writeBranch } from '../../nn/linear.ts';
import {
  attention,
  concat,
  gradEnabled,
  isBlock,
  pagedAppend,
  pagedAttention,
  pagedAttentionOfTwo,
  reshape,
  slice,
  Tensor,
} from '../../tensor/index.ts';
import type { CrossOptions, KeyValue, Seen } from './cross.ts';

export interface Merged extends Module {
  keyValue(p: ParamTree, states: Tensor, c: ForwardContext): KeyValue;
  /** residual + attention(x, memory and x); a decoder's own attention when there is no memory. */
  forward(p: ParamTree, x: Tensor, residual: Tensor, memory: Seen | null, c: ForwardContext): Tensor;
}

/** Rows of a matrix from one on; where no gradient is wanted, where they lie. */
const rowsFrom = (w: Tensor, first: number): Tensor => {
  const [n, k] = w.shape;
  return gradEnabled() ? slice(w, 0, first) : new Tensor(w.storage, w.dtype, [n - first, k], w.offset + first * k);
};

export function mergedAttention({ heads, kvHeads }: CrossOptions, context: SlotContext): Merged {
  const { dims, headWidth: d, scales, positions } = context;
  if (heads % kvHeads)
    throw new AnsatzError(`attention: ${heads} query heads do not share ${kvHeads} key heads evenly`);
  if (positions.bias)
    throw new AnsatzError('merged attention: positions that add a bias by distance would move encoder tokens too', {
      hint: 'use rotary positions or none, or layout.merged=false',
    });
  /** Rows see their memory's pages and their own: two attentions, whose sums become those of one. */
  const overPages = (rows: RowPass, query: Tensor, key: Tensor, value: Tensor, scale: number): Tensor => {
    const R = query.shape[1];
    const flat = (x: Tensor): Tensor => reshape(x, [R, x.shape[2], d]);
    const own = rows.keyValues(kvHeads, d);
    const options = { heads, kvHeads, width: d, format: own.format, scale, seen: rows.seen };
    pagedAppend(own.pool, flat(key), flat(value), rows.index, { ...options, heads: kvHeads });
    if (!rows.memory) return pagedAttention(flat(query), own.pool, rows.index, options);
    const { pool } = rows.memory.keyValues(kvHeads, d);
    const q = flat(query);
    return pagedAttentionOfTwo(
      { q, pool, rows: rows.memory.index, options },
      { q, pool: own.pool, rows: rows.index, options },
    );
  };
  return {
    params: {
      qkv: packed([heads * d, kvHeads * d, kvHeads * d], dims.width),
      out: matrix(dims.width, heads * d, 1 / Math.sqrt(2 * dims.depth)),
    },
    keyValue: (p, states, c) => {
      const [b, t] = states.shape;
      // Keys and values, without the rotation that a decoder's get. A matrix in blocks has no rows to take.
      const w = tensorOf(p, 'qkv');
      const all = reshape(linear(states, isBlock(w.dtype) ? w : rowsFrom(w, heads * d), c), [b, t, -1, d]);
      const [first, end] = [all.shape[2] - 2 * kvHeads, all.shape[2] - kvHeads];
      return { key: slice(all, 2, first, end), value: slice(all, 2, end) };
    },
    forward: (p, x, residual, memory, c) => {
      const [b, t] = x.shape;
      let qkv = reshape(linear(x, tensorOf(p, 'qkv'), c), [b, t, heads + 2 * kvHeads, d]);
      if (positions.rotate) qkv = positions.rotate(qkv, heads, kvHeads, c);
      const [query, key, value] = [
        slice(qkv, 2, 0, heads),
        slice(qkv, 2, heads, heads + kvHeads),
        slice(qkv, 2, heads + kvHeads),
      ];
      const scale = scales.attention(d);
      const write = (mixed: Tensor): Tensor => {
        const flat = reshape(mixed, [b, t, heads * d]);
        return writeBranch(flat, tensorOf(p, 'out'), residual, c, { bias: null, scale: scales.branch, dropout: 0 });
      };
      if (c.rows) return write(overPages(c.rows, query, key, value, scale));
      // Ends are aligned: query i stands behind all of the memory, and sees it and its own past.
      const mixed = memory
        ? attention(query, concat([memory.key, key], 1), concat([memory.value, value], 1), {
            causal: true,
            scale,
            segments: memory.readers ? c.segments : null,
            keySegments: memory.readers && c.segments ? concat([memory.readers, c.segments], 1) : null,
            pairs: memory.pairs !== undefined && c.pairs !== undefined ? memory.pairs + c.pairs : undefined,
          })
        : attention(query, key, value, { causal: true, scale, segments: c.segments, pairs: c.pairs });
      return write(mixed);
    },
  };
}
