/**
 * The decoder layout: pre-norm blocks on an f32 residual stream.
 *
 * Shapes: B batch, T tokens, d width, V vocabulary.
 */
import type { Device } from '../backend/device.ts';
import {
  buildParametrisation,
  buildSlot,
  childOf,
  type ForwardContext,
  type Mixer,
  type Module,
  type Norm,
  type ParamSpec,
  type ParamTree,
  type SlotContext,
  tap,
  tensorOf,
} from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { embedTokens } from './embed.ts';
import { lossOf } from './loss.ts';
import type { Model, ModelInputs } from './model.ts';
import { blockSlot, headWidth, type ModelSpec } from './spec.ts';

interface Block extends Module {
  forward(p: ParamTree, x_BTd: Tensor, c: ForwardContext): Tensor;
}

/** x + attention(norm(x)), then x + ffn(norm(x)). */
function block(norm1: Norm, attention: Mixer, norm2: Norm, ffn: Mixer): Block {
  return {
    children: { norm1, attention, norm2, ffn },
    forward: (p, x, c) => {
      const mid = attention.forward(childOf(p, 'attention'), norm1.forward(childOf(p, 'norm1'), x, c), x, c);
      return ffn.forward(childOf(p, 'ffn'), norm2.forward(childOf(p, 'norm2'), mid, c), mid, c);
    },
  };
}

export function buildDecoder(spec: ModelSpec): Model {
  const { width, depth, vocab, context, tied } = spec;
  const dims = { width, depth, vocab, context, tied };
  const parametrisation = buildParametrisation(spec.parametrisation, { width, depth, headWidth: headWidth(spec) });
  const { scales } = parametrisation;
  const { heads } = spec.attention as { heads?: number };
  const shared = { dims, headWidth: headWidth(spec), heads, scales, zLoss: spec.zLoss };
  const positions = buildSlot('positions', spec.positions, { ...shared, positions: {}, layer: 0 });
  const at = (layer: number): SlotContext => ({ ...shared, positions, layer });
  const norm = (layer: number): Norm => buildSlot('norm', spec.norm, at(layer));
  const blocks = Array.from({ length: depth }, (_, k) => {
    const attention = buildSlot('attention', blockSlot(spec, 'attention', k), at(k));
    return block(norm(k), attention, norm(k), buildSlot('ffn', blockSlot(spec, 'ffn', k), at(k)));
  });
  const finalNorm = norm(depth);
  const head = buildSlot('head', spec.head, at(depth));
  const embed: Module = { params: { weight: embeddingTable(spec) } };
  const table = (p: ParamTree): Tensor => tensorOf(childOf(p, 'embed'), 'weight');

  const hidden = (p: ParamTree, batch: ModelInputs, c: ForwardContext): Tensor => {
    const positionParams = childOf(p, 'positions');
    const { segments, positions: at, visible = null, keep = null, pairs } = batch;
    const inner = { ...c, segments, positions: at, visible, keep, pairs: pairs?.self, positionParams };
    let x_BTd = embedTokens(table(p), batch.inputs, { spec, scales, positions }, inner);
    const trees = childOf(p, 'blocks');
    blocks.forEach((b, k) => {
      x_BTd = b.forward(childOf(trees, String(k)), x_BTd, inner);
      tap(c, `blocks.${k}.residual`, () => x_BTd);
    });
    return finalNorm.forward(childOf(p, 'norm'), x_BTd, inner);
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

/** The embedding matrix [V, d] of a spec. */
export function embeddingTable(spec: ModelSpec): ParamSpec {
  const { vocab, width, embeddingStd } = spec;
  return {
    shape: [vocab, width],
    init: { kind: 'normal', std: embeddingStd },
    role: 'embedding',
    fanIn: 1,
    fanOut: width,
    decay: true,
  };
}
