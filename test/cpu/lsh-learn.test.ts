// The Reformer paper's task: 0 w 0 w, the second w foretold from the first through hashed attention alone.
import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { createBatch } from '../../src/data/types.ts';
import { buildModel } from '../../src/model/model.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { EvalStep } from '../../src/train/step.ts';
import '../../src/tricks/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { configOf, type SpecChanges, smallSpec } from '../support/small-models.ts';
import { fillBatch, type Learned, learn } from '../support/toy-task.ts';

const device = new CpuDevice();
const LETTERS = 8;
const WORD = 31;
const length = 2 * WORD + 1;
const rows = (rng: Rng) => {
  const word = Array.from({ length: WORD }, () => rng.int(1, LETTERS));
  return { tokens: [0, ...word, 0, ...word], counts: (t: number) => t >= WORD + 1 };
};
// Eight chunks: a query sees a quarter of the row at most in a round, and its letter lies 32 tokens back.
const spec = (options: object): SpecChanges => ({
  ...{ vocab: LETTERS + 1, width: 64, depth: 1, positions: 'learned', ffn: { kind: 'glu', hidden: 96 } },
  attention: { kind: 'lsh', heads: 4, chunk: 8, ...options },
});

/** Loss on fresh rows with a number of rounds. */
async function lossWith(params: Learned['params'], evalRounds: number): Promise<number> {
  const model = smallSpec({ context: length, ...spec({ evalRounds }) });
  const config = parseTrainConfig(configOf(model, { batch: 32, length, steps: 1 }));
  const step = new EvalStep(device, buildModel(config.model), params, config, length);
  const batch = createBatch(32, length);
  const rng = new Rng('fresh rows');
  let [nats, targets] = [0, 0];
  for (let k = 0; k < 4; k++) {
    const r = await step.run(fillBatch(batch, () => rows(rng)));
    nats += r.nats;
    targets += r.targets;
  }
  step.dispose();
  return nats / targets;
}

describe('copying a word of 31 letters with two rounds of hashing', () => {
  let learned: Learned;
  before(async () => {
    learned = await learn(device, { length, row: rows, spec: spec({ rounds: 2 }), steps: 200 });
  });

  test('is learned', () => {
    assert.ok(learned.first > 2, `untrained loss ${learned.first}`);
    assert.ok(learned.last < 0.1, `loss ${learned.last} after training`);
  });

  test('rounds: fewer than in training lose, more do not', async () => {
    const [one, two, four, eight] = [
      await lossWith(learned.params, 1),
      await lossWith(learned.params, 2),
      await lossWith(learned.params, 4),
      await lossWith(learned.params, 8),
    ];
    const all = `1: ${one}, 2: ${two}, 4: ${four}, 8: ${eight}`;
    assert.ok(one > 2 * two, all);
    assert.ok(four <= two + 1e-3 && eight <= two + 1e-3, all);
  });
});

test('bf16 learns it too', async () => {
  const { last } = await learn(device, {
    ...{ length, row: rows, spec: spec({ rounds: 4 }), steps: 150, precision: 'bf16' },
  });
  assert.ok(last < 0.1, `loss ${last} after training`);
});
