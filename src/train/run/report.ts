// report.json and report.html of a run, made from its events alone, so that they can be made again at any time.
import type { JsonObject } from './canonical.ts';
import type { EventOf } from './events.ts';
import { replaceFile } from './files.ts';
import type { RunFolder } from './folder.ts';
import type { RunHistory } from './history.ts';
import { renderReport } from './report-html.ts';
import { type Point, smoothed, ThinnedSeries } from './series.ts';

export interface RunReport {
  format: 'ansatz-report';
  version: 1;
  name: string;
  status: string;
  /** What the run itself said about its end. */
  message: string | undefined;
  created: string;
  config: JsonObject;
  configHash: string;
  program: string | undefined;
  device: string | undefined;
  seed: number | undefined;
  parameters: number | undefined;
  flopsPerToken: number | undefined;
  steps: number;
  tokens: number;
  seconds: number;
  /** Smoothed, at the last step. */
  loss: number | undefined;
  tokensPerSecond: number | undefined;
  mfu: number | null | undefined;
  heldOut: HeldOut | undefined;
  samples: { step: number; prompt: string; completion: string }[];
  checkpoints: { step: number; path: string; bytes: number }[];
  skippedSteps: number;
  resumedFrom: number[];
  warnings: string[];
  fallbacks: { op: string; wanted: string; used: string; why: string }[];
  /** Thinned to at most 512 points each; x is the step. */
  curves: {
    loss: Point[];
    smoothedLoss: Point[];
    heldOutLoss: Point[];
    gradNorm: Point[];
    lr: Point[];
    tokensPerSecond: Point[];
  };
}

export interface HeldOut {
  step: number;
  loss: number;
  bitsPerByte: number;
  baselines: Record<string, number>;
  best: { step: number; loss: number; bitsPerByte: number };
}

const CURVE_POINTS = 512;
const MAX_SAMPLES = 8;

export function buildReport(
  run: Pick<RunFolder, 'name' | 'created' | 'config' | 'hash'>,
  history: RunHistory,
): RunReport {
  const { start, plan, end, steps } = history;
  const last = steps.at(-1);
  const loss = steps.map(({ step, loss }) => ({ x: step, y: loss }));
  const smooth = smoothed(loss);
  const of = (field: 'gradNorm' | 'lr' | 'tokensPerSecond') =>
    thinned(steps.map((step) => ({ x: step.step, y: step[field] })));
  return {
    format: 'ansatz-report',
    version: 1,
    name: run.name,
    status: end?.status ?? (steps.length > 0 ? 'unfinished' : 'new'),
    message: end?.message,
    created: run.created,
    config: run.config,
    configHash: run.hash,
    program: start?.version,
    device: start?.device,
    seed: start?.seed,
    parameters: plan?.parameters,
    flopsPerToken: plan?.flopsPerToken,
    steps: last?.step ?? 0,
    tokens: last?.tokens ?? 0,
    seconds: end?.elapsed ?? last?.elapsed ?? 0,
    loss: smooth.at(-1)?.y,
    tokensPerSecond: median(steps.map((step) => step.tokensPerSecond)),
    mfu: median(steps.flatMap(({ mfu }) => (mfu === null ? [] : [mfu]))) ?? (last ? null : undefined),
    heldOut: heldOutOf(history.evals),
    samples: history.samples.slice(-MAX_SAMPLES).map(({ step, prompt, completion }) => ({ step, prompt, completion })),
    checkpoints: history.checkpoints.map(({ step, path, bytes }) => ({ step, path, bytes })),
    skippedSteps: history.skips.length,
    resumedFrom: history.resumes.map(({ step }) => step),
    warnings: history.warnings.map(({ message }) => message),
    fallbacks: history.fallbacks.map(({ op, wanted, used, why }) => ({ op, wanted, used, why })),
    curves: {
      loss: thinned(loss),
      smoothedLoss: thinned(smooth),
      heldOutLoss: history.evals.map(({ step, loss }) => ({ x: step, y: loss })),
      gradNorm: of('gradNorm'),
      lr: of('lr'),
      tokensPerSecond: of('tokensPerSecond'),
    },
  };
}

/** Writes both files into the run's folder, replacing older ones; returns their paths. */
export async function writeReport(run: RunFolder): Promise<{ json: string; html: string }> {
  const report = buildReport(run, await run.history());
  const json = run.file('report.json');
  const html = run.file('report.html');
  await replaceFile(json, `${JSON.stringify(report)}\n`);
  await replaceFile(html, renderReport(report));
  return { json, html };
}

function heldOutOf(evals: readonly EventOf<'eval'>[]): HeldOut | undefined {
  const last = evals.at(-1);
  if (!last) return undefined;
  const best = evals.reduce((a, b) => (b.loss < a.loss ? b : a));
  return {
    step: last.step,
    loss: last.loss,
    bitsPerByte: last.bitsPerByte,
    baselines: last.baselines,
    best: { step: best.step, loss: best.loss, bitsPerByte: best.bitsPerByte },
  };
}

function thinned(points: readonly Point[]): Point[] {
  const series = new ThinnedSeries(CURVE_POINTS);
  for (const { x, y } of points) series.add(x, y);
  return series.points;
}

/** The first steps warm caches up and the last may be cut short; the middle one is the speed. */
function median(values: readonly number[]): number | undefined {
  if (values.length === 0) return undefined;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
