// Every op and its gradient on the CPU against the float64 reference, on every instruction-set level of this machine,
// with one thread and with two: the number of threads must not change a bit.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import * as T from '../../src/tensor/index.ts';
import { casesOf, type OpCase, opCases } from '../support/op-cases.ts';
import { type CaseResult, type Result, runOpCase } from '../support/ref-values.ts';

const cpu = new CpuDevice();
const ref = new RefDevice();
const { levels, level, threads } = cpu.info();

after(() => {
  cpu.useLevel(level);
  cpu.useThreads(threads);
});

/**
 * How far a result may be off, relative to its largest element (each) and in the Euclidean norm (all). Float32 has 24
 * bits and sums a few hundred terms; bf16 has 8, and a gradient may pass through several roundings.
 */
interface Tolerance {
  readonly each: number;
  readonly all: number;
}
const exact: Tolerance = { each: 0, all: 0 };
const f32: Tolerance = { each: 2e-5, all: 1e-5 };
const bf16: Tolerance = { each: 2e-2, all: 1e-2 };

function toleranceOf(test: OpCase, result: Result): Tolerance {
  if (result.dtype === 'i32' || result.dtype === 'u8') return exact;
  const low = result.dtype === 'bf16' || test.bf16Products || test.inputs.some((x) => x.dtype === 'bf16');
  return low ? bf16 : f32;
}

/** What is wrong with a result, or null. */
function fault(got: Result, want: Result, { each, all }: Tolerance, slack: number): string | null {
  if (String(got.shape) !== String(want.shape) || got.dtype !== want.dtype)
    return `${got.dtype}[${got.shape}], not ${want.dtype}[${want.shape}]`;
  let [most, squares, off] = [0, 0, 0];
  for (let k = 0; k < want.values.length; k++) {
    const w = want.values[k];
    if (!Number.isFinite(w)) continue;
    most = Math.max(most, Math.abs(w));
    squares += w * w;
  }
  for (let k = 0; k < want.values.length; k++) {
    const [g, w] = [got.values[k], want.values[k]];
    if (Object.is(g, w) || g === w) continue;
    const d = Math.abs(g - w);
    if (d <= slack) continue;
    if (!(d <= each * most)) return `element ${k} is ${g}, not ${w} (largest ${most})`;
    off += d * d;
  }
  return Math.sqrt(off) <= all * Math.sqrt(squares) ? null : `off by ${Math.sqrt(off / squares)} in norm`;
}

function faults(test: OpCase, got: CaseResult, want: CaseResult): string[] {
  const found = want.outputs.map((w, k) => [`output ${k}`, fault(got.outputs[k], w, toleranceOf(test, w), test.slack)]);
  want.grads.forEach(({ input, result }, k) => {
    found.push([
      `gradient of input ${input}`,
      fault(got.grads[k].result, result, toleranceOf(test, result), test.slack),
    ]);
  });
  return found.filter(([, what]) => what !== null).map(([where, what]) => `${test.label}: ${where}: ${what}`);
}

/** The results' bits, for comparisons without tolerance. */
const bitsOf = ({ outputs, grads }: CaseResult): Buffer[] =>
  [...outputs, ...grads.map((g) => g.result)].map(({ values }) => {
    const array = values as Float32Array;
    return Buffer.from(array.buffer.slice(array.byteOffset, array.byteOffset + array.byteLength));
  });

describe(`ops on the CPU against the reference (${levels.join(', ')})`, () => {
  for (const op of new Set(opCases.map((c) => c.op)))
    test(op, () => {
      const wrong: string[] = [];
      const cases = casesOf(op);
      const wanted = cases.map((c) => runOpCase(ref, c));
      for (const name of levels) {
        cpu.useLevel(name);
        const byThreads = [1, 2].map((n) => {
          cpu.useThreads(n);
          return cases.map((c) => runOpCase(cpu, c));
        });
        cases.forEach((c, k) => {
          wrong.push(...faults(c, byThreads[0][k], wanted[k]).map((f) => `${name}: ${f}`));
          const [one, two] = byThreads.map((results) => bitsOf(results[k]));
          if (one.some((bytes, j) => !bytes.equals(two[j]))) wrong.push(`${name}: ${c.label}: depends on threads`);
        });
      }
      assert.deepEqual(wrong.slice(0, 12), [], `${wrong.length} results wrong`);
    });

  test('creation', () => {
    for (const name of levels) {
      cpu.useLevel(name);
      T.scope(() => {
        assert.deepEqual([...T.fill(cpu, [2, 2], 1.5, 'bf16').dataSync()], [1.5, 1.5, 1.5, 1.5]);
        assert.deepEqual([...T.zeros(cpu, [3], 'i32').dataSync()], [0, 0, 0]);
        assert.deepEqual([...T.ones(cpu, [], 'u8').dataSync()], [1]);
        assert.deepEqual([...T.iota(cpu, 4, 2, -0.5).dataSync()], [2, 1.5, 1, 0.5]);
        assert.deepEqual(
          [...T.iota(cpu, 19, 1, 2, 'i32').dataSync()],
          Array.from({ length: 19 }, (_, k) => 1 + 2 * k),
        );
        assert.equal(T.zeros(cpu, [0, 4]).dataSync().length, 0);
      });
    }
  });
});
