import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { NewRunEvent } from '../../src/train/run/events.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { type RunReport, writeReport } from '../../src/train/run/report.ts';
import { lineChart } from '../../src/train/run/svg-chart.ts';

const root = mkdtempSync(join(tmpdir(), 'ansatz-report-'));
after(() => rmSync(root, { recursive: true, force: true }));

const step = (n: number, loss: number): NewRunEvent => ({
  event: 'step',
  step: n,
  tokens: n * 100,
  loss,
  gradNorm: 1,
  lr: 1e-3,
  tokensPerSecond: n === 1 ? 10 : 1000 + n,
  mfu: 0.5,
  msPerStep: 100,
  elapsed: n / 10,
});

async function runWith(name: string, events: NewRunEvent[]): Promise<RunFolder> {
  const run = await RunFolder.create(join(root, name), { model: { width: 8 }, note: '<b>&"quoted"</b>', empty: {} });
  const writer = run.openEvents();
  for (const event of events) writer.write(event);
  writer.close();
  return run;
}

const evaluation = (n: number, loss: number): NewRunEvent => ({
  event: 'eval',
  step: n,
  tokens: n,
  loss,
  bitsPerByte: loss / 2,
  baselines: { gzip: 2.5, xz: 2.25 },
});

test('a report says what the events say, after what a resume superseded is gone', async () => {
  const run = await runWith('full', [
    { event: 'run-start', run: 'full', config: 'c', version: '0.1', device: 'cpu', seed: 3, pid: 1, host: 'h' },
    {
      event: 'plan',
      parameters: 64,
      steps: 5,
      tokens: 500,
      tokensPerStep: 100,
      flopsPerToken: 9,
      memoryBytes: 1,
      peakFlops: 1,
    },
    step(1, 4),
    step(2, 4),
    step(3, 100),
    evaluation(3, 1.5),
    { event: 'resumed', step: 2, checkpoint: 'c' },
    step(3, 4),
    evaluation(3, 3),
    { event: 'skip', step: 4, loss: null, gradNorm: null, consecutive: 1 },
    step(4, 4),
    evaluation(4, 3.5),
    { event: 'warning', message: 'watch <out>' },
    { event: 'fallback', op: 'matmul', wanted: 'a', used: 'b', why: 'c' },
    { event: 'sample', step: 4, prompt: '<script>alert(1)</script>', completion: 'x\u001b[2J' },
    { event: 'checkpoint', step: 4, path: 'c/4', bytes: 2048, ms: 1 },
    { event: 'run-end', status: 'completed', step: 4, elapsed: 0.4 },
  ]);
  const { json, html } = await writeReport(run);
  const report = JSON.parse(readFileSync(json, 'utf8')) as RunReport;
  assert.deepEqual(
    [report.status, report.steps, report.tokens, report.seconds, report.loss, report.tokensPerSecond, report.mfu],
    ['completed', 4, 400, 0.4, 4, 1002.5, 0.5],
  );
  assert.deepEqual(report.heldOut, {
    step: 4,
    loss: 3.5,
    bitsPerByte: 1.75,
    baselines: { gzip: 2.5, xz: 2.25 },
    best: { step: 3, loss: 3, bitsPerByte: 1.5 },
  });
  assert.deepEqual([report.skippedSteps, report.resumedFrom, report.warnings], [1, [2], ['watch <out>']]);
  assert.equal(report.configHash, run.hash);
  assert.deepEqual(
    report.curves.loss.map(({ x, y }) => [x, y]),
    [1, 2, 3, 4].map((x) => [x, 4]),
  );

  const page = readFileSync(html, 'utf8');
  assert.ok(page.includes('&lt;script&gt;alert(1)&lt;/script&gt;') && !/<script/i.test(page), 'text is escaped');
  assert.ok(page.includes('x\u241b[2J') && page.includes('&lt;b&gt;&amp;&quot;quoted&quot;&lt;/b&gt;'));
  assert.ok(!/(src|href)=|url\((?!#)|https?:/i.test(page), 'no outside resources');
  for (const part of [
    'model.width',
    'gzip',
    '1.7500',
    'matmul ran b instead of a: c',
    '2.0 KiB',
    '<polyline',
    '<circle',
  ]) {
    assert.ok(page.includes(part), part);
  }
  for (const tag of ['section', 'svg', 'table', 'figure', 'dl', 'pre', 'g', 'ul']) {
    assert.equal(
      page.split(`<${tag}>`).length + page.split(`<${tag} `).length - 1,
      page.split(`</${tag}>`).length,
      tag,
    );
  }
});

test('runs with nothing in them, or without an end, have reports too', async () => {
  const empty = await runWith('empty', []);
  const page = readFileSync((await writeReport(empty)).html, 'utf8');
  assert.ok(page.includes('No steps were recorded') && !/undefined|NaN/.test(page));
  const cut = await writeReport(await runWith('cut', [step(1, 3), step(2, 2)]));
  const report = JSON.parse(readFileSync(cut.json, 'utf8')) as RunReport;
  assert.deepEqual([report.status, report.steps, report.heldOut], ['unfinished', 2, undefined]);
  assert.ok(!/undefined|NaN/.test(readFileSync(cut.html, 'utf8')));
});

test('a chart maps the range to its frame: lower values are lower, and lines outside are clipped', () => {
  const points = [0, 1, 2].map((x) => ({ x, y: x }));
  const options = {
    title: 'T',
    width: 300,
    height: 140,
    series: [{ points, className: 'line', kind: 'line' as const }],
  };
  const [, drawn] = /points="([^"]+)"/.exec(lineChart(options))!;
  const [a, b, c] = drawn.split(' ').map((pair) => pair.split(',').map(Number));
  assert.ok(a[0] < b[0] && b[0] < c[0] && a[1] > b[1] && b[1] > c[1]);
  assert.ok(Math.abs(a[1] - b[1] - (b[1] - c[1])) < 0.2);
  assert.equal(
    lineChart({ ...options, series: [{ points: points.slice(1, 2), className: 'line', kind: 'line' }] }),
    '',
  );
  assert.match(lineChart({ ...options, yRange: [0, 1] }), /clip-path/);
});
