// Sparse upcycling by `from`: a run of a mixture that starts from a dense run's checkpoint, at that run's loss.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { type ParamSpec, singleOf, singleShape, stacked } from '../../src/nn/index.ts';
import type { RunEvent } from '../../src/train/run/events.ts';
import {
  createRun,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';

const root = temporaryFolder('upcycle');
let data: TinyData;
before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
});

const glu = { kind: 'glu', hidden: 64 };
const sparse = { kind: 'sparse-ffn', hidden: 64, block: 8, hard: 1, tau: 0 };
// No terms of the loss but the model's own, so that the first step's loss is comparable.
const moe = { kind: 'moe', experts: 4, active: 2, gate: 'renormalised', gateScale: 1, balanceLoss: 0, routerZLoss: 0 };

const first = (events: readonly RunEvent[]): number => events.find((e) => e.event === 'step')!.loss;
const warnings = (events: readonly RunEvent[]): string[] =>
  events.flatMap((e) => (e.event === 'warning' ? [e.message] : []));

/** The first step of a dense run that goes on, and of one that goes on as something else. */
async function goOn(name: string, ffn: object, next: object) {
  const optimiser = { kind: 'adamw', lr: 2e-2 } as const;
  const of = (part: object) => tinyConfig(data, { batch: 2, steps: 60, optimiser, model: part as never });
  const base = await trainWhole(join(root, name, 'base'), of({ ffn }));
  const from = { steps: 1, from: base.run.path };
  const same = await trainWhole(join(root, name, 'same'), { ...of({ ffn }), ...from });
  const { events } = await trainRun(await createRun(join(root, name, 'next'), { ...of({ ffn, ...next }), ...from }));
  return { dense: first(same.events), loss: first(events), fresh: first(base.events), events };
}

describe('a mixture from a dense checkpoint', () => {
  for (const [name, ffn, expert] of [
    ['glu', glu, glu],
    ['mlp', { kind: 'mlp', hidden: 96, activation: 'relu2' }, { kind: 'mlp', hidden: 96, activation: 'relu2' }],
    ['sparse-ffn', sparse, sparse],
  ] as const)
    test(`${name}: starts at the dense run's loss, every expert a copy`, async () => {
      const mixture = { overrides: [{ layers: [1], ffn: { ...moe, expert } }] };
      const { dense, loss, fresh, events } = await goOn(name, ffn, mixture);
      assert.ok(Math.abs(loss - dense) < 1e-6 * dense, `${loss}, dense ${dense}`);
      assert.ok(dense < fresh - 0.3, 'the dense run has learnt something');
      const started = events.find((e) => e.event === 'started-from')!;
      assert.deepEqual(
        started.fresh,
        ['router', 'load', 'lastLoad'].map((n) => `blocks.1.ffn.${n}`),
      );
      assert.ok(
        started.stacked!.includes('blocks.1.ffn.experts.up') && started.stacked!.includes('blocks.1.ffn.experts.down'),
      );
      assert.deepEqual(started.unused, []);
      assert.deepEqual(warnings(events), []);
    });

  test('what does not start as the dense layer says so', async () => {
    const mixture = (o: object) => ({ ffn: { ...moe, expert: glu, ...o } });
    const scaled = await goOn('scaled', glu, mixture({ gateScale: 2 }));
    assert.equal(warnings(scaled.events).length, 2);
    assert.match(warnings(scaled.events)[0], /^blocks\.0\.ffn does not start as that of .*: its gates do not sum to 1/);
    assert.ok(Math.abs(scaled.loss - scaled.dense) > 1e-3 * scaled.dense, `${scaled.loss}, ${scaled.dense}`);
    const fine = await goOn('fine', glu, mixture({ expert: { kind: 'glu', hidden: 16 } }));
    assert.match(
      warnings(fine.events)[0],
      /^blocks\.0\.ffn\.experts start fresh: blocks\.0\.ffn of .* has other sizes$/,
    );
    const mixed = await goOn('mixed', { kind: 'mlp', hidden: 64 }, mixture({ expert: sparse }));
    assert.match(warnings(mixed.events).join('; '), /blocks\.0\.ffn\.experts\.logits starts fresh/);
    const biased = await goOn('biased', { ...glu, bias: true }, mixture({}));
    assert.match(warnings(biased.events).join('; '), /there is no place for blocks\.0\.ffn\.upBias/);
  });
});

test('stacks: names, shapes, values', () => {
  assert.equal(singleOf('encoder.blocks.3.ffn.experts.up'), 'encoder.blocks.3.ffn.up');
  const spec = (turned: boolean): ParamSpec => ({
    ...{ shape: [2, 3, 2], init: { kind: 'constant', value: 0 }, role: 'hidden', fanIn: 1, fanOut: 1, decay: true },
    stackOf: { turned },
  });
  assert.deepEqual(singleShape(spec(false)), [3, 2]);
  assert.deepEqual(singleShape(spec(true)), [2, 3]);
  assert.deepEqual([...stacked(spec(false), [1, 2, 3, 4, 5, 6])], [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]);
  assert.deepEqual([...stacked(spec(true), [1, 2, 3, 4, 5, 6])], [1, 4, 2, 5, 3, 6, 1, 4, 2, 5, 3, 6]);
  assert.deepEqual([...stacked({ ...spec(false), shape: [2, 3] }, [7, 8, 9])], [7, 8, 9, 7, 8, 9]);
});
