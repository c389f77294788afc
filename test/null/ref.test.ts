// The reference against the contract's list of kernels, and its random, elementwise and optimiser kernels against known answers.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { erfc } from '../../src/backend/ref/activations.ts';
import { roundToBf16 } from '../../src/backend/ref/common.ts';
import { refKernels } from '../../src/backend/ref/index.ts';
import { philox, randomWords, unit } from '../../src/backend/ref/random.ts';
import { kernelNames, Rng } from '../support/kernel-cases/index.ts';
import { callRef, distance, floats } from '../support/ref-call.ts';

const rng = new Rng('reference');
const normals = (n: number) => floats(n, () => rng.normal());
const zeros = (n: number) => new Float64Array(n);
const NAN = Number.NaN;

test('every documented kernel has a reference and test cases, and no other is there', () => {
  const contract = readFileSync(new URL('../../docs/kernels.md', import.meta.url), 'utf8');
  const documented = [...contract.matchAll(/^\| `([a-z0-9_ ]+)` \|/gm)].flatMap(([, names]) => names.split(' '));
  assert.ok(documented.length > 80);
  assert.deepEqual(Object.keys(refKernels).sort(), documented.sort());
  assert.deepEqual([...kernelNames].sort(), documented.sort());
});

describe('random', () => {
  test('Philox4x32-10 gives the known answers of Random123', () => {
    const all = 0xffffffff;
    assert.deepEqual(philox([0, 0, 0, 0], [0, 0]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert.deepEqual(philox([all, all, all, all], [all, all]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    assert.deepEqual(
      philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    );
  });

  test('an element depends on seed, step, stream and its index, and on nothing else', () => {
    const state = Int32Array.of(1, 2, 3, 4);
    const draw = (s: Int32Array, n: number, stream: number) => {
      const out = zeros(n);
      callRef('uniform', { p: [out, s], i: [n, stream], f: [0, 1] });
      return out;
    };
    const base = draw(state, 100, 5);
    assert.deepEqual(draw(state, 37, 5), base.subarray(0, 37));
    assert.equal(base[41], unit(philox([10, 0, 5, 3], [1, 2 ^ 4])[1]));
    assert.deepEqual(randomWords(state, 5, 10), philox([10, 0, 5, 3], [1, 2 ^ 4]));
    for (const changed of [
      draw(state, 100, 6),
      draw(Int32Array.of(1, 2, 4, 4), 100, 5),
      draw(Int32Array.of(0, 2, 3, 4), 100, 5),
    ]) {
      assert.ok(base.every((x, k) => x !== changed[k]));
    }
  });

  test('uniform, normal and dropout have the moments they should', () => {
    const n = 200_000;
    const state = Int32Array.of(7, 0, 1, 0);
    const mean = (x: Float64Array, power = 1) => x.reduce((sum, v) => sum + v ** power, 0) / n;
    const x = zeros(n);
    callRef('uniform', { p: [x, state], i: [n, 1], f: [-1, 1] });
    assert.ok(Math.abs(mean(x)) < 0.006 && Math.abs(mean(x, 2) - 1 / 3) < 0.004);
    callRef('normal', { p: [x, state], i: [n, 2], f: [0, 1] });
    assert.ok(Math.abs(mean(x)) < 0.01 && Math.abs(mean(x, 2) - 1) < 0.015 && Math.abs(mean(x, 4) - 3) < 0.1);
    callRef('dropout', { p: [x, new Float64Array(n).fill(3), state], i: [n, 3], f: [0.25] });
    assert.deepEqual([...new Set(x)].sort(), [0, 4]);
    assert.ok(Math.abs(mean(x) - 3) < 0.02);
  });
});

describe('elementwise', () => {
  test('erfc gives tabulated values in both of its ranges', () => {
    const table = [
      [-1, 1.8427007929497148],
      [0, 1],
      [0.5, 0.4795001221869535],
      [1.5, 0.033894853524689274],
      [2, 0.004677734981047266],
      [3, 2.209049699858544e-5],
      [5, 1.5374597944280349e-12],
    ];
    for (const [x, expected] of table) assert.ok(Math.abs(erfc(x) / expected - 1) < 1e-13, `erfc(${x}) = ${erfc(x)}`);
  });

  test('bfloat16 rounding is to nearest, ties to even', () => {
    const ulp = 2 ** -7;
    const pairs = [
      [1, 1],
      [1 + ulp / 2, 1],
      [1 + 1.5 * ulp, 1 + 2 * ulp],
      [1 + 0.51 * ulp, 1 + ulp],
      [-1 - 0.49 * ulp, -1],
      [3.4e38, Number.POSITIVE_INFINITY],
    ];
    for (const [x, expected] of pairs) assert.equal(roundToBf16(x), expected);
    assert.ok(Number.isNaN(roundToBf16(NAN)));
  });

  test('strides broadcast, reverse and transpose', () => {
    const out = zeros(6);
    callRef('sub', { p: [out, Float64Array.of(10, 20), Float64Array.of(1, 2, 3)], i: [2, 2, 3, 1, 0, 0, 1] });
    assert.deepEqual([...out], [9, 8, 7, 19, 18, 17]);
    const x = Float64Array.of(0, 1, 2, 3, 4, 5);
    refKernels.strided_read({
      p: [out, x.subarray(2)],
      m: [out, x],
      o: [0, 2],
      t: ['f32', 'f32'],
      i: [2, 3, 2, -1, 3],
      f: [],
    });
    assert.deepEqual([...out], [2, 5, 1, 4, 0, 3]);
    callRef('strided_write', { p: [out, Float64Array.of(7, 8)], i: [1, 2, 3] });
    assert.deepEqual([...out], [7, 5, 1, 8, 0, 3]);
    callRef('strided_add', { p: [out, Float64Array.of(1, 1)], i: [1, 2, 3] });
    assert.deepEqual([...out], [8, 5, 1, 9, 0, 3]);
  });

  test('integer arithmetic wraps at 32 bits and casts truncate', () => {
    const out = new Int32Array(2);
    callRef('mul', { p: [out, Int32Array.of(123456789, -7), Int32Array.of(987654321, 6)], i: [1, 2, 1, 1] });
    assert.deepEqual([...out], [-67153019, -42]);
    callRef('cast', { p: [out, Float64Array.of(2.9, -2.9)], i: [2] });
    assert.deepEqual([...out], [2, -2]);
    const bytes = new Uint8Array(3);
    callRef('cast', { p: [bytes, Float64Array.of(-1.5, 257.9, 12.2)], i: [3] });
    assert.deepEqual([...bytes], [255, 1, 12]);
  });
});

describe('optimiser', () => {
  const scalars = (finite: number) => Float64Array.of(0.1, 0.5, 1 - 0.9, 1 - 0.99, finite, 0, 0, 0);

  test("AdamW's first step is lr times the gradient's sign, plus decay", () => {
    const [p, m, v] = [Float64Array.of(1, -2), zeros(2), zeros(2)];
    const shadow = zeros(2);
    callRef('adamw', { p: [p, m, v, Float64Array.of(3, -4), scalars(1), shadow], i: [2], f: [2, 0.9, 0.99, 0, 0.01] });
    assert.ok(distance(p, [1 - 0.2 * (1 + 0.01), -2 + 0.2 * (1 + 0.02)]) < 1e-12);
    assert.ok(distance(m, [0.15, -0.2]) < 1e-12 && distance(v, [0.0225, 0.04]) < 1e-12);
    assert.deepEqual(shadow, p);
  });

  test('a step with a non-finite gradient norm leaves everything untouched and is counted', () => {
    const [p, m, v, s] = [normals(3), normals(3), normals(3), scalars(1)];
    const before = [p.slice(), m.slice(), v.slice()];
    callRef('clip_scale', { p: [s, Float64Array.of(1, NAN)], i: [2], f: [1, 1] });
    assert.deepEqual([s[4], s[6]], [0, 1]);
    callRef('adamw', { p: [p, m, v, normals(3), s, null], i: [3], f: [1, 0.9, 0.99, 1e-8, 0.1] });
    assert.deepEqual([p, m, v], before);
    callRef('clip_scale', { p: [s, Float64Array.of(9, 16)], i: [2], f: [1, 1] });
    assert.deepEqual([s[1], s[4], s[5], s[6]], [0.2, 1, 5, 1]);
  });
});
