// Sparse activations without a controller: statistical top-k and ReLU with an L1 term.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { forwardContext, tensorOf } from '../../src/nn/index.ts';
import { gradients, normalQuantile, RandomState, scope, statTopk, Tensor, zeros } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { activityOf } from '../../src/tricks/relu-l1/index.ts';
import { checkCausality, normalTensor, slotLayer } from '../support/slot-layer.ts';
import { configOf, smallSpec } from '../support/small-models.ts';

const cpu = new CpuDevice();
const random = new RandomState(cpu, 1);
const width = 16;

describe('statistical top-k', () => {
  test('normal quantiles', () => {
    for (const [p, z] of [
      [0.5, 0],
      [0.975, 1.959963984540054],
      [0.92, 1.4050715603096329],
      [0.001, -3.090232306167813],
    ])
      assert.ok(Math.abs(normalQuantile(p) - z) < 1e-9, `${p}: ${normalQuantile(p)}`);
  });

  test('of normally distributed scores about k stay: the largest ones, less the threshold', () => {
    const [rows, F] = [32, 2048];
    const x = normalTensor(cpu, 'scores', [rows, F], 3);
    const [y, values] = [statTopk(x, normalQuantile(0.92)).dataSync(), x.dataSync()];
    let alive = 0;
    for (let r = 0; r < rows; r++) {
      const row = Array.from({ length: F }, (_, k) => k).filter((k) => y[r * F + k] > 0);
      alive += row.length;
      const least = Math.min(...row.map((k) => values[r * F + k]));
      for (let k = 0; k < F; k++) assert.equal(y[r * F + k] > 0, values[r * F + k] >= least);
    }
    assert.ok(Math.abs(alive / (rows * F) - 0.08) < 0.003, `${alive / (rows * F)} active`);
  });

  test('a row of equal scores has none above its mean, and no gradient', () => {
    scope(() => {
      const x = Tensor.from(cpu, [2, 2, 2, 2], [1, 4]);
      x.requiresGrad = true;
      const y = statTopk(x, 1);
      assert.deepEqual([...y.dataSync()], [0, 0, 0, 0]);
      assert.deepEqual([...gradients(y, [x], Tensor.from(cpu, [1, 1, 1, 1], [1, 4]))[0].dataSync()], [0, 0, 0, 0]);
    });
  });

  test('parameters: two matrices in all (spark), three (gated)', () => {
    const parameters = (ffn: Record<string, unknown>): number =>
      accountFor(parseTrainConfig(configOf(smallSpec({ width, ffn, attention: { kind: 'full', heads: 2 } }))))
        .parameters;
    const mlp = parameters({ kind: 'mlp', hidden: 40 });
    assert.equal(parameters({ kind: 'topk-ffn', hidden: 40 }), mlp);
    assert.equal(parameters({ kind: 'topk-ffn', hidden: 40, predictor: 3 }), mlp);
    assert.equal(parameters({ kind: 'topk-ffn', hidden: 40, form: 'gated' }), mlp + 2 * 40 * width);
  });

  test('impossible predictors are refused', () => {
    const build = (o: object) => buildModel(smallSpec({ ffn: { kind: 'topk-ffn', hidden: 8, ...o } }));
    assert.throws(() => build({ predictor: 12 }), /predictor of 12 of 12 inputs/);
    assert.throws(() => build({ form: 'gated', predictor: 4 }), /scores with all inputs/);
  });
});

describe('the L1 term', () => {
  const x = normalTensor(cpu, 'x', [2, 10, width]);
  /** The layer's terms, its units' activity and its loss for one training pass. */
  function pass(o: Record<string, unknown>, progress?: number) {
    const { mixer, params } = slotLayer(cpu, 'ffn', { kind: 'relu-l1', hidden: 24, ...o }, { width, depth: 2 });
    return scope(() => {
      const done = progress === undefined ? null : Tensor.from(cpu, [progress], [1]);
      const c = forwardContext({ device: cpu, compute: 'f32', training: true, random, progress: done });
      mixer.forward(params, x, zeros(cpu, x.shape), c);
      const term = c.losses.get('l1.0');
      return { term: term ? term.item() : null, params };
    });
  }
  /** Mean over tokens of the units' summed magnitude. */
  function magnitude(params: ReturnType<typeof pass>['params'], gated: boolean): number {
    const [up, values] = [tensorOf(params, 'up').dataSync(), x.dataSync()];
    let sum = 0;
    for (let r = 0; r < 20; r++) {
      const dot = (row: number): number => {
        let s = 0;
        for (let k = 0; k < width; k++) s += up[row * width + k] * values[r * width + k];
        return s;
      };
      for (let j = 0; j < 24; j++) sum += Math.max(0, dot(j)) * (gated ? Math.abs(dot(24 + j)) : 1);
    }
    return sum / 20;
  }

  for (const gated of [true, false])
    test(`is lambda times the mean over layers and tokens of the sum over units (${gated ? 'gated' : 'plain'})`, () => {
      const { term, params } = pass({ l1: 0.01, gated });
      const want = (0.01 * magnitude(params, gated)) / 2;
      assert.ok(Math.abs(term! / want - 1) < 1e-5, `${term}, not ${want}`);
    });

  test('rises over the ramp, and is absent at lambda 0', () => {
    const full = pass({ l1: 0.01 }).term!;
    assert.ok(Math.abs(pass({ l1: 0.01, ramp: 0.5 }, 0.25).term! / full - 0.5) < 1e-5);
    assert.ok(Math.abs(pass({ l1: 0.01, ramp: 0.5 }, 0.75).term! / full - 1) < 1e-5);
    assert.equal(pass({ l1: 0 }).term, null);
  });

  test('activity counts units that are not zero', () => {
    const { params } = pass({ activeDecay: 0.5 });
    const { share } = activityOf(Array.from(tensorOf(params, 'active').dataSync(), (s) => 2 * s));
    assert.ok(share > 0.35 && share < 0.65, `half of the units of an untrained layer, not ${share}`);
    assert.deepEqual(activityOf([0, 0.5, 1, 0.5]), { mean: 2, share: 0.5, dead: 1 });
  });
});

test('causality', () => {
  for (const ffn of [
    { kind: 'relu-l1', hidden: 10 },
    { kind: 'relu-l1', hidden: 10, gated: false, bias: true },
    { kind: 'topk-ffn', hidden: 16, density: 0.4 },
    { kind: 'topk-ffn', hidden: 16, density: 0.4, form: 'gated', activation: 'silu' },
  ])
    checkCausality(cpu, smallSpec({ ffn }));
});
