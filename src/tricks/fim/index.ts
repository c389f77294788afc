/** Fill in the middle; the objective is src/objectives/fim.ts. */
import { registerTrick } from '../registry.ts';

registerTrick({
  name: 'fim',
  summary: 'part of the training texts have their middle moved to the end',
  hypothesis:
    'With half of the texts turned round a model learns to infill, and its left-to-right loss at equal tokens is unchanged.',
  confidence: 'moderate',
  tier: 'addon',
  source: 'Bavarian et al. 2022 ("Efficient training of language models to fill in the middle")',
  patch: () => ({ objective: { kind: 'fim' } }),
});
