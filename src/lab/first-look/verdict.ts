/** From runs to verdicts: paired differences with the base, their intervals, and what may be called a difference. */
import { criticalT, deviation, holm, mean, pooledResidual, twoSidedP } from '../statistics.ts';
import { type Arm, BASE, type Comparison } from './arms.ts';
import type { Run } from './plan.ts';
import type { RunResult } from './task.ts';

export interface Done {
  readonly run: Run;
  readonly result?: RunResult;
  readonly failed?: string;
}

export type Word = 'better' | 'worse' | 'not distinguished' | 'identical';

export interface Compared {
  readonly steps: number;
  readonly seeds: readonly number[];
  /** Held-out bits per byte, by seed. */
  readonly values: readonly number[];
  readonly mean: number;
  /** Mean of the differences with the base on the same seeds; negative is better. */
  readonly difference: number;
  /** Half of the 95% interval; not corrected for the number of comparisons. */
  readonly half: number;
  /** Holm-corrected over all comparisons of the table. */
  readonly p: number;
  readonly verdict: Word;
  /** Processor time of the training over that of the base, as it was. */
  readonly timeRatio: number;
  /** Targets over those of the base. */
  readonly targetRatio: number;
}

export interface Row {
  readonly arm: Arm;
  readonly positions?: Compared;
  readonly time?: Compared;
  /** Whether one run answered both questions. */
  readonly shared: boolean;
  readonly failed: readonly string[];
}

export interface Verdicts {
  readonly rows: readonly Row[];
  readonly base: { readonly values: readonly number[]; readonly mean: number; readonly deviation: number };
  /** Standard deviation of a run about what its arm and its seed explain, and its degrees of freedom. */
  readonly sigma: number;
  readonly df: number;
  /** Arms that vary too much between seeds to be pooled. */
  readonly unsteady: readonly string[];
  readonly comparisons: number;
  readonly alpha: number;
}

export const ALPHA = 0.05;

/** Runs that answer a question, by seed. */
function cellsOf(done: readonly Done[], arm: string, question: Comparison): Map<number, Done> {
  const fits = done.filter((d) => d.run.arm === arm && (d.run.answers === question || d.run.answers === 'both'));
  return new Map(fits.filter((d) => d.result).map((d) => [d.run.seed, d]));
}

type Raw = Omit<Compared, 'half' | 'p' | 'verdict'> & { readonly own: number; readonly question: Comparison };

/** Differences of one arm, before they are judged. */
function differences(done: readonly Done[], arm: string, question: Comparison, base: Map<number, Done>) {
  const cells = cellsOf(done, arm, question);
  const seeds = [...cells.keys()].filter((s) => base.has(s)).sort((a, b) => a - b);
  if (seeds.length === 0) return undefined;
  const of = (m: Map<number, Done>, what: (r: RunResult) => number): number[] =>
    seeds.map((s) => what(m.get(s)!.result!));
  const values = of(cells, (r) => r.bitsPerByte);
  const d = of(base, (r) => r.bitsPerByte).map((b, k) => values[k] - b);
  const ratio = (what: (r: RunResult) => number): number => mean(of(cells, what)) / mean(of(base, what));
  const raw: Raw = {
    question,
    steps: cells.get(seeds[0])!.run.steps,
    seeds,
    values,
    mean: mean(values),
    difference: mean(d),
    // Two runs make a difference, so that one has half of its variance.
    own: d.length > 1 ? deviation(d) / Math.SQRT2 : 0,
    timeRatio: ratio((r) => r.cpuSeconds),
    targetRatio: ratio((r) => r.targets),
  };
  return raw;
}

/** @param arms in the order of the table */
export function judge(arms: readonly Arm[], done: readonly Done[], alpha = ALPHA): Verdicts {
  const base = cellsOf(done, BASE, 'positions');
  const baseValues = [...base.values()].map((d) => d.result!.bitsPerByte);
  const others = arms.filter((a) => a.name !== BASE);
  const raws = others.map((arm) => ({
    arm,
    positions: differences(done, arm.name, 'positions', base),
    time: differences(done, arm.name, 'time', base),
    shared: done.some((d) => d.run.arm === arm.name && d.run.answers === 'both'),
  }));
  const identical = (r: Raw): boolean => r.values.every((v, k) => v === base.get(r.seeds[k])!.result!.bitsPerByte);

  // The table of arms by seeds: arms that have them all, each once, and none that repeats the base.
  const most = Math.max(0, ...raws.map((r) => r.positions?.seeds.length ?? 0));
  const whole = raws.filter((r) => r.positions && r.positions.seeds.length === most && !identical(r.positions));
  const first = whole[0]?.positions?.seeds ?? [];
  const table = [first.map((s) => base.get(s)!.result!.bitsPerByte), ...whole.map((r) => r.positions!.values)];
  const { sigma, df, unsteady } = pooledResidual(first.length > 1 ? table : []);

  // One run that answers both questions is one comparison.
  const questions = raws.flatMap((r) => [r.positions, r.shared ? undefined : r.time]).filter((r) => r !== undefined);
  const judged = questions.filter((r) => !identical(r) && df > 0);
  // An arm that varies more than the pool is judged by its own spread.
  const error = (r: Raw): number => Math.max(sigma, r.own) * Math.sqrt(2 / r.seeds.length);
  const p = judged.map((r) => twoSidedP(r.difference / error(r), df));
  const corrected = new Map(holm(p).map((value, k) => [judged[k], value]));
  const critical = df > 0 ? criticalT(alpha, df) : Number.NaN;
  const compared = (r: Raw | undefined): Compared | undefined => {
    if (!r) return undefined;
    const { own: _own, question: _question, ...rest } = r;
    if (identical(r)) return { ...rest, half: 0, p: 1, verdict: 'identical' };
    const pr = corrected.get(r) ?? 1;
    const verdict = pr < alpha ? (r.difference < 0 ? 'better' : 'worse') : 'not distinguished';
    return { ...rest, half: df > 0 ? critical * error(r) : Number.NaN, p: pr, verdict };
  };
  const rows = raws.map(({ arm, positions, time, shared }): Row => {
    const failed = done.filter((d) => d.run.arm === arm.name && d.failed).map((d) => `${d.run.id}: ${d.failed}`);
    const a = compared(positions);
    return { arm, positions: a, time: shared ? a : compared(time), shared, failed };
  });
  return {
    rows,
    base: { values: baseValues, mean: mean(baseValues), deviation: deviation(baseValues) },
    sigma,
    df,
    unsteady: unsteady.filter((k) => k > 0).map((k) => whole[k - 1].arm.name),
    comparisons: judged.length,
    alpha,
  };
}
