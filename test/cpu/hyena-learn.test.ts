// What long and short convolutions can learn, and what they cannot.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import type { Rng } from '../support/kernel-cases/build.ts';
import { copying, learn, type Row } from '../support/toy-task.ts';

const device = new CpuDevice();

/** Pairs of a key and its value in one stream: the value of a key that was seen before can be recalled. */
const recall = (letters: number, pairs: number) => ({
  length: 2 * pairs - 1,
  row: (rng: Rng): Row => {
    const values = Array.from({ length: letters }, () => letters + rng.int(0, letters - 1));
    const keys = Array.from({ length: pairs }, () => rng.int(0, letters - 1));
    return {
      tokens: keys.flatMap((k) => [k, values[k]]),
      counts: (t) => t % 2 === 0 && keys.indexOf(keys[t / 2]) < t / 2,
    };
  },
});

const base = { width: 64, ffn: { kind: 'glu', hidden: 96 } } as const;
const hyena = { ...base, attention: { kind: 'hyena', frequency: 10 }, positions: 'none' } as const;

test('hyena recalls values of keys (6 of each)', async () => {
  const { first, last } = await learn(device, {
    ...recall(6, 24),
    ...{ spec: { ...hyena, vocab: 12 }, steps: 800, lr: 4e-3 },
  });
  assert.ok(first > 2 && last < 0.15, `loss ${first}, then ${last}`);
});

for (const precision of ['f32', 'bf16'] as const)
  test(`hyena copies a word of 100 letters over 100 tokens, ${precision}`, async () => {
    const { first, last } = await learn(device, {
      ...copying(100),
      ...{ spec: { ...hyena, vocab: 9 }, rows: 16, steps: 300, lr: 3e-3, precision },
    });
    assert.ok(first > 1.8 && last < (precision === 'f32' ? 0.1 : 0.5), `loss ${first}, then ${last}`);
  });

test('over 500 tokens too, with a band for every 4 tokens of its reach', async () => {
  const attention = { kind: 'hyena', bands: 250, frequency: 10, slow: 6, fast: 1 };
  const { first, last } = await learn(device, {
    ...copying(500),
    ...{ spec: { ...hyena, attention, vocab: 9, width: 32 }, rows: 4, steps: 300, lr: 4e-3 },
  });
  assert.ok(first > 1.8 && last < 0.6, `loss ${first}, then ${last}`);
});

test('short convolutions alone cannot recall, with attention in every second layer they can', async () => {
  const spec = (attention: object) => ({ ...base, vocab: 12, attention: { kind: 'gated-conv', ...attention } });
  const alone = await learn(device, { ...recall(6, 24), ...{ spec: spec({ period: 0 }), steps: 400 } });
  const mixed = await learn(device, { ...recall(6, 24), ...{ spec: spec({ period: 2, heads: 4 }), steps: 400 } });
  assert.ok(mixed.last < 0.1, `loss ${mixed.last} with attention`);
  // A wrong guess among the values seen in the last few tokens costs about this much.
  assert.ok(alone.last > 0.6, `loss ${alone.last} without attention`);
});
