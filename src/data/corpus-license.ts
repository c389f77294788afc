import { readFile } from 'node:fs/promises';
import { join, posix } from 'node:path';

/** Finds the licence that the nearest package.json above a file declares. */
export class LicenseFinder {
  readonly #root: string;
  readonly #byFolder = new Map<string, Promise<string | undefined>>();

  constructor(root: string) {
    this.#root = root;
  }

  /** `relative`: the file's path below the root, with forward slashes. */
  find(relative: string): Promise<string | undefined> {
    return this.#ofFolder(posix.dirname(relative));
  }

  #ofFolder(folder: string): Promise<string | undefined> {
    let found = this.#byFolder.get(folder);
    if (!found) {
      found = this.#look(folder);
      this.#byFolder.set(folder, found);
    }
    return found;
  }

  async #look(folder: string): Promise<string | undefined> {
    try {
      const manifest: unknown = JSON.parse(await readFile(join(this.#root, folder, 'package.json'), 'utf8'));
      const license = (manifest as { license?: unknown } | null)?.license;
      if (typeof license === 'string') return license;
    } catch {
      // No manifest here, or an unreadable one: the folder above decides.
    }
    return folder === '.' ? undefined : this.#ofFolder(posix.dirname(folder));
  }
}
