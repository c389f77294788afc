/** Attention slot: softmax attention with grouped-query heads, an optional window, and fused projections. */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import { attentionPacked, reshape } from '../tensor/index.ts';
import { linear, matrix, vector, writeBranch } from './linear.ts';
import { type ParamSpec, tensorOf } from './module.ts';
import { registerSlot } from './slots.ts';

registerSlot({
  slot: 'attention',
  kind: 'full',
  summary: 'softmax attention; grouped-query heads (Ainslie et al. 2023), optional sliding window',
  options: z.strictObject({
    heads: z.int().positive(),
    /** Heads of keys and values; fewer than `heads` share them. */
    kvHeads: z.int().positive().optional(),
    /** Width of a head; by default width / heads. */
    headWidth: z.int().positive().optional(),
    /** A token sees less than this many back; 0 sees all. */
    window: z.int().min(0).default(0),
    bias: z.boolean().default(false),
    dropout: z.number().min(0).lt(1).default(0),
  }),
  build: (config, { dims, positions, headWidth: d, scales }) => {
    const { heads, window, bias } = config;
    const kvHeads = config.kvHeads ?? heads;
    if (heads % kvHeads)
      throw new AnsatzError(`attention: ${heads} query heads do not share ${kvHeads} key heads evenly`);
    const packed = (heads + 2 * kvHeads) * d;
    return {
      params: {
        qkv: matrix(packed, dims.width),
        out: matrix(dims.width, heads * d, 1 / Math.sqrt(2 * dims.depth)),
        ...(bias ? { qkvBias: vector(packed, 0), outBias: vector(dims.width, 0) } : {}),
      } as Record<string, ParamSpec>,
      forward: (p, x, residual, c) => {
        const [b, t] = x.shape;
        let qkv = linear(x, tensorOf(p, 'qkv'), c, { bias: bias ? tensorOf(p, 'qkvBias') : null });
        qkv = reshape(qkv, [b, t, heads + 2 * kvHeads, d]);
        if (positions.rotate) qkv = positions.rotate(qkv, heads, kvHeads, c);
        const relative = positions.bias ? positions.bias(c.positionParams, heads, t, t, c) : null;
        const mixed = attentionPacked(qkv, heads, kvHeads, {
          causal: true,
          window,
          scale: scales.attention(d),
          segments: c.segments,
          bias: relative,
        });
        const flat = reshape(mixed, [b, t, heads * d]);
        return writeBranch(flat, tensorOf(p, 'out'), residual, c, {
          bias: bias ? tensorOf(p, 'outBias') : null,
          scale: scales.branch,
          dropout: config.dropout,
        });
      },
    };
  },
});
