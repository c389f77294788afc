/** Sparse attention projections (Jaszczur et al. 2021): a factored dense layer and convolutions. See README.md. */
import { registerSlot } from '../../nn/index.ts';
import { registerTrick } from '../registry.ts';
import { buildSparseQkv, sparseQkvSchema } from './layer.ts';

export { type SparseQkvCosts, type SparseQkvSizes, sparseQkvCosts } from './costs.ts';
export { factoredWeights, factors } from './factors.ts';
export { type SparseQkvOptions, sparseQkvSchema } from './layer.ts';

registerSlot({
  slot: 'attention',
  kind: 'sparse-qkv',
  summary: 'queries, keys and values from one factored dense layer and causal convolutions',
  options: sparseQkvSchema,
  rows: true,
  build: buildSparseQkv,
});

registerTrick({
  name: 'sparse-qkv',
  summary: 'attention projections with about 1/S of the weights: a factored dense layer, then convolutions',
  hypothesis:
    'With the saved weights given to the feed-forward layer, held-out loss stays within 0.5% of dense projections, and a decoded token reads 25 to 140 times fewer projection weights.',
  confidence: 'high',
  tier: 'foundational',
  source: 'Jaszczur et al. 2021, Sparse is Enough in Scaling Transformers (arXiv 2111.12763); Trax',
  patch: ({ heads }) => ({ model: { attention: { kind: 'sparse-qkv', heads } } }),
});
