/** Attention slot: softmax attention with grouped-query heads, an optional window, and fused projections. */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import { attentionPacked, concat, pagedSelfAttention, reshape, rmsNorm, split, type Tensor } from '../tensor/index.ts';
import { attendInPieces, attentionLogits, PIECE } from './attention-pieces.ts';
import { type ForwardContext, tap } from './context.ts';
import { linear, matrix, packed, vector, writeBranch } from './linear.ts';
import { type ParamSpec, type ParamTree, tensorOf } from './module.ts';
import { registerSlot } from './slots.ts';

export const attentionOptions = z.strictObject({
  heads: z.int().positive(),
  /** Heads of keys and values; fewer than `heads` share them. */
  kvHeads: z.int().positive().optional(),
  /** Width of a head; by default width / heads. */
  headWidth: z.int().positive().optional(),
  /** A token sees less than this many back; 0 sees all. */
  window: z.int().min(0).default(0),
  bias: z.boolean().default(false),
  /** RMSNorm of each head's queries and of its keys, before positions turn them, with this epsilon; absent: none. */
  qkNorm: z.number().positive().optional(),
  dropout: z.number().min(0).lt(1).default(0),
});

registerSlot({
  slot: 'attention',
  kind: 'full',
  summary: 'softmax attention; grouped-query heads (Ainslie et al. 2023), optional sliding window',
  generalMasks: true,
  rows: true,
  options: attentionOptions,
  build: (config, { dims, positions, headWidth: d, scales, layer, causal = true }) => {
    const { heads, window, bias, qkNorm } = config;
    const kvHeads = config.kvHeads ?? heads;
    if (heads % kvHeads)
      throw new AnsatzError(`attention: ${heads} query heads do not share ${kvHeads} key heads evenly`);
    const { reach } = positions;
    const size = Math.min(PIECE, Math.floor((reach ?? Infinity) / 2));
    const long = reach !== undefined && dims.context > reach ? positions.pieces!(dims.context, size) : null;
    if (long && !causal)
      throw new AnsatzError(`attention in pieces is causal: a context of ${dims.context} is too long for an encoder`, {
        hint: `lower model.context to ${reach}, or use positions without a limit`,
      });
    const scale = scales.attention(d);
    const rows = [heads * d, kvHeads * d, kvHeads * d];
    const all = (heads + 2 * kvHeads) * d;
    const write = (p: ParamTree, mixed: Tensor, residual: Tensor, c: ForwardContext): Tensor => {
      const [b, t] = residual.shape;
      return writeBranch(reshape(mixed, [b, t, heads * d]), tensorOf(p, 'out'), residual, c, {
        bias: bias ? tensorOf(p, 'outBias') : null,
        scale: scales.branch,
        dropout: config.dropout,
      });
    };
    // Dehghani et al. 2023 ("Scaling vision transformers to 22 billion parameters"), as Qwen3 has it: per head.
    const normalised = (p: ParamTree, qkv: Tensor, eps: number): Tensor => {
      const [q, k, v] = split(qkv, [heads, kvHeads, kvHeads], 2);
      const norm = (x: Tensor, name: string): Tensor => rmsNorm(x, tensorOf(p, name), { eps, out: x.dtype });
      return concat([norm(q, 'qNorm'), norm(k, 'kNorm'), v], 2);
    };
    return {
      params: {
        qkv: packed(rows, dims.width),
        out: matrix(dims.width, heads * d, 1 / Math.sqrt(2 * dims.depth)),
        ...(bias ? { qkvBias: vector(all, 0), outBias: vector(dims.width, 0) } : {}),
        ...(qkNorm ? { qNorm: vector(d, 1), kNorm: vector(d, 1) } : {}),
      } as Record<string, ParamSpec>,
      forward: (p, x, residual, c) => {
        const [b, t] = x.shape;
        let qkv = linear(x, tensorOf(p, 'qkv'), c, { bias: bias ? tensorOf(p, 'qkvBias') : null });
        qkv = reshape(qkv, [b, t, heads + 2 * kvHeads, d]);
        if (qkNorm) qkv = normalised(p, qkv, qkNorm);
        if (positions.rotate && !long) qkv = positions.rotate(qkv, heads, kvHeads, c);
        tap(c, `blocks.${layer}.attention.logits`, () => attentionLogits(qkv, heads, kvHeads, scale));
        if (c.rows) {
          if (long) throw new AnsatzError('attention in pieces does not decode by rows');
          const { pool, format } = c.rows.keyValues(kvHeads, d);
          const biases = positions.bias ? positions.bias(c.positionParams, heads, 1, dims.context, c) : null;
          const flat = reshape(qkv, [t, heads + 2 * kvHeads, d]);
          const options = { heads, kvHeads, width: d, format, window, scale, bias: biases, seen: c.rows.seen };
          return write(p, pagedSelfAttention(flat, pool, c.rows.index, options), residual, c);
        }
        const { segments, visible, keep } = c;
        if (long && (visible || keep))
          throw new AnsatzError(`attention in pieces follows the causal mask only: lower model.context to ${reach}`);
        const options = { causal, window, scale, segments, visible, keep, pairs: window ? undefined : c.pairs };
        const mixed = long
          ? attendInPieces(qkv, long, { heads, kvHeads, window, scale, positions }, c, size)
          : attentionPacked(qkv, heads, kvHeads, {
              ...options,
              bias: positions.bias ? positions.bias(c.positionParams, heads, t, t, c) : null,
            });
        return write(p, mixed, residual, c);
      },
    };
  },
});
