import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { canonicalJson, differences, hashOf } from '../../src/train/run/canonical.ts';
import { EventWriter, loadEvents, readEvents } from '../../src/train/run/event-log.ts';
import type { NewRunEvent, RunEvent } from '../../src/train/run/events.ts';
import { listRuns, RunFolder } from '../../src/train/run/folder.ts';
import { RunHistory } from '../../src/train/run/history.ts';
import { lockOwner } from '../../src/train/run/lock.ts';
import { smoothed } from '../../src/train/run/series.ts';

const root = mkdtempSync(join(tmpdir(), 'ansatz-run-'));
after(() => rmSync(root, { recursive: true, force: true }));
let count = 0;
const fresh = () => join(root, `r${count++}`);

const step = (n: number, loss = 5): NewRunEvent => ({
  event: 'step',
  step: n,
  tokens: n * 1024,
  loss,
  gradNorm: 1,
  lr: 1e-3,
  tokensPerSecond: 1000,
  mfu: 0.4,
  msPerStep: 10,
  elapsed: n,
});
const end: NewRunEvent = { event: 'run-end', status: 'completed', step: 3, elapsed: 3 };

test('canonical JSON does not depend on key order, and refuses what JSON would lose', () => {
  assert.equal(
    canonicalJson({ b: [1, { d: null, c: 'x' }], a: undefined, A: -0 }),
    '{"A":0,"b":[1,{"c":"x","d":null}]}',
  );
  assert.equal(hashOf({ a: 1, b: { c: 2, d: 3 } }), hashOf({ b: { d: 3, c: 2 }, a: 1 }));
  assert.notEqual(hashOf({ a: 1 }), hashOf({ a: '1' }));
  for (const bad of [
    { a: Number.NaN },
    { a: [Number.POSITIVE_INFINITY] },
    { a: 1n },
    { a: () => 1 },
    new Uint8Array(1),
  ]) {
    assert.throws(() => canonicalJson(bad), AnsatzError);
  }
  assert.throws(() => canonicalJson({ lr: { peak: Number.NaN } }), /at \$\.lr\.peak/);
  assert.deepEqual(differences({ a: 1, m: { d: 2 } }, { a: 1, m: { d: 3, e: 4 } }), ['m.d: 2 / 3', 'm.e: absent / 4']);
});

test('events come back in order, with a time; the log is appended to', async () => {
  const path = fresh();
  const writer = new EventWriter(path);
  writer.write(step(1));
  writer.write({ event: 'warning', message: 'déjà vu\nsecond line' });
  writer.close();
  const again = new EventWriter(path);
  again.write(end);
  again.close();
  const events = await loadEvents(path);
  assert.deepEqual(
    events.map((event) => event.event),
    ['step', 'warning', 'run-end'],
  );
  assert.equal((events[1] as { message: string }).message, 'déjà vu\nsecond line');
  assert.match(events[0].time, /^\d{4}-\d\d-\d\dT.*Z$/);
  assert.equal(readFileSync(path, 'utf8').split('\n').length, 4);
});

test('a torn last line is ignored by readers and removed by the next writer', async () => {
  const path = fresh();
  const writer = new EventWriter(path);
  writer.write(step(1));
  writer.close();
  const whole = readFileSync(path, 'utf8');
  appendFileSync(path, `{"event":"step","step":2,${'"x":0,'.repeat(30_000)}`);
  assert.equal((await loadEvents(path)).length, 1);
  const next = new EventWriter(path);
  assert.equal(readFileSync(path, 'utf8'), whole);
  next.write(step(2));
  next.close();
  assert.equal((await loadEvents(path)).length, 2);
  writeFileSync(path, '{"event":"st');
  assert.deepEqual(await loadEvents(path), []);
  new EventWriter(path).close();
  assert.equal(readFileSync(path, 'utf8'), '');
});

test('a damaged line in the middle becomes a warning that names it', async () => {
  const path = fresh();
  const line = (event: NewRunEvent) => `${JSON.stringify(event)}\n`;
  writeFileSync(path, `${line(step(1))}not json\n\n42\n${line(step(2))}`);
  const events = await loadEvents(path);
  assert.deepEqual(
    events.map((event) => (event.event === 'warning' ? event.message.replace(/.*: line/, 'line') : event.event)),
    ['step', 'line 2 is not an event and was skipped', 'line 4 is not an event and was skipped', 'step'],
  );
});

test('lines longer than a read chunk, cut inside a character, arrive whole', async () => {
  const path = fresh();
  const text = 'é'.repeat(100_001);
  const writer = new EventWriter(path);
  writer.write({ event: 'sample', step: 1, prompt: 'x', completion: text });
  writer.write({ event: 'sample', step: 2, prompt: '', completion: text });
  writer.close();
  const events = (await loadEvents(path)) as { completion: string }[];
  assert.deepEqual(
    events.map((event) => event.completion === text),
    [true, true],
  );
});

test('following sees events as they are written, through a torn line, until the run ends', async () => {
  const path = fresh();
  const seen: string[] = [];
  const reading = (async () => {
    for await (const event of readEvents(path, { follow: true, pollMs: 5 })) seen.push(event.event);
  })();
  const seeing = async (count: number) => {
    for (const until = Date.now() + 10_000; seen.length < count && Date.now() < until; ) await pause(5);
    assert.equal(seen.length, count);
  };
  const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  await pause(20);
  const writer = new EventWriter(path);
  writer.write(step(1));
  await seeing(1);
  appendFileSync(path, '{"event":"torn');
  await pause(40);
  await seeing(1);
  writer.close();
  const next = new EventWriter(path);
  next.write(step(2));
  await seeing(2);
  next.write(end);
  next.close();
  await reading;
  assert.deepEqual(seen, ['step', 'step', 'run-end']);
});

test('following stops on a signal, and when its writer is gone', async () => {
  const path = fresh();
  const writer = new EventWriter(path);
  writer.write(step(1));
  const abort = new AbortController();
  let seen = 0;
  for await (const _ of readEvents(path, { follow: true, signal: abort.signal, pollMs: 10_000 })) {
    seen++;
    setTimeout(() => abort.abort(), 10);
  }
  for await (const _ of readEvents(path, { follow: true, over: () => true })) seen++;
  writer.close();
  assert.equal(seen, 2);
});

test('history drops what a resume supersedes and keeps the rest', () => {
  const at = (event: NewRunEvent) => ({ time: 't', ...event }) as RunEvent;
  const history = RunHistory.of(
    [step(1), step(2), step(3, 9), { event: 'resumed', step: 2, checkpoint: 'c' } as const, step(3, 4), end].map(at),
  );
  assert.deepEqual(
    history.steps.map((s) => [s.step, s.loss]),
    [
      [1, 5],
      [2, 5],
      [3, 4],
    ],
  );
  assert.equal(history.end?.status, 'completed');
  history.add(at({ event: 'resumed', step: 0, checkpoint: 'c' }));
  assert.deepEqual([history.steps.length, history.end, history.resumes.length], [0, undefined, 2]);
  const flat = smoothed([1, 2, 3].map((x) => ({ x, y: 7 })));
  assert.ok(flat.every((point) => Math.abs(point.y - 7) < 1e-12));
});

test('a run folder is created once, opened, and resumed only with its own config', async () => {
  const path = fresh();
  const run = await RunFolder.create(path, { width: 8, data: { seed: 1 } });
  assert.equal(run.hash, hashOf({ data: { seed: 1 }, width: 8 }));
  assert.deepEqual(RunFolder.open(path).config, { width: 8, data: { seed: 1 } });
  await assert.rejects(RunFolder.create(path, { width: 8, data: { seed: 1 } }), /already holds a run/);
  await RunFolder.create(path, { data: { seed: 1 }, width: 8 }, { resume: true });
  await assert.rejects(
    RunFolder.create(path, { data: { seed: 2 }, width: 8 }, { resume: true }),
    /another config .*data.seed: 1 \/ 2/,
  );
});

test('folders that are not runs are refused and left as they are', async () => {
  const path = fresh();
  mkdirSync(path);
  await RunFolder.create(path, {});
  const other = fresh();
  mkdirSync(other);
  writeFileSync(join(other, 'thesis.txt'), 'x');
  await assert.rejects(RunFolder.create(other, {}, { resume: true }), /not empty and not a run; nothing was written/);
  writeFileSync(join(other, 'config.json'), '{"architectures":["Llama"]}');
  await assert.rejects(RunFolder.create(other, {}), /not a run/);
  assert.deepEqual(readdirSync(other).sort(), ['config.json', 'thesis.txt']);
  assert.throws(() => RunFolder.open(other), /no config.json of a run/);
  assert.throws(() => RunFolder.open(join(root, 'absent')), /there is no such folder/);
  await assert.rejects(RunFolder.create(join(other, 'thesis.txt'), {}), AnsatzError);
  await assert.rejects(RunFolder.create(join(other, 'thesis.txt', 'deeper'), {}), AnsatzError);
  const config = join(path, 'config.json');
  writeFileSync(config, readFileSync(config, 'utf8').replace('"config": {}', '"config": {"lr": 1}'));
  assert.throws(() => RunFolder.open(path), /was changed after the run was made/);
});

test('listing tells the runs of a folder apart by state', async () => {
  const home = fresh();
  const log = (run: RunFolder, ...events: NewRunEvent[]) => {
    const writer = run.openEvents();
    for (const event of events) writer.write(event);
    writer.close();
  };
  await RunFolder.create(join(home, 'new'), { n: 0 });
  log(await RunFolder.create(join(home, 'done'), { n: 1 }), step(2), step(3, 2.5), end);
  log(await RunFolder.create(join(home, 'cut'), { n: 2 }), step(7), { event: 'resumed', step: 5, checkpoint: '' });
  const busy = await RunFolder.create(join(home, 'busy'), { n: 3 });
  log(busy, step(1));
  const lock = busy.lock();
  const spoiled = join((await RunFolder.create(join(home, 'spoiled'), { n: 4 })).path, 'config.json');
  writeFileSync(spoiled, readFileSync(spoiled, 'utf8').replace('"n": 4', '"n": 5'));
  mkdirSync(join(home, 'not-a-run'));
  writeFileSync(join(home, 'file'), '');
  const found = listRuns(home).map((run) => [run.name, run.status, run.step]);
  assert.deepEqual(found.sort(), [
    ['busy', 'running', 1],
    ['cut', 'interrupted', 0],
    ['done', 'completed', 3],
    ['new', 'new', 0],
    ['spoiled', 'damaged', 0],
  ]);
  lock.release();
  assert.equal(busy.summary().status, 'interrupted');
  assert.deepEqual(listRuns(join(home, 'nowhere')), []);
});

test('one process at a time trains into a run; flags of dead processes are taken over', async (t) => {
  const run = await RunFolder.create(fresh(), {});
  const lock = run.lock();
  assert.equal(lockOwner(run.path)?.pid, process.pid);
  assert.throws(() => run.lock(), new RegExp(`process ${process.pid} is training into this run`));
  lock.release();
  assert.equal(lockOwner(run.path), undefined);

  const other = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000); console.log(1)']);
  t.after(() => other.kill('SIGKILL'));
  await new Promise((resolve) => other.stdout.once('data', resolve));
  const proc = existsSync('/proc/self/stat') ? readFileSync(`/proc/${other.pid}/stat`, 'utf8') : undefined;
  const started = proc?.slice(proc.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  const flag = join(run.path, `.lock-${hostname()}-${other.pid}`);
  const put = (owner: object) => writeFileSync(flag, JSON.stringify({ host: hostname(), pid: other.pid, ...owner }));
  put({ started });
  assert.throws(() => run.lock(), new RegExp(`process ${other.pid} is training`));
  assert.equal(lockOwner(run.path)?.pid, other.pid);
  if (started !== null) {
    // The same pid with another start time is another process: the one that put up the flag is gone.
    put({ started: '1' });
    run.lock().release();
  }
  put({ started });
  other.kill('SIGKILL');
  await new Promise((resolve) => other.once('exit', resolve));
  run.lock().release();
  put({ host: 'elsewhere', started });
  assert.throws(() => run.lock(), /process \d+ on elsewhere/);
  assert.deepEqual(
    readdirSync(run.path).filter((name) => name.startsWith('.')),
    [`.lock-${hostname()}-${other.pid}`],
  );
});

test('of many processes that want a run again and again, never two have it at once', async () => {
  const run = await RunFolder.create(fresh(), {});
  const inside = join(root, 'inside');
  const contender = `
    import { closeSync, openSync, rmSync } from 'node:fs';
    import { RunLock } from '${new URL('../../src/train/run/lock.ts', import.meta.url)}';
    let taken = 0;
    for (const until = Date.now() + 700; Date.now() < until; ) {
      let lock;
      try { lock = RunLock.acquire('${run.path}'); } catch (error) {
        if (error.name !== 'AnsatzError') throw error;
        continue;
      }
      closeSync(openSync('${inside}', 'wx'));
      rmSync('${inside}');
      lock.release();
      taken++;
    }
    console.log(taken);`;
  const results = await Promise.all(
    Array.from({ length: 3 }, () => runNode(['--import', 'tsx', '--input-type=module', '-e', contender])),
  );
  for (const { code, stderr } of results) assert.equal(code, 0, stderr);
  assert.ok(results.reduce((sum, { stdout }) => sum + Number(stdout), 0) > 10);
});

async function runNode(args: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, args);
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (data) => (stdout += data));
  child.stderr.on('data', (data) => (stderr += data));
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { code, stdout, stderr };
}
