// Steps that are not finite: nothing changes, the batch is kept, training stops after n, older checkpoints stay sound.
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { AnsatzError, openDevice } from '../../src/backend/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import {
  Checkpoint,
  checkpointPath,
  latestCheckpoint,
  listCheckpoints,
  saveCheckpoint,
} from '../../src/train/run/checkpoint.ts';
import type { RunEvent } from '../../src/train/run/events.ts';
import type { RunFolder } from '../../src/train/run/folder.ts';
import { openRunData, trainLoader } from '../../src/train/session.ts';
import { ansatz, contentsOf, failure } from '../support/cli.ts';
import {
  createRun,
  heldMemory,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  writeText,
} from '../support/tiny-data.ts';

const root = temporaryFolder('guard');
let data: TinyData;

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
});

/** Puts a checkpoint of the next step into a run in which one weight overflows the first matrix product it meets. */
async function injectOverflow(run: RunFolder, weight: string): Promise<number> {
  const from = (await latestCheckpoint(run))!;
  const sets: Parameters<typeof saveCheckpoint>[2]['tensors'] = {};
  for (const set of from.sets) {
    const file = await from.tensors(set);
    const tensors = [];
    for (const name of file.names) {
      const values = (await file.readAs(name, 'F32')).slice();
      if (set === 'model' && name === weight) values.fill(3e38);
      tensors.push({ name, dtype: 'F32' as const, shape: file.info(name).shape, data: () => values });
    }
    await file.close();
    Object.assign(sets, { [set]: tensors });
  }
  const step = from.step + 1;
  await saveCheckpoint(run, step, { tensors: sets, state: { ...from.state, step } });
  return step;
}

test('an overflow: skipped, dumped, stopped after n; what was saved before stays sound', async () => {
  const config = tinyConfig(data, { steps: 30, stopAfterSkips: 3, checkpoint: { every: 1, keepLast: 4 } });
  const run = await createRun(join(root, 'overflow'), config);
  await trainRun(run, { stopAfter: 6 });
  const step = await injectOverflow(run, 'blocks.0.ffn.up');
  assert.equal(step, 7);
  const saved = listCheckpoints(run);
  assert.deepEqual(saved, [3, 4, 5, 6, 7]);
  const before = contentsOf(run.file('checkpoints'));

  const events: RunEvent[] = [];
  await assert.rejects(
    trainRun(run, { resume: true, onEvent: (e) => events.push(e) }),
    (error) =>
      error instanceof AnsatzError && /^3 steps in a row were not finite.*step 10$/.test(error.message) && !!error.hint,
  );
  const skips = events.filter((e) => e.event === 'skip');
  assert.deepEqual(
    skips.map((e) => [e.step, e.consecutive]),
    [
      [8, 1],
      [9, 2],
      [10, 3],
    ],
  );
  assert.equal(events.filter((e) => e.event === 'step').length, 0);
  const end = events.at(-1)!;
  assert.ok(end.event === 'run-end' && end.status === 'failed' && /not finite/.test(end.message ?? ''));
  assert.deepEqual(contentsOf(run.file('checkpoints')), before, 'no checkpoint was written, changed or pruned');
  for (const each of saved) await Checkpoint.load(checkpointPath(run, each));

  // The dump holds the very batch: the loader gives it again at that position.
  const parsed = parseTrainConfig(config);
  const held = openRunData(parsed);
  const loader = trainLoader(parsed, held);
  for (let k = 0; k < 6; k++) loader.next();
  const batch = loader.next();
  held.close();
  assert.equal(skips[0].dump, join(run.path, 'skipped', 'step-8.json'));
  const dump = JSON.parse(readFileSync(skips[0].dump!, 'utf8'));
  assert.equal(dump.step, 8);
  assert.deepEqual(dump.batches[0].inputs, [...batch.inputs]);
  assert.deepEqual(dump.batches[0].targets, [...batch.targets]);
  assert.deepEqual(dump.batches[0].segments, [...batch.segments]);
  assert.equal(readdirSync(join(run.path, 'skipped')).length, 3);
});

for (const accumulate of [1, 2]) {
  test(`skipped steps change neither weights nor optimiser (accumulate ${accumulate})`, async () => {
    const config = tinyConfig(data, { steps: 9, accumulate, stopAfterSkips: 100 });
    const run = await createRun(join(root, `unchanged-${accumulate}`), config);
    await trainRun(run, { stopAfter: 4 });
    await injectOverflow(run, 'blocks.1.attention.out');
    const { summary, events } = await trainRun(run, { resume: true });
    assert.equal(summary.status, 'completed');
    assert.equal(events.filter((e) => e.event === 'skip').length, 4);
    for (const set of ['model', 'optimizer']) {
      const bytes = (step: number): Buffer => readFileSync(join(checkpointPath(run, step), `${set}.safetensors`));
      // The header's metadata names the step; the tensors follow it.
      const tensors = (b: Buffer): Buffer => b.subarray(8 + Number(b.readBigUInt64LE(0)));
      assert.ok(tensors(bytes(5)).equals(tensors(bytes(9))), `${set} at step 9 is that of step 5`);
    }
  });
}

test('an absurd learning rate ends in one clear line, exit code 1, and a folder that can be inspected', async () => {
  const recipe = join(root, 'absurd.json');
  const config = tinyConfig(data, {
    steps: 40,
    optimiser: { kind: 'adamw', lr: 1e36 },
    schedule: { kind: 'constant' },
    stopAfterSkips: 4,
    checkpoint: { every: 1, keepLast: 50 },
  });
  writeFileSync(recipe, JSON.stringify(config));
  const out = join(root, 'absurd');
  const result = await ansatz(['train', recipe, '--data', data.folder, '--out', out]);
  failure(
    result,
    1,
    /^error: 4 steps in a row were not finite: training has diverged at step \d+$/,
    /lower optimiser\.lr/,
  );
  assert.match(result.stdout, /skipped: step \d+ had a non-finite/);
  assert.equal(readdirSync(join(out, 'skipped')).length, 4);
  const steps = readdirSync(join(out, 'checkpoints'));
  assert.ok(steps.length > 0 && steps.length < 5, `${steps.length} checkpoints, none of them while skipping`);
  for (const step of steps) await Checkpoint.load(join(out, 'checkpoints', step));
  assert.ok(!existsSync(join(out, 'report.json')));
});

test('a failed run gives back its memory and its lock', async () => {
  const device = openDevice('cpu');
  const config = tinyConfig(data, {
    steps: 30,
    stopAfterSkips: 2,
    model: { positions: 'learned' },
  });
  const run = await createRun(join(root, 'memory'), config);
  await trainRun(run, { stopAfter: 2 });
  await injectOverflow(run, 'blocks.0.ffn.up');
  const before = await heldMemory(device);
  for (let k = 0; k < 2; k++) await assert.rejects(trainRun(run, { resume: true }), /not finite/);
  assert.deepEqual(await heldMemory(device), before);
});
