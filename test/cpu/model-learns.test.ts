// Small decoders learn small languages, in seconds: copying, which takes attention, and a grammar whose best loss is known.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { createBatch, type TokenBatch } from '../../src/data/types.ts';
import { buildModel } from '../../src/model/model.ts';
import { initialise } from '../../src/nn/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { EvalStep, TrainStep } from '../../src/train/step.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { configOf, type SpecChanges, smallSpec } from '../support/small-models.ts';

const device = new CpuDevice();

/** Fills a batch with rows of tokens and next-token targets where they count. */
function fill(batch: TokenBatch, row: () => { tokens: number[]; counts: (t: number) => boolean }): TokenBatch {
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

interface Task {
  readonly spec: SpecChanges;
  readonly rows: number;
  readonly length: number;
  readonly steps: number;
  readonly precision: 'f32' | 'bf16';
  row(rng: Rng): { tokens: number[]; counts: (t: number) => boolean };
}

/** Loss on fresh rows, before and after training. */
async function learn(task: Task): Promise<{ first: number; last: number }> {
  const { rows, length, steps, precision } = task;
  const config = parseTrainConfig(
    configOf(smallSpec({ context: length, ...task.spec }), {
      ...{ batch: rows, length, steps, precision },
      optimiser: { kind: 'adamw', lr: 6e-3, decay: 0.01 },
      schedule: { kind: 'cosine', warmup: 0.05 },
    }),
  );
  const model = buildModel(config.model);
  const params = initialise(model, device, 1);
  const step = new TrainStep(device, model, params, config, length);
  const evaluation = new EvalStep(device, model, params, config, length);
  const batch = createBatch(rows, length);
  const loss = async (): Promise<number> => {
    const rng = new Rng('held out');
    let [nats, targets] = [0, 0];
    for (let k = 0; k < 8; k++) {
      const r = await evaluation.run(fill(batch, () => task.row(rng)));
      nats += r.nats;
      targets += r.targets;
    }
    return nats / targets;
  };
  const first = await loss();
  const rng = new Rng('training');
  for (let k = 0; k < steps; k++) {
    const { finite } = await step.run(k, [fill(batch, () => task.row(rng))]);
    assert.ok(finite);
  }
  return { first, last: await loss() };
}

describe('learning', () => {
  for (const precision of ['f32', 'bf16'] as const)
    test(`copying 7 of 8 letters after a mark (${precision})`, async () => {
      const n = 7;
      const { first, last } = await learn({
        spec: { vocab: 9, width: 64, attention: { kind: 'full', heads: 4 }, ffn: { kind: 'glu', hidden: 64 } },
        ...{ rows: 32, length: 2 * n, steps: 400, precision },
        row: (rng) => {
          const word = Array.from({ length: n }, () => rng.int(0, 7));
          return { tokens: [...word, 8, ...word], counts: (t) => t >= n };
        },
      });
      assert.ok(Math.abs(first - Math.log(9)) < 0.3, `untrained loss ${first}`);
      assert.ok(last < 0.05, `loss ${last} after training`);
    });

  test('a grammar down to its entropy, and not below', async () => {
    // From each letter, one of three letters with probabilities 1/2, 1/4, 1/4.
    const next = (from: number, rng: Rng): number => {
      const u = rng.next();
      return (3 * from + (u < 0.5 ? 1 : u < 0.75 ? 4 : 6)) % 10;
    };
    const entropy = 1.5 * Math.log(2);
    const { last } = await learn({
      spec: { vocab: 10, width: 32, depth: 1 },
      ...{ rows: 32, length: 16, steps: 250, precision: 'f32' },
      row: (rng) => {
        const tokens = [rng.int(0, 9)];
        while (tokens.length < 17) tokens.push(next(tokens[tokens.length - 1], rng));
        return { tokens, counts: () => true };
      },
    });
    // Sampling error of the 4096 held-out targets: about 0.006.
    assert.ok(last < entropy + 0.05, `loss ${last}, entropy ${entropy}`);
    assert.ok(last > entropy - 0.03, `loss ${last} is below the entropy ${entropy}: the future leaks`);
  });
});
