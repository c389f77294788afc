/** Going through a model's matrices with what enters each of them at hand, a stage of as many as memory allows at a time. */

import { extrasOf } from '../../data/packing-objective.ts';
import { createBatch, type TokenBatch } from '../../data/types.ts';
import type { ParamTree } from '../../nn/index.ts';
import { noGrad, type Tensor } from '../../tensor/index.ts';
import type { TrainConfig } from '../../train/config.ts';
import { objectiveOf } from '../../train/objective.ts';
import { type LoadedModel, type RunData, rowLength, trainLoader } from '../../train/session.ts';
import { DeviceBatch } from '../../train/step.ts';
import { calibrate, type Statistic } from './calibrate.ts';
import type { Target } from './targets.ts';

/** Text to calibrate with. */
export interface Calibration {
  /** Its batches, from the start each time. */
  batches(): Iterable<TokenBatch>;
  /** Where they go on the device. */
  readonly batch: DeviceBatch;
  /** Positions in all. */
  readonly tokens: number;
  dispose(): void;
}

/** Rows of a run's training text as its objective makes them. */
export function calibrationOf(loaded: LoadedModel, data: RunData, tokens: number): Calibration {
  const length = rowLength(loaded.config);
  const rows = Math.max(1, Math.ceil(tokens / length));
  const config: TrainConfig = { ...loaded.config, batch: Math.min(loaded.config.batch, rows) };
  const count = Math.ceil(rows / config.batch);
  const batch = DeviceBatch.forTraining(loaded.device, config, length);
  const objective = objectiveOf(config);
  return {
    batch,
    tokens: count * config.batch * objective.shape.length,
    *batches() {
      const loader = trainLoader(config, data);
      const into = createBatch(config.batch, objective.shape.length, extrasOf(objective));
      for (let k = 0; k < count; k++) {
        loader.next(into);
        yield into;
      }
    },
    dispose: () => batch.dispose(),
  };
}

/**
 * Calls `each` for every target, with the sum for its inputs (none when no pass came to it). A stage's targets are
 * calibrated in one pass over the text, as the parameters stand then: `params` is asked before each.
 * @param memory bytes that the sums of a stage may take; a single one may take more
 * @returns the number of passes
 */
export async function eachCalibrated(
  { device, model, config }: LoadedModel,
  targets: readonly Target[],
  { statistic, memory }: { statistic: Statistic; memory: number },
  { batch, batches }: Calibration,
  params: () => ParamTree,
  each: (target: Target, sum: Tensor | undefined) => void,
): Promise<number> {
  const all = stages(targets, statistic, memory);
  for (const stage of all) {
    const paths = stage.map((t) => t.path);
    const options = { device, model, params: params(), compute: config.precision, paths, batch, statistic };
    const sums = await calibrate(options, batches());
    try {
      for (const t of stage) {
        noGrad(() => each(t, sums.get(t.path)));
        await new Promise(setImmediate); // progress is shown, and Ctrl-C heard
      }
    } finally {
      for (const sum of new Set(sums.values())) sum.dispose();
    }
  }
  return all.length;
}

/** Targets in runs whose sums fit into `memory`; at least one each. */
export function stages(targets: readonly Target[], statistic: Statistic, memory: number): Target[][] {
  const out: Target[][] = [];
  let left = 0;
  for (const t of targets) {
    const { shape, rank } = t.weight;
    const bytes = 4 * t.inputs * (statistic === 'gram' ? t.inputs : 1) * (rank === 3 ? shape[0] : 1);
    if (bytes > left || out.length === 0) {
      out.push([]);
      left = Math.max(memory, bytes);
    }
    out[out.length - 1].push(t);
    left -= bytes;
  }
  return out;
}
