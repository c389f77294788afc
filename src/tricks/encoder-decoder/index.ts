/** Encoder-decoder layout: what is given is read from both sides, once; what is predicted looks at it. */
import { registerLayout } from '../../model/model.ts';
import { registerTrick } from '../registry.ts';
import { buildEncoderDecoder, options } from './layout.ts';

registerLayout('encoder-decoder', buildEncoderDecoder, {
  encoder: true,
  options,
  rows: true,
});

registerTrick({
  name: 'encoder-decoder',
  summary: 'a bidirectional encoder for what is given, a causal decoder for what is predicted',
  hypothesis:
    'At equal training FLOPs and after fine-tuning, reading the given text from both sides gives lower loss on answers than a decoder, and a deep encoder with a shallow decoder generates several times faster.',
  confidence: 'moderate',
  tier: 'foundational',
  source:
    'Vaswani et al. 2017; Raffel et al. 2020; Kasai et al. 2020 (deep encoder, shallow decoder); T5Gemma 2 (merged attention)',
  patch: ({ depth }) => ({
    // Half of the blocks each: about the parameters of the base decoder, plus cross-attention.
    model: {
      layout: { kind: 'encoder-decoder', encoderDepth: Math.ceil(depth / 2) },
      depth: Math.max(1, Math.floor(depth / 2)),
    },
    objective: { kind: 'prefix-lm' },
  }),
});
