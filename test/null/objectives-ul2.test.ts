// Objectives on rows: every position filled, nothing crosses examples, what is given and what is predicted.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createPacking } from '../../src/data/packing.ts';
import { createObjectivePacking } from '../../src/data/packing-objective.ts';
import { createBatch } from '../../src/data/types.ts';
import { buildObjective, objectiveSchema } from '../../src/objectives/index.ts';
import { planRow, type RowPlan } from '../../src/objectives/ul2-plan.ts';
import { mixtures, reconstruct } from '../../src/tricks/ul2/index.ts';
import {
  distinctDocuments,
  EOT,
  rowsOf,
  SPECIAL,
  segmentsIn,
  storedTokens,
  vocabularyFor,
} from '../support/objective-rows.ts';

const LENGTHS = [50, 1, 400, 17, 300, 1000, 16, 15, 2, 640, 31, 700, 70, 3, 330, 250, 900];
const data = distinctDocuments(LENGTHS);
const all = storedTokens(data);
const counting = (n: number): number[] => Array.from({ length: n }, (_, k) => k);

describe('causal', () => {
  for (const mode of ['stream', 'whole'] as const)
    test(`rows are those of the packing: ${mode}`, () => {
      const objective = buildObjective({ kind: 'causal' }, { length: 64, encoder: false });
      const options = { length: 64, mode, seed: 3 };
      const plain = createPacking(data, options);
      const vocabulary = vocabularyFor(objective);
      const made = createObjectivePacking(data, { ...options, objective, vocabulary, name: 'causal' });
      assert.equal(made.rows, plain.rows);
      assert.equal(made.transform, undefined);
      for (let k = 0; k < plain.rows; k++) {
        const [a, b] = [createBatch(1, 64), createBatch(1, 64)];
        assert.equal(made.fill(k, a, 0), plain.fill(k, b, 0));
        assert.deepEqual(a, b);
      }
    });

  test('an encoder has nothing to read', () => {
    for (const kind of ['causal', 'fcm', 'fim'])
      assert.throws(
        () => buildObjective(objectiveSchema.parse(kind), { length: 64, encoder: true }),
        /nothing to read/,
      );
  });
});

/** The text of an example, and its place in the data. */
function textOf(inputs: readonly number[], targets: readonly number[], sentinels: readonly number[]): number[] {
  if (!inputs.some((id) => sentinels.includes(id))) return [...inputs, ...targets];
  return [...reconstruct({ inputs: Int32Array.from(inputs), targets: Int32Array.from(targets) }, sentinels)];
}

const find = (text: readonly number[]): number => {
  // End-of-text tokens are all alike: look for one that is not.
  const k = text.findIndex((id) => id !== EOT);
  const at = all.indexOf(text[k]) - k;
  return text.every((id, j) => all[at + j] === id) ? at : -1;
};

const UL2 = ['ul2', 't5gemma2', 'ul2r', 'clm'] as const;

describe('ul2', () => {
  for (const mixture of UL2)
    for (const encoder of [true, false])
      for (const extra of [{}, { modes: false, sampler: 't5' }])
        test(`${mixture}, ${encoder ? 'two stacks' : 'one stream'}${'modes' in extra ? ', no modes, T5 masks' : ''}`, () => {
          const config = { kind: 'ul2', mixture, budget: 60, ...extra };
          const { objective, vocabulary, rows, row } = rowsOf(data, config, { length: 64, encoder });
          const modes = !('modes' in extra);
          const [start, end] = [vocabulary.id('<|start|>'), vocabulary.id('<|end|>')];
          const sentinels = objective.specials.filter((s) => s.startsWith('<|s_')).map((s) => vocabulary.id(s));
          const mode = ['R', 'S', 'X'].map((m) => vocabulary.id(`<|${m}|>`));
          const seen = new Map<number, number>();
          let dropped = 0;
          assert.ok(rows > 4);
          for (let k = 0; k < rows; k++) {
            const batch = row(k);
            const { inputs, targets, encoder: e } = batch;
            assert.ok(![...inputs, ...targets, ...(e ? e.inputs : [])].includes(-77), 'everything is written');
            assert.ok(
              [...batch.segments, ...(e ? e.segments : [])].every((s) => s > 0),
              'no padding at all',
            );
            const decoder = segmentsIn(batch);
            assert.equal(decoder.size, mixtures[mixture].length > 6 ? 10 : mixture === 'clm' ? 10 : 8);
            const read = e ? segmentsIn(e) : undefined;
            assert.deepEqual([...(read ?? decoder).keys()], [...decoder.keys()]);
            let counted = 0;
            for (const [s, d] of decoder) {
              assert.deepEqual(d.positions, counting(d.positions.length));
              let [given, said]: [number[], number[]] = [[], []];
              if (read) {
                const r = read.get(s)!;
                assert.deepEqual(r.positions, counting(r.positions.length));
                assert.ok(r.inputs.length <= 60 && d.inputs.length <= 60, 'no example is over budget');
                assert.deepEqual(
                  d.inputs,
                  [start, ...d.targets.slice(0, -1)],
                  'inputs are targets, shifted in the segment',
                );
                given = r.inputs;
                said = d.targets;
              } else {
                const p = d.inputs.indexOf(start);
                assert.ok(d.inputs.length <= 60 && d.inputs.length >= 55);
                given = d.inputs.slice(0, p + 1);
                said = d.targets.slice(p);
                assert.ok(d.targets.slice(0, p).every((t) => t === -1));
                assert.deepEqual(d.inputs.slice(p + 1), said.slice(0, -1));
                const sight = [...new Array(p + 1).fill(d.start + p), ...new Array(d.inputs.length - p - 1).fill(-1)];
                assert.deepEqual(d.visible, sight, 'the given part sees itself, nothing more');
              }
              assert.deepEqual([given[given.length - 1], said[said.length - 1]], [read ? end : start, end]);
              counted += said.length;
              const first = modes ? [given[0]] : [];
              if (modes && !mode.includes(given[0])) dropped++;
              if (modes) seen.set(given[0], (seen.get(given[0]) ?? 0) + 1);
              const text = textOf(given.slice(first.length, -1), said.slice(0, -1), sentinels);
              const at = find(text);
              assert.ok(at >= 0, 'the parts are one stretch of the text');
              // A mode token that gives way is replaced by the token before the text.
              if (modes && !mode.includes(given[0]))
                assert.equal(given[0], at === 0 ? all[all.length - 1] : all[at - 1]);
            }
            assert.equal(batch.counted, counted);
            if (encoder) assert.equal(counted, batch.length, 'every position has a target');
          }
          if (modes) assert.ok(dropped > 0 && dropped < 0.2 * rows * 10, `${dropped} mode tokens dropped`);
          if (modes && mixture === 'ul2')
            assert.deepEqual(new Set([...seen.keys()].filter((id) => id >= SPECIAL)), new Set(mode));
        });

  test('rows take every token of the text once', () => {
    const { objective, rows } = rowsOf(data, { kind: 'ul2' }, { length: 64, encoder: true });
    const plan = planRow(objectiveSchema.parse('ul2') as never, { length: 64, encoder: true });
    assert.equal(rows, Math.ceil(data.tokenCount / plan.stored));
    assert.equal(objective.shape.length, plan.length);
  });

  test('shares of targets at 512 and 512, as published', () => {
    const plan: RowPlan = planRow(objectiveSchema.parse({ kind: 'ul2', modes: false }) as never, {
      length: 512,
      encoder: true,
    });
    // R .2 (114 + 100) + X .1 (512 + 512 + 92 + 512) + S .2 of half a chunk: about 257 a token pair of 1024.
    assert.ok(Math.abs(plan.targets / 10 - 257) < 1, `${plan.targets / 10} targets an example`);
    assert.equal(plan.sentinels, 129);
  });

  test('the split of continuation is uniform', () => {
    const list = [{ kind: 'prefix', mode: 'S', share: 1 }];
    for (const encoder of [true, false]) {
      const { row, vocabulary } = rowsOf(
        data,
        { kind: 'ul2', mixture: list, modes: false, budget: 22 },
        { length: 22, encoder },
      );
      const seen = new Map<number, number>();
      const n = 4000;
      for (let k = 0; k < n; k++) {
        const batch = row(0, k);
        for (const [s, d] of segmentsIn(batch)) {
          const given = encoder
            ? segmentsIn(batch.encoder!).get(s)!.inputs.length - 1
            : d.inputs.indexOf(vocabulary.id('<|start|>'));
          seen.set(given, (seen.get(given) ?? 0) + 1);
        }
      }
      const total = [...seen.values()].reduce((a, b) => a + b, 0);
      assert.deepEqual(
        [...seen.keys()].sort((a, b) => a - b),
        counting(20).map((k) => k + 1),
      );
      const chi = [...seen.values()].reduce((x, c) => x + (c - total / 20) ** 2 / (total / 20), 0);
      assert.ok(chi < (encoder ? 2 : 1) * 43.8, `chi-square ${chi}`); // 19 degrees, p = 0.001; pairs count twice
    }
  });

  test('impossible options are refused', () => {
    const build = (o: object, length = 64) =>
      buildObjective(objectiveSchema.parse({ kind: 'ul2', ...o }), { length, encoder: true });
    assert.throws(() => build({ budget: 65 }), /longer than a row/);
    assert.throws(() => build({}, 12), /too short/);
    // Nine tokens hidden for each one left: the decoder would need 64 x 9 positions.
    const dense = { mixture: [{ kind: 'spans', mode: 'X', share: 1, mean: 20, density: 0.9 }] };
    assert.throws(
      () => build(dense),
      /denoiser 1 of the mixture has examples of \d+ targets, longer than a row can be/,
    );
    const model = { length: 64, longest: 1000, encoder: true };
    const { shape } = buildObjective(objectiveSchema.parse({ kind: 'ul2', ...dense }), model);
    assert.ok(shape.length > 5 * shape.encoder);
    // Rows of examples do not depend on the rows of text, only the model's positions limit them.
    buildObjective(objectiveSchema.parse({ kind: 'ul2', budget: 100 }), { length: 64, longest: 128, encoder: true });
    assert.throws(() => build({ examples: 3 }), /leave none for denoiser/);
    assert.throws(() => objectiveSchema.parse({ kind: 'ul2', mixture: 'ul3' }));
    assert.throws(
      () => build({ mixture: [{ kind: 'causal', mode: 'S', share: 1 }], sequentialShare: 0.5 }),
      /sequentialShare/,
    );
  });
});
