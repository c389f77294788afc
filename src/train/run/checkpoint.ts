// Checkpoints that a kill at any moment cannot spoil. One is written into checkpoints/.tmp-<step>-<pid>/, each file
// fsynced; manifest.json (size and sha256 of every file) comes last; then the directory is renamed to
// checkpoints/<step>/ and the parent is fsynced. So a directory with a step's name is complete, and what went wrong
// afterwards (a bad disk, a careless edit) shows against the manifest. Reading never deletes anything.
import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { SafetensorsFile, type TensorSource, writeSafetensors } from '../safetensors.ts';
import { canonicalJson, type JsonObject } from './canonical.ts';
import type { NewRunEvent } from './events.ts';
import { syncDirectory, writeDurable } from './files.ts';
import type { RunFolder } from './folder.ts';
import { damaged, type FileEntry, type Manifest, sealManifest, type Verify, verifyCheckpoint } from './manifest.ts';
import { checkpointSteps, prune, type Retention, setAside, stepName, sweepLeftovers } from './retention.ts';

export interface CheckpointContents {
  /** Each set becomes <name>.safetensors, e.g. {model: [...], optimizer: [...]}. */
  tensors: { readonly [set: string]: readonly TensorSource[] };
  /** Everything else that a resumed run needs to continue bit for bit: RNG, loader cursor, counters, schedule. */
  state: JsonObject;
}

export interface SavedCheckpoint {
  step: number;
  path: string;
  bytes: number;
  ms: number;
}

const STATE = 'state.json';
// Drafts this process is writing now, which a sweep must leave alone.
const active = new Set<string>();

/** Writes a checkpoint, then removes those that retention lets go. The caller holds the run's lock. */
export async function saveCheckpoint(
  run: RunFolder,
  step: number,
  contents: CheckpointContents,
  retention: Retention = {},
): Promise<SavedCheckpoint> {
  const started = performance.now();
  const parent = run.file('checkpoints');
  const path = join(parent, stepName(step));
  const draft = join(parent, `.tmp-${step}-${process.pid}`);
  if (active.has(draft)) throw new AnsatzError(`${path}: this checkpoint is being written already`);
  active.add(draft);
  try {
    await mkdir(parent, { recursive: true });
    await sweepLeftovers(parent, active);
    await rm(draft, { recursive: true, force: true });
    await mkdir(draft);
    const files: Record<string, FileEntry> = {};
    for (const [set, tensors] of Object.entries(contents.tensors)) {
      if (!/^[\w-]+$/.test(set)) throw new AnsatzError(`"${set}" cannot name a set of tensors in a checkpoint`);
      const name = `${set}.safetensors`;
      files[name] = await writeSafetensors(join(draft, name), tensors, { format: 'ansatz', step: String(step) });
    }
    const state = `${canonicalJson(contents.state, 2)}\n`;
    await writeDurable(join(draft, STATE), state);
    files[STATE] = { bytes: Buffer.byteLength(state), sha256: createHash('sha256').update(state).digest('hex') };
    const manifest = sealManifest({ step, config: run.hash, created: new Date().toISOString(), files });
    await writeDurable(join(draft, 'manifest.json'), `${canonicalJson(manifest, 2)}\n`);
    await syncDirectory(draft);
    // The same step can come twice: after a resume from an older checkpoint, or when the periodic save was damaged.
    await setAside(parent, [step]);
    await rename(draft, path);
    await syncDirectory(parent);
    await prune(parent, retention);
    const bytes = Object.values(files).reduce((sum, file) => sum + file.bytes, 0);
    return { step, path, bytes, ms: performance.now() - started };
  } catch (error) {
    // Failing to clean up must not hide what went wrong; the next save tries again.
    await rm(draft, { recursive: true, force: true }).catch(() => {});
    if (error instanceof AnsatzError || (error as NodeJS.ErrnoException).code === undefined) throw error;
    throw new AnsatzError(
      `${path}: checkpoint could not be written (${(error as NodeJS.ErrnoException).code}); older ones are untouched`,
      { hint: 'free some disk space, then resume the run', cause: error },
    );
  } finally {
    active.delete(draft);
  }
}

/** A verified checkpoint: its state, and its tensors to be read as needed. */
export class Checkpoint {
  readonly path: string;
  readonly step: number;
  readonly state: JsonObject;
  readonly manifest: Manifest;

  private constructor(path: string, manifest: Manifest, state: JsonObject) {
    this.path = path;
    this.step = manifest.step;
    this.state = state;
    this.manifest = manifest;
  }

  /** Opens checkpoints/<step>/ of a run, or throws one line saying what is wrong with it. */
  static async load(path: string, verify: Verify = 'full'): Promise<Checkpoint> {
    const folder = resolve(path);
    const manifest = await verifyCheckpoint(folder, verify);
    let state: JsonObject;
    try {
      state = JSON.parse(await readFile(join(folder, STATE), 'utf8')) as JsonObject;
    } catch {
      throw damaged(folder, `${STATE} is not JSON`);
    }
    return new Checkpoint(folder, manifest, state);
  }

  /** Names of the tensor sets: model, optimizer, ... */
  get sets(): string[] {
    return Object.keys(this.manifest.files)
      .filter((name) => name.endsWith('.safetensors'))
      .map((name) => basename(name, '.safetensors'));
  }

  /** One set of tensors; close it when done. */
  async tensors(set: string): Promise<SafetensorsFile> {
    if (!this.sets.includes(set)) {
      throw new AnsatzError(`${this.path}: has no "${set}" tensors, only ${this.sets.join(', ')}`);
    }
    return SafetensorsFile.open(join(this.path, `${set}.safetensors`));
  }
}

/** Steps of a run's checkpoints, oldest first, as their names say; they have not been verified. */
export function listCheckpoints(run: RunFolder): number[] {
  return checkpointSteps(run.file('checkpoints'));
}

export function checkpointPath(run: RunFolder, step: number): string {
  return join(run.file('checkpoints'), stepName(step));
}

/**
 * The newest checkpoint that verifies; undefined when there is none. One that does not is passed over with a warning
 * event that names it and says why, and stays where it is.
 */
export async function latestCheckpoint(
  run: RunFolder,
  options: { verify?: Verify; warn?: (event: NewRunEvent & { event: 'warning' }) => void } = {},
): Promise<Checkpoint | undefined> {
  for (const step of listCheckpoints(run).reverse()) {
    try {
      const checkpoint = await Checkpoint.load(checkpointPath(run, step), options.verify);
      if (checkpoint.manifest.config !== run.hash) {
        throw new AnsatzError(`${checkpoint.path}: belongs to a run with another config`);
      }
      return checkpoint;
    } catch (error) {
      if (!(error instanceof AnsatzError)) throw error;
      options.warn?.({ event: 'warning', message: `${error.message}; trying an older checkpoint` });
    }
  }
  return undefined;
}

/**
 * For a resume from an older checkpoint: later ones belong to a history that is being left, and must not be what the
 * next resume finds. They are renamed, not deleted. Returns their new names.
 */
export async function supersedeAfter(run: RunFolder, step: number): Promise<string[]> {
  const later = listCheckpoints(run).filter((other) => other > step);
  return setAside(run.file('checkpoints'), later);
}
