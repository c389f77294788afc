/** Forgetful causal masking; the objective is src/objectives/fcm.ts. */
import { registerTrick } from '../registry.ts';

registerTrick({
  name: 'fcm',
  summary: 'next-token prediction with a random share of past tokens hidden',
  hypothesis:
    'Hiding up to 15 % of past tokens while training leaves held-out loss within 0.5 % and improves fine-tuned and few-shot results, at no cost in FLOPs.',
  confidence: 'low',
  tier: 'addon',
  source: 'Liu et al. 2022 ("FCM: forgetful causal masking makes causal language models better zero-shot learners")',
  patch: () => ({ objective: { kind: 'fcm' } }),
});
