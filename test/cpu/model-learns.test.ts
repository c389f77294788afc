// Small decoders learn small languages, in seconds: copying, which takes attention, and a grammar whose best loss is known.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { copying, grammar, learn } from '../support/toy-task.ts';

const device = new CpuDevice();

describe('learning', () => {
  for (const precision of ['f32', 'bf16'] as const)
    test(`copying 7 of 8 letters after a mark (${precision})`, async () => {
      const { first, last } = await learn(device, {
        spec: { vocab: 9, width: 64, attention: { kind: 'full', heads: 4 }, ffn: { kind: 'glu', hidden: 64 } },
        ...{ rows: 32, steps: 400, precision },
        ...copying(7),
      });
      assert.ok(Math.abs(first - Math.log(9)) < 0.3, `untrained loss ${first}`);
      assert.ok(last < 0.05, `loss ${last} after training`);
    });

  test('a grammar down to its entropy, and not below', async () => {
    const { entropy, ...task } = grammar(16);
    const { last } = await learn(device, {
      spec: { vocab: 10, width: 32, depth: 1 },
      ...{ rows: 32, steps: 250, precision: 'f32' },
      ...task,
    });
    // Sampling error of the 4096 held-out targets: about 0.006.
    assert.ok(last < entropy + 0.05, `loss ${last}, entropy ${entropy}`);
    assert.ok(last > entropy - 0.03, `loss ${last} is below the entropy ${entropy}: the future leaks`);
  });
});
