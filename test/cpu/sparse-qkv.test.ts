// Factored dense layers, convolutions over time and modules, and the attention and output layers made from them.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { countParams, flatten, forwardContext } from '../../src/nn/index.ts';
import { factoredLinear, matmul, moduleConv, noGrad, scope, slice, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { factoredWeights, sparseQkvCosts } from '../../src/tricks/sparse-qkv/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues, slope, valuesOf, withoutRounding } from '../support/ref-values.ts';
import { checkCausality, normalTensor } from '../support/slot-layer.ts';
import { configOf, smallSpec, stepOn } from '../support/small-models.ts';

const cpu = new CpuDevice();
const ref = new RefDevice();

describe('the factored dense layer', () => {
  test('represents any permutation exactly', () => {
    const [S, M] = [4, 6];
    const d = S * M;
    const rng = new Rng('permutation');
    for (let trial = 0; trial < 5; trial++) {
      const from = rng.shuffled(Array.from({ length: d }, (_, k) => k));
      const [D, E] = [new Float64Array(S * d), new Float64Array(M * d)];
      from.forEach((i, o) => {
        D[Math.floor(o / M) * d + i] = 1;
        E[(o % M) * d + i] = 1;
      });
      scope(() => {
        const x = normalTensor(cpu, 'x', [3, d]);
        const y = factoredLinear(x, Tensor.from(cpu, D, [S, d]), Tensor.from(cpu, E, [M, d])).dataSync();
        const values = x.dataSync();
        for (let r = 0; r < 3; r++)
          from.forEach((i, o) => {
            assert.equal(y[r * d + o], values[r * d + i]);
          });
      });
    }
  });

  test('equals the dense layer with the product weight', () => {
    const [S, M, d] = [3, 5, 7];
    scope(() => {
      const [x, D, E] = [
        normalTensor(cpu, 'x', [9, d]),
        normalTensor(cpu, 'D', [S, d]),
        normalTensor(cpu, 'E', [M, d]),
      ];
      const [dv, ev] = [D.dataSync(), E.dataSync()];
      const W = Float64Array.from({ length: S * M * d }, (_, k) => {
        const [o, i] = [Math.floor(k / d), k % d];
        return dv[Math.floor(o / M) * d + i] * ev[(o % M) * d + i];
      });
      const want = matmul(x, Tensor.from(cpu, W, [S * M, d]), { transB: true }).dataSync();
      factoredLinear(x, D, E)
        .dataSync()
        .forEach((y: number, k: number) => {
          assert.ok(Math.abs(y - want[k]) < 1e-5);
        });
    });
    assert.equal(factoredWeights(S, M, d), d * (S + M));
  });
});

describe('the convolution', () => {
  const [T, S, C, K, J] = [7, 3, 4, 3, 3];
  const w = normalTensor(cpu, 'w', [C, K, J, C]);
  const bias = normalTensor(cpu, 'bias', [C]);
  const x = normalTensor(cpu, 'x', [1, T, S, C]);
  test('the last tokens alone give the same: two of them are the state of decoding', () => {
    const full = moduleConv(x, w, bias).dataSync();
    for (let t = K - 1; t < T; t++) {
      const part = moduleConv(slice(x, 1, t - K + 1, t + 1), w, bias).dataSync();
      assert.deepEqual(part.slice((K - 1) * S * C), full.slice(t * S * C, (t + 1) * S * C));
    }
  });
  test('documents that share a row do not see each other', () => {
    const segments = Tensor.from(cpu, [1, 1, 1, 2, 2, 2, 2], [1, T], 'i32');
    const both = moduleConv(x, w, bias, { segments }).dataSync();
    const parts = [slice(x, 1, 0, 3), slice(x, 1, 3, T)].map((t) => [...moduleConv(t, w, bias).dataSync()]);
    assert.deepEqual([...both], parts.flat());
  });
});

const attention = (options: Record<string, unknown> = {}): ModelSpecInput['attention'] => ({
  kind: 'sparse-qkv',
  heads: 2,
  ...options,
});
const variants: Readonly<Record<string, ModelSpecInput>> = {
  'as published': smallSpec({ attention: attention() }),
  'shared queries and keys, multiplicative output': smallSpec({
    attention: attention({ modules: 4, shareQk: true, output: 'multiplicative' }),
  }),
  'dense output, no biases, window, learned positions': smallSpec({
    attention: attention({ modules: 3, heads: 4, output: 'dense', bias: false, window: 4 }),
    positions: 'learned',
  }),
  'longer and narrower convolutions, factored head': smallSpec({
    attention: attention({ modules: 6, lengthKernel: 4, moduleKernel: 1 }),
    ...{ positions: 'none', tied: false, head: { kind: 'factored', modules: 3 }, zLoss: 0.01 },
  }),
};

describe('models', () => {
  for (const [name, spec] of Object.entries(variants)) {
    test(`${name}: no look ahead, no look across documents`, () => checkCausality(cpu, spec));

    test(`${name}: gradients against finite differences`, () =>
      withoutRounding(() => {
        const step = stepOn(ref, spec, { batch: 2, length: 5, segmented: true });
        const grads = scope(() => step.run().grads.map((g) => Float64Array.from(refValues(g))));
        const loss = (): number =>
          scope(() =>
            noGrad(
              () =>
                refValues(
                  step.model.loss(step.params, step.batch, forwardContext({ device: ref, compute: 'f32' })).total,
                )[0],
            ),
          );
        flatten(step.params).forEach(({ path, tensor }, k) => {
          const values = refValues(tensor);
          const centre = values.slice();
          const direction = Float64Array.from(values, (_, j) => Math.sin(5 * j + k));
          const numeric = slope((t) => {
            for (let j = 0; j < values.length; j++) values[j] = centre[j] + t * direction[j];
            const result = loss();
            values.set(centre);
            return result;
          });
          const analytic = direction.reduce((s, d, j) => s + d * grads[k][j], 0);
          const allowed = 1e-6 * Math.max(Math.abs(analytic), Math.abs(numeric)) + 1e-9;
          assert.ok(Math.abs(analytic - numeric) <= allowed, `${path}: gradient ${analytic}, difference ${numeric}`);
        });
      }));

    for (const [compute, tolerance] of [
      ['f32', 3e-5],
      ['bf16', 4e-2],
    ] as const)
      test(`${name}: the CPU against the reference (${compute})`, () => {
        const options = { batch: 3, length: 11, segmented: true, compute };
        const [want, got] = [ref, cpu].map((device) =>
          scope(() => {
            const { loss, grads } = stepOn(device, spec, options).run();
            return [loss, ...grads].map((t) => Float64Array.from(valuesOf(t)));
          }),
        );
        const norm = (w: Float64Array): number => Math.sqrt(w.reduce((sum, v) => sum + v * v, 0));
        // Softmax hardly feels some parameters of queries and keys, a key bias not at all: their gradients are what is
        // left of terms as large as the others'.
        const floor = 0.01 * Math.max(...want.slice(1).map(norm));
        want.forEach((w, k) => {
          const off = norm(w.map((v, j) => v - got[k][j]));
          assert.ok(off <= tolerance * Math.max(norm(w), floor), `${k}: off by ${off} of ${norm(w)}`);
        });
      });
  }
});

describe('cost', () => {
  const width = 32;
  const account = (spec: ModelSpecInput) => accountFor(parseTrainConfig(configOf(spec, { length: 8 })));
  const bare = (a: ModelSpecInput['attention']) => account(smallSpec({ width, attention: a, depth: 1 }));
  for (const shareQk of [false, true])
    for (const output of ['none', 'multiplicative', 'dense'] as const)
      for (const bias of [false, true])
        test(`parameters and FLOPs by formula: ${output}${shareQk ? ', shared' : ''}${bias ? ', biases' : ''}`, () => {
          const full = bare({ kind: 'full', heads: 4 });
          const sparse = bare({ kind: 'sparse-qkv', heads: 4, modules: 8, shareQk, output, bias });
          const sizes = { width, modules: 8, lengthKernel: 3, moduleKernel: 3, shareQk, output, bias };
          const closed = sparseQkvCosts(sizes);
          assert.equal(sparse.parameters, full.parameters - 4 * width * width + closed.parameters);
          assert.equal(sparse.forwardFlopsPerToken, full.forwardFlopsPerToken - 8 * width * width + closed.flops);
        });

  test('the table of the specification', () => {
    const of = (width: number, modules: number): number[] => {
      const c = sparseQkvCosts({
        ...{ width, modules, lengthKernel: 3, moduleKernel: 3, shareQk: false, output: 'none', bias: false },
      });
      return [c.factored, c.convolutions, Math.round((4 * width * width) / c.parameters)];
    };
    assert.deepEqual(of(1024, 16), [81_920, 86_016, 25]);
    assert.deepEqual(of(4096, 32), [655_360, 344_064, 67]);
    assert.deepEqual(of(9216, 64), [1_916_928, 435_456, 144]);
  });

  test('the output layer', () => {
    const dense = account(smallSpec({ width, tied: false, vocab: 101 }));
    const factored = account(smallSpec({ width, tied: false, vocab: 101, head: { kind: 'factored', modules: 4 } }));
    assert.equal(factored.parameters, dense.parameters - 101 * width + factoredWeights(4, 26, width));
    // Whole modules are computed: 104 columns.
    assert.equal(factored.forwardFlopsPerToken, dense.forwardFlopsPerToken + 2 * 3 * width);
    assert.equal(countParams(buildModel(smallSpec({ width, tied: false, vocab: 101 }))), dense.parameters);
  });

  test('refusals say why', () => {
    const cases: [ModelSpecInput, RegExp][] = [
      [smallSpec({ head: { kind: 'factored' } }), /its weights are not the embeddings/],
      [smallSpec({ tied: false, head: { kind: 'factored', modules: 12 } }), /12 modules for 11 tokens/],
      [smallSpec({ attention: attention({ modules: 5 }) }), /5 modules and 2 heads must divide the width 12/],
      [smallSpec({ attention: attention({ moduleKernel: 2 }) }), /module kernel of 2 has no middle/],
    ];
    for (const [spec, message] of cases) assert.throws(() => buildModel(spec), message);
  });
});

test('logits are those whose loss is taken', () => {
  const spec = smallSpec({ tied: false, head: { kind: 'factored', modules: 3 } });
  const { model, params, batch } = stepOn(cpu, spec, { batch: 2, length: 6 });
  scope(() =>
    noGrad(() => {
      const c = forwardContext({ device: cpu, compute: 'f32' });
      const logits = model.logits(params, model.hidden(params, batch, c), c);
      assert.deepEqual(logits.shape, [2, 6, 11]);
      const [x, targets, rows] = [
        logits.dataSync(),
        batch.targets.dataSync(),
        model.loss(params, batch, c).rows.dataSync(),
      ];
      for (let r = 0; r < 12; r++) {
        if (targets[r] < 0) continue;
        let sum = 0;
        for (let v = 0; v < 11; v++) sum += Math.exp(x[r * 11 + v]);
        assert.ok(Math.abs(Math.log(sum) - x[r * 11 + targets[r]] - rows[r]) < 1e-5);
      }
    }),
  );
});
