// Weights that are a file's own bytes: which are, that they are the same, that nothing writes to them, and what happens
// when somebody changes the file.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { openDevice } from '../../src/backend/index.ts';
import { openDecoding } from '../../src/infer/decoding.ts';
import { chooseCheckpoint, type OpenRun, openRun } from '../../src/infer/load.ts';
import { disposeTree, flatten } from '../../src/nn/index.ts';
import { assign, isBlock } from '../../src/tensor/index.ts';
import { checkpointPath } from '../../src/train/run/checkpoint.ts';
import type { RunFolder } from '../../src/train/run/folder.ts';
import { verifyCheckpoint } from '../../src/train/run/manifest.ts';
import { SafetensorsFile } from '../../src/train/safetensors.ts';
import { storedParams } from '../../src/train/stored.ts';
import { cpu, madeRun } from '../support/format-runs.ts';
import { copiedRun, quantisedRun } from '../support/quantised-runs.ts';
import { checkout, temporaryFolder } from '../support/tiny-data.ts';

const root = temporaryFolder('in-place');
const mapped = process.platform === 'linux' || process.platform === 'darwin';
const spec = {
  ...{ context: 64, width: 96, depth: 2, tied: false },
  attention: { kind: 'full', heads: 4, kvHeads: 2 },
  ffn: { kind: 'glu', hidden: 128, bias: true },
} as const;
let plain: RunFolder;
let run: RunFolder;
const size = (path: string): number => statSync(path).size;
const weights = (r: RunFolder): string => join(checkpointPath(r, 0), 'model.safetensors');

before(async () => {
  plain = await madeRun(join(root, 'plain'), spec);
  run = await quantisedRun(plain, join(root, 'quantised'), 4);
});

async function withoutMapping<R>(fn: () => Promise<R>): Promise<R> {
  process.env.ANSATZ_MMAP = '0';
  try {
    return await fn();
  } finally {
    delete process.env.ANSATZ_MMAP;
  }
}

async function text({ device, model, params }: OpenRun): Promise<string> {
  const decoding = openDecoding(device, model, params, { compute: 'f32', sequences: 1 });
  const tokens: number[] = [];
  let last: number[] = [];
  await decoding.submit({
    ...{ prompt: [1, 2, 3], maxTokens: 12 },
    onToken: ({ token }) => tokens.push(token) > 0,
    picker: {
      pick: (logits) => {
        last = [...logits];
        return { token: logits.indexOf(Math.max(...logits)), logprob: null };
      },
    },
  });
  await decoding.close();
  return JSON.stringify([tokens, last]);
}

describe('a run whose weights are used in place', { skip: !mapped }, () => {
  for (const kind of ['quantised', 'plain'])
    test(`${kind}: tensors on lines of the cache are the file, and say what a copy says`, async () => {
      const path = join(root, kind);
      const opened = await openRun(path);
      const file = await SafetensorsFile.open(weights(opened.run));
      for (const { path: name, tensor } of flatten(opened.params)) {
        const stored = file.names.find((n) => n === name || n === `${name}.${tensor.dtype}`)!;
        const { offset, bytes } = file.info(stored);
        assert.equal(tensor.storage.memory.readOnly ?? false, offset % 64 === 0, name);
        if (isBlock(tensor.dtype)) assert.equal(offset % 64, 0, name);
        if (bytes % 64 === 0) assert.equal(offset % 64, 0, name);
      }
      assert.ok(flatten(opened.params).some((p) => p.tensor.storage.memory.readOnly));
      await file.close();
      const copied = await withoutMapping(() => openRun(path));
      assert.ok(!flatten(copied.params).some((p) => p.tensor.storage.memory.readOnly));
      assert.equal(await text(opened), await text(copied));
      flatten(opened.params).forEach(({ path: name, tensor }, k) => {
        assert.deepEqual(tensor.bitsSync(), flatten(copied.params)[k].tensor.bitsSync(), name);
      });
      disposeTree(copied.params);
      disposeTree(opened.params);
    });

  test('nothing can write to them, and the last tensor to go takes the mapping with it', async () => {
    const { liveAllocations } = openDevice('cpu').memory();
    const { params, device } = await openRun(run.path);
    const { tensor } = flatten(params).find((p) => p.tensor.dtype === 'f32' && p.tensor.storage.memory.readOnly)!;
    assert.throws(() => tensor.write(new Float32Array(tensor.size)), /used in place and cannot be written to/);
    assert.throws(() => assign(tensor, 0), /weights of a file that is used in place cannot be changed/);
    const maps = (): boolean =>
      process.platform === 'linux' && readFileSync('/proc/self/maps', 'utf8').includes(weights(run));
    assert.equal(maps(), process.platform === 'linux');
    disposeTree(params);
    assert.equal(maps(), false);
    assert.equal(device.memory().liveAllocations, liveAllocations);
  });

  test('a file of another layout is read', async () => {
    const path = join(root, 'shifted.safetensors');
    const bytes = readFileSync(weights(run));
    const header = Number(bytes.readBigUInt64LE(0)) + 8;
    const moved = Buffer.concat([bytes.subarray(0, header), Buffer.alloc(8, ' '), bytes.subarray(header)]);
    moved.writeBigUInt64LE(BigInt(header), 0);
    writeFileSync(path, moved);
    const file = await SafetensorsFile.open(path);
    const { model, params } = await openRun(run.path);
    const read = await storedParams(file, model, cpu);
    await file.close();
    for (const [k, { path: name, tensor }] of flatten(read).entries()) {
      assert.equal(tensor.storage.memory.readOnly, false, name);
      assert.deepEqual(tensor.bitsSync(), flatten(params)[k].tensor.bitsSync(), name);
    }
    disposeTree(read);
    disposeTree(params);
  });

  test('replaced by another file, it goes on with the old one; written to, it says so', async () => {
    const own = copiedRun(run, join(root, 'changing'));
    const opened = await openRun(own.path);
    const wanted = await text(opened);
    const file = weights(own);
    const zeros = readFileSync(file).fill(0, size(file) - 4000);
    writeFileSync(`${file}.new`, zeros);
    renameSync(file, `${file}.old`);
    renameSync(`${file}.new`, file);
    await new Promise((done) => setTimeout(done, 1050));
    assert.equal(await text(opened), wanted);
    renameSync(`${file}.old`, file);
    writeSync(openSync(file, 'r+'), Buffer.alloc(64, 7), 0, 64, size(file) - 4000);
    utimesSync(file, new Date(), new Date(Date.now() + 5000));
    await new Promise((done) => setTimeout(done, 1050));
    await assert.rejects(text(opened), /model\.safetensors: was changed while its weights were in use/);
    const other = await openRun(run.path);
    assert.equal(await text(other), wanted, 'others go on');
    disposeTree(other.params);
    disposeTree(opened.params);
  });

  test('cut short under a running process, it ends with one line', () => {
    const own = copiedRun(run, join(root, 'cut'));
    const script = `
      import { truncateSync } from 'node:fs';
      import { openRun } from './src/infer/load.ts';
      import { flatten } from './src/nn/index.ts';
      const { params } = await openRun(${JSON.stringify(own.path)});
      truncateSync(${JSON.stringify(weights(own))}, 64);
      for (const { tensor } of flatten(params)) tensor.bitsSync();
      console.log('all read');`;
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      ['--import', 'tsx', '--input-type=module', '-e', script],
      { cwd: checkout, encoding: 'utf8' },
    );
    assert.equal(stdout, '');
    assert.match(stderr, /^error: .*model\.safetensors: was cut short.*\n {2}next: .*\n$/);
    assert.equal(status, 74);
  });
});

describe('checksums', () => {
  const record = (r: RunFolder): string => join(checkpointPath(r, 0), 'verified.json');

  test('files that were found right are not read again; any change to one of them has it read', async () => {
    const own = copiedRun(run, join(root, 'verified'));
    rmSync(record(own), { force: true });
    await chooseCheckpoint(own, own.path);
    assert.ok(!existsSync(record(own)), 'what was written a moment ago may change again unseen');
    await new Promise((done) => setTimeout(done, 1050));
    await chooseCheckpoint(own, own.path);
    assert.ok(existsSync(record(own)));
    // A wrong record is believed: so nothing else was read.
    const file = weights(own);
    const bytes = readFileSync(file);
    bytes[bytes.length - 1] ^= 1;
    writeFileSync(file, bytes);
    const folder = checkpointPath(own, 0);
    await assert.rejects(chooseCheckpoint(own, own.path), /content of model\.safetensors was altered/);
    const s = statSync(file, { bigint: true });
    const known = JSON.parse(readFileSync(record(own), 'utf8'));
    known.files['model.safetensors'] = [s.dev, s.ino, s.size, s.mtimeNs, s.ctimeNs].join(' ');
    writeFileSync(record(own), JSON.stringify(known));
    await chooseCheckpoint(own, own.path);
    await assert.rejects(
      chooseCheckpoint(own, own.path, { verify: true }),
      /content of model\.safetensors was altered/,
    );
    await assert.rejects(verifyCheckpoint(folder), /altered/);
    truncateSync(file, bytes.length - 1);
    await assert.rejects(chooseCheckpoint(own, own.path), /has \d+ bytes instead of \d+/);
    // A record that cannot be read is none.
    bytes[bytes.length - 1] ^= 1;
    writeFileSync(file, bytes);
    writeFileSync(record(own), '{');
    await chooseCheckpoint(own, own.path);
  });
});
