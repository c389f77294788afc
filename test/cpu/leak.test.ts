// A thousand steps leave nothing behind, captured or eager; what is disposed is given back.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { disposeTree, flatten, forwardContext, initialise } from '../../src/nn/index.ts';
import * as T from '../../src/tensor/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { EvalStep, TrainStep } from '../../src/train/step.ts';
import { configOf, smallSpec, stepOn, tokenBatch } from '../support/small-models.ts';

const device = new CpuDevice();
const live = (): number => device.memory().liveAllocations;
setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

/** Bytes of the JavaScript heap after a full collection. */
async function heap(): Promise<number> {
  for (let k = 0; k < 3; k++) {
    gc();
    await new Promise((done) => setTimeout(done, 1));
  }
  return process.memoryUsage().heapUsed;
}

const MIB = 2 ** 20;

/** Lets tensors of earlier tests, which nothing holds any more, be collected; then what is live. */
async function settled(): Promise<{ live: number; cached: number; heap: number }> {
  let used = await heap();
  for (let before = -1; before !== live(); used = await heap()) before = live();
  return { live: live(), cached: device.memory().cachedBytes, heap: used };
}

describe('steps', () => {
  test('a thousand captured training steps', async () => {
    const config = parseTrainConfig(configOf(smallSpec({ dropout: 0.1 }), { length: 8, accumulate: 2 }));
    const model = buildModel(config.model);
    const params = initialise(model, device, 1);
    const step = new TrainStep(device, model, params, config, 8);
    const batches = [0, 1].map((k) => tokenBatch(`leak ${k}`, config.model.vocab, 2, 8));
    const run = async (from: number, to: number): Promise<void> => {
      for (let k = from; k < to; k++) await step.run(k, batches);
    };
    await run(0, 100);
    const before = await settled();
    await run(100, 1000);
    assert.equal(live(), before.live);
    assert.equal(device.memory().cachedBytes, before.cached);
    const grown = (await heap()) - before.heap;
    assert.ok(grown < MIB, `the heap grew by ${(grown / MIB).toFixed(2)} MiB`);
    step.dispose();
    disposeTree(params);
  });

  test('a thousand eager training steps', async () => {
    const step = stepOn(device, smallSpec({ depth: 1 }), { batch: 1, length: 6 });
    const params = flatten(step.params).map((p) => p.tensor);
    const state = params.map((p) => [T.zeros(device, p.shape), T.zeros(device, p.shape)]);
    const scalars = T.Tensor.from(device, [1e-3, 1, 1, 1, 1, 0, 0, 0], [8]);
    const options = { lrMult: 1, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1 };
    const run = (times: number): void => {
      for (let k = 0; k < times; k++)
        T.scope(() => {
          const { grads } = step.run();
          T.clipScale(scalars, T.concat(grads.map(T.sumsq), 0), 1);
          params.forEach((p, j) => {
            T.adamw(p, state[j][0], state[j][1], grads[j], scalars, null, options);
          });
        });
    };
    run(100);
    const before = await settled();
    run(900);
    // At once, without waiting for a garbage collection.
    assert.equal(live(), before.live);
    assert.equal(device.memory().cachedBytes, before.cached);
    const grown = (await heap()) - before.heap;
    assert.ok(grown < MIB, `the heap grew by ${(grown / MIB).toFixed(2)} MiB`);
  });

  test('steps that fail half-way', () => {
    const x = T.ones(device, [4, 4]).parameter();
    const run = (): void => {
      assert.throws(() =>
        T.scope(() => {
          const y = T.matmul(T.exp(x), x);
          T.gradients(T.sum(y), [x]);
          T.embedding(x, T.Tensor.from(device, [7], [1], 'i32'));
        }),
      );
    };
    run();
    const before = live();
    for (let k = 0; k < 50; k++) run();
    assert.equal(live(), before);
    x.dispose();
  });
});

describe('dispose()', () => {
  test('of a training step, an evaluation and their parameters gives everything back', async () => {
    for (const accumulate of [1, 2]) {
      const config = parseTrainConfig(configOf(smallSpec({ positions: 'learned' }), { length: 8, accumulate }));
      const model = buildModel(config.model);
      const before = device.memory();
      const params = initialise(model, device, 1);
      const step = new TrainStep(device, model, params, config, 8);
      const evaluation = new EvalStep(device, model, params, config, 8);
      const batch = tokenBatch('dispose', config.model.vocab, 2, 8);
      await step.run(0, new Array(accumulate).fill(batch));
      await evaluation.run(batch);
      assert.ok(live() > before.liveAllocations + 20);
      evaluation.dispose();
      step.dispose();
      disposeTree(params);
      const after = device.memory();
      assert.equal(after.liveAllocations, before.liveAllocations);
      assert.equal(after.liveBytes, before.liveBytes);
    }
  });

  test('of nothing but rotary tables waits for their model to be collected', async () => {
    const { live: before } = await settled();
    (() => {
      const config = parseTrainConfig(configOf(smallSpec(), { length: 8 }));
      const model = buildModel(config.model);
      const params = initialise(model, device, 1);
      new TrainStep(device, model, params, config, 8).dispose();
      disposeTree(params);
      assert.equal(live(), before + 2); // cos and sin
    })();
    for (let k = 0; k < 50 && live() > before; k++) await heap();
    assert.equal(live(), before);
  });

  test('trim() returns kept memory to the system', () => {
    T.scope(() => void T.zeros(device, [1000, 1000]));
    assert.ok(device.memory().cachedBytes >= 4e6);
    device.trim();
    assert.equal(device.memory().cachedBytes, 0);
  });

  test('forward passes without gradients keep nothing', () => {
    const { model, params, batch } = stepOn(device, smallSpec(), { batch: 2, length: 8 });
    const before = live();
    T.scope(() => T.noGrad(() => void model.hidden(params, batch, forwardContext({ device, compute: 'f32' }))));
    assert.equal(live(), before);
  });
});
