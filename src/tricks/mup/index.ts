/** muP (Yang et al. 2022), and CompleteP for depth (Dey et al. 2025): rates tuned on a small model hold for large ones. */
import { z } from 'zod';
import { registerParametrisation } from '../../nn/index.ts';
import { registerTrick } from '../registry.ts';
import { mup } from './rules.ts';

export { type MupOptions, mup } from './rules.ts';

registerParametrisation({
  kind: 'mup',
  summary: 'maximal update parametrisation: what is tuned at baseWidth (and baseDepth) holds at any size',
  options: z.strictObject({
    /** Width of the model that the rates were tuned on. */
    baseWidth: z.int().positive(),
    /** Its depth: residual branches are then scaled by depth too (CompleteP). Without it, keep the depth. */
    baseDepth: z.int().positive().optional(),
    /** Branches are multiplied by (depth / baseDepth)^-alpha; 1/2 is depth-muP. */
    alpha: z.number().min(0.5).max(1).default(1),
    /** Width of its attention heads, when heads grow with the model; by default they do not. */
    baseHeadWidth: z.int().positive().optional(),
    /** Factors on embeddings, logits and attention scores, to be tuned on the small model. */
    embedding: z.number().positive().default(1),
    output: z.number().positive().default(1),
    attention: z.number().positive().default(1),
    /** An untied head starts at zero, and so do other outputs that may. (Routers do not: equal scores are ties.) */
    zeroOutput: z.boolean().default(false),
  }),
  build: (o, sizes) => mup(o, sizes),
});

registerTrick({
  name: 'mup',
  summary: 'initialisation, learning rates and multipliers by role and width, so that tuned values transfer',
  hypothesis:
    'The best learning rate at width 256 is within half an octave of the best at 2048, and wider models are never worse at any step.',
  confidence: 'high',
  tier: 'foundational',
  source: 'Yang et al. 2022, Tensor Programs V (arXiv 2203.03466); Dey et al. 2025, CompleteP (arXiv 2505.01618)',
  patch: ({ width, depth }) => ({
    model: { parametrisation: { kind: 'mup', baseWidth: Math.min(width, 256), baseDepth: depth } },
  }),
});
