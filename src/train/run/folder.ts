// A run is a folder, and the folder is the only interface between trainer, terminal, dashboard and server:
//
//   config.json           {format, version, hash, created, config}: the full config and the sha256 of its canonical form
//   events.jsonl          what happened (events.ts)
//   checkpoints/<step>/   weights, optimiser and state (checkpoint.ts)
//   report.json, .html    written at the end (report.ts)
//   .lock-<host>-<pid>    while a process trains into it (lock.ts)
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { canonicalJson, differences, hashOf, type JsonObject } from './canonical.ts';
import { EventWriter, lastEvents, type ReadOptions, readEvents } from './event-log.ts';
import type { RunEvent, RunStatus } from './events.ts';
import { replaceFile } from './files.ts';
import { RunHistory } from './history.ts';
import { lockOwner, RunLock } from './lock.ts';

const FORMAT = 'ansatz-run';
const VERSION = 1;

export class RunFolder {
  readonly path: string;
  readonly config: JsonObject;
  /** sha256 of the canonical config. */
  readonly hash: string;
  readonly created: string;

  private constructor(path: string, file: ConfigFile) {
    this.path = path;
    this.config = file.config;
    this.hash = file.hash;
    this.created = file.created;
  }

  /** A new run in a new or empty folder. With `resume`, a run that is already there with the same config is opened. */
  static async create(path: string, config: JsonObject, options: { resume?: boolean } = {}): Promise<RunFolder> {
    const folder = resolve(path);
    const entries = entriesOf(folder)?.filter((name) => !/^config\.json\.draft-\d+$/.test(name)) ?? [];
    if (entries.length > 0) {
      if (!entries.includes('config.json') || readConfig(folder) === undefined) {
        throw new AnsatzError(`${path}: is not empty and not a run; nothing was written`, {
          hint: 'name a new folder for the run',
        });
      }
      const run = RunFolder.open(path);
      if (!options.resume) {
        throw new AnsatzError(`${path}: already holds a run`, { hint: 'resume it, or name a new folder' });
      }
      if (run.hash !== hashOf(config)) {
        const changed = differences(run.config, JSON.parse(canonicalJson(config))).join('; ');
        throw new AnsatzError(`${path}: was started with another config (its own / the new one: ${changed})`, {
          hint: 'resume with its own config, or name a new folder',
        });
      }
      return run;
    }
    const file: ConfigFile = {
      format: FORMAT,
      version: VERSION,
      hash: hashOf(config),
      created: new Date().toISOString(),
      config,
    };
    try {
      await mkdir(join(folder, 'checkpoints'), { recursive: true });
      await replaceFile(join(folder, 'config.json'), `${canonicalJson(file, 2)}\n`);
    } catch (error) {
      throw new AnsatzError(`${path}: a run cannot be made there (${(error as NodeJS.ErrnoException).code})`, {
        cause: error,
      });
    }
    return RunFolder.open(path);
  }

  static open(path: string): RunFolder {
    const folder = resolve(path);
    const file = entriesOf(folder)?.includes('config.json') ? readConfig(folder) : undefined;
    if (!file) {
      const why = entriesOf(folder)
        ? 'it has no config.json of a run'
        : existsSync(folder)
          ? 'it is a file, not a folder'
          : 'there is no such folder';
      throw new AnsatzError(`${path}: is not a run: ${why}`, { hint: 'give the folder that a training run printed' });
    }
    if (file.version !== VERSION) {
      throw new AnsatzError(`${path}: is a run of format version ${file.version}, this program reads ${VERSION}`);
    }
    if (hashOf(file.config) !== file.hash) {
      throw new AnsatzError(`${join(path, 'config.json')}: was changed after the run was made (its hash differs)`, {
        hint: 'undo the change; a different config is a new run',
      });
    }
    return new RunFolder(folder, file);
  }

  get name(): string {
    return basename(this.path);
  }

  file(name: 'events.jsonl' | 'report.json' | 'report.html' | 'checkpoints'): string {
    return join(this.path, name);
  }

  /** Claims the run for this process, or throws saying who has it. Take it before opening the event writer. */
  lock(): RunLock {
    return RunLock.acquire(this.path);
  }

  openEvents(): EventWriter {
    return new EventWriter(this.file('events.jsonl'));
  }

  /** Events as they stand; with `follow`, also those to come, until the run ends or its process is gone. */
  events(options: ReadOptions = {}): AsyncGenerator<RunEvent, void, void> {
    const over = options.over ?? (() => lockOwner(this.path) === undefined);
    return readEvents(this.file('events.jsonl'), { ...options, over });
  }

  history(): Promise<RunHistory> {
    return RunHistory.load(this.file('events.jsonl'));
  }

  summary(): RunSummary {
    const tail = lastEvents(this.file('events.jsonl'));
    const history = RunHistory.of(tail);
    const step = history.steps.at(-1);
    const evaluation = history.evals.at(-1);
    const ended = history.end?.status ?? (tail.length > 0 ? 'interrupted' : 'new');
    return {
      path: this.path,
      name: this.name,
      created: this.created,
      hash: this.hash,
      status: lockOwner(this.path) ? 'running' : ended,
      step: step?.step ?? 0,
      loss: step?.loss,
      heldOutLoss: evaluation?.loss,
      bitsPerByte: evaluation?.bitsPerByte,
    };
  }
}

export interface RunSummary {
  path: string;
  name: string;
  created: string;
  hash: string;
  /** interrupted: its process went away without a word and can resume; damaged: see `problem`. */
  status: RunStatus | 'running' | 'interrupted' | 'new' | 'damaged';
  step: number;
  loss: number | undefined;
  heldOutLoss: number | undefined;
  bitsPerByte: number | undefined;
  problem?: string;
}

/** The runs directly inside a folder, newest first. Folders that are no runs are passed over. */
export function listRuns(root: string): RunSummary[] {
  const runs: RunSummary[] = [];
  for (const name of entriesOf(resolve(root)) ?? []) {
    const folder = join(root, name);
    const file = entriesOf(folder)?.includes('config.json') ? readConfig(folder) : undefined;
    if (!file) continue;
    try {
      runs.push(RunFolder.open(folder).summary());
    } catch (error) {
      // One bad run must not hide the others.
      if (!(error instanceof AnsatzError)) throw error;
      const unknown = { step: 0, loss: undefined, heldOutLoss: undefined, bitsPerByte: undefined };
      const known = { path: resolve(folder), name, created: String(file.created), hash: String(file.hash) };
      runs.push({ ...known, ...unknown, status: 'damaged', problem: error.message });
    }
  }
  return runs.sort((a, b) => (a.created < b.created ? 1 : a.created > b.created ? -1 : a.name < b.name ? -1 : 1));
}

interface ConfigFile {
  format: string;
  version: number;
  hash: string;
  created: string;
  config: JsonObject;
}

/** undefined when the file is some other config.json (many tools write one); damaged ones of ours fail the hash. */
function readConfig(folder: string): ConfigFile | undefined {
  try {
    const file = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as ConfigFile;
    const ours = file?.format === FORMAT && typeof file.config === 'object' && file.config !== null;
    return ours ? file : undefined;
  } catch {
    return undefined;
  }
}

function entriesOf(folder: string): string[] | undefined {
  try {
    return readdirSync(folder);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw new AnsatzError(`${folder}: cannot be read (${code})`, { cause: error });
  }
}
