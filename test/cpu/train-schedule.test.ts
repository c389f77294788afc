// Learning rate by step: the shapes, and exactly what happens at their ends.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { scheduleSchema } from '../../src/train/config.ts';
import { scheduleFactor } from '../../src/train/schedule.ts';

const curve = (input: object, total: number): number[] => {
  const config = scheduleSchema.parse(input);
  return Array.from({ length: total }, (_, step) => scheduleFactor(config, step, total));
};
const close = (actual: number, wanted: number, what?: string): void =>
  assert.ok(Math.abs(actual - wanted) < 1e-12, `${what ?? ''} ${actual}, not ${wanted}`);
const falls = (values: number[]): boolean => values.every((v, k) => k === 0 || v < values[k - 1]);

describe('warm-up', () => {
  for (const kind of ['constant', 'cosine', 'wsd']) {
    test(`${kind}: rises linearly to 1 in its last step, never starts at 0`, () => {
      const values = curve({ kind, warmup: 0.1 }, 100);
      for (let step = 0; step < 10; step++) close(values[step], (step + 1) / 10, `step ${step}`);
      close(values[10], 1, 'first step after it');
    });
    test(`${kind}: none when its share is 0 or rounds to 0 steps`, () => {
      close(curve({ kind, warmup: 0 }, 50)[0], 1);
      close(curve({ kind, warmup: 0.01 }, 40)[0], 1);
    });
  }
});

test('constant stays at 1', () => {
  assert.ok(
    curve({ kind: 'constant', warmup: 0.2 }, 30)
      .slice(6)
      .every((v) => v === 1),
  );
});

describe('cosine', () => {
  test('falls from 1 through the middle towards the floor', () => {
    const values = curve({ kind: 'cosine', warmup: 0, floor: 0.1 }, 1000);
    close(values[0], 1);
    close(values[500], 0.55);
    assert.ok(falls(values));
    assert.ok(values[999] > 0.1 && values[999] < 0.1001);
  });
  test('stays on the floor beyond the last step', () => {
    const config = scheduleSchema.parse({ kind: 'cosine', warmup: 0, floor: 0.25 });
    close(scheduleFactor(config, 100, 100), 0.25);
    close(scheduleFactor(config, 10_000, 100), 0.25);
  });
});

describe('warm-up, stable, decay', () => {
  test('is 1 until the decay begins and reaches the floor in the last step', () => {
    const values = curve({ kind: 'wsd', warmup: 0.1, decay: 0.25, floor: 0.02 }, 200);
    assert.ok(values.slice(20, 150).every((v) => v === 1));
    assert.ok(falls(values.slice(149)));
    close(values[199], 0.02);
  });
  for (const shape of ['linear', 'sqrt', 'cosine'] as const) {
    test(`${shape}: its middle, and its end`, () => {
      const values = curve({ kind: 'wsd', warmup: 0, decay: 1, floor: 0, shape }, 100);
      // Half of the decay is done after step 49.
      close(values[49], { linear: 0.5, sqrt: 1 - Math.SQRT1_2, cosine: 0.5 }[shape]);
      close(values[99], 0);
      assert.ok(falls(values));
    });
  }
  test('the decay never rounds to nothing', () => {
    close(curve({ kind: 'wsd', warmup: 0, decay: 0, floor: 0.5 }, 10)[9], 0.5);
  });
});

test('a run of a single step trains', () => {
  for (const kind of ['constant', 'cosine', 'wsd']) {
    const [only] = curve({ kind }, 1);
    assert.ok(only > 0 && only <= 1, `${kind}: ${only}`);
  }
});
