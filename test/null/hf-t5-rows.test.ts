// Prefix language modelling as T5 frames it: the decoder begins with a token of its own, what is read ends.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { buildObjective, objectiveSchema, type Vocabulary } from '../../src/objectives/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { objectiveOf } from '../../src/train/objective.ts';
import { distinctDocuments, EOT, rowsOf, SPECIAL, segmentsIn } from '../support/objective-rows.ts';

const PAD = SPECIAL - 1; // the first special that this objective does not list itself
const framed = { kind: 'prefix-lm', start: '<pad>', closed: true };
const build = (config: object, encoder: boolean) =>
  buildObjective(objectiveSchema.parse(config), { length: 40, encoder });
const vocabulary: Vocabulary = {
  eot: EOT,
  id: (name) => (name === '<pad>' ? PAD : -1),
  encode: (text) => Int32Array.from(text),
  decode: (ids) => Uint8Array.from(ids),
};

describe('prefix-lm with start and closed', () => {
  test('rows: both texts read end with the end-of-text token, both said begin with the start token', () => {
    const { rows, row, objective } = rowsOf(distinctDocuments([400, 300, 1000]), framed, { length: 40, encoder: true });
    assert.equal(objective.shape.encoder, 42);
    for (let k = 0; k < rows; k++) {
      const batch = row(k);
      const [read, said] = [segmentsIn(batch.encoder!), segmentsIn(batch)];
      assert.equal(batch.encoder!.length, 42);
      assert.equal([...batch.encoder!.segments].filter((s) => s === 0).length, 0, 'exactly full');
      for (const s of [1, 2]) {
        const [r, d] = [read.get(s)!, said.get(s)!];
        assert.equal(r.inputs.at(-1), EOT);
        assert.equal(r.inputs.length - 1 + d.targets.length, 40);
        assert.deepEqual(d.inputs, [PAD, ...d.targets.slice(0, -1)]);
      }
    }
  });

  test('prompts', () => {
    const t5 = build(framed, true);
    assert.deepEqual(t5.prompt!(vocabulary, [7, 8], {}), { encoder: [7, 8, EOT], decoder: [PAD], stop: [] });
    const given = t5.prompt!(vocabulary, [7], { context: [5, 6] });
    assert.deepEqual(
      [given.encoder, given.decoder],
      [
        [5, 6, EOT],
        [PAD, 7],
      ],
    );
    const plain = build({ kind: 'prefix-lm' }, true).prompt!(vocabulary, [7, 8], {});
    assert.deepEqual([plain.encoder, plain.decoder], [[7, 8], [EOT]]);
  });

  test('only with an encoder', () => {
    assert.throws(() => build(framed, false), /start and closed are for models with an encoder/);
    assert.throws(() => build({ kind: 'prefix-lm', closed: true }, false), /with an encoder/);
  });

  test('configs of runs that are there already stay as they are', () => {
    assert.deepEqual(objectiveSchema.parse('prefix-lm'), { kind: 'prefix-lm', share: 1, bidirectional: true });
    const config = parseTrainConfig({
      model: {
        ...{ vocab: 40, context: 16, width: 16, depth: 1, layout: 'encoder-decoder' },
        ...{ attention: { kind: 'full', heads: 2 }, ffn: { kind: 'glu', hidden: 16 } },
      },
      ...{ data: { folder: 'x' }, steps: 1, objective: framed },
    });
    assert.equal(objectiveOf(config).shape.encoder, 18);
  });
});
