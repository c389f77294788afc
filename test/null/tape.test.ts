// Reverse-mode differentiation: sums over uses, intermediates, what does not take part, what cannot be differentiated.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import * as T from '../../src/tensor/index.ts';
import { casesOf, notDifferentiable, reachedThrough } from '../support/op-cases.ts';
import { inputsOn } from '../support/ref-values.ts';

const device = new RefDevice();

const leaf = (values: number[], shape: number[] = [values.length], dtype: 'f32' | 'bf16' = 'f32'): T.Tensor => {
  const t = T.Tensor.from(device, values, shape, dtype);
  t.requiresGrad = true;
  return t;
};
const list = (t: T.Tensor): number[] => [...t.dataSync()];
/** Runs fn in a scope of its own, so that tests leave nothing behind. */
const inScope = (fn: () => void): void => T.scope(fn);

describe('what gradients are summed over', () => {
  test('a tensor used several times, and twice by one op', () =>
    inScope(() => {
      const x = leaf([2, 3]);
      // x^2 + 5 x + x^3: mul(x, x) passes two gradients to x.
      const y = T.add(T.add(T.mul(x, x), T.affine(x, 5, 0)), T.mul(T.square(x), x));
      assert.deepEqual(list(T.gradients(T.sum(y), [x])[0]), [2 * 2 + 5 + 12, 2 * 3 + 5 + 27]);
    }));

  test('paths that split and meet again', () =>
    inScope(() => {
      const x = leaf([0.5]);
      let [a, b] = [x, x];
      for (let k = 0; k < 10; k++) [a, b] = [T.add(a, b), T.sub(a, b)]; // (a, b) -> 2 (a, b) every two rounds
      assert.deepEqual(list(T.gradients(T.sum(a), [x])[0]), [32]);
    }));

  test('a shared parameter gets the sum over its places', () =>
    inScope(() => {
      const w = leaf([1, 2, 3, 4], [2, 2]);
      const x = T.Tensor.from(device, [1, 1], [1, 2]);
      const [g] = T.gradients(T.sum(T.matmul(T.matmul(x, w), w)), [w]);
      // d/dw of x w w 1: w^T x^T 1^T + x^T (w 1)^T, by hand.
      assert.deepEqual(list(g), [3 + 4, 7 + 4, 3 + 6, 7 + 6]);
    }));

  test('ten thousand ops in a row do not exhaust the stack', () =>
    inScope(() => {
      const x = leaf([1]);
      let y = x;
      for (let k = 0; k < 10_000; k++) y = T.affine(y, 1, 1);
      assert.deepEqual(list(T.gradients(T.sum(y), [x])[0]), [1]);
    }));

  test('outputs of which only some are used', () =>
    inScope(() => {
      const x = leaf([3, 1, 2, 5]);
      const [, middle] = T.split(x, [1, 2, 1], 0);
      assert.deepEqual(list(T.gradients(T.sum(middle), [x])[0]), [0, 1, 1, 0]);
      const { values, indices } = T.sort(x);
      assert.equal(indices.requiresGrad, false);
      assert.deepEqual(list(T.gradients(T.sum(T.slice(values, 0, 3)), [x])[0]), [0, 0, 0, 1]);
    }));
});

describe('ties and kinks', () => {
  test('equal operands of maximum and minimum share half and half', () =>
    inScope(() => {
      const [a, b] = [leaf([1, 2, 0]), leaf([1, 1, 4])];
      assert.deepEqual(T.gradients(T.sum(T.maximum(a, b)), [a, b]).map(list), [
        [0.5, 1, 0],
        [0.5, 0, 1],
      ]);
      assert.deepEqual(T.gradients(T.sum(T.minimum(a, b)), [a, b]).map(list), [
        [0.5, 0, 1],
        [0.5, 1, 0],
      ]);
    }));

  test('elements that attain an extreme share its gradient', () =>
    inScope(() => {
      const x = leaf([1, 3, 3, 0, 0, 2], [2, 3]);
      assert.deepEqual(list(T.gradients(T.sum(T.max(x, [1])), [x])[0]), [0, 0.5, 0.5, 0, 0, 1]);
      assert.deepEqual(list(T.gradients(T.sum(T.min(x, [1])), [x])[0]), [1, 0, 0, 0.5, 0.5, 0]);
    }));

  test('at a kink the gradient is that of one side', () =>
    inScope(() => {
      const x = leaf([0]);
      assert.deepEqual(list(T.gradients(T.sum(T.relu(x)), [x])[0]), [0]);
      assert.deepEqual(list(T.gradients(T.sum(T.abs(x)), [x])[0]), [0]);
    }));
});

describe('what gradients are taken with respect to', () => {
  test('intermediate tensors, together with leaves', () =>
    inScope(() => {
      const x = leaf([1, 2]);
      const y = T.square(x);
      const z = T.sum(T.affine(y, 3, 0));
      const [dx, dy, dz] = T.gradients(z, [x, y, z]);
      assert.deepEqual([list(dx), list(dy), list(dz)], [[6, 12], [3, 3], [1]]);
    }));

  test('tensors that do not take part get zeros of their shape and dtype', () =>
    inScope(() => {
      const [x, aside] = [leaf([1, 2]), leaf([1, 2, 3, 4, 5, 6], [2, 3], 'bf16')];
      const unused = T.square(aside);
      const grads = T.gradients(T.sum(x), [aside, unused, x]);
      assert.deepEqual(
        grads.map((g) => [g.dtype, [...g.shape]]),
        [
          ['bf16', [2, 3]],
          ['bf16', [2, 3]],
          ['f32', [2]],
        ],
      );
      assert.deepEqual(grads.map(list), [new Array(6).fill(0), new Array(6).fill(0), [1, 1]]);
    }));

  test('a tensor that never asked for gradients is refused', () =>
    inScope(() => {
      const [x, constant] = [leaf([1]), T.Tensor.from(device, [2], [1])];
      assert.throws(() => T.gradients(T.sum(T.mul(x, constant)), [x, constant]), AnsatzError);
    }));

  test('a seed weighs the outputs; without one only scalars are taken', () =>
    inScope(() => {
      const x = leaf([1, 2, 3]);
      const y = T.square(x);
      assert.throws(() => T.gradients(y, [x]), /wants a scalar or a seed, shape is \[3\]/);
      const seed = T.Tensor.from(device, [1, 0, -1], [3]);
      assert.deepEqual(list(T.gradients(y, [x], seed)[0]), [2, 0, -6]);
    }));

  test('the same graph can be differentiated again', () =>
    inScope(() => {
      const x = leaf([1, 2]);
      const y = T.sum(T.mul(x, T.exp(x)));
      assert.deepEqual(list(T.gradients(y, [x])[0]), list(T.gradients(y, [x])[0]));
    }));

  test('gradients keep the dtype of what they belong to', () =>
    inScope(() => {
      const [a, b] = [leaf([1, 2], [2], 'bf16'), leaf([3], [1])];
      assert.deepEqual(
        T.gradients(T.sum(T.mul(a, b)), [a, b]).map((g) => g.dtype),
        ['bf16', 'f32'],
      );
    }));
});

describe('where no gradient flows', () => {
  test('noGrad() records nothing, nests, and ends when its function throws', () =>
    inScope(() => {
      const x = leaf([2]);
      const y = T.noGrad(() => T.noGrad(() => T.square(x)));
      assert.deepEqual([y.requiresGrad, y.node], [false, null]);
      assert.throws(() =>
        T.noGrad(() => {
          throw new Error('inside');
        }),
      );
      assert.equal(T.square(x).requiresGrad, true);
    }));

  test('detach() shares values and ends the path', () =>
    inScope(() => {
      const x = leaf([2, 3]);
      const y = T.sum(T.mul(x, T.square(x).detach()));
      assert.deepEqual(list(T.gradients(y, [x])[0]), [4, 9]);
    }));

  test('gradients themselves are not recorded', () =>
    inScope(() => {
      const x = leaf([2]);
      const [g] = T.gradients(T.sum(T.square(x)), [x]);
      assert.equal(g.requiresGrad, false);
    }));

  test('ops without a gradient end every path, or refuse', () =>
    inScope(() => {
      const names = notDifferentiable.filter((name) => !reachedThrough[name]);
      for (const c of names.flatMap(casesOf)) {
        if (c.large) continue;
        const x = inputsOn(device, c.inputs);
        for (const t of x) if (t.dtype === 'f32' || t.dtype === 'bf16') t.requiresGrad = true;
        let made: readonly T.Tensor[];
        try {
          made = c.run(x, device);
        } catch (error) {
          // Ops for inference say so at once.
          assert.match((error as Error).message, /there is no gradient through/, c.label);
          continue;
        }
        for (const y of made.filter((y) => !x.includes(y) && !y.node)) assert.equal(y.requiresGrad, false, c.label);
      }
      const x = leaf([1, 2]);
      const y = T.sum(T.mul(T.sign(x), x));
      assert.deepEqual(list(T.gradients(y, [x])[0]), [1, 1]);
    }));

  test('a loss that depends on parameters only through such ops has zero gradients', () =>
    inScope(() => {
      const x = leaf([1, 2]);
      assert.deepEqual(list(T.gradients(T.sum(T.gt(x, T.zeros(device, [2]))), [x])[0]), [0, 0]);
    }));
});
