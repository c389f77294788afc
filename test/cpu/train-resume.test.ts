// Same seed, same losses, to the last bit: twice in a row, stopped and resumed anywhere, with any number of threads.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { openDevice } from '../../src/backend/index.ts';
import {
  createRun,
  numbersLogged,
  numbersOf,
  type TinyData,
  type TrainConfigInput,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';

const root = temporaryFolder('resume');
let data: TinyData;

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
});

const dropout = {
  dropout: 0.1,
  attention: { kind: 'full', heads: 2, dropout: 0.1 },
  ffn: { kind: 'glu', hidden: 64, dropout: 0.1 },
};
/** Every choice of packing and precision occurs with and without dropout and accumulation. */
const variants: Record<string, (d: TinyData) => TrainConfigInput> = {
  'f32, stream': (d) => tinyConfig(d),
  'bf16, whole': (d) => tinyConfig(d, { precision: 'bf16', data: { packing: 'whole' } }),
  'f32, whole, dropout, accumulate 2': (d) =>
    tinyConfig(d, { accumulate: 2, model: dropout, data: { packing: 'whole' } }),
  'bf16, stream, dropout, accumulate 2, documents open to each other': (d) =>
    tinyConfig(d, { precision: 'bf16', accumulate: 2, model: dropout, data: { crossDocuments: true } }),
  'bf16, learned positions, untied, layer norm, cosine': (d) =>
    tinyConfig(d, {
      precision: 'bf16',
      model: { positions: 'learned', tied: false, norm: 'layer', attention: { kind: 'full', heads: 4, kvHeads: 2 } },
      schedule: { kind: 'cosine' },
    }),
};

const lossesOf = (numbers: (string | number)[][]): unknown[] => numbers.filter((n) => n[0] === 'step').map((n) => n[3]);

for (const [name, configOf] of Object.entries(variants)) {
  test(`${name}: the same again, and stopped after any step and resumed`, async () => {
    const folder = (part: string): string => join(root, name.replace(/\W+/g, '-'), part);
    const config = configOf(data);
    const whole = await trainWhole(folder('whole'), config);
    assert.equal(whole.summary.status, 'completed');
    assert.equal(lossesOf(whole.numbers).length, config.steps);
    assert.equal(new Set(lossesOf(whole.numbers)).size, config.steps, 'no two losses are alike: it is really training');

    const again = await trainWhole(folder('again'), config);
    assert.deepEqual(again.numbers, whole.numbers, 'the same seed gives the same bits');

    const other = await trainWhole(folder('seed'), { ...config, seed: 4 });
    assert.notDeepEqual(lossesOf(other.numbers), lossesOf(whole.numbers), 'another seed does not');

    // Stopped three times: after the first step, in the middle, before the last.
    const run = await createRun(folder('stopped'), config);
    let resume = false;
    for (const stopAfter of [1, 6, config.steps - 1, undefined]) {
      const { summary, events } = await trainRun(run, { stopAfter, resume });
      assert.equal(summary.status, stopAfter === undefined ? 'completed' : 'stopped');
      assert.equal(summary.step, stopAfter ?? config.steps);
      assert.equal(
        events.some((e) => e.event === 'resumed'),
        resume,
      );
      resume = true;
    }
    assert.deepEqual(await numbersLogged(run.path), whole.numbers, 'stopping and resuming leaves no trace');
    const weights = (path: string): Buffer =>
      readFileSync(join(path, 'checkpoints', String(config.steps).padStart(8, '0'), 'model.safetensors'));
    assert.ok(weights(run.path).equals(weights(whole.run.path)), 'and gives the same weights');
  });
}

describe('beyond the end of an epoch', () => {
  for (const packing of ['stream', 'whole'] as const) {
    test(packing, async () => {
      const config = tinyConfig(data, { batch: 8, steps: 1, data: { packing } });
      const rows = Math.ceil(data.prepared.train.tokens / 32);
      const epoch = Math.ceil(rows / 8);
      const steps = epoch + 12;
      assert.ok(epoch < 400, `an epoch of ${epoch} steps is short enough for a test`);
      const whole = await trainWhole(join(root, `epoch-${packing}`), { ...config, steps });
      const run = await createRun(join(root, `epoch-${packing}-stopped`), { ...config, steps });
      const seen: number[] = [];
      // Rows of `whole` are padded, so there are a few more of them: the cursor itself says when an epoch is over.
      for (const stopAfter of [epoch - 2, epoch + 1, epoch + 8, undefined]) {
        await trainRun(run, { stopAfter, resume: seen.length > 0 });
        const step = String(stopAfter ?? steps).padStart(8, '0');
        const state = JSON.parse(readFileSync(join(run.path, 'checkpoints', step, 'state.json'), 'utf8'));
        seen.push(state.loader.sources[0].epoch);
      }
      assert.equal(seen[0], 0, 'first stopped within the first epoch');
      assert.equal(seen.at(-1), 1, 'and went on into the second');
      assert.deepEqual(await numbersLogged(run.path), whole.numbers);
    });
  }
});

describe('any number of threads', () => {
  const device = openDevice('cpu') as CpuDevice;
  const { threads } = device.info();
  after(() => device.useThreads(threads));
  assert.ok(device instanceof CpuDevice);

  for (const precision of ['f32', 'bf16'] as const) {
    test(`${precision}: 1, 2, 3 and 5 give the same bits, also when changed by a resume`, async () => {
      const config = tinyConfig(data, { precision, accumulate: 2, model: dropout });
      const results = [];
      for (const n of [1, 2, 3, 5]) {
        device.useThreads(n);
        results.push((await trainWhole(join(root, `threads-${precision}-${n}`), config)).numbers);
      }
      for (const numbers of results) assert.deepEqual(numbers, results[0]);
      const run = await createRun(join(root, `threads-${precision}-resume`), config);
      device.useThreads(1);
      const first = await trainRun(run, { stopAfter: 5 });
      device.useThreads(3);
      const second = await trainRun(run, { resume: true });
      assert.deepEqual(numbersOf([...first.events, ...second.events]), results[0]);
    });
  }
});
