// The sparse feed-forward layer: evaluation against its definition, training passes, cost, scale at the start.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { countParams, flatten, forwardContext, initialise, tensorOf } from '../../src/nn/index.ts';
import { gradients, noGrad, RandomState, scope, sumsq, Tensor, zeros } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { hardFlag, sparseCosts, sparseFfnSchema, usageOf } from '../../src/tricks/sparse-ffn/index.ts';
import { refValues, slope, valuesOf, withoutRounding } from '../support/ref-values.ts';
import { checkCausality, normalTensor, type SlotLayer, slotLayer } from '../support/slot-layer.ts';
import { batchOn, configOf, hostBatch, perturbedParams, smallSpec } from '../support/small-models.ts';

const cpu = new CpuDevice();
const ref = new RefDevice();
const config = { kind: 'sparse-ffn', hidden: 48, block: 8, rank: 5 };
const width = 16;

/** The layer's output for x [rows, width], by its definition, one token after the other. */
function byDefinition({ params }: SlotLayer, x: ArrayLike<number>, F: number, N: number): number[] {
  const [up, down, low, z2] = ['up', 'down', 'low', 'logits'].map((name) => tensorOf(params, name).dataSync());
  const r = low.length / width;
  const out: number[] = [];
  const dot = (w: ArrayLike<number>, row: number, v: ArrayLike<number>, at: number, n: number): number => {
    let s = 0;
    for (let k = 0; k < n; k++) s += w[row * n + k] * v[at + k];
    return s;
  };
  for (let at = 0; at < x.length; at += width) {
    const t = Array.from({ length: r }, (_, k) => dot(low, k, x, at, width));
    const y = new Array<number>(width).fill(0);
    for (let b = 0; b < F; b += N) {
      const z = Array.from({ length: N }, (_, n) => dot(z2, b + n, t, 0, r));
      const unit = b + z.indexOf(Math.max(...z));
      const h = Math.max(0, dot(up, unit, x, at, width));
      for (let i = 0; i < width; i++) y[i] += h * down[i * F + unit];
    }
    out.push(...y);
  }
  return out;
}

const run = ({ mixer, params }: SlotLayer, x: Tensor, c: Parameters<typeof forwardContext>[0]): Float64Array =>
  scope(() =>
    noGrad(() => Float64Array.from(valuesOf(mixer.forward(params, x, zeros(x.device, x.shape), forwardContext(c))))),
  );

describe('evaluation', () => {
  const layer = slotLayer(cpu, 'ffn', config, { width });
  const x = normalTensor(cpu, 'x', [3, 20, width]);
  const want = byDefinition(layer, x.dataSync(), 48, 8);
  const size = Math.sqrt(want.reduce((s, v) => s + v * v, 0) / want.length);
  for (const [compute, tolerance] of [
    ['f32', 1e-5],
    ['bf16', 2e-2],
  ] as const)
    test(`one unit of each block, as the definition says (${compute})`, () => {
      run(layer, x, { device: cpu, compute }).forEach((y, k) => {
        assert.ok(Math.abs(y - want[k]) <= tolerance * size, `element ${k}: ${y}, not ${want[k]}`);
      });
    });

  test('a permuted batch gives permuted outputs, bit for bit', () => {
    const values = x.dataSync();
    const order = Array.from({ length: 60 }, (_, k) => (k * 37) % 60);
    const rows = order.flatMap((r) => [...values.slice(r * width, (r + 1) * width)]);
    const [one, two] = [x, Tensor.from(cpu, rows, [3, 20, width])].map((t) =>
      run(layer, t, { device: cpu, compute: 'f32' }),
    );
    order.forEach((r, k) => {
      assert.deepEqual(two.slice(k * width, (k + 1) * width), one.slice(r * width, (r + 1) * width));
    });
  });

  test('training with hard: 1 and tau: 0 computes what evaluation does', () => {
    const hard = slotLayer(cpu, 'ffn', { ...config, hard: 1, tau: 0 }, { width });
    const random = new RandomState(cpu, 3);
    const trained = run(hard, x, { device: cpu, compute: 'f32', training: true, random });
    assert.deepEqual(trained, run(hard, x, { device: cpu, compute: 'f32' }));
    const usage = tensorOf(hard.params, 'usage').dataSync();
    assert.ok(
      Math.abs(Array.from(usage).reduce((a, b) => a + b, 0) - 6 * 0.01) < 1e-6,
      'each of six blocks counts every token once',
    );
    assert.ok(usageOf(usage, 8).meanEntropy > 0.3);
  });
});

describe('training passes', () => {
  test('with hard: 1 only chosen units get gradients', () => {
    const layer = slotLayer(cpu, 'ffn', { ...config, hard: 1, tau: 0 }, { width });
    const x = normalTensor(cpu, 'one token', [1, 1, width]);
    scope(() => {
      const c = forwardContext({ device: cpu, compute: 'f32', training: true, random: new RandomState(cpu, 1) });
      const [up, down] = ['up', 'down'].map((name) => tensorOf(layer.params, name));
      const y = layer.mixer.forward(layer.params, x, zeros(cpu, x.shape), c);
      const [dup, ddown] = gradients(sumsq(y), [up, down]).map((g) => g.dataSync());
      const live = Array.from({ length: 48 }, (_, j) => dup.slice(j * width, (j + 1) * width).some((v) => v !== 0));
      for (let b = 0; b < 48; b += 8) assert.ok(live.slice(b, b + 8).filter(Boolean).length <= 1);
      assert.ok(live.filter(Boolean).length > 0);
      for (let i = 0; i < width; i++) for (let j = 0; j < 48; j++) if (!live[j]) assert.equal(ddown[i * 48 + j], 0);
    });
  });

  test('a pass is the same whenever its random numbers are, and another otherwise', () => {
    const layer = slotLayer(cpu, 'ffn', { ...config, hard: 1, tau: 1 }, { width });
    const x = normalTensor(cpu, 'x', [2, 8, width]);
    const random = new RandomState(cpu, 3);
    const pass = (step: number): Float64Array => {
      random.setStep(step);
      return run(layer, x, { device: cpu, compute: 'f32', training: true, random });
    };
    const [first, second, again] = [pass(0), pass(1), pass(0)];
    assert.deepEqual(again, first);
    assert.notDeepEqual(second, first);
  });

  test('a share q of passes masks hard; q rises to 1 over the end of the run', () => {
    const o = sparseFfnSchema.parse({ hidden: 8, block: 2, hard: 0.3, anneal: 0.2 });
    const random = new RandomState(cpu, 11);
    const share = (done: number): number => {
      const progress = Tensor.from(cpu, [done], [1]);
      let hard = 0;
      for (let step = 0; step < 1000; step++) {
        random.setStep(step);
        const c = forwardContext({ device: cpu, compute: 'f32', training: true, random, progress });
        hard += scope(() => hardFlag(o, c)!.item());
      }
      return hard / 1000;
    };
    // Standard deviation of a share of 1000: below 0.016.
    for (const [done, q] of [
      [0, 0.3],
      [0.79, 0.3],
      [0.9, 0.65],
      [0.9999, 1],
    ])
      assert.ok(Math.abs(share(done) - q) < 0.05, `at ${done}: ${share(done)}, not ${q}`);
    const exact = sparseFfnSchema.parse({ hidden: 8, block: 2, hard: 1 });
    assert.equal(hardFlag(exact, forwardContext({ device: cpu, compute: 'f32', training: true, random })), null);
    assert.equal(hardFlag(o, forwardContext({ device: cpu, compute: 'f32' })), null);
  });

  test('soft passes: gradients of a whole model against finite differences', () =>
    withoutRounding(() => {
      const ffn = { ...config, hidden: 12, block: 4, rank: 3, hard: 0, anneal: 0, bias: true };
      const model = buildModel(smallSpec({ ffn }));
      const params = perturbedParams(model, ref);
      model.prepare(ref);
      const batch = batchOn(ref, hostBatch('soft', 11, 2, 5), 2, 5);
      const random = new RandomState(ref, 5);
      const total = (): Tensor =>
        model.loss(params, batch, forwardContext({ device: ref, compute: 'f32', training: true, random })).total;
      const wrt = flatten(params).filter(({ path }) => !path.endsWith('.usage'));
      const tensors = wrt.map((p) => p.tensor);
      const grads = scope(() => gradients(total(), tensors).map((g) => Float64Array.from(refValues(g))));
      wrt.forEach(({ path, tensor }, k) => {
        const values = refValues(tensor);
        const centre = values.slice();
        const direction = Float64Array.from(values, (_, j) => Math.sin(7 * j + k));
        const numeric = slope((t) => {
          for (let j = 0; j < values.length; j++) values[j] = centre[j] + t * direction[j];
          const loss = scope(() => noGrad(() => refValues(total())[0]));
          values.set(centre);
          return loss;
        }, 1e-6); // small: no unit crosses the kink of its ReLU
        const analytic = direction.reduce((s, d, j) => s + d * grads[k][j], 0);
        assert.ok(Math.abs(analytic - numeric) <= 1e-6 * Math.abs(numeric) + 1e-8, `${path}: ${analytic}, ${numeric}`);
      });
    }));
});

describe('scale at the start', () => {
  for (const block of [8, 32, 128])
    test(`with one of ${block} units, outputs are as large as a dense layer's`, () => {
      const [d, hidden] = [64, 1024];
      const x = normalTensor(cpu, 'unit variance', [4, 64, d]);
      const rms = (ffn: Record<string, unknown>): number => {
        const y = run(slotLayer(cpu, 'ffn', ffn, { width: d }), x, { device: cpu, compute: 'f32' });
        return Math.sqrt(y.reduce((s, v) => s + v * v, 0) / y.length);
      };
      const ratio = rms({ kind: 'sparse-ffn', hidden, block }) / rms({ kind: 'mlp', hidden, activation: 'relu' });
      assert.ok(Math.abs(ratio - 1) < 0.1, `ratio ${ratio}`);
      const small =
        rms({ kind: 'sparse-ffn', hidden, block, scale: false }) / rms({ kind: 'mlp', hidden, activation: 'relu' });
      assert.ok(Math.abs(small * Math.sqrt(block) - 1) < 0.1, `unscaled ratio ${small}`);
    });
});

describe('cost', () => {
  const spec = (ffn: Record<string, unknown>) => smallSpec({ width: 32, attention: { kind: 'full', heads: 2 }, ffn });
  const account = (ffn: Record<string, unknown>) => accountFor(parseTrainConfig(configOf(spec(ffn), { length: 16 })));
  const dense = account({ kind: 'mlp', hidden: 64, activation: 'relu' });
  const sparse = account({ kind: 'sparse-ffn', hidden: 64, block: 8, rank: 4, controllerBias: false });
  const closed = sparseCosts({ width: 32, hidden: 64, block: 8, rank: 4 });

  test('parameters and FLOPs are those of the formulas', () => {
    const depth = 2;
    assert.equal(sparse.parameters - dense.parameters, depth * closed.controller);
    assert.equal(sparse.forwardFlopsPerToken - dense.forwardFlopsPerToken, depth * 2 * closed.controller);
    assert.equal(dense.parameters - sparse.activeParameters, depth * (2 * 32 * 64 - closed.decodeWeights));
    const model = buildModel(spec({ kind: 'sparse-ffn', hidden: 64, block: 8, rank: 4 }));
    assert.equal(countParams(model), sparse.parameters + depth * 64);
  });

  test('a training step holds no more [tokens, F] tensors than the dense layer', () => {
    const tokens = 64;
    const of = (ffn: Record<string, unknown>): number =>
      accountFor(parseTrainConfig(configOf(spec(ffn), { batch: 4, length: 16 }))).memory.arena;
    const extra =
      of({ kind: 'sparse-ffn', hidden: 4096, block: 32, rank: 2 }) -
      of({ kind: 'mlp', hidden: 4096, activation: 'relu' });
    // Choices [tokens, F/N], the low-rank input, gradients of the controller: far from one more [tokens, F].
    assert.ok(extra < 0.25 * 4 * tokens * 4096, `${extra} bytes`);
  });

  test('units that do not split into blocks are refused with a number that does', () => {
    assert.throws(
      () => buildModel(smallSpec({ ffn: { kind: 'sparse-ffn', hidden: 50, block: 16 } })),
      (error: Error & { hint?: string }) => {
        assert.match(error.message, /50 units do not split into blocks of 16/);
        return /48/.test(String(error.hint));
      },
    );
  });
});

test('causality, in every form', () => {
  for (const change of [{}, { multiply: true }, { controllerBias: false, bias: true, init: 'glorot' }])
    checkCausality(cpu, smallSpec({ ffn: { kind: 'sparse-ffn', hidden: 24, block: 4, ...change } }));
});

test('as an expert: each of two experts computes what the layer with its weights does', () => {
  const moe = { kind: 'moe', experts: 2, active: 1, expert: { ...config, hidden: 24 }, gateScale: 1 };
  const model = buildModel(smallSpec({ width, ffn: moe, depth: 1 }));
  const params = initialise(model, cpu, 1);
  const names = flatten(params).map((p) => p.path);
  for (const name of ['up', 'down', 'low', 'logits', 'logitsBias', 'usage'])
    assert.ok(names.includes(`blocks.0.ffn.experts.${name}`), name);
  const both = slotLayer(cpu, 'ffn', moe, { width });
  const x = normalTensor(cpu, 'x', [2, 30, width]);
  const got = run(both, x, { device: cpu, compute: 'f32' });
  const experts = both.params.experts as Record<string, Tensor>;
  const router = tensorOf(both.params, 'router').dataSync();
  const values = x.dataSync();
  const singles = [0, 1].map((e) => {
    const one = slotLayer(cpu, 'ffn', { ...config, hidden: 24 }, { width });
    for (const name of ['up', 'low', 'logits', 'logitsBias']) {
      const all = experts[name].dataSync();
      tensorOf(one.params, name).write(all.slice((e * all.length) / 2, ((e + 1) * all.length) / 2));
    }
    const down = experts.down.dataSync(); // [e, unit, d]
    tensorOf(one.params, 'down').write(
      Float64Array.from({ length: 24 * width }, (_, k) => down[(e * 24 + (k % 24)) * width + Math.floor(k / 24)]),
    );
    return run(one, x, { device: cpu, compute: 'f32' });
  });
  for (let row = 0; row < 60; row++) {
    const [a, b] = [0, 1].map((e) => {
      let s = 0;
      for (let k = 0; k < width; k++) s += router[e * width + k] * values[row * width + k];
      return s;
    });
    const e = a >= b ? 0 : 1;
    const gate = 1 / (1 + Math.exp(-Math.abs(a - b)));
    for (let k = row * width; k < (row + 1) * width; k++)
      assert.ok(Math.abs(got[k] - gate * singles[e][k]) < 1e-5, `row ${row}: ${got[k]}, not ${gate * singles[e][k]}`);
  }
});
