// Small languages that a small model learns in seconds.
import assert from 'node:assert/strict';
import type { Device } from '../../src/backend/device.ts';
import { createBatch, type TokenBatch } from '../../src/data/types.ts';
import { buildModel, type Model } from '../../src/model/model.ts';
import { initialise, type ParamTree } from '../../src/nn/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { EvalStep, TrainStep } from '../../src/train/step.ts';
import { Rng } from './kernel-cases/build.ts';
import { configOf, type SpecChanges, smallSpec } from './small-models.ts';

export interface Row {
  readonly tokens: readonly number[];
  counts(t: number): boolean;
}

export interface ToyTask {
  readonly spec: SpecChanges;
  readonly rows?: number;
  readonly length: number;
  readonly steps: number;
  readonly precision?: 'f32' | 'bf16';
  readonly lr?: number;
  readonly accumulate?: number;
  /** Parameters to go on with, of the same spec. */
  readonly from?: ParamTree;
  row(rng: Rng): Row;
}

/** Fills a batch with rows of tokens and next-token targets where they count. */
export function fillBatch(batch: TokenBatch, row: () => Row): TokenBatch {
  const { length } = batch;
  batch.targetCount = 0;
  for (let b = 0; b < batch.batch; b++) {
    const { tokens, counts } = row();
    for (let t = 0; t < length; t++) {
      const at = b * length + t;
      batch.inputs[at] = tokens[t];
      batch.targets[at] = counts(t) ? tokens[t + 1] : -1;
      batch.positions[at] = t;
      batch.segments[at] = 1;
      if (counts(t)) batch.targetCount++;
    }
  }
  return batch;
}

/** A word of n of 8 letters, a mark, the word again: the second one can be foretold from the first. */
export const copying = (n: number) => ({
  length: 2 * n,
  row: (rng: Rng): Row => {
    const word = Array.from({ length: n }, () => rng.int(0, 7));
    return { tokens: [...word, 8, ...word], counts: (t) => t >= n };
  },
});

/** From each of ten letters, one of three with probabilities 1/2, 1/4, 1/4: entropy 1.5 ln 2. */
export const grammar = (length = 16) => ({
  length,
  entropy: 1.5 * Math.log(2),
  row: (rng: Rng): Row => {
    const tokens = [rng.int(0, 9)];
    while (tokens.length <= length) {
      const u = rng.next();
      tokens.push((3 * tokens[tokens.length - 1] + (u < 0.5 ? 1 : u < 0.75 ? 4 : 6)) % 10);
    }
    return { tokens, counts: () => true };
  },
});

export interface Learned {
  /** Loss on fresh rows before and after training. */
  readonly first: number;
  readonly last: number;
  /** What each training step reported. */
  readonly losses: number[];
  readonly model: Model;
  readonly params: ParamTree;
}

export async function learn(device: Device, task: ToyTask): Promise<Learned> {
  const { rows = 32, length, steps, precision = 'f32', lr = 6e-3, accumulate = 1 } = task;
  const config = parseTrainConfig(
    configOf(smallSpec({ context: length, ...task.spec }), {
      ...{ batch: rows, length, steps, precision, accumulate },
      optimiser: { kind: 'adamw', lr, decay: 0.01 },
      schedule: { kind: 'cosine', warmup: 0.05 },
    }),
  );
  const model = buildModel(config.model);
  const params = task.from ?? initialise(model, device, 1);
  const step = new TrainStep(device, model, params, config, length);
  const evaluation = new EvalStep(device, model, params, config, length);
  const batch = createBatch(rows, length);
  const loss = async (): Promise<number> => {
    const rng = new Rng('held out');
    let [nats, targets] = [0, 0];
    for (let k = 0; k < 8; k++) {
      const r = await evaluation.run(fillBatch(batch, () => task.row(rng)));
      nats += r.nats;
      targets += r.targets;
    }
    return nats / targets;
  };
  const first = await loss();
  const rng = new Rng('training');
  const batches = Array.from({ length: accumulate }, () => createBatch(rows, length));
  const losses: number[] = [];
  for (let k = 0; k < steps; k++) {
    for (const b of batches) fillBatch(b, () => task.row(rng));
    const { finite, loss: reported } = await step.run(k, batches);
    assert.ok(finite);
    losses.push(reported);
  }
  const last = await loss();
  step.dispose();
  evaluation.dispose();
  return { first, last, losses, model, params };
}
