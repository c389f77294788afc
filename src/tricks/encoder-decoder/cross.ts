/**
 * Attention from a decoder to what an encoder has read. Keys and values carry no positions, so they are computed once,
 * kept, joined and reordered freely.
 */
import { AnsatzError } from '../../backend/errors.ts';
import {
  type ForwardContext,
  type Module,
  type ParamTree,
  type RowState,
  type SlotContext,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix, writeBranch } from '../../nn/linear.ts';
import { attention, pagedAttention, reshape, type Tensor } from '../../tensor/index.ts';

export interface KeyValue {
  readonly key: Tensor;
  readonly value: Tensor;
}

export interface Cross extends Module {
  /** Keys and values [B, Te, heads, D] of encoder states [B, Te, d]. */
  keyValue(p: ParamTree, states: Tensor, c: ForwardContext): KeyValue;
  /** residual + attention(x, memory); in a pass over rows, the memory in its pages. `readers` [B, Te]: segment of the decoder that may look at each token. */
  forward(p: ParamTree, x: Tensor, residual: Tensor, memory: Seen | null, c: ForwardContext): Tensor;
}

export interface Seen extends KeyValue {
  readonly readers: Tensor | null;
  /** Pairs (query, key) seen in a row, for cost accounting. */
  readonly pairs?: number;
}

export interface CrossOptions {
  readonly heads: number;
  readonly kvHeads: number;
}

export function crossAttention({ heads, kvHeads }: CrossOptions, context: SlotContext): Cross {
  const { dims, headWidth: d, scales } = context;
  if (heads % kvHeads)
    throw new AnsatzError(`cross-attention: ${heads} query heads do not share ${kvHeads} key heads evenly`);
  const scale = scales.attention(d);
  const over = (query: Tensor, { key, value, readers, pairs }: Seen, c: ForwardContext): Tensor => {
    const segments = readers ? c.segments : null;
    return attention(query, key, value, { scale, segments, keySegments: readers, pairs });
  };
  const overPages = (query: Tensor, memory: RowState): Tensor => {
    const { pool, format } = memory.keyValues(kvHeads, d);
    return pagedAttention(query, pool, memory.index, { heads, kvHeads, width: d, format, scale });
  };
  return {
    params: {
      query: matrix(heads * d, dims.width),
      key: matrix(kvHeads * d, dims.width),
      value: matrix(kvHeads * d, dims.width),
      out: matrix(dims.width, heads * d, 1 / Math.sqrt(2 * dims.depth)),
    },
    keyValue: (p, states, c) => {
      const shape = [...states.shape.slice(0, 2), kvHeads, d];
      const made = (name: string): Tensor => reshape(linear(states, tensorOf(p, name), c), shape);
      return { key: made('key'), value: made('value') };
    },
    forward: (p, x, residual, memory, c) => {
      const [b, t] = x.shape;
      const query = reshape(linear(x, tensorOf(p, 'query'), c), [b, t, heads, d]);
      const mixed = memory ? over(query, memory, c) : overPages(reshape(query, [t, heads, d]), c.rows!.memory!);
      return writeBranch(reshape(mixed, [b, t, heads * d]), tensorOf(p, 'out'), residual, c, {
        bias: null,
        scale: scales.branch,
        dropout: 0,
      });
    },
  };
}
