// Prefix-LM, forgetful masking, infilling: what their rows hold; and that random choices survive a resume.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Loader } from '../../src/data/loader.ts';
import { createPacking } from '../../src/data/packing.ts';
import { createObjectivePacking, extrasOf } from '../../src/data/packing-objective.ts';
import { createBatch, type TokenBatch } from '../../src/data/types.ts';
import { buildObjective, objectiveSchema, RowRandom } from '../../src/objectives/index.ts';
import { cutText, type FimIds, fimPrompt, fimSequence, fromFim } from '../../src/tricks/fim/fim.ts';
import { distinctDocuments, EOT, rowsOf, segmentsIn, storedTokens, vocabularyFor } from '../support/objective-rows.ts';

const LENGTHS = [50, 1, 400, 17, 300, 1000, 16, 15, 2, 640, 31, 700, 70, 3, 330, 250, 900];
const data = distinctDocuments(LENGTHS);
const all = storedTokens(data);

/** Where a stretch of text lies in the data; -1 if nowhere. End-of-text tokens are all alike: one that is not decides. */
function find(text: readonly number[]): number {
  const k = text.findIndex((id) => id !== EOT);
  const at = all.indexOf(text[k]) - k;
  return text.every((id, j) => all[at + j] === id) ? at : -1;
}

describe('prefix-lm', () => {
  test('two stacks: two texts fill both rows, each cut at the other’s complement', () => {
    const { rows, row } = rowsOf(data, 'prefix-lm', { length: 40, encoder: true });
    for (let k = 0; k < rows; k++) {
      const batch = row(k);
      const [read, said] = [segmentsIn(batch.encoder!), segmentsIn(batch)];
      assert.deepEqual([[...read.keys()], [...said.keys()], batch.counted], [[1, 2], [1, 2], 40]);
      assert.deepEqual([batch.encoder!.length, read.get(1)!.inputs.length], [40, said.get(2)!.inputs.length]);
      for (const s of [1, 2]) {
        const [r, d] = [read.get(s)!, said.get(s)!];
        assert.ok(find([...r.inputs, ...d.targets]) >= 0);
        assert.equal(r.inputs.length + d.targets.length, 40);
        assert.deepEqual(d.inputs, [EOT, ...d.targets.slice(0, -1)]);
      }
    }
  });

  test('one stream: targets start where the prefix ends, and the prefix sees itself', () => {
    const { rows, row } = rowsOf(data, { kind: 'prefix-lm', share: 0.7 }, { length: 64 });
    const plain = createPacking(data, { length: 64 });
    let [with_, without] = [0, 0];
    for (let k = 0; k < rows; k++) {
      const batch = row(k);
      const same = createBatch(1, 64);
      plain.fill(k, same, 0);
      assert.deepEqual(batch.inputs, same.inputs);
      assert.equal(batch.counted, batch.targets.filter((t) => t !== -1).length);
      for (const [, d] of segmentsIn(batch)) {
        const p = d.targets.findIndex((t) => t !== -1);
        if (p > 0) with_++;
        else without++;
        assert.deepEqual(d.targets.slice(p), [...same.targets.subarray(d.start + p, d.start + d.inputs.length)]);
        d.visible.forEach((v, j) => {
          assert.equal(v, p > 0 && j <= p ? d.start + p : -1);
        });
      }
    }
    assert.ok(with_ > without && without > 0);
  });
});

describe('fcm', () => {
  test('a random share of tokens is hidden, never the first of a document', () => {
    const { rows, row } = rowsOf(data, { kind: 'fcm', max: 0.3 }, { length: 128 });
    const shares: number[] = [];
    for (let k = 0; k < rows; k++) {
      const { keep, segments } = row(k);
      keep!.forEach((x, j) => {
        assert.ok(x === 0 || x === 1);
        if (j === 0 || segments[j] !== segments[j - 1]) assert.equal(x, 1);
      });
      shares.push(keep!.filter((x) => x === 0).length / 128);
    }
    const mean = shares.reduce((a, b) => a + b, 0) / shares.length;
    assert.ok(Math.abs(mean - 0.15) < 0.05 && Math.max(...shares) > 0.2 && Math.min(...shares) < 0.1);
  });
});

describe('random choices', () => {
  test('depend on seed and sample number alone', () => {
    const list = (seed: number, sample: number, skip = 0): number[] => {
      const random = new RowRandom(seed, sample);
      for (let k = 0; k < skip; k++) random.uniform();
      return Array.from({ length: 9 }, () => random.uniform());
    };
    assert.deepEqual(list(1, 2), list(1, 2));
    assert.deepEqual(list(1, 2, 3).slice(0, 6), list(1, 2).slice(3));
    const others = [list(1, 3), list(2, 2), list(1, 2 + 2 ** 32), list(1 + 2 ** 32, 2)];
    assert.equal(new Set([list(1, 2), ...others].map((l) => l[0])).size, 5);
  });

  for (const [config, encoder] of [
    ['ul2', true],
    ['ul2', false],
    ['prefix-lm', false],
    ['fcm', false],
    [{ kind: 'fim', unit: 'token' }, false],
    [{ kind: 'fim', level: 'document' }, false],
  ] as const)
    test(`a loader goes on where it stopped: ${JSON.stringify(config)}${encoder ? ', two stacks' : ''}`, () => {
      const objective = buildObjective(objectiveSchema.parse(config), { length: 64, encoder });
      const make = (): Loader => {
        const options = { length: 64, seed: 5, objective, vocabulary: vocabularyFor(objective), name: 'test' };
        return new Loader([{ name: 'train', packing: createObjectivePacking(data, options) }], { batch: 3, seed: 5 });
      };
      const buffer = createBatch(3, objective.shape.length, extrasOf(objective));
      const take = (loader: Loader): TokenBatch => structuredClone(loader.next(buffer));
      const whole = make();
      const batches = Array.from({ length: 60 }, () => take(whole)); // beyond the end of an epoch
      const first = make();
      for (let k = 0; k < 23; k++) take(first);
      const second = make();
      second.restore(JSON.parse(JSON.stringify(first.state())));
      for (let k = 23; k < 60; k++) assert.deepEqual(take(second), batches[k]);
      assert.equal(new Set(batches.map((b) => b.targets.join())).size, 60);
    });
});

describe('fim', () => {
  const ids: FimIds = { prefix: 90, suffix: 91, middle: 92, end: 0 };

  test('sequences of both orders, their prompts, and the way back', () => {
    const parts = [[1, 2], [3], [4, 5]] as const;
    assert.deepEqual(fimSequence(parts, ids, 'psm'), [90, 1, 2, 91, 4, 5, 92, 3, 0]);
    assert.deepEqual(fimSequence(parts, ids, 'spm'), [90, 91, 4, 5, 92, 1, 2, 3, 0]);
    assert.deepEqual(fimPrompt([1, 2], [4, 5], ids, 'psm'), [90, 1, 2, 91, 4, 5, 92]);
    assert.deepEqual(fimPrompt([1, 2], [4, 5], ids, 'spm'), [90, 91, 4, 5, 92, 1, 2]);
    for (const order of ['psm', 'spm'] as const)
      for (const cut of [parts, [[], [1, 2, 3], []], [[1, 2, 3], [], []], [[], [], [1, 2]]] as const)
        assert.deepEqual(fromFim(fimSequence(cut, ids, order), ids), cut.flat());
    assert.equal(fromFim([90, 1, 92, 2, 91, 0], ids), undefined);
  });

  test('text is cut between characters', () => {
    const text = new TextEncoder().encode('aé漢🙂z');
    const seen = new Set<string>();
    for (let k = 0; k < 400; k++) {
      const parts = cutText(text, new RowRandom(1, k)).map((part) =>
        new TextDecoder('utf-8', { fatal: true }).decode(part),
      );
      assert.equal(parts.join(''), 'aé漢🙂z');
      seen.add(parts.join('|'));
    }
    assert.equal(seen.size, 21, 'every pair of the six places');
  });

  for (const options of [{ unit: 'token' }, { unit: 'token', rate: 1, spm: 0 }, { level: 'document', rate: 1 }])
    test(`rows: ${JSON.stringify(options)}`, () => {
      const length = 'level' in options ? 1000 : 128;
      const { rows, row, vocabulary } = rowsOf(data, { kind: 'fim', ...options }, { length });
      const [prefix, suffix, middle] = ['prefix', 'suffix', 'middle'].map((n) => vocabulary.id(`<|fim_${n}|>`));
      const own = { prefix, suffix, middle, end: EOT };
      let [turned, plain, filled] = [0, 0, 0];
      for (let k = 0; k < rows; k++) {
        const batch = row(k);
        filled += batch.segments.filter((s) => s > 0).length;
        assert.equal(batch.counted, batch.targets.filter((t) => t !== -1).length);
        for (const t of batch.targets) assert.ok(![prefix, suffix, middle].includes(t), 'control tokens are given');
        for (const [, d] of segmentsIn(batch)) {
          assert.deepEqual(
            d.positions,
            d.positions.map((_, j) => j),
          );
          // Where a target is ignored, it is the next input.
          const sequence = d.targets.map((t, j) => (t === -1 ? d.inputs[j + 1] : t));
          if (sequence[0] === prefix && sequence.includes(middle) && sequence[sequence.length - 1] === EOT) {
            turned++;
            const text = fromFim(sequence, own);
            assert.ok(text && (text.length === 0 || find(text) >= 0), 'a stretch of the text, turned round');
          } else plain++;
        }
      }
      assert.ok(turned > 3 && plain > 0, `${turned} turned, ${plain} not`);
      // Only the last row of the data may be padded.
      assert.ok(filled > (rows - 1) * length);
    });

  test('characters: middles begin within tokens, rows stay full', () => {
    const words = 'the quick brown fox jumps over the lazy dog and runs away from it ';
    const pairs = new Map<string, number>();
    const encode = (text: string): Int32Array => {
      const out: number[] = [];
      for (let k = 0; k < text.length; k += 2) {
        const pair = text.slice(k, k + 2);
        if (!pairs.has(pair)) pairs.set(pair, pairs.size + 1);
        out.push(pairs.get(pair)!);
      }
      return Int32Array.from(out);
    };
    const decode = (list: Int32Array): string => [...list].map((id) => [...pairs.keys()][id - 1]).join('');
    const objective = buildObjective(objectiveSchema.parse({ kind: 'fim', rate: 1 }), { length: 100, encoder: false });
    const vocabulary = {
      ...vocabularyFor(objective),
      encode: (text: Uint8Array) => encode(new TextDecoder().decode(text)),
      decode: (list: Int32Array) => new TextEncoder().encode(decode(list)),
    };
    const maker = objective.rows!(vocabulary);
    assert.ok(maker.kind === 'row');
    let odd = 0;
    for (let k = 0; k < 200; k++) {
      const text = encode(words.repeat(4)).subarray(0, 100);
      const batch = createBatch(1, 100);
      batch.inputs.set([EOT, ...text.subarray(0, 99)]);
      batch.targets.set(text);
      batch.segments.fill(1);
      const counted: number = maker.change({ ...batch, visible: null, keep: null, encoder: null }, new RowRandom(2, k));
      assert.ok(
        batch.segments.every((s) => s === 1),
        'full',
      );
      assert.equal(counted, 97);
      const parts = batch.targets.reduce((n, t) => n + +(t === -1), 0);
      assert.equal(parts, 3);
      const sequence = Array.from(batch.targets, (t, j) => (t === -1 ? batch.inputs[j + 1] : t));
      const back = fromFim(sequence, {
        prefix: vocabulary.id('<|fim_prefix|>'),
        suffix: vocabulary.id('<|fim_suffix|>'),
        middle: vocabulary.id('<|fim_middle|>'),
        end: EOT,
      });
      const said = decode(Int32Array.from(back!));
      assert.ok(words.repeat(4).startsWith(said), said);
      odd += +(back!.join() !== text.subarray(0, back!.length).join());
    }
    assert.ok(odd > 50, `${odd} rows with tokens that the whole text does not have`);
  });

  test('whole documents are cut at tokens', () => {
    const build = () =>
      buildObjective(objectiveSchema.parse({ kind: 'fim', level: 'document', unit: 'character' }), {
        length: 64,
        encoder: false,
      });
    assert.throws(build, /cut at tokens/);
  });
});
