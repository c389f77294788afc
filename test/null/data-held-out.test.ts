import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HeldOutLoader } from '../../src/data/loader-held-out.ts';
import { tokensInMemory } from '../../src/data/shards.ts';
import { IGNORE, type TokenBatch, type TokenData } from '../../src/data/types.ts';

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

for (const overlap of [0, 1, 5, 15]) {
  for (const worldSize of [1, 3]) {
    test(`held-out reading, overlap ${overlap}, ${worldSize} ranks: every token is a target once`, () => {
      const data = distinct(LENGTHS);
      const all = stored(data);
      const targets: number[] = [];
      let rows = 0;
      for (let rank = 0; rank < worldSize; rank++) {
        const loader = new HeldOutLoader(data, { batch: 4, length: 16, overlap, rank, worldSize });
        assert.equal(loader.textBytes, data.textBytes);
        assert.equal(loader.tokens, data.tokenCount);
        for (const batch of loader) {
          const found = [...batch.targets].filter((target) => target !== IGNORE);
          assert.equal(found.length, batch.targetCount);
          targets.push(...found);
          for (let row = 0; row < 4; row++) {
            rows += batch.sources[row] === 0 ? 1 : 0;
            checkContext(batch, row, overlap);
          }
        }
        assert.equal([...loader].length, loader.batches);
      }
      assert.equal(rows, new HeldOutLoader(data, { batch: 4, length: 16, overlap }).rows);
      if (worldSize === 1) assert.deepEqual(targets, [...all]);
      else assert.deepEqual(Int32Array.from(targets).sort(), all.slice().sort());
    });
  }
}

/** A target past the first piece of its document sees at least `overlap` inputs before its own, or all there are. */
function checkContext(batch: TokenBatch, row: number, overlap: number): void {
  const at = row * batch.length;
  for (let i = at; i < at + batch.length; i++) {
    if (batch.targets[i] === IGNORE) continue;
    const start = i - batch.positions[i];
    assert.ok(
      batch.positions[i] >= overlap || batch.inputs[start] === EOT,
      'enough context, or the document begins here',
    );
    if (batch.inputs[i] > 0 && batch.targets[i] > 0) assert.equal(batch.targets[i], batch.inputs[i] + 1);
  }
}

test('held-out reading can stop early and then counts the bytes to match', () => {
  const data = tokensInMemory(
    [
      [1, 2, 3],
      [4, 5, 6, 7, 8, 9, 10],
    ],
    { eot: 0, vocabSize: 11, docBytes: [30, 80] },
  );
  const some = new HeldOutLoader(data, { batch: 1, length: 4, maxTokens: 7 });
  assert.equal(some.tokens, 8);
  assert.equal(some.textBytes, 30 + 80 * (4 / 8));
  assert.equal(new HeldOutLoader(data, { batch: 1, length: 4 }).textBytes, 110);
});
