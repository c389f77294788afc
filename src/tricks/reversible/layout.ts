/**
 * The reversible layout: a decoder's blocks over two streams that both start as the embeddings (Kitaev et al. 2020).
 * Parameters have a decoder's names.
 *
 * Shapes: B batch, T tokens, d width.
 */
import { z } from 'zod';
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { embeddingTable } from '../../model/decoder.ts';
import { embedTokens } from '../../model/embed.ts';
import { lossOf } from '../../model/loss.ts';
import { layoutOptions, type Model, type ModelInputs } from '../../model/model.ts';
import { blockSlot, headWidth, type ModelSpec } from '../../model/spec.ts';
import {
  buildParametrisation,
  buildSlot,
  childOf,
  type ForwardContext,
  type Module,
  type ParamTree,
  type SlotContext,
  tensorOf,
} from '../../nn/index.ts';
import { addScaled, concat, type Tensor } from '../../tensor/index.ts';
import { type Block, block, halvesOf } from './block.ts';
import { runStack } from './stack.ts';

export const stackOptions = {
  /** Keep all activations instead of rebuilding them: the same equations, faster, with a decoder's memory. */
  store: z.boolean().default(false),
  /** Streams in fixed point with this many binary places, which are rebuilt bit by bit; 0: floating point. */
  grid: z.int().min(0).max(20).default(16),
};

export const options = z.strictObject({
  ...stackOptions,
  /** What the head sees: the mean of the streams, or both side by side (2 d; needs tied=false). */
  merge: z.enum(['average', 'concat']).default('average'),
});
type Options = z.output<typeof options>;

export function buildReversible(spec: ModelSpec): Model {
  const o = layoutOptions(spec) as Options;
  const { width, depth, vocab, context, tied } = spec;
  const both = o.merge === 'concat';
  if (both && tied)
    throw new AnsatzError('layout reversible: the head sees both streams, 2 x width, and cannot be the embeddings', {
      hint: "set model.tied=false, or layout.merge='average'",
    });
  const dims = { width, depth, vocab, context, tied };
  const parametrisation = buildParametrisation(spec.parametrisation, { width, depth, headWidth: headWidth(spec) });
  const { scales } = parametrisation;
  const { heads } = spec.attention as { heads?: number };
  const shared = { dims, headWidth: headWidth(spec), heads, scales, zLoss: spec.zLoss };
  const positions = buildSlot('positions', spec.positions, { ...shared, positions: {}, layer: 0 });
  const at = (layer: number): SlotContext => ({ ...shared, positions, layer });
  const blocks = Array.from({ length: depth }, (_, k): Block => {
    const norm = () => buildSlot('norm', spec.norm, at(k));
    const attention = buildSlot('attention', blockSlot(spec, 'attention', k), at(k));
    const ffn = buildSlot('ffn', blockSlot(spec, 'ffn', k), at(k));
    return block([
      { normName: 'norm1', norm: norm(), partName: 'attention', part: attention },
      { normName: 'norm2', norm: norm(), partName: 'ffn', part: ffn },
    ]);
  });
  const merged = { ...at(depth), dims: { ...dims, width: both ? 2 * width : width } };
  const finalNorm = buildSlot('norm', spec.norm, merged);
  const head = buildSlot('head', spec.head, merged);
  const embed: Module = { params: { weight: embeddingTable(spec) } };
  const table = (p: ParamTree): Tensor => tensorOf(childOf(p, 'embed'), 'weight');

  const hidden = (p: ParamTree, batch: ModelInputs, c: ForwardContext): Tensor => {
    const positionParams = childOf(p, 'positions');
    const { segments, positions: places, visible = null, keep = null, pairs } = batch;
    const inner = { ...c, segments, positions: places, visible, keep, pairs: pairs?.self, positionParams };
    const x_BTd = embedTokens(table(p), batch.inputs, { spec, scales, positions }, inner);
    const [a, b] = runStack(halvesOf(blocks, childOf(p, 'blocks')), [x_BTd, x_BTd], o, inner);
    return finalNorm.forward(childOf(p, 'norm'), both ? concat([a, b], -1) : addScaled(a, b, 0.5, 0.5), inner);
  };

  return {
    spec,
    adjust: parametrisation.param,
    children: {
      embed,
      positions: { params: positions.params, children: positions.children },
      blocks: { children: Object.fromEntries(blocks.map((b, k) => [String(k), b])) },
      norm: finalNorm,
      head,
    },
    prepare: (device: Device) => positions.prepare?.(device),
    hidden,
    logits: (p, h, c) => head.logits(childOf(p, 'head'), table(p), h, c),
    loss: (p, batch, c) => lossOf(head, childOf(p, 'head'), table(p), hidden(p, batch, c), batch, c),
  };
}
