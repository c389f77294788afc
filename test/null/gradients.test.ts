// Every op's gradient against central differences, in float64 on the reference device.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { opTable } from '../../src/tensor/index.ts';
import { casesOf, notDifferentiable, reachedThrough } from '../support/op-cases.ts';
import { slopesOf } from '../support/ref-values.ts';

const device = new RefDevice();

/** Relative to the larger slope; the floor is what float64 differences resolve. */
const wrong = (a: number, n: number): boolean => !(Math.abs(a - n) <= 1e-6 * Math.max(Math.abs(a), Math.abs(n)) + 1e-8);

describe('gradients against finite differences', () => {
  for (const op of opTable.keys()) {
    // A row without any case fails in ops.test.ts.
    if (reachedThrough[op] || notDifferentiable.includes(op) || casesOf(op).length === 0) continue;
    test(op, () => {
      const faults: string[] = [];
      let checked = 0;
      for (const c of casesOf(op)) {
        if (c.large || !c.inputs.some((x) => x.grad)) continue;
        for (const { input, element, analytic, numeric } of slopesOf(device, c)) {
          checked++;
          if (wrong(analytic, numeric))
            faults.push(`${c.label}: input ${input} element ${element}: gradient ${analytic}, difference ${numeric}`);
        }
      }
      assert.ok(checked > 0, 'no case has an input with a gradient');
      assert.deepEqual(faults.slice(0, 10), [], `${faults.length} of ${checked} slopes differ`);
    });
  }
});
