// Making models smaller, in float64: what is taken out of a matrix, what enters it, what a teacher's pull is.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { createBatch } from '../../src/data/types.ts';
import { calibrate } from '../../src/infer/compress/calibrate.ts';
import { columnOrder } from '../../src/infer/compress/gptq.ts';
import { thinned } from '../../src/infer/compress/prune.ts';
import { stages } from '../../src/infer/compress/stages.ts';
import { targetsOf } from '../../src/infer/compress/targets.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { flatten, forwardContext } from '../../src/nn/index.ts';
import { gradients, noGrad, type Tensor } from '../../src/tensor/index.ts';
import { type DistilOptions, distillation } from '../../src/train/distil.ts';
import { DeviceBatch } from '../../src/train/step.ts';
import { sparserLayers } from '../../src/train/teacher.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues } from '../support/ref-values.ts';
import { batchOn, hostBatch, perturbedParams, smallSpec } from '../support/small-models.ts';
import '../../src/tricks/index.ts';

const device = new RefDevice();

const normals = (seed: string, n: number): Float32Array => {
  const rng = new Rng(seed);
  return Float32Array.from({ length: n }, () => rng.normal());
};

describe('what is taken out', () => {
  const [N, K] = [7, 24];
  const w = normals('weights', N * K);
  const row = (x: Float32Array, r: number): Float32Array => x.subarray(r * K, (r + 1) * K);
  /** Every weight that was left scores at least what every weight that went scores, in each of `parts`. */
  const leastWent = (after: Float32Array, score: (k: number) => number, parts: number[][]): void => {
    for (const part of parts) {
      const gone = part.filter((k) => after[k] === 0).map(score);
      const left = part.filter((k) => after[k] !== 0).map(score);
      assert.ok(Math.max(...gone) <= Math.min(...left));
    }
    for (let k = 0; k < after.length; k++) assert.ok(after[k] === 0 || after[k] === w[k]);
  };
  const runs = (length: number): number[][] =>
    Array.from({ length: (N * K) / length }, (_, r) => Array.from({ length }, (_, k) => r * length + k));

  test('by size: the smallest of the whole matrix', () => {
    const after = thinned(w.slice(), { shape: [N, K] }, null, { sparsity: 0.4, pattern: null });
    assert.equal(after.filter((x) => x === 0).length, Math.round(0.4 * N * K));
    leastWent(after, (k) => Math.abs(w[k]), runs(N * K));
  });

  test('by size times input: the smallest of each row', () => {
    const norms = normals('norms', K).map(Math.abs);
    const after = thinned(w.slice(), { shape: [N, K] }, norms, { sparsity: 0.5, pattern: null });
    for (let r = 0; r < N; r++) assert.equal(row(after, r).filter((x) => x === 0).length, K / 2);
    leastWent(after, (k) => Math.abs(w[k]) * norms[k % K], runs(K));
    const bySize = thinned(
      w.slice(),
      { shape: [N, K] },
      norms.map(() => 1),
      { sparsity: 0.5, pattern: null },
    );
    assert.notDeepEqual(after, bySize);
  });

  test('a pattern: so many of every four, and as if zeros followed at the end of a row', () => {
    const norms = normals('norms', K).map(Math.abs);
    const pattern = { least: 2, among: 4 };
    const after = thinned(w.slice(), { shape: [N, K] }, norms, { sparsity: 0.5, pattern });
    for (const four of runs(4)) assert.equal(four.filter((k) => after[k] === 0).length, 2);
    leastWent(after, (k) => Math.abs(w[k]) * norms[k % K], runs(4));
    const odd = thinned(normals('odd', 2 * 7), { shape: [2, 7] }, null, { sparsity: 0.5, pattern });
    for (const r of [0, 1]) assert.equal(odd.subarray(r * 7 + 4, r * 7 + 7).filter((x) => x === 0).length, 1);
  });

  test('experts have norms of their own; of equals the first goes', () => {
    const norms = new Float32Array(2 * 4).map((_, k) => (k < 4 ? k + 1 : 8 - k));
    const after = thinned(new Float32Array(8).fill(1), { shape: [2, 1, 4] }, norms, { sparsity: 0.5, pattern: null });
    assert.deepEqual([...after], [0, 0, 1, 1, 1, 1, 0, 0]);
    const equal = thinned(new Float32Array(4).fill(1), { shape: [1, 4] }, null, { sparsity: 0.25, pattern: null });
    assert.deepEqual([...equal], [0, 1, 1, 1]);
  });
});

test('columns go by strength, those of a group together', () => {
  const strength = normals('strength', 70).map(Math.abs);
  strength.fill(9, 64); // the last, short group comes first
  const order = [...columnOrder(strength)];
  assert.deepEqual(
    [...order].sort((a, b) => a - b),
    Array.from({ length: 70 }, (_, k) => k),
  );
  assert.deepEqual(order.slice(0, 6), [64, 65, 66, 67, 68, 69]);
  for (const part of [order.slice(6, 38), order.slice(38)]) {
    assert.equal(new Set(part.map((k) => Math.floor(k / 32))).size, 1);
    for (let k = 1; k < part.length; k++) assert.ok(strength[part[k]] <= strength[part[k - 1]]);
  }
});

describe('what enters the matrices', () => {
  const spec = smallSpec({ tied: false, vocab: 13 });
  const run = async (statistic: 'gram' | 'squares', input: ModelSpecInput = spec) => {
    const model = buildModel(input);
    const params = perturbedParams(model, device);
    const batch = new DeviceBatch(device, 2, 8, true);
    const [first, second] = ['a', 'b'].map((seed) => {
      const host = hostBatch(seed, input.vocab, 2, 8);
      const b = createBatch(2, 8);
      b.inputs.set(host.inputs);
      b.segments.fill(1);
      b.segments.fill(0, 13); // padding
      for (let k = 0; k < 16; k++) b.positions[k] = k % 8;
      b.targetCount = 1;
      return b;
    });
    const targets = targetsOf(model, params);
    const paths = targets.map((t) => t.path);
    const options = { device, model, params, compute: 'f32', paths, batch, statistic } as const;
    const sums = await calibrate(options, [first, second]);
    return { model, params, batch, batches: [first, second], targets, sums };
  };

  test('of the output matrix they are the hidden states; rows of padding do not count', async () => {
    const { model, params, batch, batches, sums } = await run('gram');
    const d = spec.width;
    const want = new Float64Array(d * d);
    for (const b of batches) {
      batch.write(b, 1);
      const h = refValues(noGrad(() => model.hidden(params, batch, forwardContext({ device, compute: 'f32' }))));
      for (let r = 0; r < 13; r++)
        for (let i = 0; i < d; i++) for (let j = 0; j < d; j++) want[i * d + j] += h[r * d + i] * h[r * d + j];
    }
    const got = refValues(sums.get('head.weight')!);
    assert.equal(got.length, want.length);
    for (let k = 0; k < want.length; k++)
      assert.ok(Math.abs(got[k] - want[k]) < 1e-9 * (1 + Math.abs(want[k])), `${k}`);
  });

  test('sums of squares are the diagonals', async () => {
    const [gram, squares] = [await run('gram'), await run('squares')];
    assert.deepEqual([...gram.sums.keys()], [...squares.sums.keys()]);
    assert.equal(gram.sums.size, 2 * 4 + 1);
    for (const [path, h] of gram.sums) {
      const [k, x, y] = [h.shape[0], refValues(h), refValues(squares.sums.get(path)!)];
      for (let j = 0; j < k; j++) assert.ok(Math.abs(x[j * k + j] - y[j]) <= 1e-9 * Math.abs(y[j]), path);
    }
  });

  test('experts see the rows that are routed to them', async () => {
    const moe = smallSpec({
      ffn: { kind: 'moe', experts: 3, expert: { kind: 'glu', hidden: 10 } },
    } as never);
    const { sums, targets } = await run('gram', moe);
    const up = targets.find((t) => t.path === 'blocks.0.ffn.experts.up')!;
    const [E, , K] = up.weight.shape;
    const h = sums.get(up.path)!;
    assert.deepEqual(h.shape, [E, K, K]);
    const squares = (await run('squares', moe)).sums.get(up.path)!;
    assert.deepEqual(squares.shape, [E, K]);
    const [x, s] = [refValues(h), refValues(squares)];
    for (let e = 0; e < E; e++)
      for (let j = 0; j < K; j++) assert.ok(Math.abs(x[(e * K + j) * K + j] - s[e * K + j]) < 1e-9);
    assert.ok(Array.from({ length: E }, (_, e) => s[e * K]).filter((v) => v > 0).length > 1);
  });

  test('stages hold as many matrices as memory allows', async () => {
    const { targets } = await run('squares');
    const inner = targets.filter((t) => !t.edge);
    assert.equal(stages(inner, 'gram', 1).length, inner.length);
    assert.equal(stages(inner, 'gram', 1e9).length, 1);
    assert.deepEqual(stages(inner, 'gram', 4 * (12 * 12 + 12 * 12)).flat(), inner);
  });
});

describe('a teacher', () => {
  const teacherSpec = smallSpec({ width: 8, depth: 3, vocab: 13, ffn: { kind: 'mlp', hidden: 9 } });
  const step = (options: Omit<DistilOptions, 'shared'>, changes: Partial<ModelSpecInput> = {}) => {
    const student = buildModel(smallSpec({ vocab: 12, zLoss: 1e-3, ...changes }));
    const params = perturbedParams(student, device, 'student');
    const model = buildModel(teacherSpec);
    const teacher = { model, params: perturbedParams(model, device, 'teacher') };
    const batch = batchOn(device, hostBatch('rows', 11, 2, 6, true), 2, 6);
    student.prepare(device);
    const lossOf = distillation(device, student, teacher, { ...options, shared: 11 });
    const loss = (): Tensor => lossOf(params, batch, forwardContext({ device, compute: 'f32' })).total;
    const plain = (): Tensor => student.loss(params, batch, forwardContext({ device, compute: 'f32' })).total;
    const tensors = flatten(params).filter((t) => t.tensor.requiresGrad);
    return { loss, plain, tensors, student, teacher, params, batch };
  };

  for (const changes of [{}, { tied: false }, { tied: false, head: { kind: 'factored', modules: 2 } }])
    test(`gradients are those of finite differences: ${JSON.stringify(changes)}`, () => {
      const { loss, tensors } = step({ lambda: 0.7, temperature: 1.7, logits: 100 }, changes as never);
      const grads = gradients(
        loss(),
        tensors.map((t) => t.tensor),
      );
      const rng = new Rng('places');
      tensors.forEach(({ path, tensor }, k) => {
        const values = refValues(tensor); // the memory itself
        const got = refValues(grads[k]);
        for (let n = 0; n < 4; n++) {
          const at = rng.int(0, values.length - 1);
          const before = values[at];
          const h = 1e-5;
          const side = (by: number): number => {
            values[at] = before + by;
            return refValues(noGrad(loss))[0];
          };
          const slope = (side(h) - side(-h)) / (2 * h);
          values[at] = before;
          assert.ok(
            Math.abs(slope - got[at]) < 1e-6 * (1 + Math.abs(slope)),
            `${path}[${at}]: ${got[at]}, not ${slope}`,
          );
        }
      });
    });

  test('with lambda 0 the loss is the model’s own', () => {
    const { loss, plain, tensors } = step({ lambda: 0, temperature: 2 });
    const wrt = tensors.map((t) => t.tensor);
    const [a, b] = [loss(), plain()];
    assert.ok(Math.abs(refValues(a)[0] - refValues(b)[0]) < 1e-12);
    const [ga, gb] = [gradients(a, wrt), gradients(b, wrt)];
    ga.forEach((g, k) => {
      const [x, y] = [refValues(g), refValues(gb[k])];
      for (let j = 0; j < x.length; j++) assert.ok(Math.abs(x[j] - y[j]) < 1e-12);
    });
  });

  test('rows at a time change nothing', () => {
    const [whole, parts] = [step({ lambda: 0.5, temperature: 2 }), step({ lambda: 0.5, temperature: 2, logits: 60 })];
    assert.ok(Math.abs(refValues(whole.loss())[0] - refValues(parts.loss())[0]) < 1e-12);
  });

  test('the pull is lambda T^2 KL, by definition, over the shared tokens', () => {
    const [lambda, T] = [1, 2];
    const { loss, student, teacher, params, batch } = step({ lambda, temperature: T });
    const c = forwardContext({ device, compute: 'f32' });
    const probabilities = (model: typeof student, p: typeof params): number[][] => {
      const logits = refValues(noGrad(() => model.logits(p, model.hidden(p, batch, c), c)));
      const V = model.spec.vocab;
      return Array.from({ length: 12 }, (_, r) => {
        const e = Array.from({ length: 11 }, (_, j) => Math.exp(logits[r * V + j] / T));
        const total = e.reduce((a, b) => a + b);
        return e.map((x) => x / total);
      });
    };
    const [own, other] = [probabilities(student, params), probabilities(teacher.model, teacher.params)];
    const [targets, weights] = [refValues(batch.targets), refValues(batch.weights)];
    let want = 0;
    for (let r = 0; r < 12; r++)
      if (targets[r] >= 0)
        want += weights[r] * T * T * other[r].reduce((s, p, j) => s + p * Math.log(p / own[r][j]), 0);
    assert.ok(Math.abs(refValues(noGrad(loss))[0] - want) < 1e-9);
    assert.ok(want > 0.01);
  });

  test('layers at even distances, of every stack', () => {
    const paths = (prefix: string, n: number) => Array.from({ length: n }, (_, k) => `${prefix}blocks.${k}.ffn.up`);
    const from = sparserLayers(
      [...paths('', 3), ...paths('encoder.', 1), 'embed.weight'],
      [...paths('', 6), ...paths('encoder.', 4)],
    );
    assert.deepEqual([...paths('', 3), ...paths('encoder.', 1), 'embed.weight'].map(from), [
      ...['blocks.0.ffn.up', 'blocks.3.ffn.up', 'blocks.5.ffn.up'],
      ...['encoder.blocks.3.ffn.up', 'embed.weight'],
    ]);
  });
});
