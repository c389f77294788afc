/**
 * Held-out loss of a run by position, also past the length it was trained at: what an encoding of positions is worth.
 * A position counts from where the model's view of the token begins: its document in the row, or the row.
 */
import { AnsatzError } from '../backend/errors.ts';
import { bitsPerByte } from '../data/baselines.ts';
import type { TokenBatch } from '../data/types.ts';
import { withContext } from '../model/model.ts';
import type { ModelSpec } from '../model/spec.ts';
import { disposeTree } from '../nn/index.ts';
import { parseTrainConfig, type TrainConfig } from './config.ts';
import { type ObjectiveLoss, objectiveLoss } from './evaluate.ts';
import { objectiveOf, settledFor } from './objective.ts';
import type { Checkpoint } from './run/checkpoint.ts';
import { heldOutRows, loadModel, openRunData, rowLength } from './session.ts';
import { EvalStep } from './step.ts';

export interface EvaluateOptions {
  /** Tokens of a row; by default those of training. */
  readonly length?: number;
  /** Changes the spec for rows of `length` after training at `trained`; the weights must still fit. */
  readonly adapt?: (model: ModelSpec, length: number, trained: number) => ModelSpec;
  /** Look across document borders: long rows of short documents. */
  readonly crossDocuments?: boolean;
  readonly maxTokens?: number;
  /** Also the loss of the run's own objective. */
  readonly objective?: boolean;
  onProgress?(done: number, total: number): void;
}

export interface PositionBin {
  /** Positions from (included) and to (excluded). */
  readonly from: number;
  readonly to: number;
  readonly targets: number;
  /** Mean nats; null where no token stands. */
  readonly loss: number | null;
  /** Standard error of the mean, tokens taken as independent. */
  readonly error: number | null;
}

export interface Evaluation {
  readonly loss: number;
  readonly bitsPerByte: number;
  readonly targets: number;
  readonly length: number;
  readonly trained: number;
  readonly bins: readonly PositionBin[];
  /** Where asked for. */
  readonly objective?: ObjectiveLoss;
}

/** Sums of losses and of their squares by position. */
export class PositionSums {
  readonly nats: Float64Array;
  readonly squares: Float64Array;
  readonly targets: Float64Array;

  constructor(length: number) {
    this.nats = new Float64Array(length);
    this.squares = new Float64Array(length);
    this.targets = new Float64Array(length);
  }

  add(batch: TokenBatch, rows: ArrayLike<number>, byDocument: boolean): void {
    for (let k = 0; k < rows.length; k++) {
      if (batch.targets[k] < 0) continue;
      const at = byDocument ? batch.positions[k] : k % batch.length;
      this.nats[at] += rows[k];
      this.squares[at] += rows[k] ** 2;
      this.targets[at]++;
    }
  }

  /** Mean loss of the positions from `from` to `to`. */
  bin(from: number, to: number): PositionBin {
    const total = (x: Float64Array): number => x.subarray(from, to).reduce((a, b) => a + b, 0);
    const [nats, squares, targets] = [total(this.nats), total(this.squares), total(this.targets)];
    if (targets === 0) return { from, to, targets, loss: null, error: null };
    const loss = nats / targets;
    const variance = Math.max(0, squares / targets - loss ** 2);
    return { from, to, targets, loss, error: Math.sqrt(variance / targets) };
  }
}

/** Equal bins of which one ends at the trained length: eight up to it, as wide ones past it. */
export function binEdges(length: number, trained: number): number[] {
  const width = Math.max(1, Math.round(Math.min(length, trained) / 8));
  const edges: number[] = [];
  for (let at = 0; at < length; at += width) edges.push(at);
  return [...edges, length];
}

/** The config under which a trained run is looked at. */
export function evaluationConfig(config: TrainConfig, o: EvaluateOptions): TrainConfig {
  const trained = rowLength(config);
  const length = o.length ?? trained;
  if (length > config.model.context && config.model.positions.kind === 'learned')
    throw new AnsatzError(`learned positions end at ${config.model.context}: there are none for ${length} tokens`, {
      hint: `use --length ${config.model.context} or less`,
    });
  const longer = withContext(config.model, length);
  const model = o.adapt ? o.adapt(longer, length, trained) : longer;
  const batch = Math.max(1, Math.floor((config.batch * trained) / length));
  const crossDocuments = o.crossDocuments ?? config.data.crossDocuments;
  // Held-out rows that an objective leaves as they are need none of its masks.
  const plain = !o.objective && !objectiveOf(config).heldOut;
  const objective = plain ? { kind: 'causal' } : settledFor(config);
  return parseTrainConfig({ ...config, objective, model, length, batch, data: { ...config.data, crossDocuments } });
}

/** Evaluates a checkpoint of a run on its held-out text. */
export async function evaluateCheckpoint(
  config: TrainConfig,
  checkpoint: Checkpoint,
  options: EvaluateOptions = {},
): Promise<Evaluation> {
  const changed = evaluationConfig(config, options);
  const length = rowLength(changed);
  const data = openRunData(changed);
  const loaded = await loadModel(changed, checkpoint).catch((error) => {
    data.close();
    throw error;
  });
  const { device, model, params } = loaded;
  const { loader, encoder, batches } = heldOutRows(changed, data, options.maxTokens);
  const step = new EvalStep(device, model, params, changed, length, encoder);
  const sums = new PositionSums(length);
  let objective: ObjectiveLoss | undefined;
  try {
    let done = 0;
    for (const batch of batches()) {
      sums.add(batch, await step.rows(batch), encoder > 0 || !changed.data.crossDocuments);
      options.onProgress?.(++done, loader.batches);
    }
    if (options.objective) objective = await objectiveLoss(loaded, changed, data, options.maxTokens);
  } finally {
    step.dispose();
    disposeTree(params);
    data.close();
  }
  const all = sums.bin(0, length);
  if (all.loss === null) throw new AnsatzError('there is no held-out text to evaluate on');
  const edges = binEdges(length, rowLength(config));
  return {
    loss: all.loss,
    bitsPerByte: bitsPerByte(all.loss * all.targets, loader.textBytes),
    targets: all.targets,
    length,
    trained: rowLength(config),
    bins: edges.slice(1).map((to, k) => sums.bin(edges[k], to)),
    ...(objective && { objective }),
  };
}
