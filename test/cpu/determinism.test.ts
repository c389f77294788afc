// Same seed, same bits: over repeated runs, over numbers of threads; accumulated micro-batches equal one large batch.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import type { TokenBatch } from '../../src/data/types.ts';
import { buildModel } from '../../src/model/model.ts';
import { disposeTree, flatten, initialise } from '../../src/nn/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { type StepResult, TrainStep } from '../../src/train/step.ts';
import { configOf, joined, type SpecChanges, smallSpec, tokenBatch } from '../support/small-models.ts';

const device = new CpuDevice();
const { threads, level, levels } = device.info();
after(() => {
  device.useThreads(threads);
  device.useLevel(level);
});

interface Trained {
  readonly steps: StepResult[];
  /** Hash of every parameter's bits. */
  readonly params: string[];
}

/** Trains a fresh model; step k sees micro-batches k accumulate, ... of `batches`. */
async function trained(
  changes: Record<string, unknown>,
  spec: SpecChanges,
  batches: readonly TokenBatch[],
  accumulate = 1,
): Promise<Trained> {
  const length = batches[0].length;
  const config = parseTrainConfig(
    configOf(smallSpec(spec), {
      length,
      batch: batches[0].batch,
      accumulate,
      optimiser: { kind: 'adamw', lr: 0.01 },
      ...changes,
    }),
  );
  const model = buildModel(config.model);
  const params = initialise(model, device, config.seed);
  const step = new TrainStep(device, model, params, config, length);
  const steps: StepResult[] = [];
  for (let k = 0; (k + 1) * accumulate <= batches.length; k++)
    steps.push(await step.run(k, batches.slice(k * accumulate, (k + 1) * accumulate)));
  const hashes = flatten(params).map(({ path, tensor }) => {
    const bits = tensor.bitsSync() as Float32Array;
    return `${path} ${createHash('sha256').update(new Uint8Array(bits.buffer)).digest('hex')}`;
  });
  step.dispose();
  disposeTree(params);
  return { steps, params: hashes };
}

const batchesOf = (n: number, rows: number, length: number): TokenBatch[] =>
  Array.from({ length: n }, (_, k) => tokenBatch(`determinism ${k}`, 11, rows, length));

describe('bit-identical', () => {
  const spec: SpecChanges = { width: 32, attention: { kind: 'full', heads: 4, kvHeads: 2 }, dropout: 0.1 };
  const batches = batchesOf(20, 6, 16);

  for (const precision of ['bf16', 'f32'])
    test(`losses and parameters of 20 steps with one seed (${precision})`, async () => {
      const [a, b] = [await trained({ precision }, spec, batches), await trained({ precision }, spec, batches)];
      assert.equal(a.steps.length, 20);
      assert.ok(a.steps.every((s) => s.finite && s.loss > 0 && s.gradNorm > 0));
      assert.deepEqual(a, b);
      const other = await trained({ precision, seed: 2 }, spec, batches);
      assert.notDeepEqual(a.steps, other.steps);
    });

  test('whatever the number of threads, on every instruction-set level', async () => {
    for (const name of levels) {
      device.useLevel(name);
      const runs: Trained[] = [];
      for (const n of [1, 2, 3]) {
        device.useThreads(n);
        runs.push(await trained({ precision: 'bf16' }, spec, batches.slice(0, 6)));
      }
      assert.deepEqual(runs[1], runs[0], name);
      assert.deepEqual(runs[2], runs[0], name);
    }
    device.useLevel(level);
    device.useThreads(threads);
  });
});

test('measuring a step before training changes nothing that follows', async () => {
  const batch = tokenBatch('measure', 11, 2, 8);
  const results: unknown[] = [];
  for (const measured of [false, true])
    for (const accumulate of [1, 2]) {
      const config = parseTrainConfig(configOf(smallSpec({ dropout: 0.1 }), { length: 8, accumulate }));
      const model = buildModel(config.model);
      const params = initialise(model, device, 1);
      const step = new TrainStep(device, model, params, config, 8);
      const batches = new Array(accumulate).fill(batch);
      if (measured) assert.ok((await step.measure(batches, 0.01)) > 0);
      const losses = [];
      for (let k = 0; k < 4; k++) losses.push(await step.run(k, batches));
      results.push({ accumulate, losses });
      step.dispose();
      disposeTree(params);
    }
  assert.deepEqual(results.slice(2), results.slice(0, 2));
});

describe('accumulation', () => {
  // f32 sums in another order: 1e-5 relative for one step. Adam divides by the root of squared gradients, so over ten
  // steps differences of tiny gradients grow; the loss stays within 1e-3.
  test('two micro-batches equal one batch of both', async () => {
    const micro = batchesOf(20, 3, 16);
    const large = Array.from({ length: 10 }, (_, k) => joined(micro[2 * k], micro[2 * k + 1]));
    const [two, one] = [await trained({}, {}, micro, 2), await trained({}, {}, large)];
    const near = (a: number, b: number, tolerance: number, what: string): void =>
      assert.ok(Math.abs(a - b) <= tolerance * Math.abs(b), `${what}: ${a} and ${b}`);
    near(two.steps[0].loss, one.steps[0].loss, 1e-5, 'first loss');
    near(two.steps[0].gradNorm, one.steps[0].gradNorm, 1e-5, 'first gradient norm');
    for (let k = 0; k < 10; k++) near(two.steps[k].loss, one.steps[k].loss, 1e-3, `loss of step ${k}`);
    assert.ok(one.steps[9].loss < one.steps[0].loss);
  });

  test('micro-batches of unequal size weigh every target alike', async () => {
    const [a, b] = batchesOf(2, 3, 16);
    // Half of b's targets do not count.
    for (let k = 0; k < b.targets.length; k += 2) b.targets[k] = -1;
    b.targetCount = b.targets.reduce((n, t) => n + +(t >= 0), 0);
    const [two, one] = [await trained({}, {}, [a, b], 2), await trained({}, {}, [joined(a, b)])];
    assert.ok(Math.abs(two.steps[0].loss - one.steps[0].loss) < 1e-5 * one.steps[0].loss);
    assert.ok(Math.abs(two.steps[0].gradNorm - one.steps[0].gradNorm) < 1e-5 * one.steps[0].gradNorm);
  });
});

describe('a step that is not finite', () => {
  test('changes no parameter and says so', async () => {
    const config = parseTrainConfig(configOf(smallSpec(), { length: 8 }));
    const model = buildModel(config.model);
    const params = initialise(model, device, 1);
    const step = new TrainStep(device, model, params, config, 8);
    const batch = tokenBatch('finite', config.model.vocab, 2, 8);
    assert.equal((await step.run(0, [batch])).finite, true);
    const norm = flatten(params).find((p) => p.path === 'norm.weight')!.tensor;
    const whole = norm.dataSync().slice();
    norm.write(Float32Array.from(whole, () => Number.NaN));
    const before = flatten(params).map((p) => p.tensor.dataSync().slice());
    const state = [...step.optimiser.state.values()].map((t) => t.dataSync().slice());
    assert.equal((await step.run(1, [batch])).finite, false);
    assert.deepEqual(
      flatten(params).map((p) => p.tensor.dataSync()),
      before,
    );
    assert.deepEqual(
      [...step.optimiser.state.values()].map((t) => t.dataSync()),
      state,
    );
    norm.write(whole);
    assert.equal((await step.run(2, [batch])).finite, true);
    step.dispose();
    disposeTree(params);
  });
});
