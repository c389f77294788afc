// verified.json, beside a checkpoint's manifest: which files have been read and found right. Weights that are used in
// place are opened in milliseconds; reading all of them for their hash would take seconds each time. A file counts as the
// one that was read while its device, inode, size and times are the same: whoever writes to it, replaces it or copies the
// folder changes one of these. A medium that loses bits on its own does not; `--verify` reads everything again.
import type { BigIntStats } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { replaceFile } from './files.ts';

const NAME = 'verified.json';
/** Times of files tick coarsely: one that changed less than this ago could change again unseen. */
const SETTLED_MS = 1000;

const stampOf = (s: BigIntStats): string => [s.dev, s.ino, s.size, s.mtimeNs, s.ctimeNs].join(' ');

export class Remembered {
  private readonly folder: string;
  private readonly seal: string;
  private readonly files: Record<string, string>;
  private changed = false;

  private constructor(folder: string, seal: string, files: Record<string, string>) {
    [this.folder, this.seal, this.files] = [folder, seal, files];
  }

  /** What is remembered for the manifest of this seal. */
  static async of(folder: string, seal: string): Promise<Remembered> {
    try {
      const found = JSON.parse(await readFile(join(folder, NAME), 'utf8')) as { seal?: unknown; files?: unknown };
      if (found.seal === seal && typeof found.files === 'object' && found.files !== null)
        return new Remembered(folder, seal, { ...found.files } as Record<string, string>);
    } catch {
      // None, or none that can be read: everything is verified.
    }
    return new Remembered(folder, seal, {});
  }

  knows(name: string, found: BigIntStats): boolean {
    return this.files[name] === stampOf(found);
  }

  /** Notes a file that was right; `found` was asked for before it was read. */
  add(name: string, found: BigIntStats): void {
    const changed = Number(found.ctimeNs > found.mtimeNs ? found.ctimeNs : found.mtimeNs) / 1e6;
    if (Date.now() - changed < SETTLED_MS) return;
    this.files[name] = stampOf(found);
    this.changed = true;
  }

  async save(): Promise<void> {
    if (!this.changed) return;
    // A folder that cannot be written to is verified each time.
    await replaceFile(join(this.folder, NAME), `${JSON.stringify({ seal: this.seal, files: this.files })}\n`).catch(
      () => {},
    );
  }
}
