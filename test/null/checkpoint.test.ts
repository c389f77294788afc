import assert from 'node:assert/strict';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import {
  Checkpoint,
  type CheckpointContents,
  checkpointPath,
  latestCheckpoint,
  listCheckpoints,
  saveCheckpoint,
  supersedeAfter,
} from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';

const root = mkdtempSync(join(tmpdir(), 'ansatz-checkpoint-'));
after(() => rmSync(root, { recursive: true, force: true }));
let count = 0;
const newRun = () => RunFolder.create(join(root, `run${count++}`), { width: 4 });

const contents = (step: number): CheckpointContents => ({
  tensors: {
    model: [
      { name: 'w', dtype: 'F32', shape: [2, 2], data: async () => new Float32Array([step, -step, 0.1, 1e-40]) },
      { name: 'e', dtype: 'BF16', shape: [3], data: () => new Uint16Array([1, 2, step]) },
    ],
    optimizer: [{ name: 'w.m', dtype: 'F32', shape: [2, 2], data: () => new Float32Array(4).fill(step / 3) }],
  },
  state: { step, rng: ['123', '456'], cursor: { epoch: 0, at: step * 8 } },
});

async function latest(run: RunFolder) {
  const warnings: string[] = [];
  const found = await latestCheckpoint(run, { warn: (event) => warnings.push(event.message) });
  return { step: found?.step, warnings };
}

const flip = (path: string, at: number) => {
  const bytes = readFileSync(path);
  bytes[at < 0 ? bytes.byteLength + at : at] ^= 4;
  writeFileSync(path, bytes);
};

const emptied = (path: string) => {
  rmSync(path, { recursive: true });
  return path;
};

test('a checkpoint comes back bit for bit', async () => {
  const run = await newRun();
  assert.deepEqual(await latest(run), { step: undefined, warnings: [] });
  const saved = await saveCheckpoint(run, 150, contents(150));
  assert.equal(saved.path, join(run.path, 'checkpoints', '00000150'));
  assert.ok(saved.bytes > 0 && saved.ms > 0);
  const loaded = await Checkpoint.load(saved.path);
  assert.deepEqual(loaded.state, contents(150).state);
  assert.deepEqual(loaded.sets, ['model', 'optimizer']);
  const model = await loaded.tensors('model');
  assert.deepEqual(await model.readAs('w', 'F32'), new Float32Array([150, -150, 0.1, 1e-40]));
  assert.deepEqual(await model.readAs('e', 'BF16'), new Uint16Array([1, 2, 150]));
  await model.close();
  await assert.rejects(loaded.tensors('ema'), /has no "ema" tensors, only model, optimizer/);
  assert.deepEqual(readdirSync(join(run.path, 'checkpoints')), ['00000150']);
});

test('each kind of damage: latest passes over it with a warning, loading it by name is one clear line', async () => {
  const cases: [string, (path: string) => void, RegExp][] = [
    ['flipped weight byte', (p) => flip(join(p, 'model.safetensors'), -3), /content of model.safetensors was altered/],
    ['flipped header byte', (p) => flip(join(p, 'optimizer.safetensors'), 12), /optimizer.safetensors was altered/],
    ['flipped state', (p) => flip(join(p, 'state.json'), 20), /state.json was altered/],
    ['truncated', (p) => truncateSync(join(p, 'model.safetensors'), 50), /model.safetensors has 50 bytes instead of/],
    ['missing file', (p) => unlinkSync(join(p, 'optimizer.safetensors')), /optimizer.safetensors is missing/],
    ['missing manifest', (p) => unlinkSync(join(p, 'manifest.json')), /manifest.json cannot be read \(ENOENT\)/],
    ['cut manifest', (p) => truncateSync(join(p, 'manifest.json'), 99), /manifest.json is incomplete or was altered/],
    ['flipped manifest', (p) => flip(join(p, 'manifest.json'), 40), /manifest.json is incomplete or was altered/],
    ['empty', (p) => mkdirSync(emptied(p)), /manifest.json cannot be read/],
    ['a file', (p) => writeFileSync(emptied(p), ''), /manifest.json cannot be read/],
  ];
  for (const [what, damage, pattern] of cases) {
    const run = await newRun();
    await saveCheckpoint(run, 1, contents(1));
    await saveCheckpoint(run, 2, contents(2));
    const path = checkpointPath(run, 2);
    damage(path);
    await assert.rejects(Checkpoint.load(path), (error: unknown) => {
      assert.ok(error instanceof AnsatzError, `${what}: ${error}`);
      assert.match(error.message, pattern, what);
      assert.ok(error.message.includes(path) && !error.message.includes('\n') && error.hint, what);
      return true;
    });
    const before = readdirSync(join(run.path, 'checkpoints'));
    const { step, warnings } = await latest(run);
    assert.equal(step, 1, what);
    assert.equal(warnings.length, 1);
    assert.ok(warnings[0].includes(path), warnings[0]);
    assert.deepEqual(readdirSync(join(run.path, 'checkpoints')), before, `${what}: nothing is deleted`);
  }
});

test('size verification finds truncation without reading contents; a copy under another step is refused', async () => {
  const run = await newRun();
  await saveCheckpoint(run, 1, contents(1));
  flip(join(checkpointPath(run, 1), 'model.safetensors'), -1);
  await Checkpoint.load(checkpointPath(run, 1), 'size');
  truncateSync(join(checkpointPath(run, 1), 'model.safetensors'), 60);
  await assert.rejects(Checkpoint.load(checkpointPath(run, 1), 'size'), /60 bytes/);
  await saveCheckpoint(run, 3, contents(3));
  cpSync(checkpointPath(run, 3), checkpointPath(run, 9), { recursive: true });
  await assert.rejects(Checkpoint.load(checkpointPath(run, 9)), /was renamed \(its manifest says step 3\)/);
  assert.equal((await latest(run)).step, 3);
  await assert.rejects(Checkpoint.load(checkpointPath(run, 4)), /there is no such checkpoint/);
});

test('a checkpoint of another config is not taken for one of this run', async () => {
  const a = await newRun();
  const b = await RunFolder.create(join(root, `run${count++}`), { width: 5 });
  await saveCheckpoint(a, 1, contents(1));
  await saveCheckpoint(b, 2, contents(2));
  cpSync(checkpointPath(b, 2), checkpointPath(a, 2), { recursive: true });
  const { step, warnings } = await latest(a);
  assert.equal(step, 1);
  assert.match(warnings[0], /another config/);
});

test('retention keeps the newest n and every k-th, and never counts or removes damaged ones', async () => {
  const run = await newRun();
  for (let step = 10; step <= 60; step += 10) {
    await saveCheckpoint(run, step, contents(step), { keepLast: 2, keepEvery: 30 });
  }
  assert.deepEqual(listCheckpoints(run), [30, 50, 60]);
  truncateSync(join(checkpointPath(run, 60), 'model.safetensors'), 9);
  await saveCheckpoint(run, 70, contents(70), { keepLast: 2 });
  assert.deepEqual(listCheckpoints(run), [50, 60, 70]);
  assert.deepEqual(
    readdirSync(join(run.path, 'checkpoints')).filter((name) => name.startsWith('.')),
    [],
  );
});

test('saving a step again sets the old one aside; resuming from an older step supersedes the later ones', async () => {
  const run = await newRun();
  for (const step of [1, 2, 3]) await saveCheckpoint(run, step, contents(step));
  flip(join(checkpointPath(run, 3), 'state.json'), 5);
  await saveCheckpoint(run, 3, contents(3));
  assert.deepEqual(await latest(run), { step: 3, warnings: [] });
  assert.deepEqual(await supersedeAfter(run, 1), ['superseded-00000002-1', 'superseded-00000003-2']);
  assert.equal((await latest(run)).step, 1);
  assert.ok(readdirSync(join(run.path, 'checkpoints')).includes('superseded-00000003-1'));
});

test('leftovers of killed writers are never loaded, and the next save removes them', async () => {
  const run = await newRun();
  await saveCheckpoint(run, 1, contents(1));
  const parent = join(run.path, 'checkpoints');
  // Killed just before the rename, in the middle of writing, and in the middle of a removal.
  cpSync(checkpointPath(run, 1), join(parent, '.tmp-2-4242'), { recursive: true });
  mkdirSync(join(parent, '.tmp-3-4242'));
  writeFileSync(join(parent, '.tmp-3-4242', 'model.safetensors'), 'half');
  cpSync(checkpointPath(run, 1), join(parent, '.trash-1-4242'), { recursive: true });
  assert.deepEqual(await latest(run), { step: 1, warnings: [] });
  await saveCheckpoint(run, 4, contents(4));
  assert.deepEqual(readdirSync(parent).sort(), ['00000001', '00000004']);
});

test('a save that fails leaves no trace and no harm', async () => {
  const run = await newRun();
  await saveCheckpoint(run, 1, contents(1));
  const broken = contents(2);
  const failing = {
    ...broken,
    tensors: { ...broken.tensors, optimizer: [{ ...broken.tensors.model[0], data: fail }] },
  };
  async function fail(): Promise<ArrayBufferView> {
    throw new Error('device lost');
  }
  await assert.rejects(saveCheckpoint(run, 2, failing), /device lost/);
  await assert.rejects(saveCheckpoint(run, 2, { ...broken, state: { loss: Number.NaN } }), /JSON cannot hold NaN/);
  await assert.rejects(saveCheckpoint(run, -1, broken), /cannot have the step -1/);
  await assert.rejects(saveCheckpoint(run, 2, { tensors: { '../x': [] }, state: {} }), /cannot name a set/);
  assert.deepEqual(readdirSync(join(run.path, 'checkpoints')), ['00000001']);
  const parent = join(run.path, 'checkpoints');
  renameSync(parent, `${parent}-moved`);
  writeFileSync(parent, '');
  await assert.rejects(saveCheckpoint(run, 2, broken), AnsatzError);
});
