/** Turns a time budget into a number of steps, by measuring steps before the run begins: what follows is deterministic. */
import { disposeTree } from '../nn/index.ts';
import type { TrainConfig } from './config.ts';
import { trainBatch } from './objective.ts';
import { freshModel, openRunData, rowLength, trainLoader } from './session.ts';
import { TrainStep } from './step.ts';

/** Steps of this config that take about `seconds` on this machine; at least 10. */
export async function stepsForSeconds(config: TrainConfig, seconds: number): Promise<number> {
  const data = openRunData(config);
  const length = rowLength(config);
  const { device, model, params } = freshModel(config);
  let step: TrainStep | undefined;
  try {
    const loader = trainLoader(config, data);
    const batches = Array.from({ length: config.accumulate }, () => loader.next(trainBatch(config)));
    step = new TrainStep(device, model, params, config, length);
    const ms = await step.measure(batches, Math.min(2, 0.05 * seconds));
    return Math.max(10, Math.floor((seconds * 1000) / ms));
  } finally {
    step?.dispose();
    disposeTree(params);
    data.close();
  }
}
