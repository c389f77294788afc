// Attention over hashed chunks in float64: what it equals, what more rounds bring, and what it costs.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { buildSlot, countParams, slotSchema } from '../../src/nn/index.ts';
import { type LshChunks, lshAttention, lshHash, lshPairs, lshSort, scope, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { bucketFactors, lshFlops } from '../../src/tricks/lsh-attention/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues } from '../support/ref-values.ts';
import { normalTensor } from '../support/slot-layer.ts';
import { configOf, smallSpec } from '../support/small-models.ts';

const device = new RefDevice();
const [T, H, D] = [40, 2, 8];
const ROUNDING = 4e-15;

interface Layer {
  readonly x: Tensor;
  readonly chunks: LshChunks;
  /** Whether query i sees key j in round r of a head. */
  sees(h: number, r: number, i: number, j: number): boolean;
  readonly rounds: number;
}

function layer(o: { chunk: number; rounds?: number; buckets?: number; lookBack?: number; seed?: string }): Layer {
  const { chunk, rounds = 1, buckets = 1, lookBack = 1, seed = 'x' } = o;
  const x = normalTensor(device, seed, [1, T, 2 * H, D]);
  const rng = new Rng(`${seed} buckets`);
  const ids = Int32Array.from({ length: H * rounds * T }, () => rng.int(0, buckets - 1));
  const chosen = buckets > 1 ? Tensor.from(device, ids, [1, H, rounds, T], 'i32') : null;
  const chunks = lshSort(x, { heads: H, rounds, chunk, buckets: chosen, count: buckets });
  const place = refValues(chunks.place);
  const n = Math.ceil(T / chunk);
  const sees = (h: number, r: number, i: number, j: number): boolean => {
    const [a, b] = [place[(h * rounds + r) * T + i], place[(h * rounds + r) * T + j]];
    return j < i && (a - b + n) % n <= Math.min(lookBack, n - 1);
  };
  return { x, chunks, sees, rounds };
}

/** Plain softmax over the keys that `weight` is above 0 for, times it; a query with none gives its own value. */
function softmaxOver(x: Tensor, weight: (h: number, i: number, j: number) => number): Float64Array {
  const v = refValues(x);
  const at = (t: number, head: number, d: number): number => v[(t * 2 * H + head) * D + d];
  const out = new Float64Array(T * H * D);
  for (let h = 0; h < H; h++)
    for (let i = 0; i < T; i++) {
      const keys = Array.from({ length: i }, (_, j) => j).filter((j) => weight(h, i, j) > 0);
      const logits = keys.map((j) => {
        let [dot, square] = [0, 0];
        for (let d = 0; d < D; d++) [dot, square] = [dot + at(i, h, d) * at(j, h, d), square + at(j, h, d) ** 2];
        return dot / Math.sqrt(square + 1e-12);
      });
      const most = Math.max(...logits);
      const p = logits.map((l, k) => weight(h, i, keys[k]) * Math.exp(l - most));
      const total = p.reduce((a, b) => a + b, 0);
      for (let d = 0; d < D; d++)
        out[(i * H + h) * D + d] =
          keys.length === 0 ? at(i, H + h, d) : keys.reduce((sum, j, k) => sum + (p[k] / total) * at(j, H + h, d), 0);
    }
  return out;
}

const furthest = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Array.from(a, (x, k) => Math.abs(x - b[k])).reduce((m, e) => Math.max(m, e), 0);
const outputOf = (l: Layer, dedupe = true, lookBack = 1): Float64Array =>
  Float64Array.from(refValues(lshAttention(l.x, l.chunks, { scale: 1, dedupe, lookBack })));
const timesSeen = (l: Layer, h: number, i: number, j: number): number =>
  Array.from({ length: l.rounds }, (_, r) => +l.sees(h, r, i, j)).reduce((a, b) => a + b, 0);

describe('what attention over chunks equals', () => {
  test('one bucket, one chunk: full attention with shared queries and keys', () =>
    scope(() => {
      const l = layer({ chunk: 64 });
      assert.ok(
        furthest(
          outputOf(l),
          softmaxOver(l.x, () => 1),
        ) < ROUNDING,
      );
    }));

  test('one bucket, chunks of C, looking back one: local attention in blocks', () =>
    scope(() => {
      for (const C of [4, 7, 16]) {
        const l = layer({ chunk: C });
        const local = softmaxOver(l.x, (_, i, j) => +(Math.floor(i / C) - Math.floor(j / C) <= 1));
        assert.ok(furthest(outputOf(l), local) < ROUNDING);
      }
    }));

  test('several rounds: softmax over the union of what they see, exactly', () =>
    scope(() => {
      for (const [rounds, lookBack] of [
        [2, 1],
        [4, 1],
        [3, 0],
        [3, 2],
      ]) {
        const l = layer({ chunk: 5, rounds, buckets: 8, lookBack, seed: `${rounds}` });
        const union = softmaxOver(l.x, (h, i, j) => +(timesSeen(l, h, i, j) > 0));
        assert.ok(furthest(outputOf(l, true, lookBack), union) < ROUNDING);
        // Trax's way: pairs count once for each round that sees them.
        const repeated = outputOf(l, false, lookBack);
        assert.ok(
          furthest(
            repeated,
            softmaxOver(l.x, (h, i, j) => timesSeen(l, h, i, j)),
          ) < ROUNDING,
        );
        assert.ok(furthest(repeated, union) > 0.1);
      }
    }));

  test('the first token, and any that sees no other, attend to themselves alone', () =>
    scope(() => {
      const l = layer({ chunk: 3, rounds: 2, buckets: 12, lookBack: 0 });
      const [out, x] = [outputOf(l, true, 0), refValues(l.x)];
      let alone = 0;
      for (let h = 0; h < H; h++)
        for (let i = 0; i < T; i++) {
          const some = Array.from({ length: i }, (_, j) => timesSeen(l, h, i, j)).some((n) => n > 0);
          if (some) continue;
          alone++;
          for (let d = 0; d < D; d++) assert.equal(out[(i * H + h) * D + d], x[(i * 2 * H + H + h) * D + d]);
        }
      assert.ok(alone > H, `${alone} queries see nothing but themselves`);
    }));
});

/** Share of full attention's weight that falls on what R = 1, 2, ... rounds see together, on average. */
function captured(q: Float64Array, rounds: number[]): number[] {
  const [n, d, C, most] = [512, 64, 64, Math.max(...rounds)];
  const x = Tensor.from(device, q, [1, n, 1, d]);
  const buckets = lshHash(x, 1, normalTensor(device, 'rotations', [1, most, 8, d]), [16]);
  const place = refValues(lshSort(x, { heads: 1, rounds: most, chunk: C, buckets, count: 16 }).place);
  const sums = rounds.map(() => 0);
  for (let i = 1; i < n; i++) {
    const seen = rounds.map(() => 0);
    let total = 0;
    for (let j = 0; j < i; j++) {
      let [dot, square] = [0, 0];
      for (let c = 0; c < d; c++) [dot, square] = [dot + q[i * d + c] * q[j * d + c], square + q[j * d + c] ** 2];
      const weight = Math.exp(dot / Math.sqrt(square));
      total += weight;
      const first = Array.from({ length: most }, (_, r) => r).find(
        (r) => (place[r * n + i] - place[r * n + j] + n / C) % (n / C) <= 1,
      );
      rounds.forEach((R, k) => {
        if (first !== undefined && first < R) seen[k] += weight;
      });
    }
    seen.forEach((s, k) => {
      sums[k] += s / total / (n - 1);
    });
  }
  return sums;
}

describe('rounds', () => {
  test('more of them see more of the attention weight, most of all where queries cluster', () =>
    scope(() => {
      const rng = new Rng('captured');
      const normals = (n: number): Float64Array => Float64Array.from({ length: n }, () => rng.normal());
      const [iid, centres, noise] = [normals(512 * 64), normals(8 * 64), normals(512 * 64)];
      const clustered = noise.map((e, k) => 0.6 * e + centres[(Math.floor(k / 64) % 8) * 64 + (k % 64)]);
      const rounds = [1, 2, 4, 8, 16];
      const [a, b] = [captured(iid, rounds), captured(clustered, rounds)];
      // Mean of 20 draws of a program of its own for independent queries.
      [0.276, 0.475, 0.723, 0.921, 0.993].forEach((want, k) => {
        assert.ok(Math.abs(a[k] - want) < 0.03, `${rounds[k]} rounds: ${a[k]}, expected ${want}`);
        assert.ok(k === 0 || (a[k] > a[k - 1] && b[k] >= b[k - 1]));
      });
      assert.ok(b[0] > a[0] + 0.15 && b[2] > 0.85, `clustered: ${b}`);
    }));
});

describe('costs', () => {
  test('buckets: twice the chunks, in two factors above 128', () => {
    assert.deepEqual(bucketFactors(512, 64), [16]);
    assert.deepEqual(bucketFactors(500, 64), [16]);
    assert.deepEqual(bucketFactors(4096, 64), [128]);
    assert.deepEqual(bucketFactors(8192, 64), [16, 16]);
    assert.deepEqual(bucketFactors(32768, 64), [32, 32]);
    assert.deepEqual(bucketFactors(10, 64), [2]);
    assert.deepEqual(bucketFactors(64, 64, 1), []);
    assert.deepEqual(bucketFactors(64, 64, 130), [16, 10]);
  });

  test('pairs: those that chunks really see, where hashes do not depend on positions', () =>
    scope(() => {
      // One bucket and no look-back: exact.
      for (const C of [1, 7, 16, 64]) {
        const l = layer({ chunk: C, lookBack: 0 });
        const pairs = Array.from({ length: T * T }, (_, k) => +l.sees(0, 0, Math.floor(k / T), k % T));
        assert.equal(
          pairs.reduce((a, b) => a + b, 0),
          lshPairs(T, C, 0),
        );
      }
      let [seen, counted] = [0, 0];
      for (let trial = 0; trial < 60; trial++) {
        const l = layer({ chunk: 8, buckets: 10, seed: `${trial}` });
        for (let h = 0; h < H; h++) for (let k = 0; k < T * T; k++) seen += +l.sees(h, 0, Math.floor(k / T), k % T);
        counted += H * lshPairs(T, 8, 1);
      }
      assert.ok(Math.abs(seen / counted - 1) < 0.02, `${seen} pairs, ${counted} counted`);
    }));

  test('parameters and FLOPs equal the closed formulas', () => {
    const attention = { kind: 'lsh', heads: 3, headWidth: 8, chunk: 16, rounds: 4, bias: true };
    const sizes = { width: 24, heads: 3, headWidth: 8, tokens: 200, chunk: 16, rounds: 4, lookBack: 1 };
    const spec = (kind: object) => smallSpec({ width: 24, depth: 1, context: 200, ...kind });
    const base = { kind: 'full', heads: 3, headWidth: 8, kvHeads: 3 };
    const saved = countParams(buildModel(spec({ attention: base }))) - countParams(buildModel(spec({ attention })));
    assert.equal(saved, 24 * 24 - 48 - 24);
    const cost = (a: object) =>
      accountFor(parseTrainConfig(configOf(spec({ attention: a }), { batch: 2, length: 200 })));
    const { projections, hashing, attention: pairs } = lshFlops(sizes);
    const fullFlops = 8 * 24 * 24 + 4 * 24 * (201 / 2);
    const difference = cost(attention).forwardFlopsPerToken - cost(base).forwardFlopsPerToken;
    assert.ok(Math.abs(difference - ((projections + pairs) / 200 - fullFlops)) < 1e-6);
    const hashes = cost(attention).stepFlops - cost({ ...attention, buckets: 1 }).stepFlops;
    // Besides the products: drawing the rotations, 10 a number.
    assert.ok(Math.abs(hashes - (2 * hashing + 10 * 3 * 4 * 13 * 8)) < 1e-3, `${hashes} ${2 * hashing}`);
  });

  test('memory of a step grows with the tokens, not with their square', () => {
    const arena = (context: number): number =>
      accountFor(
        parseTrainConfig(
          configOf(smallSpec({ context, attention: { kind: 'lsh', heads: 2 } }), { batch: 1, length: context }),
        ),
      ).memory.arena;
    const [short, long] = [arena(1024), arena(8192)];
    assert.ok(long < 8.5 * short, `${short} bytes at 1024 tokens, ${long} at 8192`);
  });
});

describe('refusals', () => {
  const build = (attention: object, more: object = {}) =>
    buildModel(
      parseTrainConfig(configOf(smallSpec({ attention: { kind: 'lsh', heads: 2, ...attention }, ...more }))).model,
    );
  for (const [name, run, message] of [
    ['biases by distance', () => build({}, { positions: 'alibi' }), /no biases by distance/],
    ['positions that turn queries and keys apart', () => build({}, { positions: 'xpos' }), /turn them apart/],
    ['an odd number of buckets', () => build({ buckets: 7 }), /buckets must be even/],
    ['too many rounds', () => build({ rounds: 17 }), /16/],
    [
      'an encoder',
      () =>
        buildSlot('attention', slotSchema('attention').parse({ kind: 'lsh', heads: 2 }), {
          dims: { width: 8, depth: 1, vocab: 8, context: 8, tied: true },
          ...{ positions: {}, headWidth: 4, layer: 0, zLoss: 0, causal: false },
          scales: { embedding: 1, logits: 1, branch: 1, attention: () => 1 },
        }),
      /cannot look both ways/,
    ],
  ] as const)
    test(name, () => {
      assert.throws(run, message);
    });
});
