/** xPos (Sun et al. 2022), and blockwise causal attention, which it needs past the training length. */
import './blockwise.ts';
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { registerSlot } from '../../nn/index.ts';
import { registerTrick } from '../registry.ts';
import { xposPositions } from './positions.ts';

export { withBlocks } from './blockwise.ts';
export { logZeta, xposPositions } from './positions.ts';

registerSlot({
  slot: 'positions',
  kind: 'xpos',
  summary: 'rotary positions whose scores fade with distance, faster in faster pairs (Sun et al. 2022)',
  pastOnly: true,
  options: z.strictObject({
    theta: z.number().positive().default(10000),
    /** Larger: slower fading. */
    gamma: z.number().positive().default(0.4),
    /** Tokens over which a pair's score fades by its zeta. */
    scaleBase: z.number().positive().default(512),
    interleaved: z.boolean().default(false),
  }),
  build: (o, { dims, headWidth, causal = true }) => {
    // zeta^((n-m)/B) fades only where the key stands before the query: ahead of it scores would grow.
    if (!causal)
      throw new AnsatzError('positions xpos: scores fade towards the past only, an encoder also looks ahead', {
        hint: "set layout.encoderPositions to 'rope'",
      });
    return xposPositions(o, dims.context, headWidth);
  },
});

registerTrick({
  name: 'xpos',
  summary: 'rotary positions with a decay that grows with distance; blockwise attention past the training length',
  hypothesis:
    'At equal training compute, a model trained at length l keeps its loss per token at 4 l with blockwise attention, where rotary positions do not.',
  confidence: 'moderate',
  tier: 'foundational',
  source: 'Sun et al. 2022, A Length-Extrapolatable Transformer (arXiv 2212.10554); TorchScale',
  patch: () => ({ model: { positions: { kind: 'xpos' } } }),
});
