/** The folder of a comparison: settings and plan once, results one a line as they come, so that it can go on. */
import { createHash } from 'node:crypto';
import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { RunLock } from '../../train/run/lock.ts';
import type { Arm } from './arms.ts';
import type { BaseSize } from './base.ts';
import type { Source } from './corpus.ts';
import type { Run } from './plan.ts';
import type { SpeedResult } from './task.ts';
import type { Done } from './verdict.ts';

export interface Settings {
  /** Names of the corpora, and bytes of the sample. */
  readonly texts: readonly string[];
  readonly bytes: number;
  readonly vocab: number;
  readonly size: BaseSize;
  readonly minutes: number;
  readonly seeds: number;
  readonly workers: number;
  readonly only?: readonly string[];
}

/** What is decided before the first run. */
export interface PlanFile {
  /** 1: runs of one seed shared initial values and order of text across arms. */
  readonly format: 1 | 2;
  readonly settings: Settings;
  readonly sources: readonly Source[];
  readonly heldOut: { readonly tokens: number; readonly bytes: number };
  readonly started: string;
  /** Configs of the arms, hashed: a run goes on only with the same ones. */
  readonly arms: Readonly<Record<string, string>>;
  readonly speeds: Readonly<Record<string, SpeedResult | { readonly failed: string }>>;
  readonly steps: number;
  readonly runs: readonly Run[];
}

export function hashOf({ config, refused }: Arm): string {
  // Where the data lies says nothing about what is trained.
  const what = config ? { ...config, data: { ...config.data, folder: '' } } : refused;
  return createHash('sha256').update(JSON.stringify(what)).digest('hex').slice(0, 16);
}

/** @throws AnsatzError for what the system refuses. */
export function writing<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === undefined) throw cause;
    const why =
      code === 'ENOSPC' ? 'the disk is full' : code === 'ENOTDIR' || code === 'EEXIST' ? 'it is no folder' : code;
    throw new AnsatzError(`${path}: a comparison cannot be kept there: ${why}`, {
      hint: 'name another folder with --run; what is done is kept',
      cause,
    });
  }
}

const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

export class SweepFolder {
  readonly path: string;
  readonly data: string;
  readonly sample: string;

  /** @throws AnsatzError when the folder holds something else. */
  constructor(path: string) {
    this.path = path;
    this.data = join(path, 'data');
    this.sample = join(path, 'sample');
    const known = ['data', 'sample', 'plan.json', 'settings.json', 'results.jsonl'];
    const ours = (name: string): boolean => known.includes(name) || name.startsWith('.lock-') || name.endsWith('.tmp');
    const strange = existsSync(path) ? writing(path, () => readdirSync(path)).find((name) => !ours(name)) : undefined;
    if (strange !== undefined)
      throw new AnsatzError(`${path}: holds ${strange}, so it is not a comparison's folder; nothing was written`, {
        hint: 'name another folder with --run',
      });
  }

  /**
   * Starts, or goes on with what was started with the same settings.
   * @returns a lock, to be released at the end
   * @throws AnsatzError when the settings are others, or another process is at it.
   */
  claim(settings: Settings): RunLock {
    writing(this.path, () => mkdirSync(this.path, { recursive: true }));
    const lock = RunLock.acquire(this.path);
    try {
      this.compare(settings);
    } catch (error) {
      lock.release();
      throw error;
    }
    return lock;
  }

  private compare(settings: Settings): void {
    const file = join(this.path, 'settings.json');
    this.mend();
    // Until there is a plan nothing was measured or trained with them.
    if (existsSync(file) && this.plan()) {
      const before = JSON.parse(readFileSync(file, 'utf8')) as Settings;
      const fields = [...new Set([...Object.keys(before), ...Object.keys(settings)])] as (keyof Settings)[];
      const other = fields.find((f) => !same(before[f], settings[f]));
      if (other)
        throw new AnsatzError(
          `${this.path}: holds a comparison with other ${other} (${JSON.stringify(before[other] ?? null)}); nothing was changed`,
          { hint: 'give the same arguments to go on with it, or another folder with --run' },
        );
      return;
    }
    this.write('settings.json', settings);
  }

  plan(): PlanFile | undefined {
    const file = join(this.path, 'plan.json');
    return existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as PlanFile) : undefined;
  }

  save(plan: PlanFile): void {
    this.write('plan.json', plan);
  }

  add(line: Done | { readonly session: number }): void {
    writing(this.path, () => appendFileSync(join(this.path, 'results.jsonl'), `${JSON.stringify(line)}\n`));
  }

  /** Results so far, and seconds that were spent in all. A line that was cut off counts as not written. */
  results(): { done: Done[]; seconds: number } {
    const file = join(this.path, 'results.jsonl');
    const text = existsSync(file) ? readFileSync(file, 'utf8') : '';
    const done = new Map<string, Done>();
    let seconds = 0;
    for (const line of text.split('\n')) {
      let value: Partial<Done> & { session?: number };
      try {
        value = JSON.parse(line);
      } catch {
        continue;
      }
      if (value.session) seconds += value.session;
      if (value.run) done.set(value.run.id, value as Done);
    }
    return { done: [...done.values()], seconds };
  }

  /** A line that was cut off must not swallow the next one. */
  private mend(): void {
    const file = join(this.path, 'results.jsonl');
    if (existsSync(file) && !readFileSync(file, 'utf8').endsWith('\n')) appendFileSync(file, '\n');
  }

  private write(name: string, value: unknown): void {
    const file = join(this.path, name);
    writing(this.path, () => {
      writeFileSync(`${file}.tmp`, `${JSON.stringify(value, null, 1)}\n`);
      renameSync(`${file}.tmp`, file);
    });
  }
}
