// Every kernel of the native library, at every instruction-set level this CPU has, against the float64 reference.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { prepareCase } from '../support/compare.ts';
import { casesFor, kernelNames, Rng } from '../support/kernel-cases/index.ts';

const device = new CpuDevice();
const { levels, level: initial } = device.info();

after(() => device.useLevel(initial));

test('the native library has every documented kernel', () => {
  const missing = kernelNames.filter((name) => !device.kernels().includes(name));
  assert.deepEqual(missing, []);
});

describe(`native kernels against the reference (${levels.join(', ')})`, () => {
  for (const kernel of device.kernels()) {
    test(kernel, () => {
      const faults: string[] = [];
      let runs = 0;
      for (const testCase of casesFor(kernel, new Rng(kernel))) {
        const run = prepareCase(testCase);
        for (const level of levels) {
          device.useLevel(level);
          const fault = run(device);
          runs++;
          if (fault) faults.push(`${level}: ${fault}`);
        }
      }
      assert.ok(runs > 0);
      if (faults.length > 0)
        assert.fail(`${faults.length} of ${runs} runs wrong:\n  ${faults.slice(0, 12).join('\n  ')}`);
    });
  }
});
