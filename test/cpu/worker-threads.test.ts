// The addon in several JavaScript threads at once, and threads or the process that end while native work is queued.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { native } from '../../src/backend/native.ts';

// In plain JavaScript, as a child process: a crash in native code ends the process that it happens in.
const script = `
const { Worker, isMainThread, workerData, parentPort } = require('node:worker_threads');
const native = require(process.env.ADDON);
const words = new Float64Array(256);
native.attach(words);
const id = native.kernels().indexOf('affine');
const n = 1 << 16, a = native.allocate(4 * n), b = native.allocate(4 * n), out = new Float32Array(n);
native.write(a, new Float32Array(n).fill(3));
const encode = (k) => [id, 2, 1, 2, b, 0, a, 0, n, 2, k];
const check = (k) => { native.read(b, out); if (out[0] !== 6 + k || out[n - 1] !== 6 + k) throw new Error('wrong result'); };
const eager = (k) => { words.set(encode(k)); native.exec(); check(k); };
const long = native.program(new Float64Array(Array.from({ length: 400 }, () => encode(1)).flat()));
const queue = (count) => { for (let k = 0; k < count; k++) native.run(long, k % 2 === 0); };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const worker = (work) => new Worker(__filename, { workerData: work });
const work = {
  async share() { for (let k = 0; k < 50; k++) { eager(k); await native.run(long, true); check(1); } },
  async spam() { queue(20); parentPort.postMessage('queued'); for (;;) { queue(1); await pause(1); } },
};
const main = {
  async share() {
    const others = [worker('share'), worker('share')].map((w) => new Promise((ok, no) => w.on('error', no).on('exit', ok)));
    await work.share();
    await Promise.all(others);
  },
  async terminate() {
    for (let k = 0; k < 12; k++) {
      const w = worker('spam');
      await new Promise((done) => w.once('message', done));
      await pause(k);
      await w.terminate();
      eager(k);
    }
  },
  async exit() { queue(50); setTimeout(() => process.exit(0), 10); },
  async exitWithWorker() { worker('spam').once('message', () => setTimeout(() => process.exit(0), 5)); },
};
(isMainThread ? main[process.argv[2]] : work[workerData])();
`;

for (const [mode, what] of [
  ['share', 'threads share the device'],
  ['terminate', 'a worker is terminated during a replay'],
  ['exit', 'the process exits with replays queued'],
  ['exitWithWorker', 'the process exits while a worker replays'],
])
  test(what, (t) => {
    assert.ok(native().kernels().length > 0);
    const folder = mkdtempSync(join(tmpdir(), 'ansatz-threads-'));
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    const file = join(folder, 'main.cjs');
    writeFileSync(file, script);
    const { status, signal, stderr } = spawnSync(process.execPath, [file, mode], {
      encoding: 'utf8',
      env: { ...process.env, ADDON: process.env.ANSATZ_NATIVE ?? join(import.meta.dirname, '../../build/ansatz.node') },
      timeout: 60_000,
    });
    assert.deepEqual({ status, signal }, { status: 0, signal: null }, stderr);
  });
