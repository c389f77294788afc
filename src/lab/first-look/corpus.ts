/** A sample of several corpora: as many bytes of each, where it has them. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { readCorpus } from '../../data/corpus.ts';
import { writing } from './folder.ts';

export interface Source {
  /** The file's or folder's name without its ending. */
  readonly name: string;
  readonly documents: number;
  readonly bytes: number;
}

/** A corpus's name: its file's or folder's without the ending. */
export const sourceName = (path: string): string =>
  basename(resolve(path)).replace(/(\.(jsonl|ndjson|txt|md))?(\.gz)?$/i, '') || 'text';

/** Writes the sample as one file of records a corpus; returns what is in it and the files. */
export async function sampleCorpora(
  paths: readonly string[],
  folder: string,
  bytes: number,
): Promise<{ sources: Source[]; files: string[] }> {
  rmSync(folder, { recursive: true, force: true });
  writing(folder, () => mkdirSync(folder, { recursive: true }));
  const sources: Source[] = [];
  const files: string[] = [];
  for (const path of paths) {
    const name = sourceName(path);
    if (sources.some((s) => s.name === name))
      throw new AnsatzError(`two of the texts are called ${name}: the verdict names them`, {
        hint: 'rename one, or give the folder that holds both',
      });
    const { documents } = await readCorpus([path], { capBytes: bytes / paths.length });
    const lines = documents.map((d) => JSON.stringify({ text: Buffer.from(d.text).toString('utf8') }));
    const file = join(folder, `${name}.jsonl`);
    writing(folder, () => writeFileSync(file, `${lines.join('\n')}\n`));
    files.push(file);
    sources.push({ name, documents: documents.length, bytes: documents.reduce((n, d) => n + d.text.length, 0) });
  }
  return { sources, files };
}
