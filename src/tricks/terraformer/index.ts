/** Terraformer: an encoder-decoder without cross-attention, reversible, with recurrence. See README.md. */
import { registerLayout } from '../../model/model.ts';
import { registerTrick } from '../registry.ts';
import { buildTerraformer, options } from './layout.ts';
import './sru-ffn.ts';

export { groupsOf } from './run.ts';
export { sruCosts } from './sru-ffn.ts';

registerLayout('terraformer', buildTerraformer, { encoder: true, rowContexts: 2, rows: true, options });

registerTrick({
  name: 'terraformer',
  summary:
    'reversible encoder-decoder whose decoder reads the encoder’s tokens as its own past; recurrent feed-forward',
  hypothesis:
    'At equal parameters and tokens, loss on given-then-predicted text is within 1% of an encoder-decoder’s with cross-attention, with activation memory that does not grow with depth.',
  confidence: 'moderate',
  tier: 'foundational',
  source: 'Jaszczur et al. 2021 (arXiv 2111.12763), section 4; trax terraformer.py, rnn.py; Lei et al. 2018 (SRU)',
  patch: ({ depth, hidden }) => ({
    model: {
      layout: { kind: 'terraformer', encoderDepth: Math.ceil(depth / 2) },
      depth: Math.max(1, Math.floor(depth / 2)),
      ffn: { kind: 'sru-ffn', inner: { kind: 'glu', hidden } },
    },
    objective: { kind: 'prefix-lm' },
  }),
});
