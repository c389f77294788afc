// Reversible models as a whole: causality, measurements, memory and costs, training to a threshold, resuming.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { forwardContext, initialise } from '../../src/nn/index.ts';
import { gradients, noGrad, type Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { TrainStep } from '../../src/train/step.ts';
import { reversibleSpec } from '../support/reversible-pass.ts';
import { checkCausality } from '../support/slot-layer.ts';
import { configOf, smallSpec, stepOn } from '../support/small-models.ts';
import {
  createRun,
  numbersOf,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';
import { copying, grammar, learn } from '../support/toy-task.ts';

const device = new CpuDevice();
const layouts: Record<string, Record<string, unknown>> = {
  'floating point': { grid: 0 },
  'fixed point': {},
  'both streams': { merge: 'concat' },
};
const specOf = (layout: Record<string, unknown>, changes = {}): ModelSpecInput =>
  reversibleSpec(layout, { depth: 2, tied: layout.merge !== 'concat', ...changes });

describe('what a decoder promises', () => {
  for (const [name, layout] of Object.entries(layouts)) {
    test(`${name}: no look ahead, no look across documents`, () => checkCausality(device, specOf(layout)));
  }

  test('activations are noted under a decoder’s names, with their gradients’ pass and without', () => {
    const taps = (spec: ModelSpecInput, training: boolean): Map<string, Tensor> => {
      const found = new Map<string, Tensor>();
      const { model, params, batch } = stepOn(device, spec, { batch: 2, length: 6 });
      const c = forwardContext({ device, compute: 'f32', taps: found });
      const total = training ? model.loss(params, batch, c).total : noGrad(() => model.loss(params, batch, c).total);
      if (training) gradients(total, []);
      return found;
    };
    const [decoder, passing, training] = [
      taps(smallSpec({ width: 16 }), false),
      taps(specOf({}), false),
      taps(specOf({}), true),
    ];
    assert.deepEqual([...passing.keys()].sort(), [...decoder.keys()].sort());
    assert.deepEqual([...training.keys()].sort(), [...decoder.keys()].sort());
    for (const [name, t] of training) assert.deepEqual(t.dataSync(), passing.get(name)!.dataSync(), name);
  });
});

describe('memory and costs', () => {
  const wide = {
    vocab: 64,
    context: 128,
    width: 64,
    attention: { kind: 'full', heads: 4 },
    ffn: { kind: 'glu', hidden: 160 },
  };
  const configFor = (layout: unknown, depth: number, changes = {}) =>
    parseTrainConfig(
      configOf(smallSpec({ ...wide, depth, layout: layout as never }), { batch: 4, precision: 'bf16', ...changes }),
    );
  /** Bytes of the step's arena besides the gradients of parameters, which every layout holds until the update. */
  const activations = (layout: unknown, depth: number): number => {
    const { memory, parameters } = accountFor(configFor(layout, depth));
    return memory.arena - 4 * parameters;
  };

  for (const [name, layout] of Object.entries({ 'floating point': { grid: 0 }, 'fixed point': {} }))
    test(`${name}: activation memory does not grow with depth`, () => {
      const [four, twelve, thirty] = [4, 12, 30].map((depth) => activations({ kind: 'reversible', ...layout }, depth));
      // Arenas are laid out in multiples of 256 bytes.
      assert.ok(Math.abs(twelve - four) < 20_000 && Math.abs(thirty - four) < 20_000, `${four}, ${twelve}, ${thirty}`);
      const [a, b] = [4, 12].map((depth) => activations('decoder', depth));
      assert.ok(b > 2.5 * a && a > 2 * four, `the decoder's: ${a}, ${b}`);
      const stored = activations({ kind: 'reversible', store: true, ...layout }, 12);
      assert.ok(stored > 2.5 * activations({ kind: 'reversible', store: true, ...layout }, 4));
    });

  test('an eager pass, such as the first one of a step, does not hold it either', () => {
    const peak = (depth: number): number => {
      const meta = new MetaDevice();
      const config = configFor({ kind: 'reversible' }, depth);
      const model = buildModel(config.model);
      const params = initialise(model, meta, 1);
      const before = meta.memory().liveBytes;
      const step = new TrainStep(meta, model, params, config, 128);
      // Optimiser state, parameters, and their gradients, which are as large.
      const state = [...step.optimiser.state.values()].reduce((n, t) => n + t.storage.memory.bytes, 0);
      return meta.memory().peakBytes - state - 2 * before;
    };
    const [few, many] = [peak(4), peak(24)];
    assert.ok(many < 1.3 * few, `${few} bytes at 4 blocks, ${many} at 24`);
  });

  test('a decoder’s parameters and forward FLOPs; one more forward pass of the blocks in a step', () => {
    const products = (layout: unknown, kernel: string): number => {
      const config = configFor(layout, 3);
      const meta = new MetaDevice();
      const model = buildModel(config.model);
      const step = new TrainStep(meta, model, initialise(model, meta, 1), config, 128);
      const calls = step.programs.flatMap(({ program }) => program.calls);
      return calls.filter((c) => c.kernel === kernel).reduce((n, c) => n + c.cost!.flops, 0);
    };
    const [decoder, ours] = [accountFor(configFor('decoder', 3)), accountFor(configFor({ kind: 'reversible' }, 3))];
    assert.equal(ours.parameters, decoder.parameters);
    assert.equal(ours.forwardFlopsPerToken, decoder.forwardFlopsPerToken);
    // Forward, and two products for each in the backward pass; then forward once more. Weighing losses is one as well.
    const weighing = 2 * 4 * 128;
    const matrices = (layout: unknown): number => products(layout, 'matmul') - weighing;
    assert.equal(3 * matrices({ kind: 'reversible' }), 4 * matrices('decoder'));
    assert.equal(products({ kind: 'reversible' }, 'attention'), 2 * products('decoder', 'attention'));
    assert.equal(products({ kind: 'reversible' }, 'attention_bwd'), products('decoder', 'attention_bwd'));
    const both = accountFor(parseTrainConfig(configOf(specOf({ merge: 'concat' }))));
    const one = accountFor(parseTrainConfig(configOf(specOf({}, { tied: false }))));
    assert.equal(both.parameters, one.parameters + 16 + 11 * 16, 'norm and head of twice the width');
  });
});

describe('learning', () => {
  const base = { vocab: 9, width: 32, attention: { kind: 'full', heads: 4 }, ffn: { kind: 'glu', hidden: 64 } };
  for (const [name, layout, precision, changes] of [
    ['fixed point', {}, 'bf16', {}],
    ['floating point', { grid: 0 }, 'bf16', {}],
    ['both streams', { merge: 'concat' }, 'f32', { tied: false }],
    [
      'mixtures of sparse experts',
      {},
      'bf16',
      { ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'sparse-ffn', hidden: 32, block: 4 } } },
    ],
  ] as const)
    test(`copying: ${name}, ${precision}`, async () => {
      const { first, last } = await learn(device, {
        ...copying(7),
        ...{ spec: { ...base, layout: { kind: 'reversible', ...layout }, ...changes }, steps: 400, precision },
      });
      assert.ok(first > 1.8 && last < 0.1, `loss ${first}, then ${last}`);
    });
  test('a grammar down to its entropy, and not below', async () => {
    const task = grammar();
    const { last } = await learn(device, {
      ...{ ...task, steps: 250 },
      spec: { vocab: 10, width: 32, depth: 2, ffn: { kind: 'glu', hidden: 64 }, layout: 'reversible' },
    });
    assert.ok(Math.abs(last - task.entropy) < 0.05, `loss ${last}, entropy ${task.entropy}`);
  });
});

test('a run continues as if it had not been stopped', async () => {
  const root = temporaryFolder('reversible');
  const data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
  const config = tinyConfig(data, {
    ...{ steps: 8, accumulate: 2, precision: 'bf16', checkpoint: { every: 4 } },
    model: {
      ...{ layout: 'reversible', dropout: 0.1, attention: { kind: 'full', heads: 2, dropout: 0.1 }, depth: 3 },
      ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 32, dropout: 0.1 }, biasRate: 0.01 },
      overrides: [{ layers: [1], ffn: { kind: 'sparse-ffn', hidden: 64, block: 8 } }],
    },
  });
  const whole = await trainWhole(join(root, 'whole'), config);
  const run = await createRun(join(root, 'parts'), config);
  const first = await trainRun(run, { stopAfter: 3 });
  const second = await trainRun(run, { resume: true });
  assert.deepEqual(numbersOf([...first.events, ...second.events]), whole.numbers);
  const stored = await trainWhole(join(root, 'stored'), {
    ...config,
    model: { ...config.model, layout: { kind: 'reversible', store: true } },
  });
  assert.deepEqual(stored.numbers, whole.numbers, 'storing all activations changes nothing');
});
