/** The shape of GPT-2 124M (Radford et al. 2019), pre-norm with GELU and learned positions. */
import type { Recipe } from '../src/cli/common.ts';

const recipe: Recipe = {
  summary: 'GPT-2 124M shape: d 768, 12 layers, T 1024',
  vocab: 50304,
  config: ({ data, vocab, steps, seed }) => ({
    name: 'gpt2-124m',
    seed,
    model: {
      vocab,
      context: 1024,
      width: 768,
      depth: 12,
      attention: { kind: 'full', heads: 12 },
      ffn: { kind: 'mlp', hidden: 3072 },
      norm: { kind: 'layer' },
      positions: 'learned',
    },
    data: { folder: data },
    batch: 4,
    accumulate: 8,
    steps: steps ?? 10000,
    optimiser: { kind: 'adamw', lr: 6e-4 },
    schedule: { kind: 'cosine', warmup: 0.02, floor: 0.1 },
    evaluate: { every: 500, tokens: 100_000 },
    checkpoint: { every: 500 },
  }),
};
export default recipe;
