/** Reversible layout: activation memory that does not grow with depth. See README.md. */
import { registerLayout } from '../../model/model.ts';
import { registerTrick } from '../registry.ts';
import { buildReversible, options } from './layout.ts';

export { type Block, block, halvesOf } from './block.ts';
export { stackOptions } from './layout.ts';
export { type Half, onGrid, runStack, type StackOptions, type Streams } from './stack.ts';

registerLayout('reversible', buildReversible, { options, rows: true });

registerTrick({
  name: 'reversible',
  summary: 'two residual streams that the backward pass rebuilds: activation memory independent of depth',
  hypothesis:
    'At equal parameters and tokens, held-out loss stays within 0.5% of the decoder’s at about 4/3 of its step time, with activation memory that does not grow with depth.',
  confidence: 'moderate',
  tier: 'foundational',
  source: 'Gomez et al. 2017 (RevNet); Kitaev et al. 2020 (Reformer), section 4; trax layers/reversible.py',
  patch: () => ({ model: { layout: 'reversible' } }),
});
