import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drawCurve } from '../../src/cli/term/curve.ts';
import {
  displayWidth,
  flow,
  formatBytes,
  formatCount,
  formatDuration,
  formatInteger,
  formatLoss,
  formatPercent,
  formatRate,
  pad,
  printable,
  stripAnsi,
  truncate,
} from '../../src/cli/term/format.ts';
import { pairs, table } from '../../src/cli/term/table.ts';
import { niceTicks, Smoother, ThinnedSeries, tickLabels } from '../../src/train/run/series.ts';

test('numbers are printed with units, and round into the next unit instead of overflowing their own', () => {
  const cases: [(value: number) => string, number, string][] = [
    [formatCount, 0, '0'],
    [formatCount, 7, '7'],
    [formatCount, 0.25, '0.25'],
    [formatCount, 42.46, '42.5'],
    [formatCount, 999, '999'],
    [formatCount, 999.6, '1.0K'],
    [formatCount, 12_345, '12.3K'],
    [formatCount, 999_949, '999.9K'],
    [formatCount, 999_950, '1.0M'],
    [formatCount, 5_800_000, '5.8M'],
    [formatCount, -1.8e12, '-1.8T'],
    [formatCount, Number.NaN, 'NaN'],
    [formatBytes, 812, '812 B'],
    [formatBytes, 1023, '1023 B'],
    [formatBytes, 1024, '1.0 KiB'],
    [formatBytes, 1.2 * 2 ** 30, '1.2 GiB'],
    [formatDuration, 0.0004, '0ms'],
    [formatDuration, 0.85, '850ms'],
    [formatDuration, 0.9996, '1.0s'],
    [formatDuration, 4.21, '4.2s'],
    [formatDuration, 9.96, '10s'],
    [formatDuration, 59.7, '1m 00s'],
    [formatDuration, 92, '1m 32s'],
    [formatDuration, 3599.6, '1h 00m'],
    [formatDuration, 7500, '2h 05m'],
    [formatDuration, 86_399, '1d 00h'],
    [formatDuration, 273_600, '3d 04h'],
    [formatDuration, Number.POSITIVE_INFINITY, '?'],
    [formatInteger, 1_234_567.4, '1,234,567'],
    [formatPercent, 0.4125, '41.3%'],
    [formatLoss, 3.21449, '3.2145'],
    [formatLoss, 12_345.678, '12345.7'],
    [formatRate, 3e-4, '3.00e-4'],
    [formatRate, 0, '0'],
  ];
  for (const [format, value, expected] of cases) assert.equal(format(value), expected, `${format.name} ${value}`);
  assert.equal(formatPercent(null), '-');
  assert.equal(formatLoss(null), 'nan');
});

test('strings are measured, cut and padded by the cells they occupy', () => {
  assert.equal(displayWidth('a\x1b[31mbc\x1b[39m'), 3);
  assert.equal(displayWidth('日本'), 4);
  assert.equal(displayWidth('e\u0301'), 1);
  assert.equal(displayWidth('🚀'), 2);
  assert.equal(truncate('abcdef', 4), 'abc…');
  assert.equal(truncate('abcdef', 6), 'abcdef');
  assert.equal(truncate('日本語', 5), '日本…');
  assert.equal(truncate('日本語', 4), '日…');
  assert.equal(stripAnsi(truncate('\x1b[31mabcdef\x1b[39m', 3)), 'ab…');
  assert.ok(truncate('\x1b[31mabcdef\x1b[39m', 3).endsWith('\x1b[0m'), 'a cut colour is closed');
  assert.equal(pad('日', 4, 'right'), '  日');
  assert.deepEqual(flow(['aaa', 'bb', 'cccc'], 9, '  '), ['aaa  bb', 'cccc']);
});

test('text from outside cannot act on the terminal', () => {
  assert.equal(printable('a\x1b[2Jb\x07\x9b1m'), 'a␛[2Jb␇\\u009b1m');
  assert.equal(printable('a\r\n\tb', { oneLine: true }), 'a⏎ b');
  assert.equal(printable('a\n\x1b', { oneLine: true, unicode: false }), 'a\\n\\u001b');
  assert.equal(printable('x\u202ey'), 'x\\u202ey');
  assert.equal(printable('line\nline\tkept'), 'line\nline\tkept');
});

test('tables align, and the widest text column gives way', () => {
  const columns = [{ title: 'run' }, { title: 'loss', align: 'right' as const }, { title: 'note' }];
  const rows = [
    ['tiny', '3.2145', 'ok'],
    ['a-much-longer-name', '12.5', '日本'],
  ];
  assert.deepEqual(table(columns, rows), [
    'run                   loss  note',
    'tiny                3.2145  ok',
    'a-much-longer-name    12.5  日本',
  ]);
  assert.deepEqual(table(columns, rows, { width: 26 }), [
    'run             loss  note',
    'tiny          3.2145  ok',
    'a-much-long…    12.5  日本',
  ]);
  assert.deepEqual(
    pairs([
      ['a', '1'],
      ['bbb', '2'],
    ]),
    ['a    1', 'bbb  2'],
  );
});

test('ticks are round numbers inside the range, with labels that tell them apart', () => {
  assert.deepEqual(niceTicks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(niceTicks(1, 900, 5), [200, 400, 600, 800]);
  assert.deepEqual(niceTicks(2.31, 2.36, 3), [2.32, 2.34, 2.36]);
  assert.deepEqual(niceTicks(1.5, 898, 2), [200, 400, 600, 800]);
  assert.deepEqual(niceTicks(5, 5, 4), [5]);
  for (let k = 0; k < 300; k++) {
    const low = 1.7 ** (k % 30) * (k % 2 ? -1.3 : 1);
    const high = low + 0.93 ** (k % 50) * 1.1 ** k;
    for (const count of [2, 3, 7]) {
      const ticks = niceTicks(low, high, count);
      assert.ok(ticks.length >= 2 && ticks.length <= 3 * count + 2, `${low} ${high} ${count}: ${ticks}`);
      assert.ok(ticks.every((tick) => tick >= low - 1e-6 * (high - low) && tick <= high + 1e-6 * (high - low)));
    }
  }
  assert.deepEqual(tickLabels([2.32, 2.34, 2.36]), ['2.32', '2.34', '2.36']);
  assert.deepEqual(tickLabels([0, 0.5, 1]), ['0.0', '0.5', '1.0']);
  assert.deepEqual(tickLabels([0, 10_000, 20_000]), ['0', '10.0K', '20.0K']);
});

const ramp = Array.from({ length: 21 }, (_, k) => ({ x: k, y: 10 - k / 2 }));

test('a curve in Braille', () => {
  const lines = drawCurve({ series: [{ points: ramp, kind: 'line' }], width: 24, height: 7, xName: 'steps' });
  assert.deepEqual(lines, [
    '10 ┤⠤⢄⡀',
    '   │  ⠈⠑⠢⠤⢄⡀',
    ' 5 ┤       ⠈⠑⠢⠤⣀',
    '   │            ⠉⠒⠒⠤⣀',
    ' 0 ┤                 ⠉⠒⠒',
    '   └┬─────────┬────────┬',
    '    0        10       20',
  ]);
});

test('a curve in ASCII, with held-out marks over the line and points outside the range left out', () => {
  const lines = drawCurve({
    series: [
      { points: [{ x: 0, y: 100 }, ...ramp], kind: 'line' },
      { points: [{ x: 10, y: 5 }], kind: 'marks' },
    ],
    width: 24,
    height: 7,
    unicode: false,
    yRange: [0, 10],
  });
  assert.deepEqual(lines, [
    "10 +''..",
    "   |    ''..",
    " 5 +        ''o.",
    "   |            ''..",
    " 0 +                ''..",
    '   ++---------+--------+',
    '    0        10       20',
  ]);
});

test('curves of odd data: flat, one point, gaps, nothing, no room', () => {
  const flat = drawCurve({
    series: [
      {
        points: [
          { x: 1, y: 3 },
          { x: 2, y: 3 },
        ],
        kind: 'line',
      },
    ],
    width: 20,
    height: 5,
  });
  assert.equal(flat.length, 5);
  assert.match(flat[1], /^3\.0 ┤[⠤⠒⠉⣀]+$/u);
  const one = drawCurve({ series: [{ points: [{ x: 1, y: 0 }], kind: 'dots' }], width: 20, height: 5 });
  assert.equal(one.join('').replace(/[^\u2801-\u28ff]/gu, '').length, 1);
  const gap = drawCurve({
    series: [{ points: [0, 1, Number.NaN, 8, 9].map((y, x) => ({ x, y })), kind: 'line' }],
    width: 30,
    height: 12,
  });
  assert.ok(
    gap.slice(3, 7).every((line) => !/[\u2801-\u28ff]/u.test(line)),
    'no line across a gap',
  );
  assert.deepEqual(drawCurve({ series: [{ points: [], kind: 'line' }], width: 20, height: 5 }), []);
  assert.deepEqual(
    drawCurve({ series: [{ points: [{ x: 0, y: Number.NaN }], kind: 'dots' }], width: 20, height: 5 }),
    [],
  );
  assert.deepEqual(drawCurve({ series: [{ points: ramp, kind: 'line' }], width: 6, height: 5 }), []);
  assert.deepEqual(drawCurve({ series: [{ points: ramp, kind: 'line' }], width: 40, height: 3 }), []);
  for (const width of [9, 20, 33, 81, 200]) {
    for (const height of [4, 7, 30]) {
      const lines = drawCurve({ series: [{ points: ramp, kind: 'line' }], width, height, xName: 'steps' });
      assert.equal(lines.length, height);
      assert.ok(lines.every((line) => displayWidth(line) <= width));
    }
  }
});

test('thinned series keep their averages, their ends and their order; rewinding forgets', () => {
  const series = new ThinnedSeries(16);
  for (let x = 1; x <= 1000; x++) series.add(x, 2 * x);
  const { points } = series;
  assert.ok(points.length <= 17 && points.length >= 8);
  assert.ok(points.every(({ x, y }, k) => Math.abs(y - 2 * x) < 1e-9 && (k === 0 || x > points[k - 1].x)));
  assert.ok(points[0].x < 65 && points.at(-1)!.x > 935);
  series.rewind(500);
  assert.ok(series.points.every(({ x }) => x <= 500));
});

test('the smoother follows a plunge at first and averages noise later', () => {
  const smoother = new Smoother();
  assert.equal(smoother.add(8), 8);
  for (let k = 0; k < 5; k++) smoother.add(4);
  assert.ok(smoother.value < 4.3);
  for (let k = 0; k < 400; k++) smoother.add(k % 2);
  assert.ok(Math.abs(smoother.value - 0.5) < 0.03);
  smoother.add(Number.NaN);
  assert.ok(Number.isFinite(smoother.value));
});
