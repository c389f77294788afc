// Encodings of position by their definitions: scores depend on distance only, xPos equals its absolute form wherever
// that is finite, slopes and buckets are the published ones.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { attendPiece } from '../../src/nn/attention-pieces.ts';
import { forwardContext } from '../../src/nn/index.ts';
import { rotaryPeriods, rotaryPositions, rotaryTables } from '../../src/nn/positions.ts';
import * as T from '../../src/tensor/index.ts';
import { alibiSlopes } from '../../src/tricks/alibi/index.ts';
import { scaledPeriods } from '../../src/tricks/position-interpolation/index.ts';
import { bucketOf } from '../../src/tricks/t5-bias/index.ts';
import { logZeta, xposPositions } from '../../src/tricks/xpos/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';

const device = new CpuDevice();
const c = forwardContext({ device, compute: 'f32' });
const D = 64;
const options = { theta: 10000, gamma: 0.4, scaleBase: 512, interleaved: false };
const rng = new Rng('positions');
const vector = (): number[] => Array.from({ length: D }, () => rng.normal());
const norm = (x: ArrayLike<number>): number => Math.sqrt(Array.from(x).reduce((s, v) => s + v * v, 0));

/** q.k as turned by tables of f32, each a row of cos and of sin. */
type Row = { cos: ArrayLike<number>; sin: ArrayLike<number> };
function score(q: number[], k: number[], rowQ: Row, rowK: Row): number {
  const turn = (x: number[], r: Row): number[] => {
    const half = D / 2;
    const a = Array.from({ length: half }, (_, i) => Math.fround(x[i] * r.cos[i] - x[i + half] * r.sin[i]));
    return [...a, ...Array.from({ length: half }, (_, i) => Math.fround(x[i + half] * r.cos[i] + x[i] * r.sin[i]))];
  };
  const [tq, tk] = [turn(q, rowQ), turn(k, rowK)];
  return tq.reduce((s, v, i) => s + v * tk[i], 0);
}

/** The definition, in float64. */
function xposScore(q: ArrayLike<number>, k: ArrayLike<number>, distance: number): number {
  const half = D / 2;
  const zeta = logZeta(D, options.gamma);
  let s = 0;
  for (let i = 0; i < half; i++) {
    const angle = distance / 10000 ** (i / half);
    const re = q[i] * k[i] + q[i + half] * k[i + half];
    const im = q[i + half] * k[i] - q[i] * k[i + half];
    s += Math.exp((distance * zeta[i]) / 512) * (re * Math.cos(angle) - im * Math.sin(angle));
  }
  return s;
}

describe('scores depend on distance only', () => {
  const shifts = [1, 100, 4000, 30_000, 1_000_000];
  const [n, m] = [70, 3];
  const [q, k] = [vector(), vector()];
  const bound = 1e-5 * norm(q) * norm(k);
  const forms = {
    rope: { periods: rotaryPeriods(D, 10000), factor: 1 },
    yarn: (() => {
      const o = { method: 'yarn', factor: 16, trained: 1024, theta: 10000, betaFast: 32, betaSlow: 1 } as const;
      const { periods, magnitude } = scaledPeriods(D, o);
      return { periods, factor: magnitude };
    })(),
  };
  for (const [name, { periods, factor }] of Object.entries(forms))
    test(name, () => {
      const row = (at: number): Row => rotaryTables(1, periods, () => factor, at);
      const base = score(q, k, row(n), row(m));
      for (const shift of shifts)
        assert.ok(Math.abs(score(q, k, row(n + shift), row(m + shift)) - base) <= bound * factor ** 2, `${shift}`);
    });

  test('xpos, wherever the origin lies', () => {
    const zeta = logZeta(D, options.gamma);
    const base = xposScore(q, k, n - m);
    for (const shift of shifts)
      for (const origin of [shift, shift + 64, shift - 4000]) {
        const row = (at: number, sign: number): Row =>
          rotaryTables(1, rotaryPeriods(D, 10000), (t, i) => Math.exp((sign * (t - origin) * zeta[i]) / 512), at);
        const got = score(q, k, row(n + shift, 1), row(m + shift, -1));
        assert.ok(Math.abs(got - base) <= bound, `${shift} from ${origin}: ${got}, not ${base}`);
      }
  });

  test('alibi and t5-bias: a bias of distances has no positions to depend on', () => {
    // The kernel reads bias[h, key - query + Tk - 1]: equal distances are one element.
    assert.deepEqual(
      [1, 5].map((d) => bucketOf(d, { buckets: 32, maxDistance: 128, bidirectional: false })),
      [1, 5],
    );
  });
});

describe('xpos', () => {
  const random = (shape: number[], seed: string): T.Tensor => {
    const r = new Rng(seed);
    return T.Tensor.from(
      device,
      Float64Array.from({ length: shape.reduce((a, b) => a * b) }, () => r.normal()),
      shape,
    );
  };

  test('with zeta = 1 the bits are those of rope', () => {
    for (const interleaved of [false, true]) {
      const one = xposPositions({ ...options, gamma: 1e300, interleaved }, 40, D);
      const rope = rotaryPositions(40, rotaryPeriods(D, 10000), interleaved);
      for (const dtype of ['f32', 'bf16'] as const)
        T.scope(() => {
          const x = T.cast(random([2, 40, 4, D], 'bits'), dtype);
          const [a, b] = [one, rope].map((p) => p.rotate!(x, 2, 1, c).bitsSync());
          assert.deepEqual(a, b);
        });
    }
  });

  test('turned at once: the absolute form up to the longest context, for heads that share keys', () => {
    T.scope(() => {
      const t = 600;
      const p = xposPositions(options, 32_000, D);
      const x = random([1, t, 4, D], 'whole');
      const before = x.dataSync();
      const at = (data: ArrayLike<number>, token: number, head: number): number[] =>
        Array.from({ length: D }, (_, i) => data[(token * 4 + head) * D + i]);
      for (const shift of [0, 31_000]) {
        const ids = T.Tensor.from(
          device,
          Int32Array.from({ length: t }, (_, k) => k + shift),
          [1, t],
          'i32',
        );
        const y = p.rotate!(x, 2, 1, { ...c, positions: ids }).dataSync();
        assert.ok(y.every(Number.isFinite));
        for (const [i, j] of [
          [599, 0],
          [599, 598],
          [300, 17],
          [5, 5],
        ])
          for (const head of [0, 1]) {
            const [tq, tk] = [at(y, i, head), at(y, j, 2)];
            const got = tq.reduce((s, v, d) => s + v * tk[d], 0);
            const [q, k] = [at(before, i, head), at(before, j, 2)];
            assert.ok(Math.abs(got - xposScore(q, k, i - j)) <= 1e-5 * norm(q) * norm(k), `${i} ${j}`);
          }
        assert.deepEqual(at(y, 9, 3), at(before, 9, 3), 'values are not turned');
      }
    });
  });

  test('a longer context is refused at once, and taken in pieces', () => {
    const p = xposPositions(options, 131_072, D);
    assert.ok(p.reach! < 131_072);
    assert.throws(() => p.rotate!(random([1, 2, 3, D], 'x'), 1, 1, c), /turned in pieces/);
  });

  for (const dtype of ['f32', 'bf16'] as const)
    test(`131072 tokens in ${dtype}: the last queries have the absolute form's output`, () => {
      const [t, size, heads] = [131_072, 256, 1];
      const p = xposPositions(options, t, D);
      const turn = p.pieces!(t, size);
      T.scope(() => {
        const draw = (n: number, seed: string): T.Tensor => T.cast(random([1, t, n, D], seed), dtype);
        const [q, k, v] = [draw(heads, 'q'), draw(1, 'k'), draw(1, 'v')];
        const o = { heads, kvHeads: 1, window: 0, scale: 0.125, positions: p };
        const got = attendPiece([q, k, v], t - size, t, turn, o, c).dataSync();
        const [qs, ks, vs] = [q, k, v].map((x) => x.dataSync());
        for (const [row, head] of [
          [0, 0],
          [255, 0],
        ]) {
          const n = t - size + row;
          const query = qs.slice((n * heads + head) * D, (n * heads + head + 1) * D);
          const logits = Float64Array.from(
            { length: n + 1 },
            (_, m) => 0.125 * xposScore(query, ks.subarray(m * D, (m + 1) * D), n - m),
          );
          const most = logits.reduce((a, b) => Math.max(a, b));
          const weights = logits.map((x) => Math.exp(x - most));
          const total = weights.reduce((a, b) => a + b);
          const want = new Float64Array(D);
          weights.forEach((w, m) => {
            for (let i = 0; i < D; i++) want[i] += (w / total) * vs[m * D + i];
          });
          const at = (row * heads + head) * D;
          const [limit, size0] = [dtype === 'bf16' ? 1e-3 : 2e-5, Math.max(...want.map(Math.abs))];
          // bf16 stores the result with 8 bits; the operands' rounding averages out over the keys.
          const rounding = dtype === 'bf16' ? size0 * 2 ** -8 : 0;
          for (let i = 0; i < D; i++)
            assert.ok(
              Math.abs(got[at + i] - want[i]) <= limit + rounding,
              `${n}/${head}/${i}: ${got[at + i]}, not ${want[i]}`,
            );
        }
      });
    });
});

describe('published vectors', () => {
  test('slopes of ALiBi', () => {
    assert.deepEqual(
      alibiSlopes(8),
      [1, 2, 3, 4, 5, 6, 7, 8].map((h) => 2 ** -h),
    );
    assert.deepEqual(alibiSlopes(12).slice(0, 8), alibiSlopes(8));
    assert.deepEqual(
      alibiSlopes(12).slice(8),
      [0.5, 1.5, 2.5, 3.5].map((e) => 2 ** -e),
    );
  });

  test('buckets of T5', () => {
    const causal = { buckets: 32, maxDistance: 128, bidirectional: false };
    assert.deepEqual(
      [0, 15, 16, 64, 127, 10_000].map((d) => bucketOf(d, causal)),
      [0, 15, 16, 26, 31, 31],
    );
    assert.deepEqual(
      [-1, -100].map((d) => bucketOf(d, causal)),
      [0, 0],
    );
    const both = { ...causal, bidirectional: true };
    assert.deepEqual(
      [0, 7, 8, 10_000, -1, -7, -10_000].map((d) => bucketOf(d, both)),
      [0, 7, 8, 15, 17, 23, 31],
    );
  });

  test('scaled rotary frequencies', () => {
    const base = { factor: 4, trained: 2048, theta: 10000, betaFast: 32, betaSlow: 1 };
    const plain = rotaryPeriods(128, 10000);
    const of = (method: 'linear' | 'ntk' | 'yarn') => scaledPeriods(128, { ...base, method });
    assert.deepEqual(
      of('linear').periods,
      plain.map((p) => 4 * p),
    );
    // NTK: the fastest pair stays, the slowest is interpolated in full.
    const ntk = of('ntk').periods;
    assert.equal(ntk[0], 1);
    assert.ok(Math.abs(ntk[63] / plain[63] - 4) < 1e-9);
    // YaRN for Llama: pairs up to 20 turn more than 32 times in 2048 tokens, pairs from 46 less than once.
    const { periods, magnitude } = of('yarn');
    assert.equal(magnitude, 0.1 * Math.log(4) + 1);
    for (let i = 0; i <= 16; i++) assert.ok(Math.abs(periods[i] / plain[i] - 1) < 1e-12, `pair ${i}`);
    for (let i = 41; i < 64; i++) assert.ok(Math.abs(periods[i] / plain[i] - 4) < 1e-12, `pair ${i}`);
    for (let i = 17; i < 41; i++) assert.ok(periods[i] > plain[i] && periods[i] < 4 * plain[i], `pair ${i}`);
    // Twelve decimals of theta'_30 by hand: ramp (30-16)/(41-16) = 0.56, theta (0.44 + 0.56/4).
    assert.ok(Math.abs(plain[30] / periods[30] - 0.58) < 1e-12);
  });
});
