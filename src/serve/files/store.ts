/**
 * Uploaded files. A file is a folder of its own, named by its id, with its contents and a description beside them; it
 * is written under another name and renamed when it is whole. Names that clients give are kept as text and never used
 * as paths.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { syncDirectory, writeDurable } from '../../train/run/files.ts';
import { newId, seconds } from '../http/ids.ts';

export const PURPOSES = [
  'fine-tune',
  'batch',
  'vision',
  'user_data',
  'assistants',
  'evals',
  'fine-tune-results',
] as const;
export type Purpose = (typeof PURPOSES)[number];

export interface FileObject {
  readonly id: string;
  readonly object: 'file';
  readonly bytes: number;
  readonly created_at: number;
  readonly filename: string;
  readonly purpose: Purpose;
  readonly status: 'processed';
}

const ID = /^file-[A-Za-z0-9]{24}$/;

/** The last part of a name, without what terminals and file systems would act on. */
export function plainName(name: string): string {
  const last = name.split(/[\\/]/).pop() ?? '';
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is removed
  const clean = last.replace(/[\u0000-\u001f\u007f\u202a-\u202e\u2066-\u2069]/g, '').slice(0, 255);
  return clean === '' || clean === '.' || clean === '..' ? 'file' : clean;
}

export class FileStore {
  private readonly folder: string;
  private readonly known = new Map<string, FileObject>();

  constructor(folder: string) {
    this.folder = folder;
    mkdirSync(folder, { recursive: true });
    const found: FileObject[] = [];
    for (const name of readdirSync(folder)) {
      // What was being written when a server was killed.
      if (name.startsWith('.')) rmSync(join(folder, name), { recursive: true, force: true });
      if (!ID.test(name) || !existsSync(join(folder, name, 'file.json'))) continue;
      try {
        found.push(JSON.parse(readFileSync(join(folder, name, 'file.json'), 'utf8')) as FileObject);
      } catch {
        // A damaged description hides its file and nothing else.
      }
    }
    for (const f of found.sort((a, b) => a.created_at - b.created_at || (a.id < b.id ? -1 : 1)))
      this.known.set(f.id, f);
  }

  /** Newest first. */
  list(): FileObject[] {
    return [...this.known.values()].reverse();
  }

  get(id: string): FileObject | undefined {
    return this.known.get(id);
  }

  async add(filename: string, purpose: Purpose, bytes: Uint8Array): Promise<FileObject> {
    const file: FileObject = {
      ...{ id: newId('file-'), object: 'file', bytes: bytes.length, created_at: seconds() },
      ...{ filename: plainName(filename), purpose, status: 'processed' },
    };
    const draft = join(this.folder, `.${file.id}`);
    try {
      await mkdir(draft);
      await writeFile(join(draft, 'content'), bytes, { flush: true });
      await writeDurable(join(draft, 'file.json'), JSON.stringify(file));
      await rename(draft, join(this.folder, file.id));
      await syncDirectory(this.folder);
    } catch (error) {
      await rm(draft, { recursive: true, force: true });
      throw error;
    }
    this.known.set(file.id, file);
    return file;
  }

  content({ id }: FileObject): Promise<Buffer> {
    return readFile(join(this.folder, id, 'content'));
  }

  async delete({ id }: FileObject): Promise<void> {
    this.known.delete(id);
    await rm(join(this.folder, id), { recursive: true, force: true });
  }
}
