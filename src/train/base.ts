/**
 * The quantised run that an adapted one stands on. Its weights are not copied: they lie in its own file, which all runs that
 * adapt it share, and a checkpoint of an adapted one holds the differences and says which checkpoint they belong to.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../backend/errors.ts';
import type { Device } from '../backend/index.ts';
import { Tokenizer } from '../data/tokenizer/index.ts';
import { buildModel } from '../model/model.ts';
import { declared, type ParamTree } from '../nn/index.ts';
import type { TrainConfig } from './config.ts';
import { Checkpoint, checkpointPath, latestCheckpoint } from './run/checkpoint.ts';
import { RunFolder } from './run/folder.ts';
import type { SafetensorsFile } from './safetensors.ts';
import { storedBlocks, storedParams } from './stored.ts';

/** As a checkpoint notes it. */
export interface BaseNote {
  readonly run: string;
  readonly step: number;
  /** Of the checkpoint's manifest, which has the hashes of all its files. */
  readonly seal: string;
}

export interface QuantisedBase {
  readonly params: ParamTree;
  readonly note: BaseNote;
  readonly tokenizer: Tokenizer | null;
}

export const baseNoteOf = ({ state }: Checkpoint): BaseNote | undefined => state.base as BaseNote | undefined;

/** The base of a run that is about to be trained; null when it adapts nothing, or a run in full precision. */
export async function baseToTrainOn(
  config: TrainConfig,
  device: Device,
  note?: BaseNote,
): Promise<QuantisedBase | null> {
  if (note) return openBase(config, device, await noted(note), note.run, true);
  if (config.from === undefined || !config.adapter) return null;
  const checkpoint = await latestCheckpoint(RunFolder.open(config.from), { verify: 'once' });
  return checkpoint ? openBase(config, device, checkpoint, config.from, true) : null;
}

/** The base that an adapted run was trained on, for those who use it. */
export async function baseOf(config: TrainConfig, device: Device, note: BaseNote): Promise<QuantisedBase> {
  const base = await openBase(config, device, await noted(note), note.run, false);
  if (!base) throw new AnsatzError(`${note.run}: is not quantised, as the run that was adapted was`);
  return base;
}

/** @throws AnsatzError when it is gone, or another one. */
async function noted({ run, step, seal }: BaseNote): Promise<Checkpoint> {
  const hint = 'put the run back that was adapted; its weights are not in the adapted run';
  let checkpoint: Checkpoint;
  try {
    checkpoint = await Checkpoint.load(checkpointPath(RunFolder.open(run), step), 'once');
  } catch (cause) {
    if (!(cause instanceof AnsatzError)) throw cause;
    throw new AnsatzError(`the quantised run that this one adapts cannot be used: ${cause.message}`, { hint, cause });
  }
  if (checkpoint.manifest.seal !== seal)
    throw new AnsatzError(`${checkpoint.path}: is not the checkpoint that was adapted: it was written anew`, { hint });
  return checkpoint;
}

async function openBase(
  config: TrainConfig,
  device: Device,
  checkpoint: Checkpoint,
  path: string,
  training: boolean,
): Promise<QuantisedBase | null> {
  const file = await checkpoint.tensors('model');
  try {
    const model = buildModel(config.model);
    if (
      !isQuantised(
        file,
        declared(model).map((p) => p.path),
      )
    )
      return null;
    if (training) refuseWhatHasNoGradient(file, path);
    // Running counts and the like may be updated in training, so they are copied.
    const changes = training ? (name: string): boolean => file.info(name).dtype !== 'U8' : undefined;
    const source = { path: file.path, names: file.names, fd: file.fd, changes };
    const read = {
      info: (name: string) => file.info(name),
      read: (name: string) => file.read(name),
      readInto: (...args: Parameters<SafetensorsFile['readInto']>) => file.readInto(...args),
    };
    const params = await storedParams({ ...source, ...read }, model, device);
    const own = join(RunFolder.open(path).path, 'tokenizer.json');
    const { step } = checkpoint;
    const note = { run: RunFolder.open(path).path, step, seal: checkpoint.manifest.seal };
    return { params, note, tokenizer: existsSync(own) ? Tokenizer.fromFile(own) : null };
  } finally {
    await file.close();
  }
}

function isQuantised(file: SafetensorsFile, paths: readonly string[]): boolean {
  const names = new Set(file.names);
  return paths.some((path) => storedBlocks(names, path, [1, 1]) !== undefined);
}

/** Units as records, and convolutions: only their layers read them, and only for inference. */
function refuseWhatHasNoGradient(file: SafetensorsFile, path: string): void {
  const odd = file.names.find((name) => /\.units_\w+$/.test(name) || /\.rows\.\w+$/.test(name));
  if (odd !== undefined)
    throw new AnsatzError(`${path}: is quantised, and there is no gradient through ${odd}`, {
      hint: 'adapt the run that it was made from: its config.json names it (madeFrom)',
    });
}
