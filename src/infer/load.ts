/** A trained run made ready for use: its checkpoint, its tokenizer, its model. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../backend/errors.ts';
import { tokenizerHash } from '../data/prepare.ts';
import { Tokenizer } from '../data/tokenizer/index.ts';
import type { Objective } from '../objectives/index.ts';
import { parseTrainConfig } from '../train/config.ts';
import { objectiveOf } from '../train/objective.ts';
import { Checkpoint, checkpointPath, latestCheckpoint, listCheckpoints } from '../train/run/checkpoint.ts';
import { RunFolder } from '../train/run/folder.ts';
import type { Verify } from '../train/run/manifest.ts';
import { type LoadedModel, loadModel } from '../train/session.ts';

export interface CheckpointChoice {
  /** By default the newest that is usable. */
  readonly step?: number;
  /** Reads all of it for its checksums, also where that was done before. */
  readonly verify?: boolean;
  /** Hears of newer ones that are not. */
  readonly warn?: (message: string) => void;
  /** The command that goes on with the run, for one that has no checkpoint yet. */
  readonly resume?: string;
}

/** The checkpoint of a step, or the newest that is usable; `path` is how the run was named. */
export async function chooseCheckpoint(run: RunFolder, path: string, o: CheckpointChoice = {}): Promise<Checkpoint> {
  const steps = listCheckpoints(run);
  const verify: Verify = o.verify ? 'full' : 'once';
  if (steps.length === 0)
    throw new AnsatzError(`${path}: has no checkpoint to generate from`, o.resume ? { hint: o.resume } : {});
  if (o.step !== undefined) {
    if (!steps.includes(o.step))
      throw new AnsatzError(`${path}: has no checkpoint of step ${o.step}`, {
        hint: `choose from ${steps.join(', ')}, or leave --step out for the newest`,
      });
    return Checkpoint.load(checkpointPath(run, o.step), verify);
  }
  const problems: string[] = [];
  const newest = await latestCheckpoint(run, { verify, warn: (w) => problems.push(w.message) });
  if (!newest)
    throw new AnsatzError(`${path}: no checkpoint is usable: ${problems[0].replace(/; trying .*/, '')}`, {
      hint: 'restore one from a copy, or train again',
    });
  for (const message of problems) o.warn?.(message);
  return newest;
}

/** The tokenizer that a run was trained with: its own copy, or the data folder's. */
export function runTokenizer(run: RunFolder, dataFolder: string, checkpoint: Checkpoint): Tokenizer {
  const own = join(run.path, 'tokenizer.json');
  const path = existsSync(own) ? own : join(dataFolder, 'tokenizer.json');
  const tokenizer = Tokenizer.fromFile(path);
  const { tokenizer: wanted } = checkpoint.state;
  if (typeof wanted === 'string' && wanted !== tokenizerHash(tokenizer))
    throw new AnsatzError(`${path}: is not the tokenizer that ${run.name} was trained with`, {
      hint: 'put the original tokenizer.json back: ids of another one mean other text',
    });
  return tokenizer;
}

export interface OpenRun extends LoadedModel {
  readonly run: RunFolder;
  readonly checkpoint: Checkpoint;
  readonly tokenizer: Tokenizer;
  /** What it was trained with; it says how a prompt is put. */
  readonly objective: Objective;
}

/** A run's model with the parameters of a checkpoint. */
export async function openRun(path: string, choice: CheckpointChoice = {}): Promise<OpenRun> {
  const run = RunFolder.open(path);
  const checkpoint = await chooseCheckpoint(run, path, choice);
  const config = parseTrainConfig(run.config);
  const tokenizer = runTokenizer(run, config.data.folder, checkpoint);
  const loaded = await loadModel(config, checkpoint);
  return { ...loaded, run, checkpoint, tokenizer, objective: objectiveOf(config) };
}
