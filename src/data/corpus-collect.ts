import { createHash } from 'node:crypto';
import { cutText, isBlank, looksLikeText, looksMinified, withoutByteOrderMark } from './corpus-text.ts';
import type { Document } from './types.ts';

export interface CorpusReport {
  /** Files looked at; the counts below say what became of them. */
  files: number;
  documents: number;
  bytes: number;
  duplicates: number;
  empty: number;
  binary: number;
  minified: number;
  /** Longer than the limit: cut there and kept. */
  cut: number;
  /** Could not be read, or damaged half-way (then what came before is kept). */
  unreadable: number;
  /** Lines of record files without the text field, or not JSON. */
  badRecords: number;
  links: number;
  hidden: number;
  skippedFolders: number;
  otherExtension: number;
  /** True if the size limit was reached and the rest was not looked at. */
  capped: boolean;
  /** SHA-256 over the documents' hashes: equal corpora have equal fingerprints. */
  fingerprint: string;
  bytesByLicense: Record<string, number>;
}

export function emptyReport(): CorpusReport {
  return {
    files: 0,
    documents: 0,
    bytes: 0,
    duplicates: 0,
    empty: 0,
    binary: 0,
    minified: 0,
    cut: 0,
    unreadable: 0,
    badRecords: 0,
    links: 0,
    hidden: 0,
    skippedFolders: 0,
    otherExtension: 0,
    capped: false,
    fingerprint: '',
    bytesByLicense: {},
  };
}

export interface Candidate {
  readonly bytes: Uint8Array;
  readonly source: string;
  readonly license: string | undefined;
  /** A record of a JSON file is text by construction; a file has to look like it. */
  readonly isRecord: boolean;
  readonly checkMinified: boolean;
  /** The bytes are only the beginning of a longer text. */
  readonly cut: boolean;
}

export function hashText(text: Uint8Array): string {
  return createHash('sha256').update(text).digest('hex');
}

/** The document's content hash, taken from the record where it is there. */
export function documentHash(document: Document): string {
  return document.hash ?? hashText(document.text);
}

/** Takes texts in a fixed order; keeps the first of equal ones, up to a total size. */
export class CorpusCollector {
  readonly documents: Document[] = [];
  readonly report: CorpusReport;
  readonly #capBytes: number;
  readonly #seen = new Set<string>();
  readonly #fingerprint = createHash('sha256');

  constructor(report: CorpusReport, capBytes: number) {
    this.report = report;
    this.#capBytes = capBytes;
  }

  get full(): boolean {
    return this.report.capped;
  }

  add(candidate: Candidate): void {
    const { report } = this;
    let text = withoutByteOrderMark(candidate.bytes);
    if (!candidate.isRecord && !looksLikeText(text)) {
      report.binary++;
      return;
    }
    if (isBlank(text)) {
      report.empty++;
      return;
    }
    if (candidate.checkMinified && looksMinified(text)) {
      report.minified++;
      return;
    }
    let hash = hashText(text);
    if (this.#seen.has(hash)) {
      report.duplicates++;
      return;
    }
    let cut = candidate.cut;
    if (report.bytes + text.length > this.#capBytes) {
      report.capped = true;
      // The last document is cut to fit, so that one huge file still makes a corpus.
      text = cutText(text, this.#capBytes - report.bytes);
      if (isBlank(text)) return;
      hash = hashText(text);
      cut = true;
    }
    if (cut) report.cut++;
    this.#keep({ text, source: candidate.source, license: candidate.license, hash });
    if (report.bytes >= this.#capBytes) report.capped = true;
  }

  #keep(document: Document & { hash: string }): void {
    const { report } = this;
    this.#seen.add(document.hash);
    this.#fingerprint.update(document.hash);
    this.documents.push(document);
    report.documents++;
    report.bytes += document.text.length;
    const license = document.license ?? 'unknown';
    report.bytesByLicense[license] = (report.bytesByLicense[license] ?? 0) + document.text.length;
  }

  finish(): void {
    this.report.fingerprint = this.#fingerprint.digest('hex');
  }
}
