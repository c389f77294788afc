import type { Dirent } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';

export interface WalkCounts {
  links: number;
  hidden: number;
  skippedFolders: number;
  unreadable: number;
}

export interface WalkedFile {
  readonly path: string;
  /** Relative to the root, forward slashes. */
  readonly relative: string;
}

/**
 * Yields the regular files below `root` in bytewise order of their relative paths, whatever order the file system or
 * the locale would give. A folder sorts as its name plus '/', so depth-first order equals the order of whole paths and
 * nothing beyond the point where the reader stops has to be listed. Symbolic links are counted, never followed: they
 * can form cycles or leave the folder. Hidden entries (.git, .env) are counted and left out.
 */
export async function* walk(
  root: string,
  skipFolders: ReadonlySet<string>,
  counts: WalkCounts,
  prefix = '',
): AsyncGenerator<WalkedFile> {
  let entries: Dirent[];
  try {
    entries = await readdir(join(root, prefix), { withFileTypes: true });
  } catch (error) {
    if (prefix === '') throw error;
    counts.unreadable++;
    return;
  }
  const keyed = entries.map((entry) => ({
    entry,
    key: Buffer.from(entry.isDirectory() ? `${entry.name}/` : entry.name, 'utf8'),
  }));
  keyed.sort((a, b) => Buffer.compare(a.key, b.key));
  for (const { entry } of keyed) {
    if (entry.isSymbolicLink()) counts.links++;
    else if (entry.name.startsWith('.')) counts.hidden++;
    else if (entry.isDirectory()) {
      if (skipFolders.has(entry.name)) counts.skippedFolders++;
      else yield* walk(root, skipFolders, counts, `${prefix}${entry.name}/`);
    } else if (entry.isFile()) {
      yield { path: join(root, prefix, entry.name), relative: `${prefix}${entry.name}` };
    }
  }
}

/** Applies `load` to up to `window` items ahead of the one being consumed; results come in the items' order. */
export async function* inOrder<T, R>(
  items: AsyncIterable<T>,
  window: number,
  load: (item: T) => Promise<R>,
): AsyncGenerator<R> {
  const iterator = items[Symbol.asyncIterator]();
  const pending: Promise<R>[] = [];
  let open = true;
  try {
    while (open || pending.length > 0) {
      while (open && pending.length < window) {
        const next = await iterator.next();
        if (next.done) open = false;
        else pending.push(load(next.value));
      }
      const first = pending.shift();
      if (first) yield await first;
    }
  } finally {
    // The consumer may stop early: let reads in flight end, so that no file handle outlives the call.
    await Promise.allSettled(pending);
    await iterator.return?.(undefined);
  }
}
