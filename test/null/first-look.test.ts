// The arithmetic of the first look: statistics, steps that are fair, sizes that are equal, verdicts from made-up runs.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type Arm, BASE, buildArms, CONTROL } from '../../src/lab/first-look/arms.ts';
import { sizeOf } from '../../src/lab/first-look/base.ts';
import { largestThatFits, makespan, positionsPerStep, stepsOf } from '../../src/lab/first-look/fair.ts';
import { EQUAL, fitParameters, parametersOf } from '../../src/lab/first-look/fit.ts';
import {
  planRuns,
  type Run,
  runsFor,
  runsOfBase,
  runsOfControl,
  seedOf,
  taskOf,
} from '../../src/lab/first-look/plan.ts';
import type { SpeedResult } from '../../src/lab/first-look/task.ts';
import { criticalT, holm, incompleteBeta, twoSidedP } from '../../src/lab/statistics.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { allTricks } from '../../src/tricks/index.ts';

const near = (a: number, b: number, e: number): void => assert.ok(Math.abs(a - b) <= e, `${a} is not ${b}`);

describe('statistics', () => {
  test('critical values of t are those of the tables', () => {
    for (const [df, t95, t99] of [
      [1, 12.706, 63.657],
      [2, 4.303, 9.925],
      [5, 2.571, 4.032],
      [28, 2.048, 2.763],
      [120, 1.98, 2.617],
    ]) {
      near(criticalT(0.05, df), t95, 6e-4);
      near(criticalT(0.01, df), t99, 6e-4);
      near(twoSidedP(criticalT(0.003, df), df), 0.003, 1e-12);
    }
    near(twoSidedP(1, 1), 0.5, 1e-12); // Cauchy
    near(incompleteBeta(0.3, 2, 3), 0.3483, 1e-12); // a polynomial
  });

  test('Holm: the smallest p counts for all, later ones for fewer, never less than before', () => {
    assert.deepEqual(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]);
    assert.deepEqual(holm([0.5, 0.9]), [1, 1]);
  });
});

describe('fair numbers of steps', () => {
  test('equal positions and equal time', () => {
    assert.deepEqual(stepsOf(1000, 1, 1), { positions: 1000, time: 1000 });
    assert.deepEqual(stepsOf(1000, 1, 2), { positions: 1000, time: 500 });
    // 2.5 times the positions in a step that takes twice as long.
    assert.deepEqual(stepsOf(1000, 2.5, 2), { positions: 400, time: 500 });
    // Within 3% one run answers both.
    assert.deepEqual(stepsOf(1000, 1, 1.02), { positions: 1000, time: 1000 });
    assert.deepEqual(stepsOf(1000, 1, 1.05), { positions: 1000, time: 952 });
  });

  test('the schedule of jobs, and the largest number of steps that fits', () => {
    const jobs = [5, 3, 3, 2].map((seconds) => ({ seconds }));
    assert.equal(makespan(jobs, 1), 13);
    assert.equal(makespan(jobs, 2), 7);
    assert.equal(
      largestThatFits((n) => 2 * n + 1, 100, 5),
      49,
    );
    assert.equal(
      largestThatFits((n) => 100 * n, 100, 12),
      12,
    );
  });
});

const size = sizeOf(96);
const data = { folder: 'none', vocab: 4096 };
const arms = buildArms(size, data);
const armOf = (name: string): Arm => arms.find((a) => a.name === name)!;
const base = armOf(BASE);

describe('arms', () => {
  test('every trick that changes a config is there, once, and so are the controls', () => {
    const names = arms.map((a) => a.name);
    assert.equal(new Set(names).size, names.length);
    for (const t of allTricks()) assert.equal(names.includes(t.name), t.patch !== undefined, t.name);
    for (const name of [BASE, CONTROL, 'moe-wide']) assert.ok(names.includes(name), name);
    assert.equal(names[0], BASE);
  });

  test('equal parameters, exactly counted, or a note that says otherwise', () => {
    for (const arm of arms.filter((a) => a.config && a.name !== 'moe-wide')) {
      assert.equal(arm.parameters, parametersOf(arm.config!), arm.name);
      const equal = Math.abs(arm.parameters / base.parameters - 1) <= EQUAL;
      assert.equal(equal, !arm.notes.some((n) => n.startsWith('parameters not equal')), arm.name);
    }
    const near = arms.filter((a) => a.config && Math.abs(a.parameters / base.parameters - 1) <= EQUAL);
    assert.ok(near.length >= 20, `${near.length} arms are as large as the base`);
    assert.ok(armOf('moe-wide').parameters > 1.5 * base.parameters);
  });

  test('a step computes about as many positions as the base’s; fewer targets are noted', () => {
    for (const arm of arms.filter((a) => a.config)) {
      assert.equal(arm.positionsPerStep, positionsPerStep(arm.config!));
      const ratio = arm.positionsPerStep / base.positionsPerStep;
      assert.equal(
        Math.abs(ratio - 1) > 0.1,
        arm.notes.some((n) => n.startsWith('a step is')),
        arm.name,
      );
    }
    assert.ok(armOf('prefix-lm').notes.some((n) => n.startsWith("0.50x the base's targets")));
    assert.equal(armOf('prefix-lm').targetsPerStep, base.targetsPerStep / 2);
  });

  test('other optimisers have their own rates, everything else that of the base', () => {
    for (const arm of arms.filter((a) => a.config?.optimiser.kind === 'adamw'))
      assert.equal(arm.config!.optimiser.lr, base.config!.optimiser.lr, arm.name);
    assert.ok(armOf('lion').config!.optimiser.lr < base.config!.optimiser.lr / 3);
  });

  test('what a trick refuses is an arm with a reason, and unknown names are refused with the list', () => {
    const broken = buildArms(size, data, {
      extra: [{ name: 'broken', summary: '', input: { ...base.config!, length: 10_000 } as never }],
    }).find((a) => a.name === 'broken')!;
    assert.match(broken.refused!, /10000 tokens/);
    assert.throws(() => buildArms(size, data, { only: ['nothing'] }), /no arm 'nothing'/);
    const few = buildArms(size, data, { only: ['alibi'] }).map((a) => a.name);
    assert.deepEqual(few, [BASE, CONTROL, 'alibi']);
  });

  test('fitting keeps what is near and finds what is not', () => {
    const input = parseTrainConfig({ ...base.config!, model: { ...base.config!.model, depth: 3 } });
    const fitted = fitParameters(input as never, base.parameters);
    assert.ok(Math.abs(fitted.parameters / base.parameters - 1) <= 0.005);
    assert.ok((fitted.config.model.ffn.hidden as number) > size.hidden);
    assert.equal(fitParameters(base.config! as never, base.parameters).config.model.ffn.hidden, size.hidden);
  });
});

const speed = (ratio: number): SpeedResult => ({
  ...{ baseMs: 20, busy: 1, ratio, quartiles: [ratio, ratio], rounds: 9 },
  ...{ setupSeconds: 0.2, evaluationSeconds: 1 },
});
const some = [BASE, CONTROL, 'alibi', 'moe', 'ul2'].map(armOf);
const speeds = new Map([
  ...[BASE, CONTROL, 'alibi'].map((name): [string, SpeedResult] => [name, speed(1)]),
  ['moe', speed(1.6)],
  ['ul2', speed(2.5)],
]);

describe('plan', () => {
  test('each question of each arm and seed has one run; equal time takes equal time', () => {
    const runs = runsFor(some, speeds, 400, { seeds: 2 });
    const ids = runs.map((r) => r.id).sort();
    const questions = ['base/both', 'alibi/both', 'base-again/positions', 'moe/positions', 'moe/time'];
    for (const q of questions) for (const seed of [1, 2]) assert.ok(ids.includes(`${q}/${seed}`), `${q}/${seed}`);
    assert.equal(runs.filter((r) => r.arm === BASE).length, runsOfBase(2));
    assert.equal(runs.filter((r) => r.arm === CONTROL).length, runsOfControl(2));
    assert.ok(runsOfControl(2) > 2 && runsOfBase(2) > runsOfControl(2));
    assert.equal(new Set(ids).size, ids.length);
    const steps = (id: string): number => runs.find((r) => r.id === id)!.steps;
    assert.equal(steps('moe/positions/1'), 400);
    assert.equal(steps('moe/time/1'), 250);
    const row = armOf('ul2').positionsPerStep / base.positionsPerStep;
    near(steps(ids.find((id) => /^ul2\/(both|positions)\/1/.test(id))!) * row, 400, row / 2);
  });

  test('as many steps as the time allows, and not one more', () => {
    const options = { seeds: 2, workers: 2, seconds: 300 };
    const plan = planRuns(some, speeds, options);
    const seconds = (steps: number): number => makespan(runsFor(some, speeds, steps, options), 2);
    assert.ok(seconds(plan.steps) <= 300 && seconds(plan.steps) > 250, `${seconds(plan.steps)} s of 300`);
    assert.ok(seconds(plan.steps + 1) > 300 * 0.93);
    assert.equal(plan.seconds, seconds(plan.steps));
  });

  test('every run has a seed of its own, the same whenever it is planned', () => {
    const runs = runsFor(some, speeds, 400, { seeds: 3 });
    assert.equal(new Set(runs.map(seedOf)).size, runs.length);
    assert.ok(runs.every((r) => Number.isInteger(seedOf(r)) && seedOf(r) >= 0));
    const run: Run = { id: 'moe/time/2', arm: 'moe', answers: 'time', seed: 2, steps: 77, seconds: 1 };
    const { config } = taskOf(run, armOf('moe'), 100);
    assert.deepEqual([config.seed, config.steps], [seedOf({ id: 'moe/time/2' }), 77]);
  });
});
