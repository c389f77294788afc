/** The output layer as a factored dense one (Jaszczur et al. 2021, section 3.3). See README.md. */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { registerSlot, tensorOf } from '../../nn/index.ts';
import { affine, cast, dequantise, factoredCrossEntropy, factoredLinear, isBlock, slice } from '../../tensor/index.ts';
import { registerTrick } from '../registry.ts';
import { factors } from '../sparse-qkv/factors.ts';

registerSlot({
  slot: 'head',
  kind: 'factored',
  summary: 'output matrix in S modules that share their weights up to a factor on each input',
  options: z.strictObject({
    /** S: the output layer has about 1/S of a dense one's weights. */
    modules: z.int().positive().default(4),
  }),
  build: ({ modules }, { dims, scales, zLoss }) => {
    const { width, vocab, tied } = dims;
    if (tied)
      throw new AnsatzError('head factored: its weights are not the embeddings', { hint: 'set model.tied to false' });
    if (modules > vocab) throw new AnsatzError(`head factored: ${modules} modules for ${vocab} tokens`);
    const moduleWidth = Math.ceil(vocab / modules);
    const { D, E } = factors(modules, moduleWidth, width);
    return {
      params: { gate: D, kernel: { ...E, role: 'output', logits: true, fans: { grows: width, fixed: moduleWidth } } },
      logits: (p, _, h, c) => {
        const { compute } = c;
        const all = factoredLinear(h, tensorOf(p, 'gate'), tensorOf(p, 'kernel'), { compute, out: 'f32' });
        const some = moduleWidth * modules === vocab ? all : slice(all, -1, 0, vocab);
        return scales.logits === 1 ? some : affine(some, scales.logits, 0);
      },
      loss: (p, _, h, targets, weights, c) => {
        const own = tensorOf(p, 'kernel');
        const kernel = isBlock(own.dtype) ? dequantise(own) : own;
        return factoredCrossEntropy(h, cast(tensorOf(p, 'gate'), 'f32'), kernel, targets, weights, {
          vocab,
          zLoss,
          logitScale: scales.logits,
          compute: c.compute,
        });
      },
    };
  },
});

registerTrick({
  name: 'sparse-loss',
  summary: 'factored output matrix: V d / S weights; the loss stores neither logits nor the product weight',
  hypothesis:
    'With S = 4 to 8, held-out loss stays within 0.5% of a dense output matrix, and a decoded token reads 1/S of its weights.',
  confidence: 'high',
  tier: 'foundational',
  source: 'Jaszczur et al. 2021, Sparse is Enough in Scaling Transformers (arXiv 2111.12763); Trax',
  patch: () => ({ model: { head: { kind: 'factored', modules: 4 }, tied: false } }),
});
