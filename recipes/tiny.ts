/** About 5M parameters: learns the shape of text in a minute or two on a laptop CPU. */
import type { Recipe } from '../src/cli/common.ts';

const recipe: Recipe = {
  summary: 'decoder of about 5M parameters (d 256, 6 layers, T 256): minutes on a CPU',
  vocab: 4096,
  config: ({ data, vocab, steps, seed }) => ({
    name: 'tiny',
    seed,
    model: {
      vocab,
      context: 256,
      width: 256,
      depth: 6,
      attention: { kind: 'full', heads: 4 },
      ffn: { kind: 'glu', hidden: 640 },
      norm: 'rms',
      positions: 'rope',
    },
    data: { folder: data },
    batch: 8,
    steps: steps ?? 2000,
    optimiser: { kind: 'adamw', lr: 1.5e-3 },
    schedule: { kind: 'wsd', warmup: 0.03, decay: 0.6, floor: 0 },
    evaluate: { every: 0 },
    checkpoint: { every: 500 },
  }),
};
export default recipe;
