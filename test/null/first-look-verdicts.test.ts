// Verdicts of the first look from made-up runs whose truth is known: how often they are false, what they find, and that
// the control never gets one.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { type Arm, BASE, buildArms, CONTROL } from '../../src/lab/first-look/arms.ts';
import { sizeOf } from '../../src/lab/first-look/base.ts';
import { type Run, runsOfBase, runsOfControl } from '../../src/lab/first-look/plan.ts';
import { reportOf } from '../../src/lab/first-look/report.ts';
import { jsonOf, readStored } from '../../src/lab/first-look/stored.ts';
import type { RunResult } from '../../src/lab/first-look/task.ts';
import { type Done, judge } from '../../src/lab/first-look/verdict.ts';
import { combine, ofDifference, priorOf, spreadWithin } from '../../src/lab/spreads.ts';

const near = (a: number, b: number, e: number): void => assert.ok(Math.abs(a - b) <= e, `${a} is not ${b}`);

/** Normal deviates from a fixed seed. */
function chance(seed: number) {
  let state = seed;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const normal = (): number => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return {
    normal,
    chi2: (df: number): number => Array.from({ length: df }, () => normal() ** 2).reduce((a, b) => a + b),
  };
}

const all = buildArms(sizeOf(96), { folder: 'none', vocab: 4096 }, { only: [] });
const arm = (name: string): Arm => ({ ...all.find((a) => a.name === BASE)!, name, notes: [] });

function runs(name: string, answers: Run['answers'], values: readonly (number | string)[]): Done[] {
  return values.map((value, k) => {
    const run: Run = { id: `${name}/${answers}/${k + 1}`, arm: name, answers, seed: k + 1, steps: 10, seconds: 1 };
    if (typeof value === 'string') return { run, failed: value };
    const result: RunResult = {
      ...{ bitsPerByte: value, trainLoss: 1, steps: 10, targets: 100 },
      ...{ seconds: 1, cpuSeconds: 1, otherSeconds: 0 },
    };
    return { run, result };
  });
}

describe('spreads', () => {
  test('within groups: squares about each mean', () => {
    assert.deepEqual(spreadWithin([[1, 3], [10, 10, 13]]), { variance: (2 + 6) / 3, df: 3 }); // biome-ignore format: a table
    assert.equal(spreadWithin([[1]]).df, 0);
  });

  test('the prior finds the usual variance, and how alike the arms are', () => {
    const { normal, chi2 } = chance(3);
    const draw = (sigma: () => number) =>
      Array.from({ length: 400 }, () => {
        const s = sigma();
        return spreadWithin([[0, 0, 0].map(() => s * normal())]);
      });
    const alike = priorOf(draw(() => 0.1));
    near(Math.sqrt(alike.variance), 0.1, 0.008);
    assert.ok(alike.df >= 20, `${alike.df}`);
    const unlike = priorOf(draw(() => 0.1 * Math.sqrt(4 / chi2(4))));
    near(Math.sqrt(unlike.variance), 0.1, 0.015);
    assert.ok(unlike.df >= 2 && unlike.df <= 4, `${unlike.df}`);
    // Of few arms, nobody knows.
    assert.ok(priorOf(draw(() => 0.1).slice(0, 3)).df <= 2);
    assert.equal(priorOf([{ variance: 1, df: 2 }]).df, 0);
  });

  test('own and usual weigh by degrees of freedom; equal groups have the classical degrees', () => {
    assert.deepEqual(combine({ variance: 4, df: 2 }, { variance: 1, df: 4 }), { variance: 2, df: 6 });
    assert.deepEqual(combine({ variance: Number.NaN, df: 0 }, { variance: 1, df: 4 }), { variance: 1, df: 4 });
    const { variance, df } = ofDifference({ variance: 2, df: 5, runs: 4 }, { variance: 2, df: 5, runs: 4 });
    near(variance, 1, 1e-12);
    near(df, 10, 1e-12);
    assert.equal(ofDifference({ variance: 2, df: 5, runs: 4 }, { variance: 2, df: 0, runs: 1 }).df, 0);
  });
});

describe('false verdicts, where nothing differs', () => {
  const [SEEDS, ARMS, TIMES] = [3, 40, 150];
  /** Of simulated tables: those with a false verdict, those whose control has one, those that found the one effect. */
  function simulate(seed: number, effect: number, sigmaOf: (k: number, c: ReturnType<typeof chance>) => number) {
    const c = chance(seed);
    const draw = (n: number, sigma: number, centre = 2.6): number[] =>
      Array.from({ length: n }, () => centre + 0.01 * sigma * c.normal());
    const names = Array.from({ length: ARMS }, (_, k) => `arm${k}`);
    const list = [BASE, CONTROL, ...names, 'real'].map(arm);
    let [falses, controls, found] = [0, 0, 0];
    for (let k = 0; k < TIMES; k++) {
      const { rows } = judge(list, [
        ...runs(BASE, 'both', draw(runsOfBase(SEEDS), 1)),
        ...runs(CONTROL, 'positions', draw(runsOfControl(SEEDS), 1)),
        ...names.flatMap((name, i) => runs(name, i % 2 ? 'both' : 'time', draw(SEEDS, sigmaOf(i, c)))),
        ...runs('real', 'both', draw(SEEDS, 1, 2.6 + effect)),
      ]);
      const got = rows.filter((r) => (r.positions ?? r.time)!.verdict !== 'not distinguished').map((r) => r.arm.name);
      if (got.some((name) => name !== 'real')) falses++;
      if (got.includes(CONTROL)) controls++;
      if (got.includes('real')) found++;
    }
    return { falses, controls, found };
  }
  // 5% of 150, and what chance adds in one of a hundred such counts.
  const MOST = 14;
  const worlds: [string, (k: number, c: ReturnType<typeof chance>) => number][] = [
    ['all arms vary alike', () => 1],
    ['arms vary by unlike amounts', (_, c) => Math.exp(0.5 * c.normal())],
    ['a few are three times as wild', (k) => (k % 10 === 3 ? 3 : 1)],
    ['variances have heavy tails', (_, c) => Math.sqrt(4 / c.chi2(4))],
  ];
  worlds.forEach(([name, sigmaOf], k) => {
    test(`${name}: at most as many tables with one as is stated, the control never, a real effect is found`, () => {
      const { falses, controls, found } = simulate(k + 1, 0.1, sigmaOf);
      assert.ok(falses <= MOST, `${falses} of ${TIMES} tables have a false verdict`);
      assert.equal(controls, 0);
      assert.ok(found > 0.9 * TIMES, `${found} of ${TIMES} found`);
    });
  });
});

describe('verdicts', () => {
  const noise = [0.001, -0.001, 0.0005, -0.0007, 0.0012, -0.0003, 0.0008, -0.0011];
  const steady = noise.map((e, k) => ({ name: `arm${k}`, values: [2.05 + e, 2.05 - e, 2.0505] }));
  const done = [
    ...runs(BASE, 'both', [2.049, 2.051, 2.05, 2.0505, 2.0495]),
    ...runs(CONTROL, 'positions', [2.0502, 2.0496, 2.0508]),
    ...steady.flatMap(({ name, values }) => runs(name, 'both', values)),
    ...runs('good', 'positions', [1.95, 1.951, 1.949]),
    ...runs('good', 'time', [2.15, 2.151, 2.149]),
    ...runs('luck', 'both', [1.99, 2.105, 2.03]),
    ...runs('half', 'both', [2.25, 'diverged', 'diverged']),
  ];
  const list = [BASE, CONTROL, ...steady.map((s) => s.name), 'good', 'luck', 'half', 'none'].map(arm);
  const v = judge(list, done);
  const of = (name: string) => v.rows.find((r) => r.arm.name === name)!;

  test('clear differences are found in both directions, small ones are not', () => {
    assert.equal(of('good').positions!.verdict, 'better');
    near(of('good').positions!.difference, -0.1, 1e-12);
    assert.equal(of('good').time!.verdict, 'worse');
    for (const { name } of steady) assert.equal(of(name).positions!.verdict, 'not distinguished', name);
    // Control, eight arms, two of `good`, `luck`, `half`.
    assert.equal(v.comparisons, 13);
  });

  test('an arm whose runs differ more is judged by them, and noted', () => {
    const { difference, half, verdict } = of('luck').positions!;
    near(difference, (1.99 + 2.105 + 2.03) / 3 - 2.05, 1e-12);
    assert.ok(half > 10 * of('arm0').positions!.half, `${half}`);
    assert.equal(verdict, 'not distinguished');
    assert.deepEqual(v.unsteady, ['luck']);
  });

  test('no arm is taken to vary less than the base and its control together', () => {
    const values = [...runs(BASE, 'both', [2, 2.02, 1.98]), ...runs(CONTROL, 'positions', [2.01, 1.99])];
    const close = ['a', 'b', 'c'].flatMap((name) => runs(name, 'both', [2.05, 2.05, 2.05]));
    const { rows, floor } = judge([BASE, CONTROL, 'a', 'b', 'c'].map(arm), [...values, ...close]);
    near(floor, Math.sqrt(0.001 / 4), 1e-12);
    for (const row of rows) assert.equal(row.positions!.verdict, 'not distinguished');
    assert.ok(rows[1].positions!.half > 2 * floor * Math.sqrt(2 / 3));
  });

  test('a control that would be distinguished enlarges all errors until it is not', () => {
    const apart = done.map((d) =>
      d.run.arm === CONTROL ? { ...d, result: { ...d.result!, bitsPerByte: d.result!.bitsPerByte + 0.06 } } : d,
    );
    const { enlarged, rows } = judge(list, apart);
    assert.ok(enlarged > 1 && v.enlarged === 1, `${enlarged}`);
    const control = rows.find((r) => r.arm.name === CONTROL)!.positions!;
    assert.equal(control.verdict, 'not distinguished');
    near(control.half, Math.abs(control.difference), 1e-9);
    assert.ok(rows.find((r) => r.arm.name === 'good')!.positions!.half > 5 * of('good').positions!.half);
  });

  test('one run is judged by what is usual; failures are kept', () => {
    near(of('half').positions!.difference, 0.2, 1e-12);
    assert.deepEqual(of('half').positions!.values, [2.25]);
    assert.deepEqual(of('half').failed, ['half/both/2: diverged', 'half/both/3: diverged']);
    assert.equal(of('none').positions, undefined);
    assert.ok(of('arm0').shared && of('arm0').time === of('arm0').positions);
  });

  test('without any repetition there are differences, and no verdicts', () => {
    const { rows, comparisons } = judge([BASE, 'a'].map(arm), [...runs(BASE, 'both', [2]), ...runs('a', 'both', [3])]);
    assert.deepEqual([rows[0].positions!.verdict, rows[0].positions!.difference], ['not distinguished', 1]);
    assert.ok(Number.isNaN(rows[0].positions!.half));
    assert.equal(comparisons, 0);
  });
});

describe('stored numbers', () => {
  const folder = mkdtempSync(join(tmpdir(), 'ansatz-stored-'));
  after(() => rmSync(folder, { recursive: true }));
  const done = [
    ...runs(BASE, 'both', [2, 2.01, 1.99]),
    ...runs(CONTROL, 'positions', [2.005, 1.995]),
    ...runs('a', 'both', [1.5, 1.51]),
  ];
  const arms = [BASE, CONTROL, 'a'].map(arm);
  const input = {
    plan: {
      format: 2 as const,
      settings: { texts: ['t'], bytes: 1, vocab: 4096, size: sizeOf(96), minutes: 1, seeds: 2, workers: 2 },
      sources: [{ name: 't', documents: 1, bytes: 1 }],
      ...{ heldOut: { tokens: 10, bytes: 40 }, speeds: {}, steps: 10 },
    },
    ...{ arms, done, verdicts: judge(arms, done), seconds: 60 },
    machine: { cpu: 'c', cores: 2, level: 'avx2', node: '20', platform: 'linux x64' },
    ...{ command: 'ansatz lab first-look t', date: '2026-01-01', compressors: { gzip: 3 }, plot: 'look.svg' },
  };
  const file = join(folder, 'look.json');

  test('give the same verdict file again, but for how it was made', () => {
    writeFileSync(file, JSON.stringify(jsonOf(input)));
    const again = readStored(file);
    // But for the place of the data, which the file does not name.
    const plain = (v: unknown) => JSON.parse(JSON.stringify(v).replaceAll('"folder":"none"', '"folder":"data"'));
    assert.deepEqual(plain(again.verdicts), plain(input.verdicts));
    const lines = reportOf({ ...again, plot: 'look.svg' }).split('\n');
    const extra = lines.filter((l) => l.includes('--from look.json'));
    assert.equal(extra.length, 1);
    assert.equal(lines.filter((l) => !extra.includes(l)).join('\n'), reportOf(input));
  });

  test('say when the runs were not independent', () => {
    writeFileSync(file, JSON.stringify({ ...jsonOf(input), format: 'ansatz first look 1' }));
    assert.match(reportOf({ ...readStored(file), plot: 'p' }), /as if they were independent/);
    assert.doesNotMatch(reportOf(input), /as if they were independent/);
  });

  test('what holds none is refused with the reason', () => {
    const json = JSON.parse(JSON.stringify(jsonOf(input)));
    const cases: [string, RegExp][] = [
      ['{', /not valid JSON/],
      ['{}', /holds no results of a first look: format/],
      ['[]', /holds no results of a first look: the file/],
      [JSON.stringify({ ...json, runs: [{ run: { id: 1 } }] }), /runs\.0\.run/],
      [JSON.stringify({ ...json, arms: json.arms.slice(0, 2) }), /a run of 'a', which is not among its arms/],
      [JSON.stringify({ ...json, runs: json.runs.slice(5) }), /no run of the base/],
    ];
    for (const [text, error] of cases) {
      writeFileSync(file, text);
      assert.throws(() => readStored(file), error);
    }
    assert.throws(() => readStored(join(folder, 'none.json')), /none\.json: does not exist/);
    assert.throws(() => readStored(folder), /cannot be read \(EISDIR\)/);
  });
});
