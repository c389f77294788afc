/** A file in memory: who uses parts of it, and whether it is still the file that was opened. */
import { fstatSync, statSync } from 'node:fs';
import { AnsatzError } from '../errors.ts';

/** A file is looked at this often at most. */
const PATIENCE_MS = 1000;

/** Kernels read weights in vectors of this many bytes. */
const ALIGNMENT = 64;

export class MappedFile {
  readonly path: string;
  readonly address: number;
  readonly bytes: number;
  private readonly inode: bigint;
  private readonly written: bigint;
  /** Parts that are in use, and one for the opener until it is done. */
  private users = 1;
  private looked = performance.now();
  private readonly unmap: () => void;

  constructor(fd: number, path: string, address: number, bytes: number, unmap: () => void) {
    [this.path, this.address, this.bytes, this.unmap] = [path, address, bytes, unmap];
    const found = fstatSync(fd, { bigint: true });
    [this.inode, this.written] = [found.ino, found.mtimeNs];
  }

  holds(offset: number, bytes: number): boolean {
    return offset >= 0 && bytes > 0 && offset + bytes <= this.bytes && offset % ALIGNMENT === 0;
  }

  enter(): void {
    this.users++;
  }

  /** The last one to leave has it unmapped. */
  leave(): void {
    if (--this.users === 0) this.unmap();
  }

  /**
   * @throws AnsatzError when the file was written to since it was opened. One that was replaced by another, or removed,
   * is as it was: the mapping keeps it.
   */
  check(): void {
    if (performance.now() - this.looked < PATIENCE_MS) return;
    const found = statSync(this.path, { bigint: true, throwIfNoEntry: false });
    const same =
      !found || found.ino !== this.inode || (found.mtimeNs === this.written && found.size === BigInt(this.bytes));
    if (!same)
      throw new AnsatzError(`${this.path}: was changed while its weights were in use`, {
        hint: 'restore the file, and start again: files of weights are to be replaced, never written to',
      });
    this.looked = performance.now();
  }
}
