// Which checkpoints stay. Whatever is taken away is first renamed to a name that no reader looks at, so that a kill in
// the middle of a removal cannot leave half a checkpoint under a step's name.
import { readdirSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { syncDirectory } from './files.ts';
import { verifyCheckpoint } from './manifest.ts';

export interface Retention {
  /** Keep the newest n (at least 1); all when absent. Damaged ones are never counted and never removed. */
  keepLast?: number;
  /** Also keep every checkpoint whose step is a multiple of this. */
  keepEvery?: number;
}

/** Zero-padded, so that a directory listing is in order. */
export function stepName(step: number): string {
  if (!Number.isSafeInteger(step) || step < 0) throw new AnsatzError(`a checkpoint cannot have the step ${step}`);
  return String(step).padStart(8, '0');
}

/** Steps that have a directory, oldest first. */
export function checkpointSteps(parent: string): number[] {
  return entries(parent)
    .filter((name) => /^\d{8,}$/.test(name))
    .map(Number)
    .sort((a, b) => a - b);
}

export async function prune(parent: string, { keepLast, keepEvery }: Retention): Promise<number[]> {
  if (keepLast === undefined) return [];
  let left = Math.max(1, keepLast);
  const removed: number[] = [];
  for (const step of checkpointSteps(parent).reverse()) {
    const path = join(parent, stepName(step));
    const intact = await verifyCheckpoint(path, 'size').then(
      () => true,
      () => false,
    );
    if (!intact || left-- > 0 || (keepEvery && step % keepEvery === 0)) continue;
    const trash = join(parent, `.trash-${step}-${process.pid}`);
    await rename(path, trash);
    await rm(trash, { recursive: true, force: true });
    removed.push(step);
  }
  return removed;
}

/**
 * Takes the checkpoints of these steps out of the sequence without deleting them: <step> becomes superseded-<step>-<k>.
 */
export async function setAside(parent: string, steps: readonly number[]): Promise<string[]> {
  const names = entries(parent);
  const moved: string[] = [];
  for (const step of steps) {
    if (!names.includes(stepName(step))) continue;
    let k = 1;
    while (names.includes(`superseded-${stepName(step)}-${k}`)) k++;
    const name = `superseded-${stepName(step)}-${k}`;
    await rename(join(parent, stepName(step)), join(parent, name));
    moved.push(name);
  }
  if (moved.length > 0) await syncDirectory(parent);
  return moved;
}

/** Removes what killed writers left behind. The caller holds the run's lock, so whatever is not `active` is nobody's. */
export async function sweepLeftovers(parent: string, active: ReadonlySet<string>): Promise<void> {
  for (const name of entries(parent)) {
    const path = join(parent, name);
    if (/^\.(tmp|trash)-\d+-\d+$/.test(name) && !active.has(path)) await rm(path, { recursive: true, force: true });
  }
}

function entries(parent: string): string[] {
  try {
    return readdirSync(parent);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw new AnsatzError(`${parent}: cannot be read (${(error as NodeJS.ErrnoException).code})`, { cause: error });
  }
}
