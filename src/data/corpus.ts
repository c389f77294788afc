import { stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { AnsatzError } from '../backend/errors.ts';
import { CorpusCollector, type CorpusReport, emptyReport } from './corpus-collect.ts';
import { readGzipPrefix, readPrefix, readRecords } from './corpus-files.ts';
import { LicenseFinder } from './corpus-license.ts';
import { cutText } from './corpus-text.ts';
import { inOrder, type WalkedFile, walk } from './corpus-walk.ts';
import type { Document } from './types.ts';

export { type CorpusReport, documentHash } from './corpus-collect.ts';

export interface CorpusProgress {
  files: number;
  documents: number;
  bytes: number;
  capBytes: number;
}

export interface CorpusOptions {
  /** Lower-case file endings to read, with the dot; undefined reads every file that looks like text. */
  extensions?: readonly string[];
  /** Names of folders to leave out. */
  skipFolders?: readonly string[];
  skipMinified?: boolean;
  /** Stop after this many bytes of text. */
  capBytes?: number;
  /** Longer files are cut here. */
  maxFileBytes?: number;
  /** Field of JSON Lines records that holds the text. */
  textField?: string;
  /** Take a file's licence from the nearest package.json above it. */
  packageLicenses?: boolean;
  onProgress?: (progress: CorpusProgress) => void;
}

export interface Corpus {
  documents: Document[];
  report: CorpusReport;
}

/** Settings for a tree of JavaScript packages: sources and Markdown, no generated one-line code, no giant tables. */
export const PACKAGES_CORPUS: Readonly<CorpusOptions> = {
  extensions: ['.ts', '.mts', '.cts', '.js', '.mjs', '.cjs', '.md'],
  skipMinified: true,
  maxFileBytes: 1 << 20,
  packageLicenses: true,
};

const DEFAULT_CAP_BYTES = 40e6;
const READ_AHEAD = 32;
/** Larger files are read when their turn comes: reading ahead must not hold many of them in memory. */
const READ_AHEAD_BYTES = 1 << 20;
/** Derived files whose text is another file's, spelled for a machine. */
const DERIVED = /\.(map|min\.[a-z]+)$/i;
const RECORDS = /\.(jsonl|ndjson)(\.gz)?$/i;

type Loaded = {
  file: WalkedFile;
  bytes?: Uint8Array;
  more?: boolean;
  records?: boolean;
  skipped?: boolean;
  failed?: boolean;
};

/**
 * Reads folders and files into documents: one a text file, one a record of a .jsonl or .jsonl.gz file.
 * The result depends on the contents and names only, not on creation order, locale or timing.
 */
export async function readCorpus(paths: string | readonly string[], options: CorpusOptions = {}): Promise<Corpus> {
  const roots = typeof paths === 'string' ? [paths] : paths;
  const report = emptyReport();
  const capBytes = options.capBytes ?? DEFAULT_CAP_BYTES;
  const collector = new CorpusCollector(report, capBytes);
  const progress = () =>
    options.onProgress?.({ files: report.files, documents: report.documents, bytes: report.bytes, capBytes });
  for (const root of roots) {
    if (collector.full) break;
    const prefix = roots.length > 1 ? `${basename(resolve(root))}/` : '';
    await readRoot(root, prefix, options, collector, progress);
  }
  collector.finish();
  progress();
  if (report.documents === 0) throw nothingFound(roots, report, options);
  return { documents: collector.documents, report };
}

async function readRoot(
  root: string,
  prefix: string,
  options: CorpusOptions,
  collector: CorpusCollector,
  progress: () => void,
): Promise<void> {
  const { report } = collector;
  const isFolder = await rootKind(root);
  const files = isFolder ? walk(root, new Set(options.skipFolders ?? []), report) : single(root);
  const licenses = options.packageLicenses && isFolder ? new LicenseFinder(root) : undefined;
  const limit = options.maxFileBytes ?? options.capBytes ?? DEFAULT_CAP_BYTES;
  const load = (file: WalkedFile) => {
    // A file named by the user is read whatever it is called.
    const skipped = isFolder && !isWanted(basename(file.relative).toLowerCase(), options.extensions);
    return skipped ? Promise.resolve<Loaded>({ file, skipped }) : readFile(file, Math.min(limit, READ_AHEAD_BYTES));
  };
  try {
    for await (const ahead of inOrder(files, READ_AHEAD, load)) {
      const item = ahead.more && limit > READ_AHEAD_BYTES ? await readFile(ahead.file, limit) : ahead;
      report.files++;
      const source = prefix + item.file.relative;
      const license = await licenses?.find(item.file.relative);
      if (item.skipped) report.otherExtension++;
      else if (item.failed) report.unreadable++;
      else if (item.records) await addRecords(item.file.path, source, options, limit, collector);
      else if (item.bytes) {
        const cut = item.more ?? false;
        const bytes = cut ? cutText(item.bytes, item.bytes.length - 1) : item.bytes;
        collector.add({ bytes, cut, source, license, isRecord: false, checkMinified: options.skipMinified ?? false });
      }
      if (report.files % 64 === 0) progress();
      if (collector.full) break;
    }
  } catch (error) {
    throw accessError(root, error);
  }
}

function isWanted(name: string, extensions: readonly string[] | undefined): boolean {
  if (DERIVED.test(name)) return false;
  return extensions === undefined || extensions.some((extension) => name.endsWith(extension));
}

async function readFile(file: WalkedFile, limit: number): Promise<Loaded> {
  const name = basename(file.relative).toLowerCase();
  if (RECORDS.test(name)) return { file, records: true };
  try {
    const read = name.endsWith('.gz') ? readGzipPrefix : readPrefix;
    return { file, ...(await read(file.path, limit)) };
  } catch {
    return { file, failed: true };
  }
}

async function addRecords(
  path: string,
  source: string,
  options: CorpusOptions,
  limit: number,
  collector: CorpusCollector,
): Promise<void> {
  const { report } = collector;
  try {
    for await (const record of readRecords(path, options.textField ?? 'text')) {
      if (!record.text) {
        report.badRecords++;
        continue;
      }
      const bytes = cutText(record.text, limit);
      collector.add({
        bytes,
        cut: bytes.length < record.text.length,
        source: `${source}:${record.line}`,
        license: record.license,
        isRecord: true,
        checkMinified: false,
      });
      if (collector.full) return;
    }
  } catch {
    // A damaged archive ends here; what was read before the damage is sound.
    report.unreadable++;
  }
}

async function* single(path: string): AsyncGenerator<WalkedFile> {
  yield { path: join(dirname(path), basename(path)), relative: basename(path) };
}

async function rootKind(root: string): Promise<boolean> {
  const info = await stat(root).catch((error) => {
    throw accessError(root, error);
  });
  if (!info.isDirectory() && !info.isFile()) {
    throw new AnsatzError(`cannot read text from ${root}: it is neither a folder nor a regular file`, {
      hint: 'give a folder of text files, or a .txt, .md, .jsonl or .jsonl.gz file',
    });
  }
  return info.isDirectory();
}

function accessError(root: string, error: unknown): unknown {
  const code = (error as NodeJS.ErrnoException).code;
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    return new AnsatzError(`cannot read text from ${root}: there is no such file or folder`, {
      hint: 'check the path; relative paths start at the current folder',
      cause: error,
    });
  }
  if (code === 'EACCES' || code === 'EPERM') {
    return new AnsatzError(`cannot read text from ${root}: permission denied`, {
      hint: `make it readable for this user, for example: chmod -R u+rX ${JSON.stringify(root)}`,
      cause: error,
    });
  }
  return error;
}

function nothingFound(roots: readonly string[], report: CorpusReport, options: CorpusOptions): AnsatzError {
  const reasons: [number, string][] = [
    [report.binary, 'binary'],
    [report.empty, 'empty'],
    [report.unreadable, 'unreadable'],
    [report.minified, 'minified'],
    [report.otherExtension, 'of another type'],
    [report.badRecords, `records without a "${options.textField ?? 'text'}" field`],
    [report.links, 'symbolic links'],
    [report.hidden, 'hidden'],
    [report.skippedFolders, 'folders skipped'],
  ];
  const seen = reasons.filter(([count]) => count > 0).map(([count, what]) => `${count} ${what}`);
  const why = seen.length === 0 ? 'there are no files' : seen.join(', ');
  const extensions = options.extensions ? ` ending in ${options.extensions.join(' ')}` : '';
  return new AnsatzError(`no text found in ${roots.join(', ')}: ${why}`, {
    hint: `give a folder with text files${extensions}, or a .jsonl file with one {"text": ...} a line`,
  });
}
