// Mixtures of experts in training: cost, upcycling, balance, and a task that takes routing.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { createBatch, type TokenBatch } from '../../src/data/types.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { disposeTree, flatten, forwardContext, initialise, type ParamTree } from '../../src/nn/index.ts';
import { gradients, noGrad, route, scope, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { EvalStep, TrainStep } from '../../src/train/step.ts';
import { lastLoads, loadStats, moeCost, upcycle, upcycledSpec } from '../../src/tricks/moe/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { moeLayer, normals } from '../support/moe-layer.ts';
import { batchOn, configOf, decoderFacts, hostBatch, smallSpec, tokenBatch } from '../support/small-models.ts';

const device = new CpuDevice();

describe('accounting', () => {
  for (const [expert, experts, active, shared] of [
    ['glu', 6, 2, 0],
    ['mlp', 8, 3, 1],
    ['glu', 64, 1, 0],
  ] as const)
    test(`${experts} experts ${expert}, ${active} active, ${shared} shared: k experts a token, all of them stored`, () => {
      const hidden = 10;
      const moe = { kind: 'moe', experts, active, shared, expert: { kind: expert, hidden } };
      const dense = smallSpec({ ffn: { kind: expert, hidden } });
      const account = (spec: ModelSpecInput) => accountFor(parseTrainConfig(configOf(spec, { length: 12 })));
      const [plain, mixed] = [account(dense), account(smallSpec({ ffn: moe }))];
      const one = { width: 12, expert, hidden };
      const cost = moeCost({ ...one, experts, active, shared });
      const layer = moeCost({ ...one, experts: 0, active: 1 });
      const depth = 2;
      assert.equal(mixed.parameters - plain.parameters, depth * (cost.parameters - layer.activeParameters));
      assert.equal(
        mixed.forwardFlopsPerToken - plain.forwardFlopsPerToken,
        depth * (cost.flopsPerToken - layer.flopsPerToken),
      );
      assert.equal(mixed.byRole.output, depth * experts * 12);
      assert.equal(mixed.parameters - mixed.activeParameters, depth * (cost.parameters - cost.activeParameters));
      assert.equal(mixed.activeParameters - mixed.activeNonEmbedding, mixed.byRole.embedding);
      assert.equal(plain.activeParameters, plain.parameters);
      const facts = decoderFacts(parseTrainConfig(configOf(dense)).model, 12);
      assert.equal(plain.parameters, facts.parameters);
    });

  test('what runs on the CPU is what was planned', () => {
    const ffn = { kind: 'moe', experts: 6, active: 2, biasRate: 0.01, expert: { kind: 'glu', hidden: 10 } };
    const config = parseTrainConfig(configOf(smallSpec({ ffn }), { length: 12, accumulate: 2, precision: 'bf16' }));
    const account = accountFor(config);
    const model = buildModel(config.model);
    const before = device.memory().liveBytes;
    const params = initialise(model, device, 1);
    const step = new TrainStep(device, model, params, config, 12);
    assert.equal(device.memory().liveBytes - before, account.memory.total);
    const meta = new MetaDevice();
    const planned = new TrainStep(meta, buildModel(config.model), initialise(model, meta, 1), config, 12);
    step.programs.forEach(({ program }, k) => {
      const calls = (p: typeof program) => p.calls.map((c) => [c.kernel, c.ints, c.floats, c.cost]);
      assert.deepEqual(calls(program), calls(planned.programs[k].program));
    });
    step.dispose();
    disposeTree(params);
  });

  test('the first block can stay dense', () => {
    const moe = { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 5 } };
    const spec = smallSpec({ ffn: moe, overrides: [{ layers: [0], ffn: { kind: 'glu', hidden: 10 } }] });
    const paths = flatten(initialise(buildModel(spec), new MetaDevice(), 1)).map((p) => p.path);
    assert.ok(paths.includes('blocks.0.ffn.up') && paths.includes('blocks.1.ffn.experts.up'));
    assert.ok(!paths.includes('blocks.0.ffn.router'));
  });
});

describe('upcycling', () => {
  const logits = (spec: ModelSpecInput, params: ParamTree, compute: 'f32' | 'bf16'): Float32Array =>
    scope(() =>
      noGrad(() => {
        const model = buildModel(spec);
        const c = forwardContext({ device, compute });
        const batch = batchOn(device, hostBatch('upcycle', 11, 2, 14), 2, 14);
        return model.logits(params, model.hidden(params, batch, c), c).dataSync() as Float32Array;
      }),
    );

  for (const ffn of [
    { kind: 'glu', hidden: 20, activation: 'gelu' },
    { kind: 'mlp', hidden: 20, activation: 'relu2' },
  ])
    for (const active of [1, 2, 3])
      test(`a dense ${ffn.kind} with ${active} of 4 copies gives the dense outputs`, () => {
        const dense = smallSpec({ ffn, depth: 3 });
        const params = initialise(buildModel(dense), device, 3);
        const spec = upcycledSpec(dense, { experts: 4, active });
        const mixture = upcycle(params, spec, device);
        const paths = flatten(mixture).map((p) => p.path);
        assert.ok(paths.includes('blocks.2.ffn.router') && !paths.includes('blocks.0.ffn.router'));
        for (const [compute, tolerance] of [
          ['f32', 1e-5],
          ['bf16', 2e-2],
        ] as const) {
          const [want, got] = [logits(dense, params, compute), logits(spec, mixture, compute)];
          const most = Math.max(...want.map(Math.abs));
          want.forEach((x, k) => {
            assert.ok(Math.abs(x - got[k]) <= tolerance * most, `${compute}: ${got[k]}, dense ${x}`);
          });
        }
        for (const tree of [params, mixture]) disposeTree(tree);
      });

  test('what would not start as the dense model is refused', () => {
    const dense = smallSpec({ ffn: { kind: 'glu', hidden: 20 } });
    const params = initialise(buildModel(dense), device, 3);
    const spec = (o: object, hidden = 20) =>
      smallSpec({ ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden }, ...o } });
    const sum1 = { gate: 'renormalised', gateScale: 1 };
    assert.throws(() => upcycle(params, spec({}), device), /block 0 would not start as the dense one: its gates/);
    assert.throws(() => upcycle(params, spec({ ...sum1, shared: 1 }), device), /shared experts add/);
    assert.throws(() => upcycle(params, spec(sum1, 10), device), /takes \[20, 12\], the dense layer has \[40, 12\]/);
    assert.throws(() => upcycledSpec(smallSpec({ ffn: spec({}).ffn }), { experts: 2, active: 1 }), /'moe', not mlp/);
    disposeTree(params);
  });
});

describe('balance', () => {
  test('an expert without tokens gets a gradient of zeros', () => {
    const layer = moeLayer(device, { kind: 'moe', experts: 6, active: 1, expert: { kind: 'glu', hidden: 5 } });
    const x = Tensor.from(device, normals('x', 4 * 8), [1, 4, 8]);
    scope(() => {
      const y = layer.mixer.forward(layer.params, x, x, forwardContext({ device, compute: 'bf16' }));
      const up = flatten(layer.params).filter((p) => p.path.startsWith('experts.'));
      const grads = gradients(
        y,
        up.map((p) => p.tensor),
        Tensor.from(device, normals('w', 32), [1, 4, 8]),
      );
      for (const g of grads) {
        const values = Array.from(g.dataSync());
        const each = Array.from({ length: 6 }, (_, e) => values.slice((e * g.size) / 6, ((e + 1) * g.size) / 6));
        assert.ok(values.every(Number.isFinite));
        assert.ok(each.filter((v) => v.every((u) => u === 0)).length >= 2 && each.some((v) => v.some((u) => u !== 0)));
      }
    });
  });

  test('micro-batches add up to the global load; the bias moves once a step, against it', async () => {
    const ffn = { kind: 'moe', experts: 4, active: 2, biasRate: 0.01, expert: { kind: 'glu', hidden: 4 } };
    const run = async (batch: number, accumulate: number, batches: TokenBatch[]) => {
      const config = parseTrainConfig(configOf(smallSpec({ depth: 1, ffn }), { batch, accumulate, length: 10 }));
      const model = buildModel(config.model);
      const params = initialise(model, device, 1);
      const step = new TrainStep(device, model, params, config, 10);
      await step.run(0, batches);
      const values = (name: string) =>
        Array.from(
          flatten(params)
            .find((p) => p.path === `blocks.0.ffn.${name}`)!
            .tensor.dataSync(),
        );
      return { bias: values('bias'), load: values('lastLoad'), now: values('load') };
    };
    const [a, b] = [tokenBatch('a', 11, 2, 10), tokenBatch('b', 11, 2, 10)];
    const both = createBatch(4, 10);
    for (const field of ['inputs', 'targets'] as const) {
      both[field].set(a[field]);
      both[field].set(b[field], 20);
    }
    both.targetCount = a.targetCount + b.targetCount;
    const [two, one] = [await run(2, 2, [a, b]), await run(4, 1, [both])];
    assert.deepEqual(two, one);
    assert.equal(
      two.load.reduce((s, n) => s + n, 0),
      4 * 10 * 2,
    );
    assert.deepEqual(two.now, [0, 0, 0, 0]);
    two.load.forEach((n, e) => {
      assert.ok(Math.abs(two.bias[e] - 0.01 * Math.sign(20 - n)) < 1e-7);
    });
  });

  test('biased selection leaves the gates unbiased', () => {
    scope(() => {
      const scores = Tensor.from(device, [0.9, 0.6, 0.5, 0.4], [1, 4]);
      const bias = Tensor.from(device, [-0.6, 0, 0, 0.15], [4]);
      assert.deepEqual(Array.from(route(scores, { k: 2, span: 1, bias }).index.dataSync()), [1, 3]);
    });
  });

  test('the bias evens out a skewed router: logit offsets of deviation 1, 2 of 16 experts, rate 1e-3', () => {
    const [E, k, n] = [16, 2, 1024];
    const rng = new Rng('skew');
    const offset = Array.from({ length: E }, () => rng.normal());
    const bias = new Float32Array(E);
    const violation: number[] = [];
    for (let step = 0; step < 600; step++)
      scope(() => {
        const scores = Float64Array.from(
          { length: n * E },
          (_, at) => 1 / (1 + Math.exp(-rng.normal() - offset[at % E])),
        );
        const r = route(Tensor.from(device, scores, [n, E]), { k, span: n, bias: Tensor.from(device, bias, [E]) });
        const ends = r.offsets.dataSync();
        const load = Array.from({ length: E }, (_, e) => ends[e + 1] - ends[e]);
        load.forEach((m, e) => {
          bias[e] += 1e-3 * Math.sign((n * k) / E - m);
        });
        violation.push(loadStats(load).maxVio);
      });
    assert.ok(violation[0] > 1, `at the start ${violation[0]}`);
    const late = violation.slice(-50).reduce((s, v) => s + v, 0) / 50;
    assert.ok(late < 0.25, `at the end ${late}`);
  });
});

/** Rows of (task, x) pairs: the token after x is a fixed random function of both. One lookup a task for each x. */
const TASKS = 8;
const LETTERS = 24;
const answers = Array.from({ length: TASKS }, (_, t) => {
  const rng = new Rng(`task ${t}`);
  return rng.shuffled(Array.from({ length: LETTERS }, (_, x) => x));
});

function fill(batch: TokenBatch, rng: Rng): TokenBatch {
  batch.targetCount = 0;
  for (let at = 0; at < batch.inputs.length; at++) {
    const t = at % batch.length;
    if (t % 2 === 0) batch.inputs[at] = LETTERS + rng.int(0, TASKS - 1);
    else batch.inputs[at] = rng.int(0, LETTERS - 1);
    batch.targets[at] = t % 2 === 0 ? -1 : answers[batch.inputs[at - 1] - LETTERS][batch.inputs[at]];
    batch.segments[at] = 1;
    batch.positions[at] = t;
    batch.targetCount += +(t % 2 === 1);
  }
  return batch;
}

async function learn(ffn: Record<string, unknown>, precision: 'f32' | 'bf16', steps: number) {
  const [rows, length] = [32, 16];
  const spec = smallSpec({
    ...{ vocab: LETTERS + TASKS, context: length, width: 32, depth: 2, ffn: ffn as never },
    attention: { kind: 'full', heads: 2 },
  });
  const config = parseTrainConfig(
    configOf(spec, {
      ...{ batch: rows, length, steps, precision },
      optimiser: { kind: 'adamw', lr: 1e-2, decay: 0.01 },
      schedule: { kind: 'cosine', warmup: 0.05 },
    }),
  );
  const model = buildModel(config.model);
  const params = initialise(model, device, 1);
  const step = new TrainStep(device, model, params, config, length);
  const evaluation = new EvalStep(device, model, params, config, length);
  const batch = createBatch(rows, length);
  const rng = new Rng('training');
  for (let k = 0; k < steps; k++) assert.ok((await step.run(k, [fill(batch, rng)])).finite);
  const { nats, targets } = await evaluation.run(fill(batch, new Rng('held out')));
  const loads = lastLoads(params).map(({ load }) => loadStats(load));
  step.dispose();
  evaluation.dispose();
  disposeTree(params);
  return { loss: nats / targets, loads };
}

describe('learning eight tables of 24 letters, where the task before the letter says which', () => {
  const expert = { kind: 'glu', hidden: 24 };
  for (const [name, ffn, precision] of [
    ['dropless, 2 of 8, balance loss', { kind: 'moe', experts: 8, active: 2, expert }, 'bf16'],
    [
      'dropless, 2 of 8, bias and sigmoid gates',
      { kind: 'moe', experts: 8, active: 2, gate: 'sigmoid', biasRate: 5e-3, balanceLoss: 0, expert },
      'f32',
    ],
    [
      'Switch with jitter',
      {
        kind: 'moe',
        experts: 8,
        jitter: 0.01,
        expert,
        routing: { kind: 'capacity', convention: 'tokens', evalFactor: 0 },
      },
      'f32',
    ],
  ] as const)
    test(name, async (t) => {
      const { loss, loads } = await learn(ffn, precision, 600);
      t.diagnostic(`loss ${loss.toFixed(4)}, MaxVio ${loads.map((l) => l.maxVio.toFixed(2))}`);
      assert.ok(loss < 0.05, `loss ${loss}`);
      for (const l of loads) assert.ok(l.entropy > 0.85 && l.dead <= 1, JSON.stringify(l));
    });
});
