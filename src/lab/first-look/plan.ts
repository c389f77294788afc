/** Which runs there are, in which order, and how many steps fit into the time. */
import { createHash } from 'node:crypto';
import type { TrainConfig } from '../../train/config.ts';
import { type Arm, BASE, CONTROL } from './arms.ts';
import { largestThatFits, makespan, stepsOf } from './fair.ts';
import type { RunTask, SpeedResult } from './task.ts';

/** Fewer steps than this are no training. */
export const LEAST_STEPS = 12;

/** Part of the time that the plan leaves free: estimates are off, and the last runs end one after another. */
const RESERVE = 0.07;

export interface Run {
  /** "alibi/positions/1". */
  readonly id: string;
  readonly arm: string;
  /** The question that it answers; `both` when the arm is as fast as the base. */
  readonly answers: 'positions' | 'time' | 'both';
  /** Which of the arm's runs for this question, from 1. */
  readonly seed: number;
  readonly steps: number;
  /** Estimate. */
  readonly seconds: number;
}

/**
 * All arms are compared with the same runs of the base, whose luck is in every difference: it has more of them, and so has
 * its control, whose spread is the least that any arm is judged with.
 */
export const runsOfBase = (seeds: number): number => 2 * seeds + 2;
export const runsOfControl = (seeds: number): number => 2 * seeds;

export interface PlanOptions {
  readonly seeds: number;
  readonly workers: number;
  /** Seconds left for training. */
  readonly seconds: number;
}

/** All runs when the base makes `steps` steps: seed after seed, so that what is missing after a stop is whole seeds. */
export function runsFor(
  arms: readonly Arm[],
  speeds: ReadonlyMap<string, SpeedResult>,
  steps: number,
  options: Pick<PlanOptions, 'seeds'>,
): Run[] {
  const base = arms.find((a) => a.name === BASE)!;
  const baseMs = speeds.get(BASE)!.baseMs;
  const runs: Run[] = [];
  const { seeds } = options;
  const most = (arm: Arm): number =>
    arm === base ? runsOfBase(seeds) : arm.name === CONTROL ? runsOfControl(seeds) : seeds;
  for (let seed = 1; seed <= runsOfBase(seeds); seed++) {
    const ofSeed: Run[] = [];
    const add = (arm: Arm, answers: Run['answers'], n: number): void => {
      const { ratio, setupSeconds, evaluationSeconds } = speeds.get(arm.name)!;
      const seconds = setupSeconds + evaluationSeconds + (n * ratio * baseMs) / 1000;
      ofSeed.push({ id: `${arm.name}/${answers}/${seed}`, arm: arm.name, answers, seed, steps: n, seconds });
    };
    for (const arm of arms) {
      const speed = speeds.get(arm.name);
      if (!arm.config || !speed || seed > most(arm)) continue;
      if (arm === base) {
        add(arm, 'both', steps);
        continue;
      }
      const equal = stepsOf(steps, arm.positionsPerStep / base.positionsPerStep, speed.ratio);
      const { compare } = arm;
      if (compare.includes('positions'))
        add(arm, compare.includes('time') && equal.time === equal.positions ? 'both' : 'positions', equal.positions);
      if (compare.includes('time') && equal.time !== equal.positions) add(arm, 'time', equal.time);
    }
    runs.push(...ofSeed.sort((a, b) => b.seconds - a.seconds));
  }
  return runs;
}

export interface Planned {
  readonly steps: number;
  readonly runs: readonly Run[];
  /** Estimate of the whole, without the reserve. */
  readonly seconds: number;
}

/** As many steps of the base as fit. */
export function planRuns(
  arms: readonly Arm[],
  speeds: ReadonlyMap<string, SpeedResult>,
  options: PlanOptions,
): Planned {
  const seconds = (steps: number): number => makespan(runsFor(arms, speeds, steps, options), options.workers);
  const steps = largestThatFits(seconds, options.seconds * (1 - RESERVE), LEAST_STEPS);
  return { steps, runs: runsFor(arms, speeds, steps, options), seconds: seconds(steps) };
}

/**
 * Initial values, order of the text and draws within layers are a run's own. With the same ones for all arms, those that
 * resemble the base would share its luck and others not, and their differences would vary by unlike amounts that two or
 * three runs cannot tell; independent runs vary more, but all alike.
 */
export const seedOf = (run: Pick<Run, 'id'>): number =>
  createHash('sha256').update(run.id).digest().readUInt32LE() >>> 1;

/** The training of a run, with the schedule stretched over its own steps. */
export function taskOf(run: Run, arm: Arm, heldOutTokens: number): RunTask {
  const config: TrainConfig = { ...arm.config!, seed: seedOf(run), steps: run.steps };
  return { kind: 'run', config, heldOutTokens };
}
