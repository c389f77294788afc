// The sparse feed-forward layer: the published example by hand, straight-through gradients, choices, noise, scale.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { blockGate, gradients, matmul, noGrad, RandomState, scope, sum, Tensor } from '../../src/tensor/index.ts';
import { equalHidden, sparseCosts, usageOf } from '../../src/tricks/sparse-ffn/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues, slope } from '../support/ref-values.ts';

const device = new RefDevice();
const on = (values: ArrayLike<number>, shape: number[]): Tensor => Tensor.from(device, values, shape);
const near = (got: ArrayLike<number>, want: readonly number[], tolerance: number): void => {
  assert.equal(got.length, want.length);
  want.forEach((w, k) => {
    assert.ok(Math.abs(got[k] - w) <= tolerance, `element ${k} is ${got[k]}, not ${w}`);
  });
};

// d = 3, F = 4, blocks of 2, rank 2; matrices here are [in, out].
const x = [1, -2, 0.5];
const W1 = [0.5, 1, 1, 0.25, 0.25, -0.5, -0.5, -1, 1, 2, 0.5, -0.5];
const W2 = [1, 0, 1, 0.5, 0.5, 0.5, 0, 1, 2, -1, 1, 2];
const C1 = [1, 0, 0, 1, 0.5, -0.5];
const C2 = [0.2, -0.1, 0.3, 0.4, 0.1, 0.3, -0.2, 0.5];

type Options = { hard?: number; mask?: 'after' | 'before'; multiply?: boolean };

/** y of the example, and the gradient of sum(y) with respect to z (through an added bias of zeros). */
function example({ hard, mask, multiply }: Options): { y: number[]; choice: number[]; dz: number[] } {
  return scope(() => {
    const h = matmul(on(x, [1, 3]), on(W1, [3, 4]));
    const t = matmul(on(x, [1, 3]), on(C1, [3, 2]));
    const c2 = on(
      Array.from({ length: 8 }, (_, k) => C2[(k % 2) * 4 + Math.floor(k / 2)]),
      [4, 2],
    );
    const bias = on([0, 0, 0, 0], [4]).parameter();
    const flag = hard === undefined ? null : on([hard], [1]);
    const { out, choice } = blockGate(h, t, c2, { block: 2, bias, hard: flag, mask, multiply });
    const y = matmul(out, on(W2, [4, 3]), { bias: on([0.1, 0.2, 0.3], [3]) });
    const [dz] = gradients(sum(y), [bias]);
    bias.dispose();
    return { y: [...refValues(y)], choice: [...choice.dataSync()], dz: [...refValues(dz)] };
  });
}

describe('the example of the specification', () => {
  test('evaluation, soft mask', () => {
    near(example({}).y, [0.6, 2.45, 5.3], 1e-7); // f32 inputs: 0.1 and the like are rounded
    assert.deepEqual(example({}).choice, [0, 0]);
    near(example({ hard: 0 }).y, [0.5247, 2.859555, 5.509703], 1e-6);
    near(example({ hard: 0, mask: 'before' }).y, [0.5247, 2.859555, 5.509703], 1e-6);
  });
  test('gradients of the controller', () => {
    const soft = [-0.741507, 0.741507, 0.423228, -0.423228];
    near(example({ hard: 0 }).dz, soft, 1e-6);
    near(example({ hard: 0, mask: 'before' }).dz, soft, 1e-6);
    // Every unit reports to the controller; or the chosen one alone, and in block 0 with the other sign.
    near(example({ hard: 1, mask: 'after' }).dz, soft, 1e-6);
    near(example({ hard: 1, mask: 'before' }).dz, [0.211859, -0.211859, 1.038832, -1.038832], 1e-6);
  });
  test('chosen units times their probability', () => {
    const [p0, p1] = [0.695297, 0.809998];
    const h = [0.5 * p0, 2.25 * p1];
    near(example({ multiply: true }).y, [0.1 + h[0], 0.2 + h[1], 0.3 + h[0] + 2 * h[1]], 2e-6);
  });
});

/** Straight-through by its definition: m = onehot + p(z + e) - p(z), differentiated by differences. */
test('the hard gradient after the ReLU is that of onehot + p - sg(p), by finite differences', () => {
  const rng = new Rng('straight-through');
  const [rows, F, N, r] = [3, 12, 4, 3];
  const draw = (n: number): Float64Array => Float64Array.from({ length: n }, () => rng.normal());
  const [h, t, c2, weight] = [draw(rows * F), draw(rows * r), draw(F * r), draw(rows * F)];
  const z = (c: ArrayLike<number>, row: number, j: number): number => {
    let s = 0;
    for (let k = 0; k < r; k++) s += Math.fround(t[row * r + k]) * c[j * r + k];
    return s;
  };
  const probabilities = (c: ArrayLike<number>): Float64Array =>
    Float64Array.from({ length: rows * F }, (_, k) => {
      const [row, j] = [Math.floor(k / F), k % F];
      const first = j - (j % N);
      let total = 0;
      for (let n = 0; n < N; n++) total += Math.exp(z(c, row, first + n));
      return Math.exp(z(c, row, j)) / total;
    });
  scope(() => {
    const c = on(c2, [F, r]);
    c.requiresGrad = true;
    const { out, choice } = blockGate(on(h, [rows, F]), on(t, [rows, r]), c, { block: N });
    const [dc2] = gradients(out, [c], on(weight, [rows, F])).map((g) => refValues(g));
    const exact = refValues(c).slice();
    const fixed = probabilities(exact);
    const picks = choice.dataSync();
    for (let e = 0; e < F * r; e++) {
      const numeric = slope((step) => {
        const moved = exact.slice();
        moved[e] += step;
        const p = probabilities(moved);
        let value = 0;
        for (let k = 0; k < rows * F; k++) {
          const chosen = picks[Math.floor(k / N)] === k % N ? 1 : 0;
          value += Math.fround(weight[k]) * Math.max(0, Math.fround(h[k])) * (chosen + p[k] - fixed[k]);
        }
        return value;
      });
      assert.ok(Math.abs(dc2[e] - numeric) < 1e-7, `element ${e}: ${dc2[e]}, difference ${numeric}`);
    }
  });
});

/** Choices of one row of logits z, blocks of N. */
const chosen = (z: readonly number[], block: number): number[] =>
  scope(() => {
    const n = z.length;
    const zeros = {
      h: on(new Float64Array(n).fill(1), [1, n]),
      t: on([0], [1, 1]),
      c2: on(new Float64Array(n), [n, 1]),
    };
    return [...blockGate(zeros.h, zeros.t, zeros.c2, { block, bias: on(z, [n]) }).choice.dataSync()];
  });

test('ties go to the lowest index, infinities and NaN do no harm', () => {
  const { NEGATIVE_INFINITY: low, POSITIVE_INFINITY: high, NaN: bad } = Number;
  assert.deepEqual(chosen([1, 1, 1, 1], 4), [0]);
  assert.deepEqual(chosen([0, 2, 2, 1], 4), [1]);
  assert.deepEqual(chosen([low, low, low, low], 2), [0, 0]);
  assert.deepEqual(chosen([low, -5, high, high], 4), [2]);
  assert.deepEqual(chosen([bad, -5, 3, bad], 4), [2]);
  assert.deepEqual(chosen([bad, bad], 2), [0]);
});

/** Shares of `draws` noisy choices among logits z. */
function frequencies(z: readonly number[], tau: number, draws: number): number[] {
  const N = z.length;
  const random = new RandomState(device, 7);
  const counts = new Array<number>(N).fill(0);
  scope(() =>
    noGrad(() => {
      const [h, t] = [on(new Float64Array(draws * N), [draws, N]), on(new Float64Array(draws).fill(1), [draws, 1])];
      const { choice } = blockGate(h, t, on(z, [N, 1]), { block: N, hard: on([1], [1]), random, tau, stream: 5 });
      for (const n of choice.dataSync()) counts[n]++;
    }),
  );
  return counts.map((n) => n / draws);
}

describe('Gumbel noise', () => {
  const z = [0.3, -0.2, 0.05, 0.1];
  for (const tau of [1, 0.1])
    test(`with tau ${tau} choices follow softmax(z / tau): chi-squared of 100 000 draws`, () => {
      const draws = 100_000;
      const e = z.map((x) => Math.exp(x / tau));
      const total = e.reduce((a, b) => a + b, 0);
      const chi2 = frequencies(z, tau, draws).reduce((s, f, n) => {
        const p = e[n] / total;
        return s + (draws * (f - p) ** 2) / p;
      }, 0);
      assert.ok(chi2 < 16.27, `chi-squared ${chi2}: beyond the 0.1% point of 3 degrees of freedom`);
    });
});

test('usage: entropy and dead units', () => {
  const even = usageOf([0.25, 0.25, 0.25, 0.25], 4);
  assert.ok(Math.abs(even.meanEntropy - 1) < 1e-12 && even.dead === 0);
  const half = usageOf([1, 0, 0.5, 0.5], 2);
  assert.deepEqual([half.entropy[0], half.dead, half.deadShare], [0, 1, 0.25]);
  assert.ok(Math.abs(half.entropy[1] - 1) < 1e-12);
  assert.equal(usageOf([0.99, 0.01, 0.5, 0.5], 2, 0.02).dead, 1);
});

test('costs: the table of the specification', () => {
  const of = (width: number, hidden: number, block: number, rank: number): number[] => {
    const c = sparseCosts({ width, hidden, block, rank });
    const dense = 2 * width * hidden;
    return [c.controller, c.decodeWeights - c.controller, Math.round(dense / c.decodeWeights)];
  };
  assert.deepEqual(of(1024, 4096, 64, 64), [327_680, 131_072, 18]);
  assert.deepEqual(of(1024, 4096, 64, 16), [81_920, 131_072, 39]);
  assert.deepEqual(of(1024, 6144, 64, 96), [688_128, 196_608, 14]);
  assert.deepEqual(of(9216, 65_536, 256, 32), [2_392_064, 4_718_592, 170]);
  const { parameters, forwardFlops } = sparseCosts({ width: 1024, hidden: 4096, block: 64, rank: 64 });
  assert.ok(Math.abs(forwardFlops / (4 * 1024 * 4096) - 1.039) < 1e-3);
  assert.equal(parameters, 2 * 1024 * 4096 + 327_680);
  const hidden = equalHidden(1024, 2730, 64);
  const gap = sparseCosts({ width: 1024, hidden, block: 64, rank: 16 }).parameters / (3 * 1024 * 2730);
  assert.ok(Math.abs(gap - 1) < 0.01, `${gap}`);
});
