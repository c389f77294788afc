/** Head slot: the plain output matrix, tied to the embeddings or its own. The loss never stores the logits. */
import { z } from 'zod';
import { linearCrossEntropy, matmul, type Tensor } from '../tensor/index.ts';
import { type ParamSpec, type ParamTree, tensorOf } from './module.ts';
import { registerSlot } from './slots.ts';

registerSlot({
  slot: 'head',
  kind: 'linear',
  summary: 'one matrix from hidden states to the vocabulary',
  options: z.strictObject({}),
  build: (_, { dims, scales, zLoss }) => {
    const { width, vocab, tied } = dims;
    const weight: ParamSpec = {
      shape: [vocab, width],
      init: { kind: 'normal', std: 1 / Math.sqrt(width) },
      role: 'output',
      fanIn: width,
      fanOut: vocab,
      decay: true,
      logits: true,
    };
    const matrix = (p: ParamTree, table: Tensor): Tensor => (tied ? table : tensorOf(p, 'weight'));
    return {
      params: (tied ? {} : { weight }) as Record<string, ParamSpec>,
      logits: (p, table, h, c) =>
        matmul(h, matrix(p, table), { transB: true, alpha: scales.logits, compute: c.compute, out: 'f32' }),
      loss: (p, table, h, targets, weights, c) =>
        linearCrossEntropy(h, matrix(p, table), targets, weights, {
          zLoss,
          logitScale: scales.logits,
          compute: c.compute,
        }),
    };
  },
});
