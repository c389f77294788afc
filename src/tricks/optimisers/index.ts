/** Optimisers that are hypotheses; they are built in src/train/optimisers. */
import { registerTrick } from '../registry.ts';

registerTrick({
  name: 'lion',
  summary: 'the sign of an interpolated momentum, one state tensor instead of two',
  hypothesis: 'The same held-out loss as tuned AdamW in the same steps, with half of the optimiser state.',
  confidence: 'rival',
  tier: 'foundational',
  source: 'Chen et al. 2023, Symbolic Discovery of Optimization Algorithms (arXiv 2302.06675)',
  patch: () => ({ optimiser: { kind: 'lion' } }),
});

registerTrick({
  name: 'muon',
  summary: 'orthogonalised momentum for hidden matrices, AdamW for embeddings, heads and vectors',
  hypothesis: 'A given held-out loss in a third fewer tokens than tuned AdamW at 0.1B parameters, less of that at 1B.',
  confidence: 'rival',
  tier: 'foundational',
  source: 'Jordan et al. 2024, Muon; Liu et al. 2025 (arXiv 2502.16982)',
  patch: () => ({ optimiser: { kind: 'muon' } }),
});

registerTrick({
  name: 'adafactor',
  summary: 'second moments kept by rows and columns, steps relative to the weights',
  hypothesis: 'Close to the loss of AdamW with optimiser state that is negligible beside the weights.',
  confidence: 'rival',
  tier: 'foundational',
  source: 'Shazeer and Stern 2018 (arXiv 1804.04235)',
  patch: () => ({ optimiser: { kind: 'adafactor' } }),
});
