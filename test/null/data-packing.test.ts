import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createPacking, type DocumentStart, type PackingOptions } from '../../src/data/packing.ts';
import { packBestFit } from '../../src/data/packing-best-fit.ts';
import { tokensInMemory } from '../../src/data/shards.ts';
import { createBatch, IGNORE, PAD_SEGMENT, type TokenData } from '../../src/data/types.ts';

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

/** The rows of a packing in order, each as its segments' [inputs, targets]. */
function rowsOf(data: TokenData, options: PackingOptions) {
  const packing = createPacking(data, options);
  const batch = createBatch(1, packing.length);
  return Array.from({ length: packing.rows }, (_, index) => {
    const count = packing.fill(index, batch, 0);
    assert.equal(count, batch.targets.filter((target) => target !== IGNORE).length);
    const segments = new Map<number, { inputs: number[]; targets: number[]; positions: number[] }>();
    batch.segments.forEach((segment, i) => {
      if (!segments.has(segment)) segments.set(segment, { inputs: [], targets: [], positions: [] });
      const entry = segments.get(segment)!;
      entry.inputs.push(batch.inputs[i]);
      entry.targets.push(batch.targets[i]);
      entry.positions.push(batch.positions[i]);
    });
    return { batch: structuredClone(batch), segments };
  });
}

for (const mode of ['stream', 'whole'] as const) {
  for (const documentStart of ['learn', 'ignore'] as const) {
    for (const length of [1, 2, 8, 16, 61, 1000]) {
      test(`packing ${mode}, ${documentStart}, rows of ${length}: every token once, nothing crosses documents`, () => {
        const data = distinct(LENGTHS);
        const all = stored(data);
        const documentOf = new Map<number, number>();
        LENGTHS.forEach((_, d) => {
          for (let i = data.docStarts[d]; i < data.docStarts[d + 1] - 1; i++) documentOf.set(all[i], d);
        });
        const inputs: number[] = [];
        const targets: number[] = [];
        let ends = 0;
        for (const { batch, segments } of rowsOf(data, { length, mode, documentStart })) {
          const order = [...segments.keys()].filter((segment) => segment !== PAD_SEGMENT);
          assert.deepEqual(
            order,
            order.map((_, i) => i + 1),
            'segments count from 1, in order',
          );
          for (const [segment, entry] of segments) {
            assert.deepEqual(
              entry.positions,
              entry.positions.map((_, i) => i),
              'positions restart',
            );
            if (segment === PAD_SEGMENT) {
              assert.ok(entry.targets.every((target) => target === IGNORE));
              continue;
            }
            checkSegment(entry, documentStart, documentOf);
            inputs.push(...entry.inputs);
            targets.push(...entry.targets);
            ends += entry.targets.filter((target) => target === EOT).length;
          }
          const padding = batch.segments.indexOf(PAD_SEGMENT);
          if (padding !== -1) assert.ok(batch.segments.subarray(padding).every((segment) => segment === PAD_SEGMENT));
        }
        const once = documentStart === 'learn' ? targets : inputs;
        assert.deepEqual(Int32Array.from(once).sort(), all.slice().sort());
        if (documentStart === 'learn') assert.equal(ends, LENGTHS.length);
        else {
          const wanted = [...documentOf.keys()].filter((t) => t !== 1 && documentOf.get(t - 1) === documentOf.get(t));
          assert.deepEqual(
            targets.filter((t) => t > 0).sort((a, b) => a - b),
            wanted,
          );
        }
      });
    }
  }
}

/** One segment: consecutive tokens of one document; a target is the input that follows. */
function checkSegment(
  { inputs, targets }: { inputs: number[]; targets: number[] },
  documentStart: DocumentStart,
  documentOf: ReadonlyMap<number, number>,
): void {
  const documents = new Set([...inputs, ...targets].filter((token) => token > 0).map((token) => documentOf.get(token)));
  assert.ok(documents.size <= 1, 'one document in a segment');
  for (let i = 0; i < inputs.length; i++) {
    if (i + 1 < inputs.length) assert.equal(targets[i], inputs[i + 1]);
    if (inputs[i] > 0 && targets[i] > 0) assert.equal(targets[i], inputs[i] + 1);
    const isEdge = documentStart === 'learn' ? i === 0 : i === inputs.length - 1;
    if (inputs[i] === EOT) assert.ok(isEdge, 'the end-of-text token is at the edge');
    if (inputs[i] === EOT && documentStart === 'ignore') assert.equal(targets[i], IGNORE);
  }
}

test('stream rows have no padding but at the end; whole rows keep short documents together and waste little', () => {
  const stream = rowsOf(distinct(LENGTHS), { length: 16 });
  assert.ok(stream.slice(0, -1).every(({ segments }) => !segments.has(PAD_SEGMENT)));
  const many = distinct(Array.from({ length: 2000 }, (_, i) => (i * 7919) % 400));
  const packing = createPacking(many, { length: 256, mode: 'whole' });
  assert.ok(packing.padding < 0.01, `${packing.padding}`);
  assert.ok(packing.padding > 0);
  let padded = 0;
  let pieces = 0;
  for (const { batch, segments } of rowsOf(many, { length: 256, mode: 'whole' })) {
    padded += batch.segments.filter((segment) => segment === PAD_SEGMENT).length;
    for (const [segment, { inputs, targets }] of segments) {
      if (segment === PAD_SEGMENT) continue;
      pieces++;
      const whole = inputs[0] === EOT && targets.at(-1) === EOT;
      const piece = inputs.length === 256 || targets.at(-1) === EOT;
      assert.ok(whole || piece, 'only documents longer than a row are cut');
    }
  }
  assert.ok(Math.abs(padded / (packing.rows * 256) - packing.padding) < 1e-9);
  assert.equal(pieces, 2000 + Array.from({ length: 2000 }, (_, i) => (i * 7919) % 400).filter((n) => n >= 256).length);
  const other = rowsOf(many, { length: 256, mode: 'whole', seed: 5 })[300].batch.inputs;
  assert.notDeepEqual(rowsOf(many, { length: 256, mode: 'whole' })[300].batch.inputs, other);
});

test('best fit fills the rows exactly as the plain algorithm does', () => {
  for (const length of [7, 31, 32, 33, 100]) {
    const sizes = Array.from({ length: 300 }, (_, i) => 1 + ((i * i * 7 + i * 13) % length));
    const docStarts = Float64Array.from([0, ...sizes]);
    for (let d = 1; d < docStarts.length; d++) docStarts[d] += docStarts[d - 1];
    const { rowStarts, counts } = packBestFit(docStarts, length, 1);
    const used = Array.from({ length: rowStarts.length - 1 }, (_, r) =>
      counts.subarray(rowStarts[r], rowStarts[r + 1]).reduce((a, b) => a + b, 0),
    );
    const plain: number[] = [];
    for (const size of sizes.sort((a, b) => b - a)) {
      const open = plain.filter((row) => row + size <= length);
      if (open.length === 0) plain.push(size);
      else plain[plain.indexOf(Math.max(...open))] += size;
    }
    assert.deepEqual(
      used.sort((a, b) => a - b),
      plain.sort((a, b) => a - b),
    );
  }
});
