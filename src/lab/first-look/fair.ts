/** The arithmetic of fairness: how many steps of an arm are as many positions, or as much time, as the base's. */
import type { TrainConfig } from '../../train/config.ts';
import { objectiveOf, positionsOf } from '../../train/objective.ts';

/** Positions that a step computes, encoder and decoder together. */
export const positionsPerStep = (config: TrainConfig): number =>
  config.batch * config.accumulate * positionsOf(objectiveOf(config));

/** Targets of a step, on average. */
export const targetsPerStep = (config: TrainConfig): number =>
  config.batch * config.accumulate * objectiveOf(config).shape.targets;

/** Rows such that a step computes about `positions`; a row of some objectives holds several examples. */
export const rowsFor = (config: TrainConfig, positions: number): number =>
  Math.max(1, Math.round(positions / (config.accumulate * positionsOf(objectiveOf(config)))));

/** Speeds this close are one speed: the same run then answers both questions. */
export const SAME_SPEED = 0.03;

export interface Steps {
  /** As many positions as the base sees. */
  readonly positions: number;
  /** As much time as the base takes. */
  readonly time: number;
}

/**
 * @param base steps of the base
 * @param positions positions of a step of the arm, over those of the base
 * @param ratio time of a step of the arm, over that of the base
 */
export function stepsOf(base: number, positions: number, ratio: number): Steps {
  const equal = Math.max(1, Math.round(base / positions));
  const time = Math.max(1, Math.round(base / ratio));
  return { positions: equal, time: Math.abs(time / equal - 1) <= SAME_SPEED ? equal : time };
}

export interface Job {
  readonly seconds: number;
}

/** Seconds until the last of `jobs` is done when `workers` take them in order. */
export function makespan(jobs: readonly Job[], workers: number): number {
  const free = new Array<number>(workers).fill(0);
  for (const job of jobs) {
    const k = free.indexOf(Math.min(...free));
    free[k] += job.seconds;
  }
  return Math.max(...free);
}

/** The largest whole `n` from `least` on for which `seconds(n)` fits; `least` when none does. */
export function largestThatFits(seconds: (n: number) => number, budget: number, least: number): number {
  let low = least;
  let high = least * 2;
  while (seconds(high) <= budget && high < 1e7) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (seconds(middle) <= budget) low = middle;
    else high = middle;
  }
  return low;
}
