// A process that does nothing but checkpoint is killed with SIGKILL at random moments. After every kill the newest
// checkpoint must load bit for bit, be no older than the last one reported complete, and the ones before it must still
// be there. Run with `--writer FOLDER`, this file is that process.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import {
  Checkpoint,
  type CheckpointContents,
  checkpointPath,
  latestCheckpoint,
  listCheckpoints,
  saveCheckpoint,
} from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';

const KEEP = 3;
const CONFIG = { kind: 'kill test' };
// Large checkpoints put most kills into the writing of tensors, small ones into renames, fsyncs and removals.
const SIZES = { large: { model: 200_000, optimizer: 400_001 }, small: { model: 100, optimizer: 201 } };
type Size = keyof typeof SIZES;

/** Contents that depend on the step in every word. */
function fill(length: number, step: number): Uint32Array {
  let x = Math.imul(step + 1, 2654435761) >>> 0 || 1;
  return Uint32Array.from({ length }, () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>>= 0);
  });
}

function contents(step: number, size: Size): CheckpointContents {
  const set = (name: string, length: number) => [
    { name, dtype: 'U32' as const, shape: [length], data: async () => fill(length, step) },
    { name: `${name}.small`, dtype: 'U32' as const, shape: [3], data: () => fill(3, step) },
  ];
  return {
    tensors: { model: set('w', SIZES[size].model), optimizer: set('m', SIZES[size].optimizer) },
    state: { step },
  };
}

async function verifyBits(checkpoint: Checkpoint): Promise<void> {
  const { step } = checkpoint;
  assert.deepEqual(checkpoint.state, { step });
  for (const [set, name] of [
    ['model', 'w'],
    ['optimizer', 'm'],
  ] as const) {
    const file = await checkpoint.tensors(set);
    for (const tensor of [name, `${name}.small`]) {
      const read = await file.readAs(tensor, 'U32');
      assert.ok(Buffer.from(read.buffer).equals(Buffer.from(fill(read.length, step).buffer)), `${set}/${tensor}`);
    }
    await file.close();
  }
}

async function writer(folder: string, size: Size): Promise<never> {
  const run = await RunFolder.create(folder, CONFIG, { resume: true });
  run.lock();
  const latest = await latestCheckpoint(run);
  process.stdout.write('ready\n');
  for (let step = (latest?.step ?? 0) + 1; ; step++) {
    await saveCheckpoint(run, step, contents(step, size), { keepLast: KEEP });
    process.stdout.write(`${step}\n`);
  }
}

/** Starts a writer and kills it `ms` after it is ready; resolves to the last step it reported complete. */
async function killAfter(folder: string, size: Size, ms: number): Promise<number> {
  const args = ['--import', 'tsx', fileURLToPath(import.meta.url), '--writer', folder, size];
  const child: ChildProcess = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  child.stderr!.on('data', (data) => (stderr += data));
  const closed = new Promise((resolve) => child.once('close', resolve));
  child.stdout!.on('data', (data) => {
    if (stdout === '') setTimeout(() => child.kill('SIGKILL'), ms);
    stdout += data;
  });
  await closed;
  assert.equal(child.signalCode, 'SIGKILL', `the writer ended by itself: ${stderr}`);
  const whole = stdout.slice(0, stdout.lastIndexOf('\n')).split('\n');
  return Number(whole.at(-1)) || 0;
}

async function lane(folder: string, size: Size, kills: number): Promise<{ drafts: number; steps: number }> {
  let completed = 0;
  let drafts = 0;
  for (let kill = 0; kill < kills; kill++) {
    completed = Math.max(completed, await killAfter(folder, size, Math.random() * 200));
    const run = RunFolder.open(folder);
    if (readdirSync(run.file('checkpoints')).some((name) => name.startsWith('.tmp-'))) drafts++;
    const warnings: string[] = [];
    const latest = await latestCheckpoint(run, { warn: (event) => warnings.push(event.message) });
    assert.deepEqual(warnings, [], 'nothing half-written under a step name');
    assert.ok((latest?.step ?? 0) >= completed, `latest ${latest?.step}, reported ${completed}`);
    if (!latest) continue;
    await verifyBits(latest);
    const steps = listCheckpoints(run);
    for (let back = 1; back < KEEP && latest.step - back >= 1; back++) assert.ok(steps.includes(latest.step - back));
    for (const step of steps) await verifyBits(await Checkpoint.load(checkpointPath(run, step)));
    completed = latest.step;
  }
  return { drafts, steps: completed };
}

if (process.argv[2] === '--writer') {
  await writer(process.argv[3], process.argv[4] as Size);
} else {
  test('kill -9 at any moment loses no completed checkpoint and leaves no half one that loads', async (t) => {
    const root = mkdtempSync(join(tmpdir(), 'ansatz-kill-'));
    try {
      const lanes = await Promise.all([lane(join(root, 'a'), 'large', 12), lane(join(root, 'b'), 'small', 12)]);
      t.diagnostic(`24 kills; ${lanes.map((l) => `${l.steps} checkpoints, ${l.drafts} kills in a draft`).join('; ')}`);
      // The kills must have hit what they are meant to hit.
      assert.ok(lanes.some((l) => l.drafts > 0) && lanes.some((l) => l.steps > KEEP));
    } finally {
      rmSync(root, { recursive: true, force: true });
    }
  });
}
