/**
 * The essay's main guess stacked: an encoder-decoder whose feed-forward layers are mixtures of sparse experts, with
 * factored attention projections and output, xPos, UL2 and muP. About 6M parameters; `--set` takes it to any size.
 */
import type { Recipe } from '../src/cli/common.ts';

const width = 256;
const expert = { kind: 'sparse-ffn', hidden: 512, block: 32 };

const recipe: Recipe = {
  summary: 'the essay stacked: encoder-decoder, MoE of sparse experts, sparse QKV and loss, xPos, UL2, muP',
  vocab: 4096,
  config: ({ data, vocab, steps, seed }) => ({
    name: 'ansatz',
    seed,
    model: {
      vocab,
      context: 512,
      width,
      depth: 4,
      // The factored projections are causal by construction: the encoder looks both ways with full attention.
      layout: {
        kind: 'encoder-decoder',
        encoderDepth: 4,
        encoderAttention: { kind: 'full', heads: 4 },
        encoderPositions: 'rope',
      },
      attention: { kind: 'sparse-qkv', heads: 4 },
      ffn: { kind: 'moe', experts: 4, active: 1, expert },
      overrides: [{ layers: [0], ffn: { kind: 'sparse-ffn', hidden: 1024, block: 32 } }],
      norm: { kind: 'rms', scale: false },
      positions: 'xpos',
      tied: false,
      head: { kind: 'factored' },
      parametrisation: { kind: 'mup', baseWidth: width },
    },
    data: { folder: data },
    objective: { kind: 'ul2', budget: 128 },
    batch: 2,
    steps: steps ?? 2000,
    optimiser: { kind: 'adamw', lr: 1.5e-3 },
    schedule: { kind: 'wsd', warmup: 0.03, decay: 0.6, floor: 0 },
    checkpoint: { every: 500 },
  }),
};
export default recipe;
