/** Prefix language modelling; the objective is src/objectives/prefix-lm.ts. */
import { registerTrick } from '../registry.ts';

registerTrick({
  name: 'prefix-lm',
  summary: 'the beginning of a text is seen from both sides, the rest predicted token by token',
  hypothesis:
    'A decoder whose prompt tokens see each other reads prompts better after fine-tuning than a causal one of the same size; its loss as a plain language model per FLOP is worse, because prefixes have no targets.',
  confidence: 'moderate',
  tier: 'addon',
  source:
    'Raffel et al. 2020; Wang et al. 2022 ("What language model architecture and pretraining objective work best")',
  patch: () => ({ objective: { kind: 'prefix-lm' } }),
});
