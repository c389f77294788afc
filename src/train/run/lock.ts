// One trainer a run. Each process that wants a run puts up a flag of its own (.lock-<host>-<pid>) and then looks for
// others' flags: of two processes that do this at once, at least one sees the other and backs off, without the races
// that taking over a single shared lock file has. Flags of dead processes are removed by whoever finds them; a pid
// that was given to another process since is told apart by its start time.
import { linkSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';

export interface LockOwner {
  host: string;
  pid: number;
  /** Start time of the process in the operating system's own unit; null where it cannot be told. */
  started: string | null;
  since: string;
}

const PREFIX = '.lock-';

export class RunLock {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
    process.once('exit', this.release);
  }

  static acquire(folder: string): RunLock {
    const owner: LockOwner = {
      host: hostname(),
      pid: process.pid,
      started: startTime(process.pid),
      since: new Date().toISOString(),
    };
    const path = join(folder, `${PREFIX}${owner.host}-${owner.pid}`);
    // Written aside and linked into place, so that nobody reads a half-written flag.
    const draft = join(folder, `.draft${PREFIX}${owner.host}-${owner.pid}`);
    try {
      writeFileSync(draft, `${JSON.stringify(owner)}\n`);
      try {
        linkSync(draft, path);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
        const previous = readOwner(path);
        if (previous && isAlive(previous)) throw busy(folder, previous, path);
        renameSync(draft, path);
      }
    } catch (error) {
      if (error instanceof AnsatzError) throw error;
      throw new AnsatzError(`${folder}: cannot be locked (${(error as NodeJS.ErrnoException).code})`, { cause: error });
    } finally {
      rmSync(draft, { force: true });
    }
    const other = flags(folder).find((flag) => flag.path !== path);
    if (other) {
      rmSync(path, { force: true });
      throw busy(folder, other.owner, other.path);
    }
    return new RunLock(path);
  }

  readonly release = (): void => {
    process.removeListener('exit', this.release);
    rmSync(this.path, { force: true });
  };
}

/** Who is training into a run now, if anyone. */
export function lockOwner(folder: string): LockOwner | undefined {
  return flags(folder)[0]?.owner;
}

/** Flags of living processes; those of dead ones are removed on the way. */
function flags(folder: string): { path: string; owner: LockOwner }[] {
  const alive: { path: string; owner: LockOwner }[] = [];
  for (const name of readdirSync(folder)) {
    if (!name.startsWith(PREFIX)) continue;
    const path = join(folder, name);
    const owner = readOwner(path);
    if (owner && isAlive(owner)) alive.push({ path, owner });
    else if (owner) rmSync(path, { force: true });
  }
  return alive;
}

function readOwner(path: string): LockOwner | undefined {
  try {
    const owner = JSON.parse(readFileSync(path, 'utf8')) as LockOwner;
    if (typeof owner.pid === 'number' && typeof owner.host === 'string') return owner;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
  }
  throw new AnsatzError(`${path}: is not a lock file of a run`, {
    hint: 'delete it if no process trains into this run',
  });
}

function isAlive(owner: LockOwner): boolean {
  // Whether a process of another machine lives cannot be told from here; its flag counts.
  if (owner.host !== hostname()) return true;
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
  }
  return owner.started === null || startTime(owner.pid) === owner.started;
}

/** Field 22 of /proc/<pid>/stat (see proc(5)); null on systems without it. The name before it may contain anything. */
function startTime(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}

function busy(folder: string, owner: LockOwner, path: string): AnsatzError {
  const here = owner.host === hostname();
  const who = `process ${owner.pid}${here ? '' : ` on ${owner.host}`}`;
  return new AnsatzError(`${folder}: ${who} is training into this run since ${owner.since}`, {
    hint: here ? 'stop it first, or train into another folder' : `if that process is gone, delete ${path}`,
  });
}
