/**
 * The coordinate check (Yang et al. 2022, appendix D): how the size of activations, and of their change in training, goes
 * with a model's width or depth. Under a parametrisation that holds, all of them stay.
 */
import { openDevice } from '../backend/index.ts';
import { buildModel, type Model } from '../model/model.ts';
import { disposeTree, forwardContext, initialise, type ParamTree } from '../nn/index.ts';
import { abs, capture, cast, mean, noGrad, stack, sub, type Tensor } from '../tensor/index.ts';
import { parseTrainConfig, type TrainConfig } from './config.ts';
import { rowLength, trainBatch } from './objective.ts';
import { DeviceBatch, TrainStep } from './step.ts';
import { syntheticLoader } from './synthetic.ts';

export interface CoordinateOptions {
  /** Sizes, and the config at each. */
  readonly sizes: readonly { readonly size: number; readonly config: TrainConfig }[];
  readonly seeds: number;
  readonly steps: number;
  /** Changes the initial parameters. */
  edit?(params: ParamTree): void;
  onProgress?(done: number, total: number): void;
}

/** Mean |x| and mean |x - x at the start| of an activation, averaged over seeds, for each size. */
export interface Coordinate {
  readonly name: string;
  readonly step: number;
  readonly level: readonly number[];
  readonly change: readonly number[];
  /** Least-squares slopes of log2 of those on log2 size. */
  readonly levelSlope: number;
  readonly changeSlope: number;
  /**
   * Of outputs: the root of the mean product of two seeds' values, and its slope. What one start leaves in them by chance
   * falls with width^-1/2 while all that was learned stays, and this is the size of the latter alone (0: none was found).
   */
  readonly shared?: readonly number[];
  readonly sharedSlope?: number;
}

export interface CoordinateResult {
  readonly sizes: readonly number[];
  /** Training loss of each size at every step, averaged over seeds. */
  readonly losses: readonly (readonly number[])[];
  readonly coordinates: readonly Coordinate[];
}

type Sizes = Map<string, { level: number; change: number }>;

/** The activation that is the same function of the batch for every start, once the model is wide. */
const OUTPUT = 'logits';
/** Values of it that are kept for each seed and step. */
const KEPT = 1 << 16;

/**
 * Layers of different depth have no names in common: of what stands in blocks, the one with half of a stack behind it is
 * taken, block L / 2 for what comes first in a block and (L - 1) / 2 for feed-forward layers (between two blocks: their
 * mean). A mean over all blocks would not do: they have (L - 1) / (2 L) of the stack behind them, which goes with L.
 */
function grouped(values: Sizes, byDepth: boolean): Sizes {
  if (!byDepth) return values;
  const named = [...values].map(([name, v]) => {
    const [, stack = '', block, rest] = /^(.*?)blocks\.(\d+)\.(.*)$/.exec(name) ?? [];
    return { name, v, stack, block: block === undefined ? undefined : Number(block), rest };
  });
  const out: Sizes = new Map();
  for (const { name, v, stack, block, rest } of named) {
    if (block === undefined) out.set(name, v);
    // The stream after the last block is what depth adds up in.
    else if (rest === 'residual') out.set(`${stack}residual`, v);
    else if (!out.has(`${stack}blocks.${rest}`)) {
      const ofStack = named.filter((n) => n.stack === stack && n.block !== undefined);
      const depth = 1 + Math.max(...ofStack.map((n) => n.block!));
      const half = (rest.startsWith('ffn') ? depth - 1 : depth) / 2;
      const alike = ofStack.filter((n) => n.rest === rest);
      const at = (k: number): { level: number; change: number } =>
        (alike.find((n) => n.block === k) ?? alike[alike.length >> 1]).v;
      const [low, high] = [at(Math.floor(half)), at(Math.ceil(half))];
      out.set(`${stack}blocks.${rest}`, {
        level: (low.level + high.level) / 2,
        change: (low.change + high.change) / 2,
      });
    }
  }
  return out;
}

/** Named activations of a model on a batch. */
function activations(model: Model, params: ParamTree, batch: DeviceBatch, config: TrainConfig): Map<string, Tensor> {
  const taps = new Map<string, Tensor>();
  const device = openDevice(config.device);
  noGrad(() => model.loss(params, batch, forwardContext({ device, compute: config.precision, taps })));
  return taps;
}

/** Trains one model for a few steps on one batch and measures its activations after each. */
async function trajectory(
  config: TrainConfig,
  { steps, edit }: CoordinateOptions,
  byDepth: boolean,
): Promise<{ losses: number[]; sizes: Sizes[]; outputs: Float32Array[] }> {
  const device = openDevice(config.device);
  const length = rowLength(config);
  const model = buildModel(config.model);
  const params = initialise(model, device, config.seed);
  edit?.(params);
  const tokens = syntheticLoader(config, 1, 1).next(trainBatch(config));
  const batch = DeviceBatch.forTraining(device, config, length);
  batch.write(tokens, tokens.targetCount);
  model.prepare(device);
  const start = capture(device, () => Object.fromEntries(activations(model, params, batch, config)));
  await start.run();
  const names = Object.keys(start.result);
  const measure = capture(device, () =>
    noGrad(() => {
      const now = activations(model, params, batch, config);
      const size = (x: Tensor): Tensor => mean(abs(cast(x, 'f32')));
      const level = stack(names.map((n) => size(now.get(n)!)));
      const change = stack(names.map((n) => size(sub(cast(now.get(n)!, 'f32'), cast(start.result[n], 'f32')))));
      return { level, change, output: now.get(OUTPUT)! };
    }),
  );
  const step = new TrainStep(device, model, params, config, length);
  const losses: number[] = [];
  const sizes: Sizes[] = [];
  const outputs: Float32Array[] = [];
  try {
    for (let t = 0; t <= steps; t++) {
      if (t > 0) losses.push((await step.run(t - 1, [tokens])).loss);
      await measure.run();
      const [level, change] = [await measure.result.level.data(), await measure.result.change.data()];
      const all = new Map(names.map((n, k) => [n, { level: level[k], change: change[k] }]));
      sizes.push(grouped(all, byDepth));
      outputs.push(some((await measure.result.output.data()) as Float32Array));
    }
  } finally {
    step.dispose();
    measure.dispose();
    start.dispose();
    for (const t of [...Object.values(start.result), ...Object.values(measure.result)]) t.dispose();
    batch.dispose();
    disposeTree(params);
  }
  return { losses, sizes, outputs };
}

/** At most KEPT values from all over. The distance is odd, so that it does not keep step with the vocabulary. */
function some(all: Float32Array): Float32Array {
  const every = Math.ceil(all.length / KEPT) | 1;
  return Float32Array.from({ length: Math.ceil(all.length / every) }, (_, k) => all[k * every]);
}

/** Root of the mean product over all pairs of seeds; NaN when there is one only. */
export function sharedSize(seeds: readonly Float32Array[]): number {
  let [sum, count] = [0, 0];
  seeds.forEach((a, k) => {
    for (const b of seeds.slice(k + 1)) {
      for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
      count += a.length;
    }
  });
  return count ? Math.sqrt(Math.max(0, sum / count)) : Number.NaN;
}

/** Slope of y on x by least squares. */
export function slope(x: readonly number[], y: readonly number[]): number {
  const mid = (v: readonly number[]): number => v.reduce((a, b) => a + b, 0) / v.length;
  const [mx, my] = [mid(x), mid(y)];
  const covariance = x.reduce((s, v, k) => s + (v - mx) * (y[k] - my), 0);
  return covariance / x.reduce((s, v) => s + (v - mx) ** 2, 0);
}

/** Measures all sizes and seeds. */
export async function coordinates(options: CoordinateOptions): Promise<CoordinateResult> {
  const { sizes, seeds, steps, onProgress } = options;
  const byDepth = new Set(sizes.map((s) => s.config.model.depth)).size > 1;
  const runs: Awaited<ReturnType<typeof trajectory>>[][] = [];
  let done = 0;
  for (const { config } of sizes) {
    const ofSize = [];
    for (let seed = 0; seed < seeds; seed++) {
      ofSize.push(await trajectory(parseTrainConfig({ ...config, seed: config.seed + seed, steps }), options, byDepth));
      onProgress?.(++done, sizes.length * seeds);
    }
    runs.push(ofSize);
  }
  const logSizes = sizes.map((s) => Math.log2(s.size));
  const result: Coordinate[] = [];
  for (let t = 0; t <= steps; t++)
    for (const name of runs[0][0].sizes[t].keys()) {
      // Geometric means over seeds: the slope is one of logarithms.
      const log = (what: 'level' | 'change'): number[] =>
        runs.map((r) => r.reduce((s, { sizes: at }) => s + Math.log2(at[t].get(name)![what]), 0) / r.length);
      const [level, change] = [log('level'), log('change')];
      const shared = name === OUTPUT && seeds > 1 ? runs.map((r) => sharedSize(r.map((one) => one.outputs[t]))) : null;
      result.push({
        name,
        step: t,
        level: level.map((x) => 2 ** x),
        change: change.map((x) => 2 ** x),
        levelSlope: slope(logSizes, level),
        changeSlope: t === 0 ? 0 : slope(logSizes, change),
        ...(shared && { shared, sharedSlope: slope(logSizes, shared.map(Math.log2)) }),
      });
    }
  const losses = runs.map((r) =>
    Array.from({ length: steps }, (_, t) => r.reduce((s, one) => s + one.losses[t], 0) / r.length),
  );
  return { sizes: sizes.map((s) => s.size), losses, coordinates: result };
}

export interface Band {
  /** Steps before this one are not judged. */
  readonly from: number;
  /** Largest |slope|; `noisy` for scores and router logits. */
  readonly limit: number;
  readonly noisy: number;
  /**
   * How far the slopes may fall below zero of what holds a random part, which goes with size^-1/2: final logits, of which
   * the part that seeds share may not, and router logits that do not start at zero.
   */
  readonly transient: number;
  /** The same for attention scores, when heads grow wider. */
  readonly fadingScores?: boolean;
}

export const defaultBand: Band = { from: 3, limit: 0.1, noisy: 0.2, transient: 0.6 };

export interface Verdict {
  readonly name: string;
  readonly limit: number;
  /** Worst slopes from step `from` on. */
  readonly level: number;
  readonly change: number;
  /** Of what seeds share; NaN when it vanished at some size. */
  readonly shared?: number;
  readonly ok: boolean;
}

/** Which activations keep their size. An activation that is zero throughout says nothing and passes. */
export function judge({ coordinates: all }: CoordinateResult, band: Band = defaultBand): Verdict[] {
  const names = [...new Set(all.map((c) => c.name))];
  const worst = (slopes: number[]): number => slopes.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
  return names.map((name) => {
    // Scores and outputs that do not start at zero hold a random part, which averages out with size.
    const random = all.some((c) => c.name === name && c.step === 0 && c.level.every((x) => x > 0));
    const output = /(^logits|router)$/.test(name) || (/attention\.logits$/.test(name) && band.fadingScores);
    const limit = /(attention\.logits|router)$/.test(name) ? band.noisy : band.limit;
    const seen = all.filter((c) => c.name === name && c.step >= band.from);
    const alive = seen.filter((c) => c.level.some((x) => x > 0));
    const levels = alive.map((c) => c.levelSlope).filter(Number.isFinite);
    const changes = alive.map((c) => c.changeSlope).filter(Number.isFinite);
    const shared = alive.flatMap((c) => (c.sharedSlope === undefined ? [] : [c.sharedSlope]));
    const fading = (output && random) || shared.length > 0;
    const low = fading ? -band.transient : -limit;
    const finite = seen.every((c) => [...c.level, ...c.change].every(Number.isFinite));
    return {
      name,
      limit,
      level: worst(levels),
      change: worst(changes),
      ...(shared.length && { shared: shared.every(Number.isFinite) ? worst(shared) : Number.NaN }),
      ok:
        finite &&
        [...levels, ...changes].every((x) => x >= low && x <= limit) &&
        shared.every((x) => Math.abs(x) <= limit),
    };
  });
}
