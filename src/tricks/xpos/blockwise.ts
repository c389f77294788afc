/**
 * Blockwise causal attention (Sun et al. 2022, section 3.3): a query sees its own block of l/2 tokens, up to itself, and
 * the whole block before. A model trained at length l then never meets a distance that it was not trained on. For
 * evaluation: up to l tokens it is the same as full causal attention.
 */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { layoutTraits } from '../../model/model.ts';
import type { ModelSpec } from '../../model/spec.ts';
import {
  type ForwardContext,
  type ParamSpec,
  type RowPass,
  registerSlot,
  type SlotConfig,
  type TurnPiece,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix, packed, vector, writeBranch } from '../../nn/linear.ts';
import {
  attention,
  concat,
  fill,
  type PagedPart,
  pad,
  pagedAppend,
  pagedAttentionOfTwo,
  reshape,
  slice,
  split,
  type Tensor,
} from '../../tensor/index.ts';

/** x [B, n*block, ...] as [B*n, 2*block, ...]: each block behind the one before (the first behind `edge`). */
function withPrevious(x: Tensor, block: number, edge: number): Tensor {
  const [b, t, ...rest] = x.shape;
  const blocks = [(b * t) / block, block, ...rest];
  const before = slice(pad(x, 1, block, 0, edge), 1, 0, t);
  return concat([reshape(before, blocks), reshape(x, blocks)], 1);
}

registerSlot({
  slot: 'attention',
  kind: 'blockwise',
  summary: 'a query sees its own block and the one before (Sun et al. 2022), for sequences past the training length',
  rows: true,
  options: z.strictObject({
    heads: z.int().positive(),
    kvHeads: z.int().positive().optional(),
    headWidth: z.int().positive().optional(),
    /** Tokens of a block: half the training length. */
    block: z.int().positive(),
    bias: z.boolean().default(false),
    dropout: z.number().min(0).lt(1).default(0),
  }),
  build: (config, { dims, positions, headWidth: d, scales }) => {
    const { heads, block, bias } = config;
    const kvHeads = config.kvHeads ?? heads;
    if (heads % kvHeads)
      throw new AnsatzError(`attention: ${heads} query heads do not share ${kvHeads} key heads evenly`);
    const turn: TurnPiece | null = positions.pieces?.(block, block) ?? null;
    const wrapped = positions.wrapped?.(block, [-block, 0]) ?? null;
    const rows = [heads * d, kvHeads * d, kvHeads * d];

    /**
     * Rows [1,R,heads+2kvHeads,d] over the pages of their sequences: one softmax over the row's own block and the one
     * before. Keys are kept turned as from the block before their own; queries are turned for each of the two.
     */
    const overRows = (qkv: Tensor, c: ForwardContext, pass: RowPass): Tensor => {
      const R = qkv.shape[1];
      const [q, k, v] = split(qkv, [heads, kvHeads, kvHeads], 2);
      const flat = (x: Tensor): Tensor => reshape(x, [R, x.shape[2], d]);
      const { pool, format } = pass.keyValues(kvHeads, d);
      const options = {
        ...{ heads, kvHeads, width: d, format, block, scale: scales.attention(d), seen: Math.min(pass.seen, block) },
        bias: positions.bias ? positions.bias(c.positionParams, heads, 1, dims.context, c) : null,
      };
      pagedAppend(pool, flat(wrapped ? wrapped(k, 'key', -block, c) : k), flat(v), pass.index, options);
      const part = (back: number): PagedPart => ({
        ...{ pool, rows: pass.index, options: { ...options, back } },
        q: flat(wrapped ? wrapped(q, 'query', back === 0 ? -block : 0, c) : q),
      });
      return reshape(pagedAttentionOfTwo(part(0), part(1)), [1, R, heads * d]);
    };

    return {
      params: {
        qkv: packed(rows, dims.width),
        out: matrix(dims.width, heads * d, 1 / Math.sqrt(2 * dims.depth)),
        ...(bias ? { qkvBias: vector((heads + 2 * kvHeads) * d, 0), outBias: vector(dims.width, 0) } : {}),
      } as Record<string, ParamSpec>,
      forward: (p, x, residual, c) => {
        const [b, t] = x.shape;
        const whole = Math.ceil(t / block) * block;
        let qkv = linear(x, tensorOf(p, 'qkv'), c, { bias: bias ? tensorOf(p, 'qkvBias') : null });
        qkv = reshape(qkv, [b, t, heads + 2 * kvHeads, d]);
        if (!turn && positions.rotate) qkv = positions.rotate(qkv, heads, kvHeads, c);
        const write = (mixed: Tensor): Tensor =>
          writeBranch(mixed, tensorOf(p, 'out'), residual, c, {
            bias: bias ? tensorOf(p, 'outBias') : null,
            scale: scales.branch,
            dropout: config.dropout,
          });
        if (c.rows) return write(overRows(qkv, c, c.rows));
        const filled = whole === t ? qkv : pad(qkv, 1, 0, whole - t);
        const [q, k, v] = split(filled, [heads, kvHeads, kvHeads], 2);
        const queries = reshape(q, [(b * whole) / block, block, heads, d]);
        const [keys, values] = [withPrevious(k, block, 0), withPrevious(v, block, 0)];
        // No token has segment -1: what stands before the first block is not seen.
        const own = c.segments ?? fill(c.device, [b, t], 0, 'i32');
        const segments = whole === t ? own : pad(own, 1, 0, whole - t, -2);
        const mixed = attention(
          turn ? turn(queries, 'query', 0, c) : queries,
          turn ? turn(keys, 'key', -block, c) : keys,
          values,
          {
            causal: true,
            scale: scales.attention(d),
            segments: reshape(segments, [(b * whole) / block, block]),
            keySegments: withPrevious(segments, block, -1),
            bias: positions.bias ? positions.bias(c.positionParams, heads, block, 2 * block, c) : null,
          },
        );
        return write(slice(reshape(mixed, [b, whole, heads * d]), 1, 0, t));
      },
    };
  },
});

/** A trained spec with blockwise attention in place of full attention; the weights fit both. */
export function withBlocks(model: ModelSpec, block: number): ModelSpec {
  const replace = (slot: SlotConfig): SlotConfig => {
    if (slot.kind !== 'full')
      throw new AnsatzError(`blockwise attention stands in for attention 'full', not '${slot.kind}'`);
    if (slot.window) throw new AnsatzError('blockwise attention: the model has a window already');
    const { window, ...rest } = slot;
    return { ...rest, kind: 'blockwise', block };
  };
  const overrides = model.overrides.map((o) => (o.attention ? { ...o, attention: replace(o.attention) } : o));
  return { ...model, ...encoderAsItIs(model), attention: replace(model.attention), overrides };
}

/** A layout whose encoder would take the decoder's attention, with that attention as its own: blocks are causal. */
function encoderAsItIs(model: ModelSpec): Pick<ModelSpec, 'layout'> {
  const { layout, attention } = model;
  if (!layoutTraits(model).encoder) return { layout };
  return { layout: { encoderAttention: attention, ...(typeof layout === 'string' ? { kind: layout } : layout) } };
}
