// Weights in blocks without native code: shapes and sizes, what is refused, and the reference's own arithmetic.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { blockTypes, sizeOf, storageOf } from '../../src/backend/dtype.ts';
import { AnsatzError } from '../../src/backend/errors.ts';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { matrixBytes, placeOf } from '../../src/backend/ref/quant-format.ts';
import * as T from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues } from '../support/ref-values.ts';

const ref = new RefDevice();

const normals = (seed: string, shape: readonly number[]): T.Tensor => {
  const rng = new Rng(seed);
  return T.Tensor.from(
    ref,
    Array.from({ length: T.sizeOfShape(shape) }, () => rng.normal()),
    shape,
  );
};

/** A check that an AnsatzError says this. */
const says =
  (pattern: RegExp) =>
  (e: unknown): boolean =>
    e instanceof AnsatzError && pattern.test(e.message) && !e.message.includes('\n');

describe('layout', () => {
  test('whole blocks: rows to 16, inputs to 64', () => {
    blockTypes.forEach((type, format) => {
      const [n, k] = [33, 70];
      const { dtype, elements } = storageOf(type, [3, n, k]);
      assert.equal(dtype, 'u8');
      assert.equal(elements, 3 * matrixBytes(format, n, k));
      assert.equal(elements, 3 * 48 * 128 * sizeOf(type));
    });
  });

  test('every value has bits of its own, and every scale', () => {
    const [n, k] = [32, 128];
    blockTypes.forEach((_, format) => {
      const [values, scales] = [new Set<number>(), new Set<number>()];
      const width = [8, 4, 16, 32][format];
      for (let row = 0; row < n; row++)
        for (let i = 0; i < k; i++) {
          const { at, shift, scale } = placeOf(format, row, i, k);
          values.add(at * 8 + shift);
          if (format <= 1) scales.add(scale);
        }
      assert.equal(values.size, n * k);
      const sorted = [...values].sort((a, b) => a - b);
      sorted.forEach((bit, j) => {
        assert.ok(j === 0 || bit - sorted[j - 1] >= width);
      });
      for (const scale of scales)
        for (let byte = scale; byte < scale + 2; byte++) assert.ok(!values.has(byte * 8) && !values.has(byte * 8 + 4));
      assert.equal(scales.size, format <= 1 ? (n * k) / 32 : 0);
      assert.ok(sorted[sorted.length - 1] < matrixBytes(format, n, k) * 8);
    });
  });

  test('a plan knows what quantised weights take', () => {
    const meta = new MetaDevice();
    const q = T.quantise(T.zeros(meta, [4096, 4096]), 'q4');
    assert.equal(q.storage.memory.bytes, 4096 * 4096 * 0.5625);
    assert.deepEqual(T.matmul(T.zeros(meta, [1, 7, 4096]), q, { transB: true }).shape, [1, 7, 4096]);
  });
});

describe('what is refused, in one line', () => {
  const q = T.quantise(normals('w', [20, 64]), 'q8');
  const x = normals('x', [3, 64]);
  const refuse = (what: string, fn: () => unknown, pattern: RegExp): void => {
    test(what, () => {
      assert.throws(fn, says(pattern));
    });
  };
  refuse('another op', () => T.add(q, q), /add: input 0 is a q8 weight/);
  refuse('a cast', () => T.cast(q, 'f32'), /cast: input 0 is a q8 weight/);
  refuse('a reshape', () => T.reshape(q, [64, 20]), /reshape: input 0 is a q8 weight/);
  refuse('x W instead of x W^T', () => T.matmul(x, q), /as x W\^T only/);
  refuse('W on the left', () => T.matmul(q, x, { transB: true }), /matmul: input 0 is a q8 weight/);
  refuse('sizes that do not fit', () => T.matmul(normals('x', [3, 63]), q, { transB: true }), /do not fit/);
  refuse('its values', () => q.dataSync(), /q8 tensor has no single values/);
  refuse('values for it', () => q.write(new Float32Array(20 * 64)), /q8 tensor has no single values/);
  refuse('a vector', () => T.quantise(normals('v', [64]), 'q8'), /wants weights \[\.\., out, in\]/);
  refuse('unpacking plain weights', () => T.dequantise(x), /wants weights in blocks, not f32/);
  refuse(
    'scales of another shape',
    () => T.quantise(normals('w', [20, 64]), 'q8', normals('s', [20, 1])),
    /scales \[20, 1\]/,
  );
  refuse(
    'experts the other way round',
    () => {
      const offsets = T.Tensor.from(ref, [0, 3], [2], 'i32');
      T.groupedMatmul(x, T.quantise(normals('w', [1, 20, 64]), 'q4'), { offsets, most: 3 });
    },
    /q4 weights \[1, 20, 64\] multiply as x W\^T only/,
  );
  refuse(
    'records of another width',
    () => {
      const records = T.packUnits(normals('u', [4, 64]), normals('d', [4, 64]), { type: 'q8' });
      T.sparseUnits(normals('x', [1, 256]), T.zeros(ref, [1, 2], 'i32'), records, { type: 'q8', block: 2 });
    },
    /do not fit/,
  );
  refuse(
    'a gradient through units',
    () => {
      const records = T.packUnits(normals('u', [4, 64]), normals('d', [4, 64]), { type: 'q8' });
      const own = normals('x', [1, 64]).parameter();
      T.sparseUnits(own, T.zeros(ref, [1, 2], 'i32'), records, { type: 'q8', block: 2 });
    },
    /no gradient through packed units/,
  );
  test('inference in noGrad() is not', () => {
    const own = normals('x', [3, 64]).parameter();
    assert.deepEqual(T.noGrad(() => T.matmul(own, q, { transB: true })).shape, [3, 20]);
  });
});

test('the worked example of a sparse layer comes out', () => {
  // Specification of the layer: x, four units in two blocks, and the output of evaluation.
  const t = (values: number[], shape: number[]) => T.Tensor.from(ref, values, shape);
  const x = t([1, -2, 0.5], [1, 3]);
  const up = t([0.5, 0.25, 1, 1, -0.5, 2, 1, -0.5, 0.5, 0.25, -1, -0.5], [4, 3]);
  const down = t([1, 0, 1, 0.5, 0.5, 0.5, 0, 1, 2, -1, 1, 2], [4, 3]);
  const low = t([1, 0, 0.5, 0, 1, -0.5], [2, 3]);
  const logits = t([0.2, 0.1, -0.1, 0.3, 0.3, -0.2, 0.4, 0.5], [4, 2]);
  const choice = T.unitChoice(x, low, logits, { block: 2 });
  assert.deepEqual([...choice.dataSync()], [0, 0]);
  const records = T.packUnits(up, down, { type: 'f32' });
  const outBias = t([0.1, 0.2, 0.3], [3]);
  const { y, touched } = T.sparseUnits(x, choice, records, { type: 'f32', block: 2, outBias });
  y.dataSync().forEach((v, k) => {
    assert.ok(Math.abs(v - [0.6, 2.45, 5.3][k]) < 1e-6);
  });
  assert.deepEqual([...touched.dataSync()], [2, 2, 2, 2]);
});

describe('weights that training goes through', () => {
  const [R, out, K] = [5, 20, 70];
  const rows = { offsets: T.Tensor.from(ref, [0, 2, 2, 5], [4], 'i32'), most: 3 };
  const head = { targets: T.Tensor.from(ref, [3, 0, 19, 7, 7], [R], 'i32'), weights: normals('weights', [R]) };
  for (const type of blockTypes) {
    const matrix = T.quantise(normals('w', [out, K]), type);
    const stack = T.quantise(normals('e', [3, out, K]), type);
    const made: Record<string, (x: T.Tensor, w: T.Tensor, e: T.Tensor, b: T.Tensor, r: T.Tensor) => T.Tensor> = {
      matmul: (x, w, _, bias, addend) => T.matmul(x, w, { transB: true, alpha: 0.7, bias, addend }),
      groupedMatmul: (x, _, e) => T.groupedMatmul(x, e, rows, { transB: true, alpha: 0.7 }),
      linearCrossEntropy: (x, w) => T.linearCrossEntropy(x, w, head.targets, head.weights, { zLoss: 0.1 }).loss,
    };
    for (const [name, product] of Object.entries(made))
      test(`${type}, ${name}: values and gradients are those of the dequantised weight`, () => {
        const given = [normals('x', [R, K]), normals('b', [out]), normals('r', [R, out])].map((t) => t.parameter());
        const [x, b, r] = given;
        const factor = normals('dy', [R, out]);
        const all = (w: T.Tensor, e: T.Tensor): [number[], number[][]] => {
          const y = product(x, w, e, b, r);
          const loss = y.size === 1 ? y : T.sum(T.mul(y, factor));
          const used = name === 'matmul' ? given : [x];
          return [Array.from(refValues(y)), T.gradients(loss, used).map((g) => Array.from(refValues(g)))];
        };
        const got = all(matrix, stack);
        const want = all(T.dequantise(matrix), T.dequantise(stack));
        [got[0], ...got[1]].forEach((values, k) => {
          const wanted = [want[0], ...want[1]][k];
          assert.ok(wanted.some((v) => v !== 0));
          values.forEach((v, n) => {
            assert.ok(Math.abs(v - wanted[n]) < 1e-9 * (1 + Math.abs(v)), `${k}[${n}]: ${v}, not ${wanted[n]}`);
          });
        });
      });
  }
});
