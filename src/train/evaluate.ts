/** Held-out loss of a model: of every token from those before it, and of the run's own objective. */
import { bitsPerByte } from '../data/baselines.ts';
import { extrasOf } from '../data/packing-objective.ts';
import { createBatch } from '../data/types.ts';
import { IGNORE } from '../objectives/index.ts';
import type { TrainConfig } from './config.ts';
import { objectiveOf } from './objective.ts';
import { heldOutRows, type LoadedModel, objectivePacking, type RunData, rowLength } from './session.ts';
import { DeviceBatch, EvalStep } from './step.ts';

/** Masks, splits and the like of held-out rows: the same ones for every run. */
const OBJECTIVE_SEED = 0;

export interface HeldOutLoss {
  readonly loss: number;
  readonly bitsPerByte: number;
}

/** Loss of the held-out text, every token a target once. */
export async function heldOutLoss(
  { device, model, params }: LoadedModel,
  config: TrainConfig,
  data: RunData,
  maxTokens?: number,
  onProgress?: (done: number, total: number) => void,
): Promise<HeldOutLoss> {
  const { loader, encoder, batches } = heldOutRows(config, data, maxTokens);
  const step = new EvalStep(device, model, params, config, rowLength(config), encoder);
  let nats = 0;
  let targets = 0;
  let done = 0;
  try {
    for (const batch of batches()) {
      const r = await step.run(batch);
      nats += r.nats;
      targets += r.targets;
      onProgress?.(++done, loader.batches);
    }
  } finally {
    step.dispose();
  }
  return { loss: nats / targets, bitsPerByte: bitsPerByte(nats, loader.textBytes) };
}

export interface ObjectiveLoss {
  /** The objective's name. */
  readonly kind: string;
  /** Mean nats a target; null where the rows hold none. */
  readonly loss: number | null;
  readonly targets: number;
}

/**
 * Loss on rows of the held-out text as training makes them: one pass in order. Of a prefix or a masked span only some
 * tokens are targets, so this is no number of bits per byte, and compares with runs of the same objective only.
 */
export async function objectiveLoss(
  { device, model, params }: LoadedModel,
  config: TrainConfig,
  data: RunData,
  maxTokens = Number.POSITIVE_INFINITY,
): Promise<ObjectiveLoss> {
  const objective = objectiveOf(config);
  const packing = objectivePacking(config, data, data.heldOut, OBJECTIVE_SEED);
  const share = Math.min(1, maxTokens / packing.data.tokenCount);
  const rows = Math.ceil(packing.rows * share);
  const batch = createBatch(config.batch, objective.shape.length, extrasOf(objective));
  const rowsOnDevice = DeviceBatch.forTraining(device, config, rowLength(config));
  const step = new EvalStep(device, model, params, config, rowLength(config), 0, rowsOnDevice);
  let nats = 0;
  let targets = 0;
  try {
    for (let first = 0; first < rows; first += config.batch) {
      batch.targetCount = 0;
      for (let row = 0; row < config.batch; row++) {
        batch.samples[row] = first + row;
        // Past the last row an older one stays, without targets.
        if (first + row < rows) batch.targetCount += packing.fill(first + row, batch, row);
        else batch.targets.fill(IGNORE, row * batch.length, (row + 1) * batch.length);
      }
      const r = await step.run(batch);
      nats += r.nats;
      targets += r.targets;
    }
  } finally {
    step.dispose();
  }
  return { kind: config.objective.kind, loss: targets > 0 ? nats / targets : null, targets };
}
