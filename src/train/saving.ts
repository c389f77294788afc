/** What a run's checkpoint holds, and how a run goes on from one. */
import type { Loader, LoaderState } from '../data/loader.ts';
import { tokenizerHash } from '../data/prepare.ts';
import { isTrainable } from '../nn/index.ts';
import type { BaseNote } from './base.ts';
import type { TrainConfig } from './config.ts';
import type { TrainedParam } from './optimisers/index.ts';
import { type Checkpoint, saveCheckpoint } from './run/checkpoint.ts';
import type { RunFolder } from './run/folder.ts';
import { loadTensors, type RunData, tensorSource } from './session.ts';
import type { TrainStep } from './step.ts';

export interface Progress {
  step: number;
  tokens: number;
  /** Targets trained on so far. */
  lossTokens: number;
  elapsed: number;
  skipsInARow: number;
}

/** The parts of a running trainer that a checkpoint covers. */
interface Running {
  readonly folder: RunFolder;
  readonly config: TrainConfig;
  readonly data: RunData;
  readonly loader: Loader;
  readonly step: TrainStep;
  /** A quantised run that this one adapts: it keeps its own weights. */
  readonly base: BaseNote | null;
}

/** What a run's checkpoints hold of its parameters. */
export const ownParams = ({ base, step }: Pick<Running, 'base' | 'step'>): TrainedParam[] =>
  base ? step.params.filter(isTrainable) : step.params;

/** Writes a checkpoint of the run as it stands. */
export function saveRun({ folder, config, data, loader, step, base }: Running, at: Progress) {
  const { keepLast, keepEvery } = config.checkpoint;
  const contents = {
    tensors: {
      model: ownParams({ base, step }).map((p) => tensorSource(p.path, p.tensor)),
      optimizer: [...step.optimiser.state].map(([name, t]) => tensorSource(name, t)),
    },
    state: {
      ...at,
      loader: loader.state() as never,
      seed: config.seed,
      tokenizer: tokenizerHash(data.tokenizer),
      ...(base ? { base: { ...base } } : {}),
    },
  };
  return saveCheckpoint(folder, at.step, contents, { keepLast, keepEvery });
}

/** Puts weights, optimiser and loader where the checkpoint left them; returns where that was. */
export async function restoreRun(checkpoint: Checkpoint, running: Running): Promise<Progress> {
  const { step, loader } = running;
  await loadTensors(
    checkpoint,
    'model',
    ownParams(running).map((p) => [p.path, p.tensor]),
  );
  await loadTensors(checkpoint, 'optimizer', step.optimiser.state);
  const state = checkpoint.state as unknown as Progress & { loader: LoaderState };
  loader.restore(state.loader);
  const { step: done, tokens, lossTokens = 0, elapsed, skipsInARow } = state;
  return { step: done, tokens, lossTokens, elapsed, skipsInARow };
}
