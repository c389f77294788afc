/** Sliding windows in most layers, full attention in one of every few (Gemma 3, Mistral, Gemma 2). See README.md. */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { attentionOptions } from '../../nn/attention.ts';
import { buildSlot, type Positions, registerSlot } from '../../nn/index.ts';
import { registerTrick } from '../registry.ts';
import { isGlobal } from './costs.ts';

export { isGlobal, type KvSizes, kvBytes, type WindowPattern, windowPairs } from './costs.ts';

function rebased(positions: Positions, theta: number): Positions {
  if (positions.rebased) return positions.rebased(theta);
  throw new AnsatzError('attention window: globalTheta wants rotary positions, the model has others', {
    hint: "use positions 'rope', or leave globalTheta out",
  });
}

registerSlot({
  slot: 'attention',
  kind: 'window',
  summary: 'sliding-window attention, with full attention in one layer of every period (Gemma 3)',
  generalMasks: true,
  rows: true,
  options: attentionOptions.extend({
    /** Tokens that a local layer sees, the present one included. */
    window: z.int().positive().default(1024),
    /** One layer in this many is global, the last of each period; 0: none. */
    period: z.int().min(0).default(6),
    /** Base of the rotary periods in global layers; that of the model's positions when absent. */
    globalTheta: z.number().positive().optional(),
  }),
  build: ({ period, window, globalTheta, ...same }, context) => {
    const global = isGlobal(context.layer, context.dims.depth, period);
    const turned = globalTheta === undefined ? context.positions : rebased(context.positions, globalTheta);
    const positions = global ? turned : context.positions;
    return buildSlot('attention', { ...same, kind: 'full', window: global ? 0 : window }, { ...context, positions });
  },
});

registerTrick({
  name: 'window-attention',
  summary: 'sliding windows in five layers of six, full attention in the sixth: keys and values shrink five times',
  hypothesis:
    'Held-out loss stays within 0.5% of full attention at contexts many windows long, and a copy from further back than a window is still made.',
  confidence: 'high',
  tier: 'foundational',
  source: 'Gemma Team 2025, Gemma 3 (arXiv 2503.19786); Jiang et al. 2023, Mistral 7B (arXiv 2310.06825)',
  patch: ({ heads, context }) => ({
    model: { attention: { kind: 'window', heads, window: Math.min(1024, Math.max(1, context >> 2)) } },
  }),
});
