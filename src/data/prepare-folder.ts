/**
 * The folder that prepared data goes to. Everything is written into a hidden folder inside it first and moved when it is
 * complete, so that a failure or a kill leaves the data set that was there before as it was.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../backend/errors.ts';
import { MANIFEST_FORMAT, type Manifest } from './shards-write.ts';

/** What gives a data set its identity: moved last, one right after the other. */
const NAMED = ['tokenizer.json', 'train.json', 'heldout.json', 'baselines.json'];
const DRAFT = /^\.preparing-(\d+)$/;

export class PrepareFolder {
  readonly path: string;

  /** @throws AnsatzError when the folder holds files under these names that are not a prepared data set's. */
  constructor(path: string) {
    this.path = path;
    const taken = NAMED.filter((name) => existsSync(join(path, name)));
    if (taken.length > 0 && !this.manifest('train'))
      throw new AnsatzError(`${path}: holds a ${taken[0]} that is no prepared data set's; nothing was written`, {
        hint: 'name another folder, or move that file away',
      });
  }

  /** Runs `write` on an empty folder, then puts what it wrote in place of the data set that was here. */
  async fill<R>(write: (folder: string) => Promise<R>): Promise<R> {
    const draft = join(this.path, `.preparing-${process.pid}`);
    const isNew = !existsSync(this.path);
    try {
      mkdirSync(draft, { recursive: true });
      this.sweep();
      const result = await write(draft);
      this.replace(draft);
      return result;
    } catch (error) {
      if (error instanceof AnsatzError || (error as NodeJS.ErrnoException).code === undefined) throw error;
      throw new AnsatzError(`${this.path}: data cannot be written there (${(error as NodeJS.ErrnoException).code})`, {
        hint: 'choose another output folder',
        cause: error,
      });
    } finally {
      if (existsSync(draft)) rmSync(draft, { recursive: true, force: true });
      if (isNew && existsSync(this.path) && readdirSync(this.path).length === 0) rmdirSync(this.path);
    }
  }

  private replace(draft: string): void {
    const before = ['train', 'heldout'].flatMap((name) => filesOf(this.manifest(name)));
    const files = readdirSync(draft);
    const others = files.filter((name) => !NAMED.includes(name));
    for (const name of [...others, ...NAMED.filter((name) => files.includes(name))])
      renameSync(join(draft, name), join(this.path, name));
    for (const name of before) if (!files.includes(name)) rmSync(join(this.path, name), { force: true });
  }

  /** Drafts of processes that are gone. */
  private sweep(): void {
    for (const name of readdirSync(this.path)) {
      const pid = Number(DRAFT.exec(name)?.[1] ?? Number.NaN);
      if (pid > 0 && !isAlive(pid)) rmSync(join(this.path, name), { recursive: true, force: true });
    }
  }

  private manifest(name: string): Partial<Manifest> | undefined {
    try {
      const manifest = JSON.parse(readFileSync(join(this.path, `${name}.json`), 'utf8')) as Partial<Manifest> | null;
      return manifest?.format === MANIFEST_FORMAT ? manifest : undefined;
    } catch {
      return undefined;
    }
  }
}

/** Plain names only: a manifest is data, and must not name files elsewhere. */
function filesOf(manifest: Partial<Manifest> | undefined): string[] {
  const listed = [...(manifest?.shards ?? []).map((shard) => shard?.file), manifest?.provenance];
  return listed.filter((name) => typeof name === 'string' && /^[\w-]+(\.\w+)+$/.test(name)) as string[];
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
