// The op table: complete cases, values against definitions, costs, shapes on the meta device, clear refusals.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { sizeOf } from '../../src/backend/dtype.ts';
import { AnsatzError } from '../../src/backend/errors.ts';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import * as T from '../../src/tensor/index.ts';
import { casesOf, gradientElsewhere, notDifferentiable, opCases, reachedThrough } from '../support/op-cases.ts';
import { inputsOn, runOpCase, valuesOf, withoutRounding } from '../support/ref-values.ts';

const ref = new RefDevice();
const meta = new MetaDevice();

describe('op table and cases', () => {
  test('every row has cases, or is reached through a row that has', () => {
    const covered = new Set([...opCases.map((c) => c.op), ...Object.keys(reachedThrough)]);
    const names = [...T.opTable.keys()];
    assert.deepEqual(
      names.filter((name) => !covered.has(name)),
      [],
      'rows without a case: add some to test/support/op-cases*.ts',
    );
    assert.deepEqual(
      [...covered].filter((name) => !names.includes(name)),
      [],
      'cases without a row',
    );
    for (const through of Object.values(reachedThrough)) assert.ok(casesOf(through).length > 0, through);
  });

  test('a row has a gradient unless it is listed as not differentiable', () => {
    const listed = new Set([...notDifferentiable, ...Object.keys(gradientElsewhere)]);
    const wrong = [...T.opTable.values()].filter((op) => !op.gradient !== listed.has(op.name)).map((op) => op.name);
    assert.deepEqual(wrong, []);
  });

  test('running the cases with their gradients runs every row, and every gradient', () => {
    const [ran, differentiated] = [new Set<string>(), new Set<string>()];
    const undo: (() => void)[] = [];
    for (const op of T.opTable.values()) {
      const row = op as { infer: typeof op.infer; gradient?: typeof op.gradient };
      const { infer, gradient } = row;
      row.infer = (...args) => {
        ran.add(op.name);
        return infer(...args);
      };
      if (gradient)
        row.gradient = (...args) => {
          differentiated.add(op.name);
          return gradient(...args);
        };
      undo.push(() => Object.assign(row, { infer, gradient }));
    }
    for (const c of opCases) if (!c.large) runOpCase(ref, c);
    for (const restore of undo) restore();
    const names = [...T.opTable.values()];
    assert.deepEqual(
      names.filter((op) => !ran.has(op.name)).map((op) => op.name),
      [],
    );
    assert.deepEqual(
      names.filter((op) => op.gradient && !differentiated.has(op.name)).map((op) => op.name),
      [],
    );
  });
});

const close = (a: number, b: number): boolean =>
  a === b || (Number.isNaN(a) && Number.isNaN(b)) || Math.abs(a - b) <= 1e-9 * Math.max(1, Math.abs(a), Math.abs(b));

describe('values against definitions, in float64', () => {
  for (const op of new Set(opCases.map((c) => c.op))) {
    const cases = casesOf(op).filter((c) => c.expect);
    if (cases.length === 0) continue;
    test(op, () => {
      for (const c of cases) {
        const expected = c.expect!(c.inputs);
        withoutRounding(() =>
          T.scope(() => {
            const outputs = c.run(inputsOn(ref, c.inputs), ref);
            assert.deepEqual(
              outputs.map((y) => [...y.shape]),
              expected.map((y) => [...y.shape]),
              c.label,
            );
            outputs.forEach((y, k) => {
              const [got, want] = [valuesOf(y), expected[k].data];
              for (let j = 0; j < want.length; j++)
                assert.ok(close(got[j], want[j]), `${c.label}: output ${k} element ${j} is ${got[j]}, not ${want[j]}`);
            });
          }),
        );
      }
    });
  }

  test('creation', () => {
    T.scope(() => {
      assert.deepEqual([...T.fill(ref, [2, 2], 1.5).dataSync()], [1.5, 1.5, 1.5, 1.5]);
      assert.deepEqual([...T.zeros(ref, [3], 'i32').dataSync()], [0, 0, 0]);
      assert.deepEqual([...T.ones(ref, [], 'bf16').dataSync()], [1]);
      assert.deepEqual([...T.iota(ref, 4, 2, -0.5).dataSync()], [2, 1.5, 1, 0.5]);
      assert.deepEqual([...T.iota(ref, 3, 1, 2, 'i32').dataSync()], [1, 3, 5]);
      assert.deepEqual(T.zeros(ref, [0, 4]).dataSync().length, 0);
    });
  });
});

describe('shapes and costs without values', () => {
  test('the meta device infers what the reference computes', () => {
    for (const c of opCases.filter((x) => !x.large))
      T.scope(() => {
        const onRef = c.run(inputsOn(ref, c.inputs), ref);
        const onMeta = c.run(inputsOn(meta, c.inputs), meta);
        assert.deepEqual(
          onMeta.map((y) => [y.shape, y.dtype]),
          onRef.map((y) => [y.shape, y.dtype]),
          c.label,
        );
      });
  });

  test('costs are finite, and bytes cover at least the outputs', () => {
    for (const c of opCases)
      T.scope(() => {
        const x = inputsOn(meta, c.inputs);
        const { result, calls } = T.trace(() => c.run(x, meta));
        for (const { kernel, cost } of calls) {
          assert.ok(cost && Number.isFinite(cost.flops) && cost.flops >= 0, `${c.label}: flops of ${kernel}`);
          assert.ok(Number.isFinite(cost.bytes) && cost.bytes >= 0, `${c.label}: bytes of ${kernel}`);
        }
        const made = result.filter((y) => !x.some((t) => t.storage === y.storage));
        const least = made.reduce((n, y) => n + y.size * sizeOf(y.dtype), 0);
        const bytes = calls.reduce((n, call) => n + call.cost!.bytes, 0);
        assert.ok(bytes >= least, `${c.label}: ${bytes} bytes moved, ${least} written`);
      });
  });

  test('FLOPs of products by formula', () => {
    const flopsOf = (fn: () => unknown): number =>
      T.scope(() => T.trace(fn).calls.reduce((n, call) => n + call.cost!.flops, 0));
    const t = (...shape: number[]): T.Tensor => T.zeros(meta, shape);
    const [a, b] = [t(6, 5), t(5, 7)];
    assert.equal(
      flopsOf(() => T.matmul(a, b)),
      2 * 6 * 5 * 7,
    );
    const [x, w] = [t(2, 3, 5), t(7, 5)];
    assert.equal(
      flopsOf(() => T.matmul(x, w, { transB: true })),
      2 * 6 * 5 * 7,
    );
    const [q, k] = [t(2, 9, 4, 8), t(2, 9, 2, 8)];
    assert.equal(
      flopsOf(() => T.attention(q, k, k)),
      4 * 2 * 4 * 81 * 8,
    );
    assert.equal(
      flopsOf(() => T.attention(q, k, k, { causal: true })),
      4 * 2 * 4 * 45 * 8,
    );
    assert.equal(
      flopsOf(() => T.attention(q, k, k, { causal: true, window: 3 })),
      4 * 2 * 4 * (1 + 2 + 7 * 3) * 8,
    );
    const [signal, kernel] = [t(2, 10, 4), t(6, 2, 3)];
    assert.equal(
      flopsOf(() => T.conv1d(signal, kernel, null, { groups: 2 })),
      2 * 2 * 8 * 6 * 2 * 3,
    );
  });
});

describe('refusals are one clear line', () => {
  const t = (shape: number[], dtype: 'f32' | 'bf16' | 'i32' = 'f32'): T.Tensor => T.zeros(ref, shape, dtype);
  const refusals: [string, () => unknown, RegExp][] = [
    ['broadcast', () => T.add(t([2, 3]), t([4])), /add: shapes \[2, 3\] and \[4\] do not broadcast/],
    ['dtypes', () => T.mul(t([2]), t([2], 'i32')), /mul: f32 and i32 do not mix/],
    ['integer unary', () => T.exp(t([2], 'i32')), /exp wants a float tensor, not i32/],
    ['matmul sizes', () => T.matmul(t([2, 3]), t([4, 5])), /matmul: \[2, 3\] times \[4, 5\] do not fit/],
    ['matmul rank', () => T.matmul(t([3]), t([3, 2])), /matmul wants matrices/],
    ['matmul batches', () => T.matmul(t([2, 3, 4]), t([5, 4, 2])), /do not broadcast/],
    ['matmul bias', () => T.matmul(t([2, 3]), t([3, 4]), { bias: t([3]) }), /bias \[3\] for 4 columns/],
    ['matmul addend', () => T.matmul(t([2, 3]), t([3, 4]), { addend: t([2, 3]) }), /addend \[2, 3\]/],
    ['reshape', () => T.reshape(t([2, 3]), [4]), /reshape: \[2, 3\] \(6 elements\) does not fit \[4\]/],
    ['reshape -1', () => T.reshape(t([2, 3]), [4, -1]), /does not fit \[4, -1\]/],
    ['permute', () => T.permute(t([2, 3]), [0, 0]), /no order of the axes/],
    ['expand', () => T.expand(t([2, 3]), [2]), /expand/],
    ['axis', () => T.sum(t([2, 3]), [2]), /sum: axis 2 of a rank-2 tensor/],
    ['slice step', () => T.slice(t([4]), 0, 0, 4, 0), /step 0 must be a positive integer/],
    ['split', () => T.split(t([5]), [2, 2], 0), /sizes 2 \+ 2 do not add up to 5/],
    ['pad', () => T.pad(t([5]), 0, -1, 0), /must not be negative/],
    ['concat', () => T.concat([t([2, 3]), t([3, 2])], 0), /does not join/],
    ['concat dtype', () => T.concat([t([2]), t([2], 'bf16')], 0), /does not join/],
    ['concat nothing', () => T.concat([], 0), /nothing to join/],
    ['attention heads', () => T.attention(t([1, 2, 3, 4]), t([1, 2, 2, 4]), t([1, 2, 2, 4])), /do not share/],
    ['attention rank', () => T.attention(t([2, 3, 4]), t([2, 3, 4]), t([2, 3, 4])), /must be \[batch/],
    ['attention packed', () => T.attentionPacked(t([1, 2, 5, 4]), 2, 2), /5 packed heads are not 2 \+ 2 x 2/],
    [
      'attention bias',
      () => T.attentionPacked(t([1, 2, 3, 4]), 1, 1, { bias: t([1, 4]) }),
      /bias \[1, 4\] should be \[1, 3\]/,
    ],
    [
      'attention segments',
      () => T.attentionPacked(t([1, 2, 3, 4]), 1, 1, { segments: t([1, 3], 'i32') }),
      /segments \[1, 3\] should be \[1, 2\]/,
    ],
    ['attention window', () => T.attentionPacked(t([1, 2, 3, 4]), 1, 1, { window: -1 }), /window -1/],
    ['rope tables', () => T.rope(t([1, 5, 1, 4]), t([4, 2]), t([4, 2])), /rope: 5 positions, tables hold 4/],
    ['embedding ids', () => T.embedding(t([4, 2]), t([3])), /ids must be i32, not f32/],
    ['gather', () => T.gather(t([2, 3]), 1, t([3, 1], 'i32')), /gather: indices \[3, 1\] do not fit/],
    ['topk', () => T.topk(t([2, 3]), 4), /topk: 4 of 3/],
    ['dropout', () => T.dropout(t([2]), new T.RandomState(ref, 1), 1, 0), /dropout: probability 1/],
    ['conv channels', () => T.conv1d(t([1, 4, 3]), t([2, 2, 2])), /channels do not fit/],
    ['conv length', () => T.conv1d(t([1, 2, 1]), t([1, 1, 5])), /longer than 2 padded steps/],
    ['glu', () => T.glu(t([2, 3])), /width 3 does not split/],
    ['norm weight', () => T.rmsNorm(t([2, 3]), t([2])), /weight \[2\] for rows of 3/],
    ['cross entropy', () => T.crossEntropy(t([2, 3]), t([3], 'i32')), /targets \[3\] for logits \[2, 3\]/],
    [
      'linear cross entropy',
      () => T.linearCrossEntropy(t([2, 3]), t([5, 4]), t([2], 'i32'), t([2])),
      /h \[2, 3\], w \[5, 4\]/,
    ],
    ['values', () => T.Tensor.from(ref, [1, 2, 3], [2]), /3 values do not fill shape \[2\]/],
    ['item', () => t([2]).item(), /item\(\) wants one element/],
    ['an index from data', () => T.embedding(t([4, 2]), T.Tensor.from(ref, [4], [1], 'i32')), /index 4 out of range/],
  ];
  for (const [name, fn, message] of refusals)
    test(name, () => {
      assert.throws(
        () => T.scope(() => void fn()),
        (error: unknown) =>
          error instanceof AnsatzError && message.test(error.message) && !error.message.includes('\n'),
      );
    });
});
