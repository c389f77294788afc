/** The decoder that every trick is compared with: small enough for dozens of trainings in a quarter of an hour. */
import type { TrainConfigInput } from '../../train/config.ts';

export interface BaseSize {
  readonly width: number;
  readonly depth: number;
  readonly heads: number;
  readonly hidden: number;
  /** Tokens of a row, and rows of a step. */
  readonly length: number;
  readonly batch: number;
  readonly precision?: 'bf16' | 'f32';
}

/** Heads of 32 channels, a feed-forward layer of 2.5 widths. */
export const sizeOf = (width: number): BaseSize => ({
  width,
  depth: 4,
  heads: width / 32,
  hidden: 2.5 * width,
  length: 256,
  batch: 4,
});

/**
 * 0.8M parameters with a vocabulary of 4096. Wider models see too little text in the time of a run to be better (128
 * channels ended about 0.1 bits per byte higher in about equal time, one seed each); narrower ones are all embeddings, which leaves stacked tricks no room.
 */
export const USUAL_WIDTH = 96;

/** Peak learning rate of the base; that of every arm too, with its own optimiser's factor where it has another. */
export const BASE_RATE = 3e-3;

/** RMSNorm, RoPE, gated feed-forward, tied; warm-up, a stable part, decay to zero. */
export function baseConfig(size: BaseSize, data: { folder: string; vocab: number }): TrainConfigInput {
  const { width, depth, heads, hidden, length, batch, precision = 'bf16' } = size;
  return {
    name: 'first-look',
    seed: 1,
    precision,
    model: {
      vocab: data.vocab,
      context: length,
      width,
      depth,
      attention: { kind: 'full', heads },
      ffn: { kind: 'glu', hidden },
      norm: 'rms',
      positions: 'rope',
    },
    data: { folder: data.folder },
    length,
    batch,
    steps: 1,
    optimiser: { kind: 'adamw', lr: BASE_RATE },
    schedule: { kind: 'wsd', warmup: 0.03, decay: 0.6, floor: 0 },
  };
}
