/** Small tasks that say what a part can do: parity, sorting, induction, a needle in 8192 tokens. Seconds each. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { disposeTree } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import type { Rng } from '../support/kernel-cases/build.ts';
import { learn, type Row, type ToyTask } from '../support/toy-task.ts';

const device = new CpuDevice();

/** Bits, each followed by the parity of all so far: 0 1 are bits, 2 3 parities. */
const parity = (bits: number) => ({
  length: 2 * bits - 1,
  row: (rng: Rng): Row => {
    const tokens: number[] = [];
    let sum = 0;
    for (let k = 0; k < bits; k++) {
      const bit = rng.int(0, 1);
      sum ^= bit;
      tokens.push(bit, 2 + sum);
    }
    return { tokens, counts: (t) => t % 2 === 0 };
  },
});

/** n letters of 8, a mark, the same letters in order. */
const sorting = (n: number) => ({
  length: 2 * n,
  row: (rng: Rng): Row => {
    const letters = Array.from({ length: n }, () => rng.int(0, 7));
    return { tokens: [...letters, 8, ...[...letters].sort((a, b) => a - b)], counts: (t) => t >= n };
  },
});

/** Random letters in which pairs come again: after the first letter of a pair comes what came after it before. */
const induction = (length: number) => ({
  length,
  row: (rng: Rng): Row => {
    const tokens = Array.from({ length: length + 1 }, () => rng.int(0, 31));
    const mark = 32 + rng.int(0, 3);
    const answer = rng.int(0, 31);
    const at = rng.int(1, (length >> 1) - 2);
    [tokens[at], tokens[at + 1]] = [mark, answer];
    [tokens[length - 1], tokens[length]] = [mark, answer];
    return { tokens, counts: (t) => t === length - 1 };
  },
});

/** Four needles, key and value in one token, lie in the first half of the row; its end asks for them by key. */
const needles = (length: number, questions: number) => ({
  length,
  row: (rng: Rng): Row => {
    const tokens = Array.from({ length: length + 1 }, () => rng.int(0, 31));
    const values = Array.from({ length: 4 }, () => rng.int(0, 7));
    values.forEach((value, key) => {
      tokens[rng.int(key * (length >> 3), (key + 1) * (length >> 3) - 1)] = 32 + 8 * key + value;
    });
    const start = length + 1 - 2 * questions;
    for (let k = 0; k < questions; k++) {
      const key = rng.int(0, 3);
      tokens[start + 2 * k] = 64 + key;
      tokens[start + 2 * k + 1] = values[key];
    }
    return { tokens, counts: (t) => t >= start && (t - start) % 2 === 0 };
  },
});

const small = {
  vocab: 41,
  width: 32,
  attention: { kind: 'full', heads: 2 },
  ffn: { kind: 'glu', hidden: 48 },
} as const;

async function run(task: ToyTask, threshold: number): Promise<void> {
  const { first, last, model, params } = await learn(device, task);
  disposeTree(params);
  assert.ok(first > 4 * threshold, `starts at ${first}`);
  assert.ok(last < threshold, `${model.spec.attention.kind}: ${last.toFixed(3)} nats after ${task.steps} steps`);
}

describe('learned in seconds', () => {
  test('parity', () => run({ ...parity(12), spec: { ...small, depth: 1 }, steps: 500 }, 0.05));
  test('sorting', () => run({ ...sorting(8), spec: { ...small, depth: 2 }, steps: 350 }, 0.1));
  test('sorting, mixture of experts', () =>
    run(
      {
        ...sorting(8),
        spec: { ...small, depth: 2, ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 32 } } },
        steps: 350,
      },
      0.1,
    ));
  test('induction', () => run({ ...induction(24), spec: { ...small, depth: 2 }, rows: 128, steps: 500 }, 0.2));
});

describe('needles in 8192 tokens', () => {
  // Learned on short rows first: in a long one, a needle's share of the attention begins at 1/8192.
  const one = { ...small, vocab: 68, depth: 1, positions: 'none', context: 8192, tied: false } as const;
  const kinds: Record<string, ToyTask['spec']> = {
    full: {},
    'window, every second layer global': { depth: 2, attention: { kind: 'window', heads: 1, window: 64, period: 2 } },
    'block-sparse': {
      attention: { kind: 'block-sparse', heads: 1, length: 8, stride: 4, size: 16, blocks: 12, window: 32 },
    },
    lsh: { attention: { kind: 'lsh', heads: 1, chunk: 64, rounds: 4 } },
  };
  for (const [name, change] of Object.entries(kinds))
    test(name, async () => {
      const spec = { ...one, attention: { kind: 'full', heads: 1 }, ...change };
      const precision = 'bf16';
      const short = await learn(device, { ...needles(256, 32), spec, rows: 16, steps: 400, lr: 3e-3, precision });
      const long = {
        ...needles(8192, 64),
        spec,
        rows: 1,
        steps: 150,
        lr: 3e-3,
        precision,
        from: short.params,
      } as const;
      const { last } = await learn(device, long);
      disposeTree(short.params);
      assert.ok(last < 0.3, `${last.toFixed(3)} nats in 8192 tokens`);
    });
});
