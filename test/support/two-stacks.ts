// Small encoder-decoders and rows for them.
import type { Device } from '../../src/backend/device.ts';
import { type Batch, buildModel, type Model } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { forwardContext, type ParamTree } from '../../src/nn/index.ts';
import { type Compute, noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';
import { Rng } from './kernel-cases/build.ts';
import { perturbedParams, type SpecChanges, smallSpec } from './small-models.ts';

export const twoStacks = (layout: Record<string, unknown> = {}, changes: SpecChanges = {}): ModelSpecInput =>
  smallSpec({ layout: { kind: 'encoder-decoder', ...layout }, ...changes });

export const stackVariants: Readonly<Record<string, ModelSpecInput>> = {
  plain: twoStacks(),
  'deep encoder, shallow decoder': twoStacks({ encoderDepth: 3 }, { depth: 1 }),
  'cross-attention in every second block, grouped heads': twoStacks(
    { crossEvery: 2, crossHeads: 4, crossKvHeads: 2 },
    { depth: 3, attention: { kind: 'full', heads: 2, kvHeads: 1 }, norm: { kind: 'layer', bias: true } },
  ),
  merged: twoStacks({ merged: true }),
  'merged, grouped heads, untied, z-loss': twoStacks(
    { merged: true, encoderDepth: 1 },
    { attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 4 }, tied: false, zLoss: 0.01, positions: 'learned' },
  ),
};

export interface Rows {
  readonly encoder: readonly number[];
  readonly decoder: readonly number[];
  /** Segment of each token; by default all 1. */
  readonly encoderSegments?: readonly number[];
  readonly decoderSegments?: readonly number[];
  /** Which decoder segment reads each encoder token, where that is not the encoder's own segment. */
  readonly readers?: readonly number[];
  readonly targets?: readonly number[];
}

const positionsOf = (segments: readonly number[]): number[] => segments.map((s, k) => k - segments.indexOf(s));

export function rowOn(device: Device, rows: Rows): Batch {
  const { encoder, decoder } = rows;
  const ids = (x: readonly number[]): Tensor => Tensor.from(device, [...x], [1, x.length], 'i32');
  const [es, ds] = [rows.encoderSegments ?? encoder.map(() => 1), rows.decoderSegments ?? decoder.map(() => 1)];
  const targets = rows.targets ?? decoder.map(() => -1);
  const counted = targets.filter((t) => t >= 0).length;
  return {
    inputs: ids(decoder),
    targets: ids(targets),
    segments: ids(ds),
    positions: ids(positionsOf(ds)),
    weights: Tensor.from(
      device,
      decoder.map(() => 1 / Math.max(1, counted)),
      [1, decoder.length],
    ),
    encoder: {
      inputs: ids(encoder),
      segments: ids(es),
      positions: ids(positionsOf(es)),
      readers: rows.readers ? ids(rows.readers) : null,
    },
  };
}

/** Logits of each decoder token. */
export function logitsOf(
  device: Device,
  model: Model,
  params: ParamTree,
  rows: Rows,
  compute: Compute = 'f32',
): number[][] {
  model.prepare(device);
  const all = scope(() =>
    noGrad(() => {
      const c = forwardContext({ device, compute });
      return model.logits(params, model.hidden(params, rowOn(device, rows), c), c).dataSync();
    }),
  );
  const v = all.length / rows.decoder.length;
  return rows.decoder.map((_, t) => Array.from(all.slice(t * v, (t + 1) * v)));
}

export const tokens = (seed: string, n: number, vocab = 11): number[] => {
  const rng = new Rng(seed);
  return Array.from({ length: n }, () => rng.int(0, vocab - 1));
};

export const built = (device: Device, spec: ModelSpecInput): { model: Model; params: ParamTree } => {
  const model = buildModel(spec);
  return { model, params: perturbedParams(model, device) };
};

/** Largest difference relative to the largest value. */
export function distance(a: readonly number[][], b: readonly number[][]): number {
  const [x, y] = [a.flat(), b.flat()];
  const most = Math.max(...x.map(Math.abs));
  return Math.max(...x.map((v, k) => Math.abs(v - y[k]))) / most;
}
