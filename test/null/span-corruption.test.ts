// Span corruption: counts, compositions and masks by their definitions and distributions; the builder and its inverse.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, test } from 'node:test';
import { RowRandom } from '../../src/objectives/random.ts';
import {
  compose,
  corrupt,
  counts,
  mixtures,
  openMask,
  quotas,
  reconstruct,
  rint32,
  smallestRow,
  t5Mask,
} from '../../src/tricks/ul2/index.ts';

const runsOf = (mask: Uint8Array): number[] => {
  const runs: number[] = [];
  for (let k = 0; k < mask.length; k++)
    if (mask[k]) {
      if (k > 0 && mask[k - 1]) runs[runs.length - 1]++;
      else runs.push(1);
    }
  return runs;
};
const sum = (list: ArrayLike<number>): number => Array.from(list).reduce((a, b) => a + b, 0);
const SPANS = mixtures.ul2.filter((d) => d.kind === 'spans');

describe('counts', () => {
  test('rint32 rounds halves to even in float32', () => {
    assert.deepEqual([0.5, 1.5, 2.5, 382.5, 383.5, 0.49999997, 2.4].map(rint32), [0, 2, 2, 382, 384, 0, 2]);
    // As in TensorFlow: a product in float64, or halves rounded up, gives another count at some lengths.
    const lengths = Array.from({ length: 4093 }, (_, k) => k + 4); // below 4 the least count of 1 decides
    const noise = (L: number, r: number): number => counts(L, r, 3).noise;
    const up = lengths.filter((L) => Math.round(Math.fround(Math.fround(L) * Math.fround(0.15))) !== noise(L, 0.15));
    assert.equal(up.length, 63);
    assert.ok(lengths.filter((L) => Math.round(L * 0.5) !== noise(L, 0.5)).length > 1000);
    const evenOf64 = (x: number): number => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
    const wide = lengths.filter((L) => evenOf64(L * 0.15) !== noise(L, 0.15));
    assert.deepEqual(wide.slice(0, 3), [190, 350, 390]);
    assert.equal(wide.length, 39);
    const table = [...SPANS, { density: 0.15, mean: 32 }, { density: 0.5, mean: 12 }].map(({ density, mean }) =>
      lengths.map((L) => counts(L, density, mean)),
    );
    const hash = createHash('sha256').update(JSON.stringify(table)).digest('hex').slice(0, 16);
    assert.equal(hash, 'd7381e01b96f22e3');
  });

  test('a text always keeps a clean token for every span', () => {
    for (let L = 2; L < 200; L++)
      for (const density of [0.05, 0.15, 0.5, 0.75, 0.95])
        for (const mean of [1, 2, 3, 8, 64]) {
          const { noise, spans } = counts(L, density, mean);
          assert.ok(noise >= 1 && noise < L && spans >= 1 && spans <= noise && spans <= L - noise);
        }
  });
});

describe('masks', () => {
  test('compositions are uniform: every split of 6 in 3 parts equally often', () => {
    const random = new RowRandom(1, 2);
    const seen = new Map<string, number>();
    const n = 20_000;
    for (let k = 0; k < n; k++) {
      const parts = compose(6, 3, random);
      assert.ok(parts.length === 3 && sum(parts) === 6 && parts.every((p) => p > 0));
      seen.set(parts.join(), (seen.get(parts.join()) ?? 0) + 1);
    }
    assert.equal(seen.size, 10);
    const chi = [...seen.values()].reduce((x, c) => x + (c - n / 10) ** 2 / (n / 10), 0);
    assert.ok(chi < 27.9, `chi-square ${chi}`); // 9 degrees of freedom, p = 0.001
  });

  test('density, number of runs, and both ways to begin and end', () => {
    const ends = new Set<string>();
    for (let k = 0; k < 3000; k++) {
      const random = new RowRandom(3, k);
      const L = 2 + random.below(300);
      const { density, mean } = SPANS[random.below(SPANS.length)];
      const { noise, spans } = counts(L, density, mean);
      const [open, t5] = [openMask(L, density, mean, random), t5Mask(L, density, mean, random)];
      for (const mask of [open, t5]) assert.deepEqual([mask.length, sum(mask), runsOf(mask).length], [L, noise, spans]);
      assert.deepEqual([t5[0], t5[L - 1]], [0, 1]);
      ends.add(`${open[0]}${open[L - 1]}`);
    }
    assert.deepEqual([...ends].sort(), ['00', '01', '10', '11']);
  });

  test('share of runs of one token, and density by position', () => {
    const [L, n] = [568, 1500];
    const { noise, spans } = counts(L, 0.15, 3);
    let [ones, runs] = [0, 0];
    const profile = (mean: number, density: number, length: number, make: typeof openMask): number[] => {
      const tenths = new Array(10).fill(0);
      for (let k = 0; k < n; k++) {
        const mask = make(length, density, mean, new RowRandom(4, k));
        for (let j = 0; j < length; j++) tenths[Math.floor((10 * j) / length)] += mask[j] / ((n * length) / 10);
        if (mean !== 3) continue;
        for (const run of runsOf(mask)) {
          ones += +(run === 1);
          runs++;
        }
      }
      return tenths;
    };
    const near = (got: number[], want: number[], within: number): void => {
      const [first, middle, last] = [got[0], (got[4] + got[5]) / 2, got[9]];
      [first, middle, last].forEach((x, k) => {
        assert.ok(Math.abs(x - want[k]) < within, `${[first, middle, last]} against ${want}`);
      });
    };
    near(profile(3, 0.15, L, openMask), [0.146, 0.15, 0.149], 0.01);
    const p = (spans - 1) / (noise - 1);
    assert.ok(Math.abs(ones / runs - p) < 4 * Math.sqrt((p * (1 - p)) / runs), `${ones / runs}, not ${p}`);
    near(profile(64, 0.15, 600, openMask), [0.058, 0.18, 0.054], 0.02);
    near(profile(64, 0.5, 1006, openMask), [0.38, 0.53, 0.39], 0.02);
    // T5's single long span is always the end of the text: the reason for the other sampler.
    const t5 = profile(64, 0.15, 600, t5Mask);
    assert.deepEqual(
      [t5[0], t5[9]].map((x) => Math.round(100 * x) / 100),
      [0, 1],
    );
  });
});

describe('holes and their inverse', () => {
  test('20 000 texts come back, from masks that begin and end either way', () => {
    const sentinels = Int32Array.from({ length: 600 }, (_, k) => 10_000 + k);
    for (let k = 0; k < 20_000; k++) {
      const random = new RowRandom(5, k);
      const L = 2 + random.below(k % 50 === 0 ? 2000 : 80);
      const tokens = Int32Array.from({ length: L }, () => random.below(9_000));
      const { density, mean } = SPANS[random.below(SPANS.length)];
      let mask = (random.below(3) ? openMask : t5Mask)(L, density, mean, random);
      if (random.below(4) === 0) {
        const turn = random.below(L); // rolled: perhaps one run more
        mask = Uint8Array.from(mask, (_, j) => mask[(j + turn) % L]);
      }
      const made = corrupt(tokens, mask, sentinels);
      const [noise, runs] = [sum(mask), runsOf(mask).length];
      assert.deepEqual([made.inputs.length, made.targets.length], [L - noise + runs, noise + runs]);
      assert.deepEqual(reconstruct(made, sentinels), tokens);
      const own = (ids: Int32Array): number[] => [...ids].filter((id) => id >= 10_000);
      assert.deepEqual(own(made.inputs), own(made.targets), 'each sentinel once a side, in one order');
      assert.deepEqual(own(made.inputs), [...sentinels.subarray(0, runs)]);
    }
  });

  test('T5 masks give T5 examples', () => {
    const made = corrupt([11, 12, 13, 14, 15, 16], Uint8Array.of(0, 1, 1, 0, 0, 1), [90, 91, 92]);
    assert.deepEqual([...made.inputs], [11, 90, 14, 15, 91]);
    assert.deepEqual([...made.targets], [90, 12, 13, 91, 16]);
  });

  test('too many spans for the sentinels, and targets that do not fit, are refused', () => {
    assert.throws(() => corrupt([1, 2, 3, 4], Uint8Array.of(1, 0, 1, 0), [9]), /no sentinel left/);
    assert.throws(() => reconstruct({ inputs: Int32Array.of(9), targets: Int32Array.of(9, 1, 9) }, [9]), /twice/);
    assert.throws(() => reconstruct({ inputs: Int32Array.of(9), targets: Int32Array.of(1, 9) }, [9]), /begin/);
  });
});

describe('mixtures', () => {
  test('the fewest examples that hold the shares, and their quotas', () => {
    const shares = (name: keyof typeof mixtures): number[] => mixtures[name].map((d) => d.share);
    const row = (name: keyof typeof mixtures): number[] => quotas(shares(name), smallestRow(shares(name), []));
    assert.deepEqual(row('ul2'), [2, 2, 2, 1, 1, 1, 1]);
    assert.deepEqual(row('t5gemma2'), [1, 1, 1, 1, 4]);
    assert.deepEqual(row('ul2r'), [4, 1, 1, 2]);
    assert.deepEqual(row('clm'), [6, 2, 1, 1]);
    assert.equal(smallestRow([1, 2], [true, false]), 6, 'pairs need even numbers');
    assert.deepEqual(quotas([0.5, 0.3, 0.2], 5), [3, 1, 1]);
    assert.deepEqual(quotas([1, 1, 1], 7), [3, 2, 2]);
  });
});
