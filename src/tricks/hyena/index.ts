/** Hyena (Poli et al. 2023): gated long convolutions with implicit filters in place of attention. See README.md. */
import { registerSlot } from '../../nn/index.ts';
import { registerTrick } from '../registry.ts';
import { buildHyena, hyenaSchema } from './layer.ts';

export { type HyenaCosts, type HyenaSizes, hyenaCosts } from './costs.ts';
export { decayRates, type FilterOptions, filterParams, implicitFilters } from './filter.ts';
export { filterOptions, type HyenaOptions, hyenaSchema, refuseMasks, shortTaps } from './layer.ts';

registerSlot({
  slot: 'attention',
  kind: 'hyena',
  summary: 'gated convolutions as long as the context, by FFT; filters from a small network of sines',
  options: hyenaSchema,
  rows: true,
  build: buildHyena,
  // Filters measure positions against their reach.
  settled: (o, context) => ({ ...o, reach: o.reach ?? context }),
});

registerTrick({
  name: 'hyena',
  summary: 'gated long convolutions in place of attention: O(T log T) in time, no T x T',
  hypothesis:
    'At 4096 tokens and more a training step is faster than with full attention, and held-out loss stays within 1% at equal parameters; recall of rare associations stays behind.',
  confidence: 'low',
  tier: 'foundational',
  source: 'Poli et al. 2023, Hyena Hierarchy (arXiv 2302.10866); HazyResearch/safari',
  patch: () => ({ model: { attention: { kind: 'hyena' }, positions: 'none' } }),
});
