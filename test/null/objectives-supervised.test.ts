// Examples of what to say: marks go, answers are targets, an encoder reads what stands before its mark.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { HeldOutLoader } from '../../src/data/loader-held-out.ts';
import { rowOf } from '../../src/data/packing-objective.ts';
import { tokensInMemory } from '../../src/data/shards.ts';
import { createBatch } from '../../src/data/types.ts';
import { ANSWER, ANSWERED, READ } from '../../src/objectives/index.ts';
import { EOT, rowsOf, segmentsIn } from '../support/objective-rows.ts';

const M = 1000;
const [A, Z, R] = [M + ANSWER, M + ANSWERED, M + READ];
const stored = (...documents: number[][]) =>
  tokensInMemory(documents, { eot: EOT, vocabSize: M + 3, name: 'examples' });
const config = { kind: 'supervised', marks: M };

describe('supervised', () => {
  test('answers are targets, what was given is not, and no mark is left', () => {
    const data = stored([1, 2, 3, A, 4, 5, Z], [6, A, 7, Z, 8, 9, A, 10, 11, Z]);
    const { rows, row } = rowsOf(data, config, { length: 24, mode: 'whole' });
    assert.equal(rows, 1);
    const batch = row(0);
    const segments = [...segmentsIn(batch).values()].sort((a, b) => a.targets.length - b.targets.length);
    const [first, second] = segments;
    assert.deepEqual(first.inputs, [EOT, 1, 2, 3, 4, 5]);
    assert.deepEqual(first.targets, [-1, -1, -1, 4, 5, -1]);
    assert.deepEqual(second.inputs, [EOT, 6, 7, 8, 9, 10, 11]);
    assert.deepEqual(second.targets, [-1, 7, -1, -1, 10, 11, -1]);
    assert.deepEqual(second.positions, [0, 1, 2, 3, 4, 5, 6]);
    assert.equal(batch.counted, 5);
    assert.ok([...batch.inputs, ...batch.targets].every((id) => id < M && id !== -77));
    assert.equal(batch.segments.filter((s) => s === 0).length, 24 - 13);
  });

  test('a text begins with the token that it is said to', () => {
    const { row } = rowsOf(stored([1, A, 2, Z]), { ...config, start: 42 }, { length: 8, mode: 'whole' });
    assert.deepEqual([...segmentsIn(row(0)).values()][0].inputs, [42, 1, 2]);
  });

  test('an encoder reads what stands before its mark, framed as the model knows it', () => {
    const data = stored([20, 21, R, 1, A, 2, 3, Z], [R, 4, A, 5, Z]);
    const base = { kind: 'prefix-lm', closed: true };
    const { row } = rowsOf(data, { ...config, base }, { length: 20, encoder: true, mode: 'whole' });
    const batch = row(0);
    const [read, said] = [segmentsIn(batch.encoder!), segmentsIn(batch)];
    const long = [...said].find(([, s]) => s.inputs.length === 4)![0];
    const short = [...said].find(([, s]) => s.inputs.length === 3)![0];
    assert.deepEqual(read.get(long)!.inputs, [20, 21, EOT]);
    assert.deepEqual(said.get(long)!.inputs, [EOT, 1, 2, 3]);
    assert.deepEqual(said.get(long)!.targets, [-1, 2, 3, -1]);
    assert.deepEqual(read.get(short)!.inputs, [EOT]);
    assert.deepEqual(said.get(short)!.targets, [-1, 5, -1]);
    assert.ok([...batch.encoder!.inputs, ...batch.inputs].every((id) => id < M && id !== -77));
  });

  test('held-out examples that are cut go on as their next mark says', () => {
    const data = stored([1, 2, A, 3, 4, 5, 6, 7, 8, Z, 9, 10], [11, A, 12, Z]);
    const { objective, vocabulary } = rowsOf(data, config, { length: 6 });
    const made = objective.heldOut!(vocabulary);
    const loader = new HeldOutLoader(data, { batch: 1, length: 6, overlap: made.overlap });
    const targets: number[] = [];
    const into = createBatch(1, 6);
    for (let k = 0; k < loader.batches; k++) {
      loader.read(k, into);
      made.change(rowOf(into, 0));
      assert.ok([...into.inputs, ...into.targets].every((id) => id < M));
      targets.push(...into.targets.filter((id) => id >= 0));
    }
    assert.deepEqual(targets, [3, 4, 5, 6, 7, 8, 12]);
  });
});
