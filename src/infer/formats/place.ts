/** Making a file or folder as a whole: under its name there is nothing, or all of it. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { syncDirectory } from '../../train/run/files.ts';

/** The absolute path of a place where nothing is yet, or an empty folder. */
export function freePlace(path: string, what: 'file' | 'folder'): string {
  const place = resolve(path);
  if (existsSync(place) && !(what === 'folder' && statSync(place).isDirectory() && readdirSync(place).length === 0))
    throw new AnsatzError(`${path}: exists already; nothing was written`, { hint: `name a new ${what}: --out PATH` });
  return place;
}

/**
 * Runs `make` on another name beside `place` and renames what it made. If it fails, that is removed.
 * @throws AnsatzError of one line when the file system refuses.
 */
export async function madeWhole<R>(place: string, make: (draft: string) => Promise<R>): Promise<R> {
  const draft = `${place}.draft-${process.pid}`;
  try {
    await mkdir(dirname(place), { recursive: true });
    const made = await make(draft);
    await rename(draft, place);
    await syncDirectory(dirname(place));
    return made;
  } catch (error) {
    // Failing to clean up must not hide what went wrong.
    await rm(draft, { recursive: true, force: true }).catch(() => {});
    if (error instanceof AnsatzError || (error as NodeJS.ErrnoException).code === undefined) throw error;
    throw new AnsatzError(`${place}: cannot be written (${(error as NodeJS.ErrnoException).code})`, {
      hint: 'name a place with enough space: --out PATH',
      cause: error,
    });
  }
}
