/** The comparison from prepared data to verdicts: measure speeds, plan, train what is missing, judge. */
import { AnsatzError } from '../../backend/errors.ts';
import { openTokens } from '../../data/shards.ts';
import { median } from '../statistics.ts';
import { type Arm, BASE, buildArms, CONTROL, type ExtraArm } from './arms.ts';
import type { Source } from './corpus.ts';
import { hashOf, type PlanFile, type Settings, type SweepFolder } from './folder.ts';
import { type Planned, planRuns, type Run, taskOf } from './plan.ts';
import { doAll } from './pool.ts';
import type { Findings } from './report.ts';
import type { RunResult, SpeedResult } from './task.ts';
import { type Done, judge } from './verdict.ts';

/** Held-out tokens that every arm is evaluated on. */
export const HELD_OUT_TOKENS = 65_536;

/** What writing the verdict takes. */
const CLOSING_SECONDS = 2;

export interface SweepListener {
  onArms?(arms: readonly Arm[]): void;
  onSpeed?(arm: string, speed: SpeedResult | undefined, failed: string | undefined): void;
  onPlan?(plan: PlanFile, arms: readonly Arm[], missing: readonly Run[]): void;
  /** Steps of a run in progress. */
  onSteps?(run: Run, steps: number): void;
  onDone?(done: Done): void;
}

export interface SweepInput {
  readonly folder: SweepFolder;
  readonly settings: Settings;
  readonly sources: readonly Source[];
  readonly vocab: number;
  readonly extra?: readonly ExtraArm[];
  /** performance.now() when the command started: its minutes count from there. */
  readonly began: number;
  readonly signal?: AbortSignal;
}

export interface Sweep extends Findings {
  readonly plan: PlanFile;
}

/**
 * Runs what is missing and judges all.
 * @throws AnsatzError when it is stopped, when the base fails, or when the arms are not those of the plan.
 */
export async function sweep(input: SweepInput, listener: SweepListener = {}): Promise<Sweep> {
  const { folder, settings, signal } = input;
  const data = { folder: folder.data, vocab: input.vocab };
  const arms = buildArms(settings.size, data, { extra: input.extra, only: settings.only });
  listener.onArms?.(arms);
  const known = folder.plan();
  if (known) sameArms(known, arms, folder.path);
  const plan = known ?? (await makePlan(input, arms, listener));
  const finished = new Set(folder.results().done.map((d) => d.run.id));
  const missing = plan.runs.filter((r) => !finished.has(r.id));
  listener.onPlan?.(plan, arms, missing);
  const armOf = (run: Run): Arm => arms.find((a) => a.name === run.arm)!;
  try {
    await doAll<Run, RunResult>(
      missing.map((run) => ({ key: run, task: taskOf(run, armOf(run), plan.heldOut.tokens) })),
      settings.workers,
      {
        onSteps: (run, steps) => listener.onSteps?.(run, steps),
        onDone: (run, outcome) => {
          const done: Done = { run, ...outcome };
          folder.add(done);
          listener.onDone?.(done);
        },
      },
      signal,
    );
  } finally {
    folder.add({ session: (performance.now() - input.began) / 1000 });
  }
  const { done, seconds } = folder.results();
  if (signal?.aborted) throw new AnsatzError(`stopped: ${done.length} of ${plan.runs.length} runs are done`);
  const broken = done.find((d) => d.run.arm === BASE && d.failed);
  if (broken) throw new AnsatzError(`the base fails, so there is nothing to compare with: ${broken.failed}`);
  return { plan, arms, done, verdicts: judge(arms, done), seconds };
}

function sameArms(plan: PlanFile, arms: readonly Arm[], path: string): void {
  const changed = arms.find((a) => plan.arms[a.name] !== hashOf(a));
  const gone = Object.keys(plan.arms).find((name) => !arms.some((a) => a.name === name));
  const name = changed?.name ?? gone;
  if (name !== undefined)
    throw new AnsatzError(`${path}: was planned with another '${name}' than this program has`, {
      hint: 'start over in another folder with --run',
    });
}

async function makePlan(input: SweepInput, arms: readonly Arm[], listener: SweepListener): Promise<PlanFile> {
  const { folder, settings, signal } = input;
  const started = new Date(Date.now() - (performance.now() - input.began)).toISOString();
  const tokens = openTokens(folder.data, 'heldout');
  const heldOut = { tokens: Math.min(HELD_OUT_TOKENS, tokens.tokenCount), bytes: tokens.textBytes };
  tokens.close();
  const all = await measure(input, arms, heldOut.tokens, listener);
  if (signal?.aborted) throw new AnsatzError('stopped before there was a plan');
  const speeds = new Map<string, SpeedResult>();
  for (const [name, speed] of all) if (!('failed' in speed)) speeds.set(name, speed);
  if (!speeds.has(BASE)) throw new AnsatzError(`the base cannot be trained: ${Object.values(all.get(BASE)!)[0]}`);
  const planned: Planned = planRuns(arms, planningSpeeds(speeds), {
    seeds: settings.seeds,
    workers: settings.workers,
    seconds: settings.minutes * 60 - (performance.now() - input.began) / 1000 - CLOSING_SECONDS,
  });
  const plan: PlanFile = {
    format: 2,
    settings,
    sources: input.sources,
    heldOut,
    started,
    arms: Object.fromEntries(arms.map((a) => [a.name, hashOf(a)])),
    speeds: Object.fromEntries(all),
    steps: planned.steps,
    runs: planned.runs,
  };
  folder.save(plan);
  return plan;
}

/** The base against itself is a check of the measurement, not a speed; its time is the median over all turns. */
function planningSpeeds(speeds: ReadonlyMap<string, SpeedResult>): Map<string, SpeedResult> {
  const base = speeds.get(BASE)!;
  const exact: SpeedResult = { ...base, ratio: 1, baseMs: median([...speeds.values()].map((s) => s.baseMs)) };
  return new Map([...speeds, [BASE, exact], [CONTROL, exact]]);
}

/** Speeds of all arms, as many at a time as there will be runs. */
async function measure(
  { settings, signal }: SweepInput,
  arms: readonly Arm[],
  heldOutTokens: number,
  listener: SweepListener,
): Promise<Map<string, SpeedResult | { failed: string }>> {
  const base = arms.find((a) => a.name === BASE)!;
  const can = arms.filter((a) => a.config && a.name !== CONTROL);
  const share = (0.05 * settings.minutes * 60 * settings.workers) / can.length;
  const seconds = Math.min(2.5, Math.max(0.3, share));
  const out = new Map<string, SpeedResult | { failed: string }>();
  await doAll<Arm, SpeedResult>(
    can.map((arm) => ({
      key: arm,
      task: { kind: 'speed' as const, base: base.config!, arm: arm.config!, seconds, heldOutTokens },
    })),
    settings.workers,
    {
      onDone: (arm, { result, failed }) => {
        out.set(arm.name, result ?? { failed: failed ?? 'no result' });
        listener.onSpeed?.(arm.name, result, failed);
      },
    },
    signal,
  );
  return out;
}
