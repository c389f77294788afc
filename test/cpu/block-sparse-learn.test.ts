// Recall from far back: two values are each written over a stretch of a row of 1024 tokens, and asked for at its end.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Choices, forwardContext } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { cpu } from '../support/logits.ts';
import { learn, type Row } from '../support/toy-task.ts';

const LENGTH = 1024;
const [NOISE, KEYS, VALUES, STRETCH, WINDOW] = [16, 2, 8, 32, 64];
const written = (key: number, value: number): number => NOISE + key * VALUES + value;
const asked = (key: number): number => NOISE + KEYS * VALUES + key;
const answer = (value: number): number => NOISE + KEYS * (VALUES + 1) + value;
const vocab = NOISE + KEYS * (VALUES + 1) + VALUES;
const START = LENGTH + 1 - 2 * KEYS;

/** Noise, with key and value as one token over each stretch; then each key and its value. Nothing is within a window. */
function recall(rng: Rng): Row & { readonly places: number[]; readonly order: number[] } {
  const room = Math.floor((START - WINDOW - STRETCH) / STRETCH);
  const places = rng.shuffled(Array.from({ length: room }, (_, k) => k)).slice(0, KEYS);
  const tokens = Array.from({ length: LENGTH + 1 }, () => rng.int(0, NOISE - 1));
  const values = places.map(() => rng.int(0, VALUES - 1));
  places.forEach((place, key) => {
    tokens.fill(written(key, values[key]), place * STRETCH, (place + 1) * STRETCH);
  });
  const order = rng.shuffled([0, 1]);
  order.forEach((key, j) => {
    tokens[START + 2 * j] = asked(key);
    tokens[START + 2 * j + 1] = answer(values[key]);
  });
  return { tokens, places, order, counts: (t) => t >= START && (t - START) % 2 === 0 };
}

const task = (attention: Record<string, unknown>, steps: number) => ({
  spec: { vocab, width: 64, depth: 1, positions: 'none', attention, ffn: { kind: 'glu', hidden: 64 } } as const,
  ...{ rows: 4, length: LENGTH, steps, precision: 'bf16' as const, row: recall },
});

const SIZE = 16;
const sparse = {
  ...{ kind: 'block-sparse', heads: 4, kvHeads: 1 },
  ...{ length: 16, stride: 8, size: SIZE, blocks: 8, window: WINDOW },
};

describe('a value that was written 100 to 1000 tokens ago', () => {
  test('is found by block-sparse attention, which looks at 128 chosen keys', async () => {
    const { first, last, model, params } = await learn(cpu, task(sparse, 260));
    assert.ok(first > 2.5, `untrained loss ${first}`);
    assert.ok(last < 0.1, `loss ${last} after training`);

    // The lists of the tokens that ask: do they hold the stretch that answers?
    const rng = new Rng('lists');
    let [hits, all] = [0, 0];
    for (let k = 0; k < 8; k++) {
      const { tokens, places, order } = recall(rng);
      scope(() => {
        const choices = new Choices();
        const c = forwardContext({ device: cpu, compute: 'bf16', choices });
        const inputs = Tensor.from(cpu, tokens.slice(0, LENGTH), [1, LENGTH], 'i32');
        noGrad(() => model.hidden(params, { inputs, segments: null, positions: null }, c));
        choices.rewind();
        const index = choices.take((): Tensor => assert.fail('no choice was made'));
        const lists = index.dataSync();
        order.forEach((key, j) => {
          const t = START + 2 * j;
          const list = Array.from(lists.slice(t * sparse.blocks, (t + 1) * sparse.blocks));
          const stretch = [0, 1].map((n) => (places[key] * STRETCH) / SIZE + n);
          hits += +stretch.some((block) => list.includes(block));
          all++;
        });
      });
    }
    assert.ok(hits > 0.8 * all, `${hits} of ${all} lists hold a block of the stretch`);
  });

  test('is out of reach for windows alone', async () => {
    const { last } = await learn(cpu, task({ kind: 'window', heads: 4, kvHeads: 1, window: WINDOW, period: 0 }, 100));
    assert.ok(last > 1.9, `loss ${last}: guessing among 8 values costs ${Math.log(VALUES)}`);
  });
});
