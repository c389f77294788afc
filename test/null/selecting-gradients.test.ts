// Gradients that choose where to go: what comes back for the other branch is 0, also when it is inf or NaN.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import * as T from '../../src/tensor/index.ts';

const device = new RefDevice();
const [inf, nan] = [Infinity, Number.NaN];

/** Gradients of y = fn(...inputs) for the seed dy, one list an input. */
function slopes(fn: (...x: T.Tensor[]) => T.Tensor, inputs: number[][], dy: number[], dtype: 'f32' | 'bf16' = 'f32') {
  return T.scope(() => {
    const x = inputs.map((values) => T.Tensor.from(device, values, [values.length], dtype).parameter());
    const seed = T.Tensor.from(device, dy, [dy.length], dtype);
    return T.gradients(fn(...x), x, seed).map((g) => [...g.dataSync()]);
  });
}

describe('an infinite or undefined gradient stays on its branch', () => {
  const bad = [inf, nan, -inf, 1];
  for (const dtype of ['f32', 'bf16'] as const) {
    test(`where, ${dtype}`, () => {
      const pick = (flags: number[]) => (a: T.Tensor, b: T.Tensor) => T.where(T.Tensor.from(device, flags, [4]), a, b);
      const values = [1, 2, 3, 4];
      assert.deepEqual(slopes(pick([1, 1, 1, 1]), [values, values], bad, dtype), [bad, [0, 0, 0, 0]]);
      assert.deepEqual(slopes(pick([0, 0, 0, 0]), [values, values], bad, dtype), [[0, 0, 0, 0], bad]);
      assert.deepEqual(slopes(pick([1, 0, 1, 0]), [values, values], bad, dtype), [
        [inf, 0, -inf, 0],
        [0, nan, 0, 1],
      ]);
    });

    test(`maximum and minimum, ${dtype}`, () => {
      const [low, high] = [
        [0, 0, 0, 7],
        [1, 1, 1, 7],
      ];
      assert.deepEqual(slopes(T.maximum, [low, high], bad, dtype), [
        [0, 0, 0, 0.5],
        [inf, nan, -inf, 0.5],
      ]);
      assert.deepEqual(slopes(T.minimum, [low, high], bad, dtype), [
        [inf, nan, -inf, 0.5],
        [0, 0, 0, 0.5],
      ]);
    });

    test(`clamp, a power of 0, the largest of a row, ${dtype}`, () => {
      assert.deepEqual(
        slopes((x) => T.clamp(x, -1, 1), [[-5, 5, 9, 0.5]], bad, dtype),
        [[0, 0, 0, 1]],
      );
      assert.deepEqual(
        slopes((x) => T.powc(x, 0), [[1, 2, 3, 4]], bad, dtype),
        [[0, 0, 0, 0]],
      );
      assert.deepEqual(
        slopes((x) => T.max(x), [[1, 4, 2]], [inf], dtype),
        [[0, inf, 0]],
      );
    });
  }

  test('pow where its base or its exponent is 0', () => {
    assert.deepEqual(slopes(T.pow, [[0], [2]], [inf])[1], [0]);
    assert.deepEqual(slopes(T.pow, [[2], [0]], [inf])[0], [0]);
  });

  test('the product of a row with two zeros', () => {
    assert.deepEqual(
      slopes((x) => T.prod(x), [[0, 0, 3]], [inf]),
      [[0, 0, 0]],
    );
  });
});
