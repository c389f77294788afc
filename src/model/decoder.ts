/**
 * The decoder layout: pre-norm blocks on an f32 residual stream.
 *
 * Shapes: B batch, T tokens, d width, V vocabulary.
 */
import type { Device } from '../backend/device.ts';
import {
  buildSlot,
  childOf,
  type ForwardContext,
  type Mixer,
  type Module,
  type Norm,
  type ParamTree,
  tensorOf,
} from '../nn/index.ts';
import { add, dropout, embedding, linearCrossEntropy, matmul, type Tensor } from '../tensor/index.ts';
import type { Batch, Loss, Model } from './model.ts';
import { headWidth, type ModelSpec } from './spec.ts';

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
  const { width, depth, vocab, context } = spec;
  const dims = { width, depth, vocab, context };
  const d = headWidth(spec);
  const positions = buildSlot('positions', spec.positions, { dims, positions: {}, headWidth: d });
  const slots = { dims, positions, headWidth: d };
  const norm = (): Norm => buildSlot('norm', spec.norm, slots);
  const blocks = Array.from({ length: depth }, () =>
    block(norm(), buildSlot('attention', spec.attention, slots), norm(), buildSlot('ffn', spec.ffn, slots)),
  );
  const finalNorm = norm();
  const table = {
    shape: [vocab, width],
    init: { kind: 'normal', std: spec.embeddingStd },
    fanIn: 1,
    fanOut: width,
    decay: true,
  } as const;
  const embed: Module = { params: { weight: { ...table, role: 'embedding' } } };
  const head: Module = spec.tied
    ? {}
    : {
        params: {
          weight: {
            ...table,
            role: 'output',
            init: { kind: 'normal', std: 1 / Math.sqrt(width) },
            fanIn: width,
            fanOut: vocab,
          },
        },
      };

  const output = (p: ParamTree): Tensor => tensorOf(childOf(p, spec.tied ? 'embed' : 'head'), 'weight');

  const hidden = (p: ParamTree, batch: Pick<Batch, 'inputs' | 'segments' | 'positions'>, c: ForwardContext): Tensor => {
    const positionParams = childOf(p, 'positions');
    const inner: ForwardContext = { ...c, segments: batch.segments, positions: batch.positions, positionParams };
    let x_BTd = embedding(tensorOf(childOf(p, 'embed'), 'weight'), batch.inputs, 'f32');
    if (positions.embed) x_BTd = positions.embed(positionParams, x_BTd, inner);
    if (inner.random && spec.dropout > 0) x_BTd = dropout(x_BTd, inner.random, spec.dropout, inner.nextStream());
    const trees = childOf(p, 'blocks');
    blocks.forEach((b, k) => {
      x_BTd = b.forward(childOf(trees, String(k)), x_BTd, inner);
    });
    return finalNorm.forward(childOf(p, 'norm'), x_BTd, inner);
  };

  return {
    spec,
    children: {
      embed,
      positions: { params: positions.params, children: positions.children },
      blocks: { children: Object.fromEntries(blocks.map((b, k) => [String(k), b])) },
      norm: finalNorm,
      head,
    },
    prepare: (device: Device) => positions.prepare?.(device),
    hidden,
    logits: (p, h, c) => matmul(h, output(p), { transB: true, compute: c.compute, out: 'f32' }),
    loss: (p, batch, c): Loss => {
      const h = hidden(p, batch, c);
      const { loss, rows } = linearCrossEntropy(h, output(p), batch.targets, batch.weights, {
        zLoss: spec.zLoss,
        compute: c.compute,
      });
      let total = loss;
      for (const term of c.losses.values()) total = add(total, term);
      return { total, rows };
    },
  };
}
