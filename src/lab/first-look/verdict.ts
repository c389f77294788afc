/** From runs to verdicts: differences of means with the base, their errors, and what may be called a difference. */
import { combine, ofDifference, priorOf, type Spread, spreadWithin } from '../spreads.ts';
import { criticalT, deviation, holm, mean, twoSidedP } from '../statistics.ts';
import { type Arm, BASE, CONTROL, type Comparison } from './arms.ts';
import type { Run } from './plan.ts';
import type { RunResult } from './task.ts';

export interface Done {
  readonly run: Run;
  readonly result?: RunResult;
  readonly failed?: string;
}

export type Word = 'better' | 'worse' | 'not distinguished';

export interface Compared {
  readonly steps: number;
  /** Held-out bits per byte of each run. */
  readonly values: readonly number[];
  readonly mean: number;
  /** Mean less the base's mean; negative is better. */
  readonly difference: number;
  /** Half of the 95% interval; not corrected for the number of comparisons. NaN when nothing is known. */
  readonly half: number;
  /** Degrees of freedom of the interval. */
  readonly df: number;
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
  /** Standard deviation of a run of the base, control included: no arm is taken to vary less. */
  readonly floor: number;
  /** The usual standard deviation of a run over all arms, and how many degrees of freedom it is worth to each. */
  readonly usual: { readonly sigma: number; readonly df: number };
  /** What all errors were multiplied with for the sake of the control; 1 when it was quiet by itself. */
  readonly enlarged: number;
  /** Arms whose runs differ far more than usual. */
  readonly unsteady: readonly string[];
  readonly comparisons: number;
  readonly alpha: number;
}

export const ALPHA = 0.05;

/** So many times the usual deviation is noted; of one distribution, it is one of ten thousand with two degrees of freedom. */
const UNSTEADY = 3;

/** Results of an arm that answer a question. */
function resultsOf(done: readonly Done[], arm: string, question: Comparison): (RunResult & { run: Run })[] {
  return done
    .filter((d) => d.run.arm === arm && d.result && (d.run.answers === question || d.run.answers === 'both'))
    .map((d) => ({ ...d.result!, run: d.run }))
    .sort((a, b) => a.run.seed - b.run.seed);
}

interface Raw {
  readonly arm: string;
  readonly steps: number;
  readonly values: readonly number[];
  readonly mean: number;
  readonly difference: number;
  readonly timeRatio: number;
  readonly targetRatio: number;
  /** Of its own runs alone. */
  readonly own: Spread;
}

function rawOf(done: readonly Done[], arm: string, question: Comparison, base: readonly RunResult[]): Raw | undefined {
  const results = resultsOf(done, arm, question);
  if (results.length === 0 || base.length === 0) return undefined;
  const ratio = (what: (r: RunResult) => number): number => mean(results.map(what)) / mean(base.map(what));
  const values = results.map((r) => r.bitsPerByte);
  return {
    arm,
    steps: results[0].run.steps,
    values,
    mean: mean(values),
    difference: mean(values) - mean(base.map((r) => r.bitsPerByte)),
    timeRatio: ratio((r) => r.cpuSeconds),
    targetRatio: ratio((r) => r.targets),
    own: spreadWithin([values]),
  };
}

/**
 * All runs are independent draws. The variance of an arm's runs is what they show and what is usual among all arms,
 * combined (../spreads.ts), but not less than what they show, and not less than that of all runs of the base, its control
 * among them: the control's difference with the base is noise by construction, so it belongs to the noise. Should the
 * control alone still be distinguished without any correction, all errors are enlarged until it is not.
 * @param arms in the order of the table
 */
export function judge(arms: readonly Arm[], done: readonly Done[], alpha = ALPHA): Verdicts {
  const base = resultsOf(done, BASE, 'positions');
  const baseValues = base.map((r) => r.bitsPerByte);
  const control = rawOf(done, CONTROL, 'positions', base);
  const raws = arms
    .filter((a) => a.name !== BASE)
    .map((arm) => {
      const shared = done.some((d) => d.run.arm === arm.name && d.run.answers === 'both');
      const positions = rawOf(done, arm.name, 'positions', base);
      return { arm, positions, time: shared ? undefined : rawOf(done, arm.name, 'time', base), shared };
    });
  const questions = raws.flatMap((r) => [r.positions, r.time]).filter((r) => r !== undefined);

  const baseOwn = spreadWithin([baseValues, control?.values ?? []]);
  const floor = spreadWithin([[...baseValues, ...(control?.values ?? [])]]).variance;
  const prior = priorOf([baseOwn, ...questions.filter((r) => r.arm !== CONTROL).map((r) => r.own)]);
  const spreadOf = (own: Spread): Spread => {
    const { variance, df } = combine(own, prior);
    return { variance: Math.max(variance, own.df > 0 ? own.variance : 0, floor || 0), df };
  };
  const ofBase = { ...spreadOf(baseOwn), runs: baseValues.length };
  const errorOf = (r: Raw): Spread => {
    const spread = r.arm === CONTROL ? ofBase : spreadOf(r.own);
    return ofDifference({ ...spread, runs: r.values.length }, ofBase);
  };
  const critical = (e: Spread): number => criticalT(alpha, e.df) * Math.sqrt(e.variance);
  const known = (e: Spread): boolean => e.df > 0 && e.variance > 0;
  const ofControl = control && errorOf(control);
  const enlarged = ofControl && known(ofControl) ? Math.max(1, Math.abs(control.difference) / critical(ofControl)) : 1;

  // One run that answers both questions is one comparison; what nothing is known of is none.
  const judged = questions.filter((r) => known(errorOf(r)));
  const p = judged.map((r) => {
    const { variance, df } = errorOf(r);
    return twoSidedP(r.difference / (enlarged * Math.sqrt(variance)), df);
  });
  const corrected = new Map(holm(p).map((value, k) => [judged[k], value]));
  const compared = (r: Raw | undefined): Compared | undefined => {
    if (!r) return undefined;
    const { own: _own, arm: _arm, ...rest } = r;
    const error = errorOf(r);
    const pr = corrected.get(r) ?? 1;
    const verdict = pr < alpha ? (r.difference < 0 ? 'better' : 'worse') : 'not distinguished';
    const half = known(error) ? enlarged * critical(error) : Number.NaN;
    return { ...rest, half, df: error.df, p: pr, verdict };
  };
  const wild = (r: Raw | undefined): boolean =>
    r !== undefined && r.own.df > 0 && r.own.variance > UNSTEADY ** 2 * Math.max(prior.variance, floor);
  return {
    rows: raws.map(({ arm, positions, time, shared }): Row => {
      const failed = done.filter((d) => d.run.arm === arm.name && d.failed).map((d) => `${d.run.id}: ${d.failed}`);
      const a = compared(positions);
      return { arm, positions: a, time: shared ? a : compared(time), shared, failed };
    }),
    base: { values: baseValues, mean: mean(baseValues), deviation: deviation(baseValues) },
    floor: Math.sqrt(floor),
    usual: { sigma: Math.sqrt(prior.variance), df: prior.df },
    enlarged,
    unsteady: raws.filter((r) => wild(r.positions) || wild(r.time)).map((r) => r.arm.name),
    comparisons: judged.length,
    alpha,
  };
}
