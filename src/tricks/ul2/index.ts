/** Mixture of denoisers; the objective is src/objectives/ul2.ts. */
import { registerTrick } from '../registry.ts';

export { corrupt, reconstruct } from './corrupt.ts';
export { exampleLengths, rawForInputs, rawForStream, streamLength } from './lengths.ts';
export { type Denoiser, mixtures, quotas, smallestRow } from './mixtures.ts';
export { compose, counts, openMask, rint32, t5Mask } from './spans.ts';
export { ul2Specials } from './specials.ts';

registerTrick({
  name: 'ul2',
  summary: 'seven denoisers with mode tokens: short spans, continuation, long or dense spans',
  hypothesis:
    'At equal FLOPs a mixture of denoisers gives better fine-tuned results than span corruption or causal training alone, and much better infilling, for a continuation loss that is a few per cent worse than causal training (which has about four times its targets).',
  confidence: 'high',
  tier: 'foundational',
  source: 'Tay et al. 2022 ("UL2: unifying language learning paradigms"); Tay et al. 2022 (UL2R)',
  // A row holds ten examples: one row is a micro-batch about as large as the base's.
  patch: () => ({ objective: { kind: 'ul2' }, batch: 1 }),
});
