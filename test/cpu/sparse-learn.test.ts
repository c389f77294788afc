// Sparse models learn small languages: copying, and a grammar whose best loss is known.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { activities, activityOf } from '../../src/tricks/relu-l1/index.ts';
import { usageOf, usages } from '../../src/tricks/sparse-ffn/index.ts';
import {
  createRun,
  numbersOf,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';
import { copying, grammar, learn } from '../support/toy-task.ts';

const device = new CpuDevice();
const base = { width: 64, vocab: 9, attention: { kind: 'full', heads: 4 } };

describe('copying 7 of 8 letters after a mark', () => {
  for (const [name, spec, precision] of [
    ['sparse-ffn, f32', { ffn: { kind: 'sparse-ffn', hidden: 96, block: 8 } }, 'f32'],
    ['sparse-ffn before the ReLU, bf16', { ffn: { kind: 'sparse-ffn', hidden: 96, block: 8, mask: 'before' } }, 'bf16'],
    ['sparse-qkv', { attention: { kind: 'sparse-qkv', heads: 4 }, ffn: { kind: 'mlp', hidden: 96 } }, 'bf16'],
    [
      'sparse-ffn, sparse-qkv with a multiplicative output, sparse-loss',
      {
        attention: { kind: 'sparse-qkv', heads: 4, output: 'multiplicative' },
        ffn: { kind: 'sparse-ffn', hidden: 96, block: 8 },
        ...{ head: { kind: 'factored', modules: 2 }, tied: false },
      },
      'f32',
    ],
  ] as const)
    test(name, async () => {
      const { first, last, params } = await learn(device, {
        ...copying(7),
        ...{ spec: { ...base, ...spec }, steps: 500, precision },
      });
      assert.ok(first > 1.8, `untrained loss ${first}`);
      assert.ok(last < 0.1, `loss ${last} after training`);
      for (const { path, share } of usages(params)) {
        const { meanEntropy, deadShare } = usageOf(share, 8);
        assert.ok(meanEntropy > 0.3 && deadShare < 0.3, `${path}: entropy ${meanEntropy}, dead ${deadShare}`);
      }
    });
});

describe('a grammar down to its entropy, and not below', () => {
  const task = grammar();
  for (const [name, spec] of [
    ['sparse-ffn', { ffn: { kind: 'sparse-ffn', hidden: 64, block: 8 } }],
    ['sparse-loss', { head: { kind: 'factored', modules: 5 }, tied: false }],
    ['relu-l1', { ffn: { kind: 'relu-l1', hidden: 64, l1: 1e-3 } }],
    ['topk-ffn, spark', { ffn: { kind: 'topk-ffn', hidden: 64, density: 0.2 } }],
    ['topk-ffn, gated', { ffn: { kind: 'topk-ffn', hidden: 64, density: 0.2, form: 'gated' } }],
    [
      'sparse experts',
      { ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'sparse-ffn', hidden: 32, block: 4 } } },
    ],
  ] as const)
    test(name, async () => {
      const { last } = await learn(device, { ...task, spec: { vocab: 10, width: 32, depth: 1, ...spec }, steps: 250 });
      // Sampling error of the 4096 held-out targets: about 0.006.
      assert.ok(last < task.entropy + 0.06, `loss ${last}, entropy ${task.entropy}`);
      assert.ok(last > task.entropy - 0.03, `loss ${last} is below the entropy ${task.entropy}: the future leaks`);
    });

  const rivals = (l1: number, steps: number, accumulate = 1) =>
    learn(device, {
      ...task,
      spec: { vocab: 10, width: 32, depth: 1, ffn: { kind: 'relu-l1', hidden: 64, l1 } },
      ...{ rows: 32 / accumulate, accumulate, steps },
    });
  test('a stronger L1 term leaves fewer units active, at little cost here', async () => {
    const [none, some] = [await rivals(0, 250), await rivals(3e-3, 250)];
    const [before, after] = [none, some].map(({ params }) => activityOf(activities(params)[0].share).share);
    assert.ok(after < 0.5 * before, `${after} of the units active with the term, ${before} without`);
    assert.ok(some.last < none.last + 0.05, `${some.last} with the term, ${none.last} without`);
  });
  test('terms of the loss weigh the same in one batch and in micro-batches', async () => {
    const [one, four] = [await rivals(0.5, 3), await rivals(0.5, 3, 4)];
    one.losses.forEach((loss, k) => {
      assert.ok(Math.abs(loss - four.losses[k]) < 2e-5 * loss, `step ${k}: ${loss} and ${four.losses[k]}`);
    });
  });
});

test('a run of all of them continues as if it had not been stopped', async () => {
  const root = temporaryFolder('sparse');
  const data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
  const config = tinyConfig(data, {
    ...{ steps: 8, accumulate: 2, precision: 'bf16', checkpoint: { every: 4 } },
    model: {
      attention: { kind: 'sparse-qkv', heads: 2, output: 'multiplicative' },
      ffn: { kind: 'sparse-ffn', hidden: 64, block: 8 },
      overrides: [{ layers: [1], ffn: { kind: 'relu-l1', hidden: 32 } }],
      ...{ head: { kind: 'factored', modules: 4 }, tied: false },
    },
  });
  const whole = await trainWhole(join(root, 'whole'), config);
  const run = await createRun(join(root, 'parts'), config);
  const first = await trainRun(run, { stopAfter: 3 });
  const second = await trainRun(run, { resume: true });
  assert.deepEqual(numbersOf([...first.events, ...second.events]), whole.numbers);
});
