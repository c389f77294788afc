// What training is for: the loss goes down, held-out text is predicted better than gzip packs it; and what it leaves.
import assert from 'node:assert/strict';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { openDevice } from '../../src/backend/index.ts';
import { accountFor, availableBytes, refuseWhatDoesNotFit } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { stepsForSeconds } from '../../src/train/horizon.ts';
import { train } from '../../src/train/trainer.ts';
import {
  createRun,
  heldMemory,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeGrammar,
  writeText,
} from '../support/tiny-data.ts';

const root = temporaryFolder('learns');
let grammar: TinyData;
let code: TinyData;

before(async () => {
  grammar = await tinyData(join(root, 'grammar'), writeGrammar(join(root, 'grammar-text')), 320);
  code = await tinyData(join(root, 'code'), writeText(join(root, 'code-text')));
});

for (const precision of ['f32', 'bf16'] as const) {
  test(`${precision}: a small grammar is learnt; bits per byte of held-out text beat gzip's and xz's`, async () => {
    const config = tinyConfig(grammar, { precision, steps: 300, batch: 8, optimiser: { kind: 'adamw', lr: 1e-2 } });
    const { summary, events } = await trainWhole(join(root, `grammar-${precision}`), config);
    const losses = events.flatMap((e) => (e.event === 'step' ? [e.loss] : []));
    const mean = (values: number[]): number => values.reduce((a, b) => a + b) / values.length;
    const vocab = grammar.prepared.tokenizer.vocabSize;
    assert.ok(Math.abs(losses[0] - Math.log(vocab)) < 0.5, `starts at ${losses[0]}, near ln ${vocab}`);
    assert.ok(mean(losses.slice(-20)) < 0.5 * losses[0], `ends at ${mean(losses.slice(-20))}`);
    const { gzip, strong } = grammar.prepared.baselines;
    const ours = summary.heldOut!.bitsPerByte;
    assert.ok(
      ours < gzip.bitsPerByte && ours < strong.bitsPerByte,
      `${ours}; gzip ${gzip.bitsPerByte}, ${strong.name} ${strong.bitsPerByte}`,
    );
    // A sentence has five choices of eight, 15 bits, in some 37 bytes: no honest model gets far below.
    assert.ok(ours > 0.35, `${ours} is less than the text's entropy: the answer leaks into the input`);
    const evaluation = events.find((e) => e.event === 'eval')!;
    assert.ok(evaluation.event === 'eval' && evaluation.baselines[gzip.name] === gzip.bitsPerByte);
  });
}

test('real code: the loss goes down in both packings', async () => {
  for (const packing of ['stream', 'whole'] as const) {
    const config = tinyConfig(code, { steps: 150, data: { packing }, optimiser: { kind: 'adamw', lr: 1e-2 } });
    const { events } = await trainWhole(join(root, `code-${packing}`), config);
    const losses = events.flatMap((e) => (e.event === 'step' ? [e.loss] : []));
    assert.ok(
      losses.slice(-10).every((l) => l < losses[0] - 1),
      `${packing}: ${losses[0]} to ${losses.at(-1)}`,
    );
  }
});

describe('measuring how many steps fit into a time', () => {
  test('asks for more steps in more time, never for less than ten', async () => {
    const config = parseTrainConfig(tinyConfig(code));
    assert.equal(await stepsForSeconds(config, 1e-6), 10);
    const few = await stepsForSeconds(config, 1);
    assert.ok(Number.isInteger(few) && few > 10);
    assert.ok((await stepsForSeconds(config, 1000)) > few);
  });
  test('leaves no trace in the run that follows', async () => {
    const config = tinyConfig(code, { precision: 'bf16', accumulate: 2, model: { dropout: 0.1 } });
    const before = await trainWhole(join(root, 'unmeasured'), config);
    await stepsForSeconds(parseTrainConfig(config), 2);
    const after = await trainWhole(join(root, 'measured'), config);
    assert.deepEqual(after.numbers, before.numbers);
  });
});

describe('memory', () => {
  const device = openDevice('cpu');
  for (const positions of ['rope', 'learned', 'none'] as const) {
    test(`measuring and training give back what they took (positions ${positions})`, async () => {
      const before = await heldMemory(device);
      const config = tinyConfig(code, { accumulate: 2, model: { positions, dropout: 0.1 }, evaluate: { every: 5 } });
      await stepsForSeconds(parseTrainConfig(config), 0.1);
      await trainWhole(join(root, `memory-${positions}`), config);
      assert.deepEqual(await heldMemory(device), before);
    });
  }

  test('the plan names what the device really holds, to the byte', async () => {
    const config = tinyConfig(code, { accumulate: 2, model: { positions: 'learned' } });
    const planned = accountFor(parseTrainConfig(config)).memory.total;
    const before = (await heldMemory(device)).bytes;
    let during = 0;
    const run = await createRun(join(root, 'plan'), config);
    await trainRun(run, {
      onEvent: (e) => {
        if (e.event === 'step' && e.step === 3) during = device.memory().liveBytes - before;
      },
    });
    assert.equal(during, planned);
  });

  test('a plan larger than the memory is refused before anything is allocated', async () => {
    const row = accountFor(parseTrainConfig(tinyConfig(code, { batch: 1 }))).memory.arena;
    const batch = Math.ceil((2 * totalmem()) / row);
    const account = accountFor(parseTrainConfig(tinyConfig(code, { batch })));
    assert.ok(account.memory.total > availableBytes());
    const before = await heldMemory(device);
    assert.throws(() => refuseWhatDoesNotFit(account, 'cpu'), /out of memory by plan: the run needs [\d.]+ GiB/);
    assert.deepEqual(await heldMemory(device), before);
  });
});

test('a run is logged although nobody listens to its events', async () => {
  const run = await createRun(join(root, 'unheard'), tinyConfig(code, { steps: 3 }));
  await train(run);
  const { steps, end } = await run.history();
  assert.deepEqual([steps.length, end?.status], [3, 'completed']);
});
