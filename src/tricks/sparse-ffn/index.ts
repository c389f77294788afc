/** Sparse feed-forward layers (Jaszczur et al. 2021): a controller picks one unit of every block. See README.md. */
import './expert.ts';
import { registerSlot } from '../../nn/index.ts';
import { registerTrick } from '../registry.ts';
import { equalHidden } from './costs.ts';
import { buildSparseFfn } from './layer.ts';
import { sparseFfnSchema } from './options.ts';

export { equalHidden, type SparseCosts, type SparseSizes, sparseCosts } from './costs.ts';
export { hardFlag, maskedUnits } from './gate.ts';
export { type Usage, usageOf, usages } from './monitor.ts';
export { rankOf, type SparseFfnOptions, sparseFfnSchema, sparseParams } from './options.ts';

registerSlot({
  slot: 'ffn',
  kind: 'sparse-ffn',
  summary: 'ReLU layer in blocks of N units, of which a low-rank controller picks one',
  options: sparseFfnSchema,
  build: buildSparseFfn,
});

registerTrick({
  name: 'sparse-ffn',
  summary: 'one of N feed-forward units active in each block, chosen by a low-rank controller',
  hypothesis:
    'At equal parameters the held-out loss is within 0.5% of the dense layer’s, while decoding a token reads 1/N of the units and a controller of rank d/N.',
  confidence: 'high',
  tier: 'foundational',
  source: 'Jaszczur et al. 2021, Sparse is Enough in Scaling Transformers (arXiv 2111.12763); Trax',
  patch: ({ width, hidden }) => {
    const block = hidden >= 512 ? 32 : 8;
    return { model: { ffn: { kind: 'sparse-ffn', hidden: equalHidden(width, hidden, block), block } } };
  },
});
