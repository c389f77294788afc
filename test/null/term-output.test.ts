// What commands write where: the three modes, failures, progress, the live view, and a terminal left as it was found.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { displayWidth, stripAnsi } from '../../src/cli/term/format.ts';
import { LiveView } from '../../src/cli/term/live.ts';
import { Output, type OutputOptions, UsageError } from '../../src/cli/term/output.ts';
import { type EventOf, type NewRunEvent, stamped } from '../../src/train/run/events.ts';

const ESCAPE = String.fromCharCode(27);
const TOKEN = new RegExp(`${ESCAPE}\\[[0-?]*[ -/]*[@-~]|[\\s\\S]`, 'gu');
const UP = new RegExp(`^${ESCAPE}\\[\\d+A$`);

/** A stream that remembers, and a terminal small enough to check by eye. */
class FakeStream {
  text = '';
  readonly isTTY: boolean;
  columns: number | undefined;
  rows: number | undefined;

  constructor(size?: { columns: number; rows: number }) {
    this.isTTY = size !== undefined;
    this.columns = size?.columns;
    this.rows = size?.rows;
  }

  write(text: string): void {
    this.text += text;
  }

  get lines(): string[] {
    return this.text.split('\n').slice(0, -1);
  }

  /** What a terminal would show (last `rows` lines), by interpreting what was written. */
  screen(): string[] {
    const { columns = 80, rows = 24 } = this;
    const grid: string[][] = [[]];
    let row = 0;
    let column = 0;
    const down = () => {
      row++;
      grid[row] ??= [];
    };
    for (const token of this.text.match(TOKEN) ?? []) {
      if (token === '\n') {
        down();
        column = 0;
      } else if (token === '\r') column = 0;
      else if (UP.test(token)) {
        row -= Number(token.slice(2, -1));
        assert.ok(row >= Math.max(0, grid.length - rows), 'the cursor went above the top of the terminal');
      } else if (token === `${ESCAPE}[K`) grid[row].length = Math.min(grid[row].length, column);
      else if (token === `${ESCAPE}[J`) {
        grid.length = row + 1;
        grid[row].length = Math.min(grid[row].length, column);
      } else if (!token.startsWith(ESCAPE)) {
        if (column === columns) {
          down();
          column = 0;
        }
        for (let k = grid[row].length; k < column; k++) grid[row][k] = ' ';
        grid[row][column++] = token;
      }
    }
    return grid.map((cells) => cells.join(''));
  }
}

function capture(options: OutputOptions & { size?: { columns: number; rows: number } } = {}) {
  const stdout = new FakeStream(options.size);
  const stderr = new FakeStream(options.size);
  const env = { TERM: 'xterm-256color', LANG: 'C.UTF-8', ...options.env };
  return { stdout, stderr, output: new Output({ ...options, stdout, stderr, env }) };
}

const SIZE = { columns: 80, rows: 24 };

test('the mode follows from flags, the terminal and the environment', () => {
  assert.equal(capture({ size: SIZE }).output.mode, 'tty');
  assert.equal(capture().output.mode, 'plain');
  assert.equal(capture({ size: SIZE, plain: true }).output.mode, 'plain');
  assert.equal(capture({ size: SIZE, env: { TERM: 'dumb' } }).output.mode, 'plain');
  assert.equal(capture({ size: SIZE, json: true }).output.mode, 'json');
  assert.equal(capture({ size: SIZE }).output.style.enabled, true);
  assert.equal(capture({ size: SIZE, env: { NO_COLOR: '1' } }).output.style.enabled, false);
  assert.equal(capture({ size: SIZE, env: { NO_COLOR: '' } }).output.style.enabled, true);
  assert.equal(capture().output.style.enabled, false);
  assert.equal(capture({ size: SIZE, env: { LANG: 'C' } }).output.unicode, false);
  assert.equal(capture({ size: SIZE, env: { LANG: '', TERM: 'xterm' } }).output.unicode, true);
  assert.equal(capture({ size: SIZE, env: { LANG: 'C', LC_ALL: 'en_US.utf8' } }).output.unicode, true);
  assert.equal(capture({ size: SIZE, env: { TERM: 'linux' } }).output.unicode, false);
});

test('json mode writes JSON lines on stdout and nothing else; the other modes write no JSON', () => {
  const json = capture({ json: true });
  json.output.say('for people');
  json.output.heading('Heading');
  json.output.warn('careful', 'do this');
  json.output.result('inspect', { device: 'cpu' }, ['device: cpu']);
  assert.deepEqual(
    json.stdout.lines.map((line) => {
      const { time, ...rest } = JSON.parse(line);
      assert.ok(!Number.isNaN(Date.parse(time)));
      return rest;
    }),
    [
      { event: 'warning', message: 'careful', hint: 'do this' },
      { event: 'result', command: 'inspect', device: 'cpu' },
    ],
  );
  const plain = capture();
  plain.output.warn('careful', 'do this');
  plain.output.result('inspect', { device: 'cpu' }, ['device: cpu']);
  assert.deepEqual(plain.stdout.lines, ['warning: careful', '  next: do this', 'device: cpu']);
  assert.equal(json.stderr.text + plain.stderr.text, '');
});

test('a failure is one line and a hint on stderr, an exit code, and an event in json mode', () => {
  const plain = capture();
  assert.equal(plain.output.fail(new AnsatzError('runs/x: not a run:\n no config', { hint: 'name a run' })), 1);
  assert.equal(plain.stderr.text, 'error: runs/x: not a run:  no config\n  next: name a run\n');
  assert.equal(plain.stdout.text, '');
  assert.equal(capture().output.fail(new UsageError('unknown option --x')), 2);
  const json = capture({ json: true });
  assert.equal(json.output.fail(new AnsatzError('no\u001b[2J way')), 1);
  assert.equal(json.stderr.text, 'error: no\\u001b[2J way\n');
  const { time, ...event } = JSON.parse(json.stdout.text);
  assert.ok(time);
  assert.deepEqual(event, { event: 'error', message: 'no\\u001b[2J way', exitCode: 1 });
  const odd = capture();
  assert.equal(odd.output.fail(new TypeError('x is not a function')), 1);
  assert.match(odd.stderr.text, /^error: unexpected: TypeError: x is not a function\n {2}next: .*ANSATZ_DEBUG.*\n$/);
});

test('progress: silent when quick, a bar on a terminal, lines without, events for programs', () => {
  let now = 0;
  const clock = () => now;
  const run = (options: Parameters<typeof capture>[0], seconds: number) => {
    now = 0;
    const all = capture(options);
    const bar = all.output.progress({ label: 'Encoding', total: 40 << 20, unit: 'B', now: clock });
    for (let k = 0; k <= 100; k++) {
      now = k * seconds * 10;
      bar.update((k * (40 << 20)) / 100);
    }
    bar.finish('20 shards');
    bar.finish('again');
    return all.stdout;
  };
  assert.deepEqual(run({}, 1).lines, ['Encoding  40.0 MiB in 1.0s (40.0 MiB/s)  20 shards']);
  assert.deepEqual(run({}, 12).lines, [
    'Encoding   17%  6.8 MiB of 40.0 MiB  3.3 MiB/s  ETA 10s',
    'Encoding   59%  23.6 MiB of 40.0 MiB  3.3 MiB/s  ETA 4.9s',
    'Encoding  40.0 MiB in 12s (3.3 MiB/s)  20 shards',
  ]);
  const events = run({ json: true }, 12).lines.map((line) => JSON.parse(line));
  assert.equal(events.length, 11, 'after two seconds, then every second, then the last');
  assert.ok(events.every(({ event, total, unit }) => event === 'progress' && total === 40 << 20 && unit === 'B'));
  assert.equal(events.at(-1).done, 40 << 20);
  assert.equal(events.at(-1).eta, 0);

  const terminal = run({ size: SIZE }, 12);
  assert.deepEqual(terminal.screen(), ['Encoding  40.0 MiB in 12s (3.3 MiB/s)  20 shards', '']);
  assert.ok(terminal.text.includes('━') && terminal.text.endsWith('\n'));
  const hidden = terminal.text.lastIndexOf(`${ESCAPE}[?25l`);
  assert.ok(hidden >= 0 && terminal.text.indexOf(`${ESCAPE}[?25h`, hidden) > hidden, 'the cursor is back');
  assert.ok(!run({}, 12).text.includes(ESCAPE));
  assert.ok(/\[#+\.+\]/.test(run({ size: SIZE, env: { LANG: 'C', NO_COLOR: '1' } }, 12).text));
});

test('progress of unknown length, and one that is cancelled', () => {
  let now = 0;
  const { output, stdout } = capture();
  const bar = output.progress({ label: 'Reading', unit: 'files', now: () => now });
  now = 2500;
  bar.add(1200);
  now = 3000;
  bar.cancel();
  bar.update(5000);
  assert.deepEqual(stdout.lines, ['Reading  1.2K files  480 files/s  2.5s']);
});

const step = (n: number): NewRunEvent => ({
  event: 'step',
  step: n,
  tokens: n * 2048,
  loss: 3 + 5 / n,
  gradNorm: 0.5,
  lr: 1e-3,
  tokensPerSecond: 10_000,
  mfu: 0.4,
  msPerStep: 204.8,
  elapsed: n * 0.2048,
});
const plan: NewRunEvent = {
  event: 'plan',
  parameters: 5_800_000,
  steps: 100,
  tokens: 204_800,
  tokensPerStep: 2048,
  flopsPerToken: 3e7,
  memoryBytes: 2 ** 28,
  peakFlops: null,
};

/** A whole run through a view, `stepMs` of a clock a step. */
function feed(all: ReturnType<typeof capture>, events: NewRunEvent[], stepMs = 1000): void {
  let now = 0;
  const view = new LiveView(all.output, { title: 'tiny', footer: 'Ctrl-C stops', now: () => now });
  for (const event of events) {
    if (event.event === 'step') now += stepMs;
    view.add(stamped(event));
  }
  view.close();
}

const RUN: NewRunEvent[] = [
  { event: 'run-start', run: 'tiny', config: 'c', version: '1', device: 'cpu', seed: 7, pid: 1, host: 'h' },
  plan,
  ...Array.from({ length: 50 }, (_, k) => step(k + 1)),
  { event: 'fallback', op: 'matmul', wanted: 'avx512', used: 'avx2', why: 'not on this CPU' },
  { event: 'skip', step: 51, loss: null, gradNorm: null, consecutive: 1, dump: 'skip.json' },
  { event: 'eval', step: 50, tokens: 1, loss: 3.2, bitsPerByte: 1.7, baselines: { gzip: 2.3 } },
  { event: 'checkpoint', step: 50, path: 'c/50', bytes: 1 << 20, ms: 12 },
  { event: 'sample', step: 50, prompt: 'let x', completion: ' = 1;\n\u001b[31m' },
  ...Array.from({ length: 50 }, (_, k) => step(k + 51)),
  { event: 'run-end', status: 'completed', step: 100, elapsed: 20.5 },
];

test('the live view without a terminal: aligned lines with units, every five seconds, and what must not be missed', () => {
  const all = capture();
  feed(all, RUN);
  const { lines } = all.stdout;
  assert.deepEqual(
    lines.slice(0, 4),
    [
      'tiny: cpu, seed 7',
      '5.8M parameters, 100 steps of 2,048 tokens, 256.0 MiB of memory',
      '    step    tokens      loss    smooth      grad        lr    tok/s     MFU  ms/step  elapsed      ETA',
      '       1      2.0K    8.0000    8.0000     0.500   1.00e-3    10.0K   40.0%      205    205ms      20s',
    ].map((line) => (displayWidth(line) > 100 ? line : line)),
  );
  const steps = lines.filter((line) => /^ +\d+ .*%/.test(line));
  assert.equal(steps.length, 21, 'the first, then every five seconds, then the last');
  assert.equal(new Set(steps.map(displayWidth)).size, 1, 'columns are aligned');
  for (const part of [
    'fallback: matmul runs avx2 instead of avx512: not on this CPU',
    'skipped: step 51 had a non-finite loss; its batch is in skip.json',
    '      50  held-out loss 3.2000, 1.7000 bits/byte (gzip 2.300)',
    '      50  checkpoint c/50 (1.0 MiB in 12ms)',
    'sample at 50: let x = 1;⏎␛[31m',
    'completed in 21s, 100 steps',
  ]) {
    assert.ok(lines.includes(part), `${part}\nis missing in\n${lines.join('\n')}`);
  }
  assert.ok(!all.stdout.text.includes(ESCAPE));
  assert.equal(all.stderr.text, '');
});

test('the live view for programs is the events themselves', () => {
  const all = capture({ json: true });
  feed(all, RUN);
  assert.deepEqual(
    all.stdout.lines.map((line) => JSON.parse(line).event),
    RUN.map(({ event }) => event),
  );
});

test('the live view on terminals of any size: fits, is redrawn in place, and leaves the cursor', () => {
  for (const [columns, rows] of [
    [80, 24],
    [120, 40],
    [300, 90],
    [44, 14],
    [24, 6],
    [10, 3],
    [1, 1],
  ]) {
    const all = capture({ size: { columns, rows } });
    feed(all, RUN);
    const screen = all.stdout.screen();
    const name = `${columns}x${rows}`;
    assert.ok(all.stdout.text.endsWith(`${ESCAPE}[?25h`), `${name}: the cursor is back`);
    assert.equal(all.stdout.screen().filter((line) => line.includes('100%')).length, columns >= 10 ? 1 : 0, name);
    if (columns < 80) continue;
    assert.ok(
      screen.some((line) => line.startsWith('fallback: matmul')),
      name,
    );
    assert.ok(
      screen.some((line) => line.includes('completed in 21s')),
      name,
    );
    assert.ok(screen.some((line) => /[\u2801-\u28ff]/u.test(line)) && screen.some((line) => line.includes('◆')), name);
    const last = screen.slice(screen.findIndex((line) => line.startsWith('tiny')));
    assert.ok(last.length <= rows, `${name}: the frame has ${last.length} rows`);
    assert.ok(!last.some((line) => line.includes('Ctrl-C stops')), 'nothing to stop any more');
  }
});

test('lines above, and shorter frames, leave no pieces of old frames behind', () => {
  const all = capture({ size: { columns: 100, rows: 20 } });
  const screen = all.output.screen();
  screen.draw(['x'.repeat(100), 'second', 'third']);
  all.output.say('one line that stays');
  screen.draw(['short', 'second']);
  all.output.say(['two', 'three']);
  screen.draw(['end']);
  screen.close();
  screen.draw(['nothing is drawn after closing']);
  assert.deepEqual(all.stdout.screen(), ['one line that stays', 'two', 'three', 'end', '']);
  assert.equal(all.output.screenInUse, false);
});

test('a terminal made narrower has wrapped the old frame: all of its rows are redrawn', () => {
  const all = capture({ size: { columns: 100, rows: 20 } });
  const screen = all.output.screen();
  screen.draw(['x'.repeat(100), 'second', '日'.repeat(30)]);
  all.stdout.columns = 40;
  all.stdout.text = '';
  screen.draw(['short']);
  assert.ok(all.stdout.text.includes(`\r${ESCAPE}[6A`), '3 rows of 100 cells, 1, and 2 of 60 cells');
  screen.close();
});

test('layers that are monitored are one line: the range of each measure over those that have it', () => {
  const all = capture({});
  const layers: EventOf<'layers'>['layers'] = [
    { layer: 'blocks.0.ffn', measures: { deadUnits: 0.015625, choiceEntropy: 0.91234 } },
    { layer: 'blocks.1.ffn', measures: { maxVio: 0.5 } },
    { layer: 'blocks.2.ffn', measures: { maxVio: 0.25, choiceEntropy: 0.5 } },
  ];
  feed(all, [plan, step(1), { event: 'layers', step: 1, layers }]);
  const line = [all.stdout.text, all.stderr.text]
    .join('\n')
    .split('\n')
    .find((l) => /layers at/.test(l));
  assert.equal(stripAnsi(line ?? ''), 'layers at 1: deadUnits 0.0156, choiceEntropy 0.5 to 0.912, maxVio 0.25 to 0.5');
});

test('a resumed run drops the superseded part of its curve', () => {
  const all = capture({ size: SIZE });
  const view = new LiveView(all.output, { title: 'tiny' });
  for (const event of [plan, ...[1, 2, 3, 4].map(step), { event: 'resumed', step: 2, checkpoint: 'c' } as const]) {
    view.add(stamped(event));
  }
  assert.deepEqual(
    view.state.loss.points.map(({ x }) => x),
    [1, 2],
  );
  view.close();
});

/** Runs a script with stdout pretending to be a terminal. */
async function child(script: string, signal?: NodeJS.Signals) {
  const term = new URL('../../src/cli/term/', import.meta.url);
  const source = `
    process.stdout.isTTY = true; process.stdout.columns = 80; process.stdout.rows = 24; process.env.TERM = 'xterm';
    const { Output, runCommand } = await import('${new URL('output.ts', term)}');
    const { LiveView } = await import('${new URL('live.ts', term)}');
    ${script}`;
  const started = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', source]);
  let stdout = '';
  let stderr = '';
  started.stdout.on('data', (data) => {
    stdout += data;
    if (signal && stdout.includes('ready')) started.kill(signal);
  });
  started.stderr.on('data', (data) => (stderr += data));
  const code = await new Promise<number | null>((resolve) => started.once('close', resolve));
  return { code, signal: started.signalCode, stdout, stderr };
}

test('signals, exceptions and process.exit give the cursor back and keep their meaning', async () => {
  const open = `const view = new LiveView(new Output(), { title: 'ready' }); `;
  const [interrupted, handled, thrown, exited, failed] = await Promise.all([
    child(`${open} setInterval(() => {}, 1000);`, 'SIGINT'),
    child(
      `process.on('SIGINT', () => { view.close(); process.exit(5); }); ${open} setInterval(() => {}, 1000);`,
      'SIGINT',
    ),
    child(`${open} setTimeout(() => { throw new Error('boom'); }, 10);`),
    child(`${open} process.exit(3);`),
    child(
      `const out = new Output(); await runCommand(out, () => { new LiveView(out, { title: 'x' }); throw new Error('no'); });`,
    ),
  ]);
  for (const { stdout } of [interrupted, handled, thrown, exited, failed]) {
    assert.ok(stdout.lastIndexOf(`${ESCAPE}[?25h`) > stdout.lastIndexOf(`${ESCAPE}[?25l`), stripAnsi(stdout));
  }
  assert.deepEqual([interrupted.code, interrupted.signal, interrupted.stderr], [null, 'SIGINT', '']);
  assert.equal(handled.code, 5);
  assert.equal(thrown.code, 1);
  assert.equal(exited.code, 3);
  assert.equal(failed.code, 1);
  assert.match(failed.stderr, /^error: unexpected: Error: no\n/);
});
