import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { Loader, type LoaderSource, type LoaderState } from '../../src/data/loader.ts';
import { Permutation } from '../../src/data/loader-permutation.ts';
import { createPacking } from '../../src/data/packing.ts';
import { tokensInMemory } from '../../src/data/shards.ts';
import { createBatch, IGNORE, type TokenBatch, type TokenData } from '../../src/data/types.ts';

const EOT = 0;

/** Documents whose tokens are all different (across documents too): a token names its place. */
function distinct(lengths: readonly number[], name = 'data', first = 1): TokenData {
  let next = first;
  const docs = lengths.map((length) => Array.from({ length }, () => next++));
  return tokensInMemory(docs, { eot: EOT, vocabSize: next, name });
}

const LENGTHS = [5, 1, 0, 40, 17, 3, 100, 16, 15, 2, 64, 31, 7, 7, 0, 33, 250, 9];

function stored(data: TokenData): Int32Array {
  const out = new Int32Array(data.tokenCount);
  data.read(0, data.tokenCount, out, 0);
  return out;
}

const copy = (batch: TokenBatch) => structuredClone(batch);

test('the permutation is one, for all sizes up to 300 and some large', () => {
  for (const size of [...Array.from({ length: 300 }, (_, i) => i + 1), 4096, 4097, 100_003]) {
    const order = new Permutation(size, 7, 0, size);
    const seen = new Uint8Array(size);
    for (let i = 0; i < size; i++) seen[order.at(i)]++;
    assert.ok(
      seen.every((count) => count === 1),
      `${size}`,
    );
  }
  const huge = new Permutation(2 ** 32, 1, 0, 0);
  const values = new Set(Array.from({ length: 1000 }, (_, i) => huge.at(i * 4_000_000)));
  assert.equal(values.size, 1000);
  assert.ok([...values].every((value) => value >= 0 && value < 2 ** 32));
  assert.equal([...values].filter((value) => value >= 2 ** 31).length > 400, true);
});

test('the permutation mixes: neighbours, fixed points and serial correlation are as in a random order', () => {
  const size = 50_000;
  let fixed = 0;
  let adjacent = 0;
  let correlation = 0;
  const runs = 20;
  for (let seed = 0; seed < runs; seed++) {
    const order = new Permutation(size, seed, 0, 0);
    let previous = order.at(0);
    for (let i = 1; i < size; i++) {
      const value = order.at(i);
      if (value === i) fixed++;
      if (Math.abs(value - previous) === 1) adjacent++;
      correlation += (value / size - 0.5) * (previous / size - 0.5);
      previous = value;
    }
  }
  // Expectations 1 and 2 a run, Poisson; the mean product has standard deviation 1/12 / sqrt(n).
  assert.ok(Math.abs(fixed - runs) < 5 * Math.sqrt(runs), `${fixed}`);
  assert.ok(Math.abs(adjacent - 2 * runs) < 5 * Math.sqrt(2 * runs), `${adjacent}`);
  assert.ok(Math.abs(correlation) < (5 / 12) * Math.sqrt(size * runs), `${correlation}`);
});

test('seeds, epochs and streams give unrelated orders', () => {
  const size = 10_000;
  const orders = [
    new Permutation(size, 1, 0, 0),
    new Permutation(size, 2, 0, 0),
    new Permutation(size, 1, 0, 1),
    new Permutation(size, 1, 1, 0),
    new Permutation(size, 2 ** 32 + 1, 0, 0),
  ].map((order) => Array.from({ length: size }, (_, i) => order.at(i)));
  for (let a = 0; a < orders.length; a++) {
    for (let b = 0; b < a; b++) {
      const equal = orders[a].filter((value, i) => value === orders[b][i]).length;
      assert.ok(equal < 10, `${a} and ${b}: ${equal} equal places`);
    }
  }
});

const single = (length = 8, mode: 'stream' | 'whole' = 'stream'): LoaderSource[] => [
  { name: 'a', packing: createPacking(distinct(LENGTHS), { length, mode }) },
];

function mixed(): LoaderSource[] {
  const data = [
    distinct(LENGTHS, 'a'),
    distinct(
      LENGTHS.map((n) => n + 3),
      'b',
      1000,
    ),
    distinct([9, 60, 33], 'c', 5000),
  ];
  const modes = ['stream', 'whole', 'stream'] as const;
  return data.map((d, s) => ({
    name: d.name,
    packing: createPacking(d, { length: 8, mode: modes[s] }),
    weight: [0.5, 0.3, 0.2][s],
  }));
}

function take(loader: Loader, count: number): TokenBatch[] {
  const buffer = createBatch(loader.batch, loader.length);
  return Array.from({ length: count }, () => copy(loader.next(buffer)));
}

test('an epoch visits every row once, in another order each time, and batches span its end', () => {
  const data = distinct(LENGTHS);
  const packing = createPacking(data, { length: 8 });
  const loader = new Loader([{ name: 'a', packing }], { batch: 1, seed: 3 });
  const epochs = Array.from({ length: 3 }, () => take(loader, packing.rows).map(({ targets }) => [...targets]));
  for (const rows of epochs) {
    const tokens = rows.flat().filter((target) => target !== IGNORE);
    assert.deepEqual(Int32Array.from(tokens).sort(), stored(data).sort());
  }
  assert.notDeepEqual(epochs[0], epochs[1]);
  assert.notDeepEqual(epochs[1], epochs[2]);
  const rows = (batch: number) =>
    take(new Loader([{ name: 'a', packing }], { batch, seed: 3 }), 60)
      .flatMap(({ inputs }) => Array.from({ length: batch }, (_, b) => inputs.slice(b * 8, b * 8 + 8).join()))
      .slice(0, 60);
  assert.deepEqual(rows(1), rows(7), 'the order does not depend on the batch size');
});

for (const [name, sources] of [
  ['one stream', () => single()],
  ['one packed set', () => single(64, 'whole')],
  ['a mixture', mixed],
] as const) {
  test(`${name}: a restored loader continues as if never stopped, over the ends of epochs`, () => {
    const options = { batch: 5, seed: 11 };
    const whole = take(new Loader(sources(), options), 100);
    for (const stop of [0, 1, 15, 16, 33, 77]) {
      const first = new Loader(sources(), options);
      take(first, stop);
      const state: LoaderState = JSON.parse(JSON.stringify(first.state()));
      const second = new Loader(sources(), options);
      take(second, 3);
      second.restore(state);
      assert.deepEqual(second.state(), state);
      assert.deepEqual(take(second, 100 - stop), whole.slice(stop), `stopped at ${stop}`);
    }
    assert.notDeepEqual(take(new Loader(sources(), { batch: 5, seed: 12 }), 1), whole.slice(0, 1));
    assert.deepEqual(take(new Loader(sources(), options), 100), whole);
    assert.ok(new Set(whole.map((batch) => batch.samples[0])).size === 100);
  });
}

for (const worldSize of [2, 3, 4]) {
  test(`${worldSize} ranks together see the batches of one, and can resume as another number of ranks`, () => {
    const whole = take(new Loader(mixed(), { batch: 12, seed: 4 }), 30);
    const loaders = Array.from(
      { length: worldSize },
      (_, rank) => new Loader(mixed(), { batch: 12 / worldSize, seed: 4, rank, worldSize }),
    );
    const join = (key: 'inputs' | 'targets' | 'segments' | 'positions' | 'sources', parts: TokenBatch[]) =>
      parts.flatMap((part) => [...part[key]]);
    for (const expected of whole.slice(0, 20)) {
      const parts = loaders.map((loader) => loader.next());
      for (const key of ['inputs', 'targets', 'segments', 'positions', 'sources'] as const) {
        assert.deepEqual(join(key, parts), [...expected[key]]);
      }
      assert.equal(
        parts.reduce((sum, { targetCount }) => sum + targetCount, 0),
        expected.targetCount,
      );
      for (const loader of loaders) assert.deepEqual(loader.state(), loaders[0].state());
    }
    const one = new Loader(mixed(), { batch: 12, seed: 4 });
    one.restore(loaders[worldSize - 1].state());
    assert.deepEqual(take(one, 10), whole.slice(20));
  });
}

test('a mixture keeps its shares of tokens at every moment', () => {
  const sources = mixed();
  const loader = new Loader(sources, { batch: 1, seed: 0 });
  const rowTokens = sources.map(({ packing }) => packing.data.tokenCount / packing.rows);
  const perRow = sources.map(({ weight = 1 }, s) => weight / rowTokens[s]);
  const sum = perRow.reduce((a, b) => a + b, 0);
  const counts = [0, 0, 0];
  const targets = [0, 0, 0];
  for (let n = 1; n <= 20_000; n++) {
    const batch = loader.next();
    counts[batch.sources[0]]++;
    targets[batch.sources[0]] += batch.targetCount;
    for (let s = 0; s < 3; s++) assert.ok(Math.abs(counts[s] - (perRow[s] / sum) * n) <= 2, `${n}: ${counts}`);
  }
  const total = targets.reduce((a, b) => a + b, 0);
  targets.forEach((count, s) => {
    assert.ok(Math.abs(count / total - [0.5, 0.3, 0.2][s]) < 0.002, `${s}: ${count / total}`);
  });
  assert.ok(loader.state().sources[2].epoch > 100);
});

test('a saved position is refused for other data or settings, and nothing changes then', () => {
  const loader = new Loader(mixed(), { batch: 2, seed: 1 });
  take(loader, 10);
  const state = loader.state();
  const refuse = (target: Loader, saved: unknown, pattern: RegExp) => {
    const before = target.state();
    assert.throws(
      () => target.restore(saved as LoaderState),
      (error) => error instanceof AnsatzError && pattern.test(error.message) && !error.message.includes('\n'),
    );
    assert.deepEqual(target.state(), before);
  };
  refuse(new Loader(mixed(), { batch: 2, seed: 2 }), state, /saved with seed 1, this run has 2/);
  refuse(new Loader(single(), { batch: 2, seed: 1 }), state, /has 3 data sources, this run has 1/);
  const recut = mixed();
  recut[1] = { ...recut[1], packing: createPacking(recut[1].packing.data, { length: 8, mode: 'stream' }) };
  refuse(new Loader(recut, { batch: 2, seed: 1 }), state, /data of "b".* has changed/);
  const other = mixed();
  other[0] = { ...other[0], packing: createPacking(distinct(LENGTHS, 'a', 7), { length: 8 }) };
  refuse(new Loader(other, { batch: 2, seed: 1 }), state, /data of "a".* has changed/);
  const edited = structuredClone(state);
  edited.sources[0].index += 1;
  refuse(loader, edited, /contradict/);
  edited.sources[0].index = 1e9;
  refuse(loader, edited, /out of range/);
  refuse(loader, {}, /not a loader state/);
  refuse(loader, null, /not a loader state/);
});

test('impossible loaders are refused', () => {
  const empty = tokensInMemory([], { eot: 0, vocabSize: 2, name: 'none' });
  const source = { name: 'none', packing: createPacking(empty, { length: 4 }) };
  assert.throws(() => new Loader([source], { batch: 1, seed: 0 }), /"none" is empty/);
  assert.throws(() => new Loader([{ ...single()[0], weight: 0 }], { batch: 1, seed: 0 }), /weight .* must be positive/);
  const foreign = tokensInMemory([[1, 2]], { eot: 0, vocabSize: 3, tokenizerHash: 'f'.repeat(64) });
  const two = [single()[0], { name: 'f', packing: createPacking(foreign, { length: 8 }) }];
  assert.throws(() => new Loader(two, { batch: 1, seed: 0 }), /different tokenizers/);
  assert.throws(() => new Loader(single(), { batch: 1, seed: 0, rank: 2, worldSize: 2 }), RangeError);
});
