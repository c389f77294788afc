/** Reformer's attention by locality-sensitive hashing. See README.md. */
import { registerSlot } from '../../nn/index.ts';
import { registerTrick } from '../registry.ts';
import { buildLsh, lshSchema } from './layer.ts';

export { type LshOptions, lshSchema } from './layer.ts';
export { bucketFactors, type LshSizes, lshFlops } from './sizing.ts';

registerSlot({
  slot: 'attention',
  kind: 'lsh',
  summary: 'attention within chunks of tokens whose queries hash alike; queries are keys too',
  options: lshSchema,
  rows: true,
  build: buildLsh,
});

registerTrick({
  name: 'lsh-attention',
  summary: 'a query sees the tokens in its hash bucket: cost grows with T, not with its square',
  hypothesis:
    'From 8k tokens on, held-out loss stays within 1% of full attention’s while a training step’s attention takes at most a fifth of the time.',
  confidence: 'high',
  tier: 'foundational',
  source: 'Kitaev et al. 2020, Reformer (arXiv 2001.04451); Trax',
  patch: ({ heads }) => ({ model: { attention: { kind: 'lsh', heads } } }),
});
