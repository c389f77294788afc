/**
 * One attention over encoder and decoder: keys and values of both, made by the same matrices, under one softmax (T5Gemma
 * 2). Parameters are those of attention `full`, so that a decoder's checkpoint starts it off without new weights.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { type ForwardContext, type Module, type ParamTree, type SlotContext, tensorOf } from '../../nn/index.ts';
import { linear, matrix, packed, writeBranch } from '../../nn/linear.ts';
import { attention, concat, reshape, slice, type Tensor } from '../../tensor/index.ts';
import type { CrossOptions, KeyValue, Seen } from './cross.ts';

export interface Merged extends Module {
  keyValue(p: ParamTree, states: Tensor, c: ForwardContext): KeyValue;
  /** residual + attention(x, memory and x); a decoder's own attention when there is no memory. */
  forward(p: ParamTree, x: Tensor, residual: Tensor, memory: Seen | null, c: ForwardContext): Tensor;
}

export function mergedAttention({ heads, kvHeads }: CrossOptions, context: SlotContext): Merged {
  const { dims, headWidth: d, scales, positions } = context;
  if (heads % kvHeads)
    throw new AnsatzError(`attention: ${heads} query heads do not share ${kvHeads} key heads evenly`);
  if (positions.bias)
    throw new AnsatzError('merged attention: positions that add a bias by distance would move encoder tokens too', {
      hint: 'use rotary positions or none, or layout.merged=false',
    });
  return {
    params: {
      qkv: packed([heads * d, kvHeads * d, kvHeads * d], dims.width),
      out: matrix(dims.width, heads * d, 1 / Math.sqrt(2 * dims.depth)),
    },
    keyValue: (p, states, c) => {
      const [b, t] = states.shape;
      // The rows of keys and values, without the rotation that decoder keys get.
      const rows = slice(tensorOf(p, 'qkv'), 0, heads * d);
      const both = reshape(linear(states, rows, c), [b, t, 2 * kvHeads, d]);
      return { key: slice(both, 2, 0, kvHeads), value: slice(both, 2, kvHeads) };
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
      const flat = reshape(mixed, [b, t, heads * d]);
      return writeBranch(flat, tensorOf(p, 'out'), residual, c, { bias: null, scale: scales.branch, dropout: 0 });
    },
  };
}
