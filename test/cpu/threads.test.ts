// Results must be the same bits for any number of threads: work is split by fixed sizes, never by thread count.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { outputsOf } from '../support/compare.ts';
import { casesFor, type KernelCase, Rng } from '../support/kernel-cases/index.ts';

const device = new CpuDevice();
const { threads: initial } = device.info();

after(() => device.useThreads(initial));

const elements = (c: KernelCase): number => c.p.reduce((sum, spec) => sum + (spec?.length ?? 0), 0);

describe('bit-identical results for 1, 2 and 3 threads', () => {
  for (const kernel of device.kernels()) {
    test(kernel, () => {
      const cases = casesFor(kernel, new Rng(kernel)).filter((c) => c.error === undefined);
      const largest = cases.sort((a, b) => elements(b) - elements(a)).slice(0, 6);
      for (const testCase of largest) {
        const [one, ...others] = [1, 2, 3].map((threads) => {
          device.useThreads(threads);
          return outputsOf(device, testCase).map((data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
        });
        for (const other of others) {
          other.forEach((bytes, k) => {
            assert.ok(bytes.equals(one[k]), `${testCase.label}: allocation ${k} depends on the number of threads`);
          });
        }
      }
    });
  }
});
