/** The best learning rate at several widths: whether what is tuned on a small model holds on larger ones. */
import { openDevice } from '../backend/index.ts';
import { buildModel } from '../model/model.ts';
import { disposeTree, initialise } from '../nn/index.ts';
import { parseTrainConfig, type TrainConfig } from './config.ts';
import { trainBatch } from './objective.ts';
import { openRunData, rowLength, trainLoader } from './session.ts';
import { TrainStep } from './step.ts';
import { syntheticLoader } from './synthetic.ts';

export interface SweepOptions {
  readonly sizes: readonly { readonly size: number; readonly config: TrainConfig }[];
  readonly rates: readonly number[];
  readonly seeds: number;
  /** Whether to train on the config's data folder; otherwise on a made-up language. */
  readonly onData: boolean;
  onProgress?(done: number, total: number): void;
}

export interface SweepCurve {
  readonly size: number;
  /** Training loss over the last tenth of the run, by rate, averaged over seeds; infinite when a run diverged. */
  readonly losses: readonly number[];
  /** Standard deviation over seeds. */
  readonly spread: readonly number[];
  /** log2 of the best rate: the vertex of a parabola through the best point and its neighbours. */
  readonly best: number;
  /** Whether the best rate lies inside the grid: at its end the optimum is unknown. */
  readonly inside: boolean;
}

async function finalLoss(config: TrainConfig, onData: boolean): Promise<number> {
  const device = openDevice(config.device);
  const length = rowLength(config);
  const model = buildModel(config.model);
  const params = initialise(model, device, config.seed);
  const data = onData ? openRunData(config) : undefined;
  const loader = data ? trainLoader(config, data) : syntheticLoader(config, config.steps * config.accumulate);
  const batches = Array.from({ length: config.accumulate }, () => trainBatch(config));
  const step = new TrainStep(device, model, params, config, length);
  const tail = Math.max(1, Math.round(config.steps / 10));
  let sum = 0;
  try {
    for (let t = 0; t < config.steps; t++) {
      for (const b of batches) loader.next(b);
      const { loss, finite } = await step.run(t, batches);
      if (!finite) return Number.POSITIVE_INFINITY;
      if (t >= config.steps - tail) sum += loss / tail;
    }
  } finally {
    step.dispose();
    disposeTree(params);
    data?.close();
  }
  return sum;
}

/** The vertex of a parabola through the lowest point of a curve and its neighbours, in x. */
export function vertex(x: readonly number[], y: readonly number[]): { best: number; inside: boolean } {
  let k = 0;
  for (let j = 1; j < y.length; j++) if (y[j] < y[k]) k = j;
  const inside = k > 0 && k < y.length - 1;
  if (!inside || !Number.isFinite(y[k - 1]) || !Number.isFinite(y[k + 1])) return { best: x[k], inside };
  const [a, b] = [x[k] - x[k - 1], x[k] - x[k + 1]];
  const [fa, fb] = [y[k] - y[k - 1], y[k] - y[k + 1]];
  const bottom = a * fb - b * fa;
  return { best: bottom === 0 ? x[k] : x[k] - (a * a * fb - b * b * fa) / (2 * bottom), inside };
}

export async function rateSweep({ sizes, rates, seeds, onData, onProgress }: SweepOptions): Promise<SweepCurve[]> {
  const curves: SweepCurve[] = [];
  const total = sizes.length * rates.length * seeds;
  let done = 0;
  for (const { size, config } of sizes) {
    const losses: number[] = [];
    const spread: number[] = [];
    for (const lr of rates) {
      const runs: number[] = [];
      for (let seed = 0; seed < seeds; seed++) {
        const optimiser = withRate(config.optimiser, lr);
        const one = parseTrainConfig({ ...config, optimiser, seed: config.seed + seed });
        runs.push(await finalLoss(one, onData));
        onProgress?.(++done, total);
      }
      const mean = runs.reduce((a, b) => a + b, 0) / seeds;
      losses.push(mean);
      spread.push(seeds > 1 ? Math.sqrt(runs.reduce((s, r) => s + (r - mean) ** 2, 0) / (seeds - 1)) : 0);
    }
    curves.push({ size, losses, spread, ...vertex(rates.map(Math.log2), losses) });
  }
  return curves;
}

/** Another learning rate; rates of parts of an optimiser keep their ratio to it. */
function withRate(optimiser: TrainConfig['optimiser'], lr: number): TrainConfig['optimiser'] {
  const aux = optimiser.aux as { lr: number } | undefined;
  return { ...optimiser, lr, ...(aux ? { aux: { ...aux, lr: (aux.lr * lr) / optimiser.lr } } : {}) };
}
