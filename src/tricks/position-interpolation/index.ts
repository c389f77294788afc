/** Longer contexts for a model trained with rotary positions: linear interpolation, NTK-aware bases, YaRN, Llama 3.1. */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { withContext } from '../../model/model.ts';
import type { ModelSpec } from '../../model/spec.ts';
import { registerSlot, type SlotConfig } from '../../nn/index.ts';
import { ropeOptions, rotaryPeriods, rotaryPositions, rotatedWidth, withBases } from '../../nn/positions.ts';
import { registerTrick } from '../registry.ts';

export const scalingMethods = ['linear', 'ntk', 'yarn', 'llama3'] as const;
export type ScalingMethod = (typeof scalingMethods)[number];

export interface Scaling {
  readonly method: ScalingMethod;
  /** How many times as long sequences become. */
  readonly factor: number;
  /** Length that the model was trained at. */
  readonly trained: number;
  readonly theta: number;
  /** YaRN and Llama 3.1: pairs that turn more often than this over the trained length stay as they are... */
  readonly betaFast: number;
  /** ...those that turn less often than this are interpolated in full. */
  readonly betaSlow: number;
}

/** Periods (over 2 pi) of the pairs of a head, and the factor on cos and sin. */
export function scaledPeriods(rotated: number, o: Scaling): { periods: Float64Array; magnitude: number } {
  const { theta, factor: s } = o;
  const periods = rotaryPeriods(rotated, theta);
  switch (o.method) {
    case 'linear':
      return { periods: periods.map((p) => p * s), magnitude: 1 };
    case 'ntk':
      if (rotated <= 2) throw new AnsatzError('positions rope-scaled: method ntk wants heads wider than 2');
      return { periods: rotaryPeriods(rotated, theta * s ** (rotated / (rotated - 2))), magnitude: 1 };
    case 'yarn': {
      // The index of the pair that turns r times over the trained length.
      const index = (r: number): number => (rotated * Math.log(o.trained / (2 * Math.PI * r))) / (2 * Math.log(theta));
      const low = Math.max(0, Math.floor(index(o.betaFast)));
      const high = Math.min(rotated - 1, Math.ceil(index(o.betaSlow)));
      const ramp = (i: number): number => Math.min(1, Math.max(0, (i - low) / Math.max(high - low, 1e-3)));
      return {
        periods: periods.map((p, i) => 1 / ((1 - ramp(i)) / p + ramp(i) / (s * p))),
        magnitude: 0.1 * Math.log(s) + 1,
      };
    }
    case 'llama3': {
      // As YaRN, but the ramp is linear in turns, not in pairs, and nothing is magnified.
      const { betaFast, betaSlow, trained } = o;
      const kept = (p: number): number =>
        Math.min(1, Math.max(0, (trained / (2 * Math.PI * p) - betaSlow) / (betaFast - betaSlow)));
      return { periods: periods.map((p) => 1 / (kept(p) / p + (1 - kept(p)) / (s * p))), magnitude: 1 };
    }
  }
}

registerSlot({
  slot: 'positions',
  kind: 'rope-scaled',
  summary: 'rotary positions of a trained model for longer sequences: linear, NTK-aware, YaRN, Llama 3.1',
  options: z.strictObject({
    ...ropeOptions,
    method: z.enum(scalingMethods).default('yarn'),
    factor: z.number().min(1),
    trained: z.int().positive(),
    betaFast: z.number().positive().default(32),
    betaSlow: z.number().positive().default(1),
  }),
  build: (o, { dims, headWidth }) => {
    if (o.method === 'llama3' && o.betaFast <= o.betaSlow)
      throw new AnsatzError('positions rope-scaled: method llama3 wants betaFast above betaSlow');
    const rotated = rotatedWidth('rope-scaled', headWidth, o.fraction);
    return withBases(o.theta, (theta) => {
      const { periods, magnitude } = scaledPeriods(rotated, { ...o, theta });
      return rotaryPositions(dims.context, periods, o.interleaved, magnitude);
    });
  },
});

/** The spec of a model trained with rope, for sequences of `length`; its weights fit. */
export function extendContext(
  model: ModelSpec,
  length: number,
  method: ScalingMethod,
  trained = model.context,
): ModelSpec {
  if (model.positions.kind !== 'rope')
    throw new AnsatzError(`only positions 'rope' can be scaled, the model has '${model.positions.kind}'`);
  const factor = Math.max(1, length / trained);
  const scaled = (rope: SlotConfig): SlotConfig => ({
    ...rope,
    ...{ kind: 'rope-scaled', method, factor, trained, betaFast: 32, betaSlow: 1 },
  });
  const { layout } = model;
  // An encoder that has rotary positions of its own reads longer texts too.
  const own = typeof layout === 'string' ? undefined : (layout.encoderPositions as SlotConfig | 'rope' | undefined);
  const encoder = own === 'rope' ? { kind: own } : own;
  return {
    ...withContext(model, length),
    ...(encoder?.kind === 'rope' && { layout: { ...(layout as object), encoderPositions: scaled(encoder) } }),
    positions: scaled(model.positions),
  } as ModelSpec;
}

registerTrick({
  name: 'position-interpolation',
  summary: 'a trained rope model reads longer sequences: positions or frequencies are scaled (linear, NTK, YaRN)',
  hypothesis:
    'After a short fine-tune (YaRN: a few hundred steps) loss at s times the length is what it was at the old one.',
  confidence: 'rival',
  tier: 'addon',
  source: 'Chen et al. 2023 (arXiv 2306.15595); Peng et al. 2023, YaRN (arXiv 2309.00071)',
  patch: ({ context }) => ({
    model: { context: 2 * context, positions: { kind: 'rope-scaled', method: 'yarn', factor: 2, trained: context } },
  }),
});
