/**
 * Attention from a decoder to what an encoder has read. Keys and values carry no positions, so they are computed once,
 * kept, joined and reordered freely.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { type ForwardContext, type Module, type ParamTree, type SlotContext, tensorOf } from '../../nn/index.ts';
import { linear, matrix, writeBranch } from '../../nn/linear.ts';
import { attention, reshape, type Tensor } from '../../tensor/index.ts';

export interface KeyValue {
  readonly key: Tensor;
  readonly value: Tensor;
}

export interface Cross extends Module {
  /** Keys and values [B, Te, heads, D] of encoder states [B, Te, d]. */
  keyValue(p: ParamTree, states: Tensor, c: ForwardContext): KeyValue;
  /** residual + attention(x, memory). `readers` [B, Te]: segment of the decoder that may look at each token. */
  forward(p: ParamTree, x: Tensor, residual: Tensor, memory: Seen, c: ForwardContext): Tensor;
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
    forward: (p, x, residual, { key, value, readers, pairs }, c) => {
      const [b, t] = x.shape;
      const query = reshape(linear(x, tensorOf(p, 'query'), c), [b, t, heads, d]);
      const segments = readers ? c.segments : null;
      const options = { scale: scales.attention(d), segments, keySegments: readers, pairs };
      const mixed = reshape(attention(query, key, value, options), [b, t, heads * d]);
      return writeBranch(mixed, tensorOf(p, 'out'), residual, c, { bias: null, scale: scales.branch, dropout: 0 });
    },
  };
}
