import { createHash, randomBytes } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { crc32 } from 'node:zlib';
import { AnsatzError } from '../backend/errors.ts';
import { documentHash } from './corpus-collect.ts';
import { encodeHeader, type ShardHeader, tokenBytesFor } from './shards-format.ts';
import type { Document, DocumentEncoder } from './types.ts';

export const MANIFEST_FORMAT = 'ansatz-tokens';

export interface ShardEntry {
  file: string;
  tokens: number;
  documents: number;
  textBytes: number;
  crc32: string;
}

export interface Manifest {
  format: typeof MANIFEST_FORMAT;
  version: 1;
  name: string;
  vocabSize: number;
  eot: number;
  tokenizerHash: string;
  tokens: number;
  documents: number;
  textBytes: number;
  /** SHA-256 over the shards' checksums and sizes. */
  fingerprint: string;
  shards: ShardEntry[];
  /** One JSON line a document (shard, index, source, license, bytes, tokens). */
  provenance: string;
  /** Whatever the producer wants to remember, for example the corpus report. */
  source?: unknown;
}

export interface WriteOptions {
  folder: string;
  /** Data set name: the manifest is `<name>.json`. */
  name: string;
  /** SHA-256 of the tokenizer, 64 hex digits. */
  tokenizerHash: string;
  /** A shard is closed once it holds this many tokens. */
  shardTokens?: number;
  source?: unknown;
  onProgress?: (progress: { documents: number; totalDocuments: number; tokens: number; textBytes: number }) => void;
}

/** A document that spells a special token must not be able to produce it. */
const LITERAL = { special: 'text' } as const;
/** Documents are encoded in groups of about this many bytes. */
const ENCODE_BYTES = 1 << 20;
const DEFAULT_SHARD_TOKENS = 1 << 25;
/** What follows the data set's name in the files of a data set, finished or not. */
const OWN_FILE = /^-(\d{5}-[0-9a-f]{8}\.tokens|[0-9a-f]{8}\.sources\.jsonl)(\.\d+-[0-9a-f]{8}\.tmp)?$/;
const ABANDONED_MS = 3_600_000;

/**
 * Tokenises documents into shards and a manifest. The manifest is replaced last and shard names contain their
 * checksum, so a process killed half-way leaves the previous data set as it was.
 */
export async function writeShards(
  documents: readonly Document[],
  encoder: DocumentEncoder,
  options: WriteOptions,
): Promise<Manifest> {
  if (!/^[0-9a-f]{64}$/.test(options.tokenizerHash)) throw new RangeError('tokenizerHash must be 64 hex digits');
  if (!/^\w[\w.-]*$/.test(options.name)) throw new RangeError(`"${options.name}" cannot be part of a file name`);
  if (encoder.eot < 0 || encoder.eot >= encoder.vocabSize) throw new RangeError('the end-of-text id is out of range');
  await mkdir(options.folder, { recursive: true }).catch((error) => {
    throw writeError(options.folder, error);
  });
  const writer = new ShardWriter(encoder, options);
  for (let start = 0; start < documents.length; ) {
    let end = start;
    for (let bytes = 0; end < documents.length && bytes < ENCODE_BYTES; end++) bytes += documents[end].text.length;
    const group = documents.slice(start, end);
    const texts = group.map((document) => document.text);
    const ids = await (encoder.encodeBatchAsync?.(texts, LITERAL) ?? encoder.encodeBatch(texts, LITERAL));
    for (let i = 0; i < group.length; i++) await writer.add(group[i], ids[i]);
    start = end;
    options.onProgress?.({
      documents: end,
      totalDocuments: documents.length,
      tokens: writer.tokens,
      textBytes: writer.textBytes,
    });
  }
  return writer.finish();
}

class ShardWriter {
  tokens = 0;
  textBytes = 0;
  readonly #encoder: DocumentEncoder;
  readonly #options: WriteOptions;
  readonly #shards: ShardEntry[] = [];
  readonly #provenance: string[] = [];
  #pending: { document: Document; ids: Int32Array }[] = [];
  #pendingTokens = 0;

  constructor(encoder: DocumentEncoder, options: WriteOptions) {
    this.#encoder = encoder;
    this.#options = options;
  }

  async add(document: Document, ids: Int32Array): Promise<void> {
    const { vocabSize } = this.#encoder;
    for (let i = 0; i < ids.length; i++) {
      if (ids[i] < 0 || ids[i] >= vocabSize) {
        throw new RangeError(`token ${ids[i]} in ${document.source} is outside the vocabulary of ${vocabSize}`);
      }
    }
    this.#provenance.push(
      `${JSON.stringify({
        shard: this.#shards.length,
        index: this.#pending.length,
        source: document.source,
        license: document.license,
        bytes: document.text.length,
        tokens: ids.length + 1,
      })}\n`,
    );
    this.#pending.push({ document, ids });
    this.#pendingTokens += ids.length + 1;
    this.tokens += ids.length + 1;
    this.textBytes += document.text.length;
    if (this.#pendingTokens >= (this.#options.shardTokens ?? DEFAULT_SHARD_TOKENS)) await this.#flush();
  }

  async #flush(): Promise<void> {
    if (this.#pending.length === 0) return;
    const { folder, name, tokenizerHash } = this.#options;
    const { header, payload } = encodeShard(this.#pending, this.#pendingTokens, this.#encoder, tokenizerHash);
    const crc = header.payloadCrc.toString(16).padStart(8, '0');
    const file = `${name}-${String(this.#shards.length).padStart(5, '0')}-${crc}.tokens`;
    await writeAtomically(join(folder, file), [encodeHeader(header), payload]);
    const { tokens, documents, textBytes } = header;
    this.#shards.push({ file, tokens, documents, textBytes, crc32: crc });
    this.#pending = [];
    this.#pendingTokens = 0;
  }

  async finish(): Promise<Manifest> {
    await this.#flush();
    const { folder, name, tokenizerHash, source } = this.#options;
    const fingerprint = createHash('sha256').update(tokenizerHash);
    for (const shard of this.#shards) fingerprint.update(`${shard.crc32}:${shard.tokens}:${shard.documents};`);
    const digest = fingerprint.digest('hex');
    const provenance = `${name}-${digest.slice(0, 8)}.sources.jsonl`;
    await writeAtomically(join(folder, provenance), [Buffer.from(this.#provenance.join(''))]);
    const manifest: Manifest = {
      format: MANIFEST_FORMAT,
      version: 1,
      name,
      vocabSize: this.#encoder.vocabSize,
      eot: this.#encoder.eot,
      tokenizerHash,
      tokens: this.tokens,
      documents: this.#provenance.length,
      textBytes: this.textBytes,
      fingerprint: digest,
      shards: this.#shards,
      provenance,
      source,
    };
    const path = join(folder, `${name}.json`);
    const before = await readFile(path, 'utf8').catch(() => 'null');
    await writeAtomically(path, [Buffer.from(`${JSON.stringify(manifest, undefined, 2)}\n`)]);
    await removeReplaced(folder, before, manifest);
    return manifest;
  }
}

function encodeShard(
  pending: readonly { document: Document; ids: Int32Array }[],
  tokens: number,
  encoder: DocumentEncoder,
  tokenizerHash: string,
): { header: ShardHeader; payload: Buffer } {
  const tokenBytes = tokenBytesFor(encoder.vocabSize);
  const documents = pending.length;
  const tablesAt = Math.ceil((tokens * tokenBytes) / 8) * 8;
  const memory = new ArrayBuffer(tablesAt + 8 * (3 * documents + 1));
  const stream = tokenBytes === 2 ? new Uint16Array(memory, 0, tokens) : new Uint32Array(memory, 0, tokens);
  const tables = new BigUint64Array(memory, tablesAt);
  let at = 0;
  let textBytes = 0;
  pending.forEach(({ document, ids }, d) => {
    tables[d] = BigInt(at);
    tables[documents + 1 + d] = BigInt(document.text.length);
    tables[2 * documents + 1 + d] = BigInt(`0x${documentHash(document).slice(0, 16)}`);
    stream.set(ids, at);
    at += ids.length;
    stream[at++] = encoder.eot;
    textBytes += document.text.length;
  });
  tables[documents] = BigInt(at);
  const payload = Buffer.from(memory);
  const { vocabSize, eot } = encoder;
  const payloadCrc = crc32(payload);
  return { header: { tokenBytes, vocabSize, eot, payloadCrc, tokens, documents, textBytes, tokenizerHash }, payload };
}

/** Writes beside the target, flushes to the device, then renames: a reader sees the old file or the whole new one. */
export async function writeAtomically(path: string, parts: readonly Uint8Array[]): Promise<void> {
  const temporary = `${path}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`;
  try {
    const handle = await open(temporary, 'wx');
    try {
      for (const part of parts) await handle.writeFile(part);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw writeError(path, error);
  }
}

/** Makes a rename durable. Not every system lets a folder be opened for this; the rename itself is done by then. */
async function syncFolder(folder: string): Promise<void> {
  try {
    const handle = await open(folder, 'r');
    await handle.sync().finally(() => handle.close());
  } catch {}
}

/**
 * Removes what the manifest before this one listed, and what writers that were killed long ago left behind. Files of
 * another writer at work are younger, and only names that this writer gives are touched.
 */
async function removeReplaced(folder: string, before: string, manifest: Manifest): Promise<void> {
  let old: Partial<Manifest> | null = null;
  try {
    old = JSON.parse(before);
  } catch {
    // A damaged manifest lists nothing; its shards go once they are old.
  }
  const listed = new Set([...(old?.shards ?? []).map((shard) => shard?.file), old?.provenance]);
  const kept = new Set([...manifest.shards.map((shard) => shard.file), manifest.provenance]);
  for (const file of await readdir(folder)) {
    if (!file.startsWith(`${manifest.name}-`) || kept.has(file)) continue;
    if (!OWN_FILE.test(file.slice(manifest.name.length))) continue;
    const path = join(folder, file);
    if (listed.has(file) || Date.now() - (await stat(path)).mtimeMs > ABANDONED_MS) await rm(path, { force: true });
  }
}

function writeError(path: string, error: unknown): AnsatzError {
  const code = (error as NodeJS.ErrnoException).code;
  const why =
    code === 'ENOSPC'
      ? 'the disk is full'
      : code === 'EACCES' || code === 'EPERM' || code === 'EROFS'
        ? 'permission denied'
        : (error as Error).message;
  return new AnsatzError(`cannot write ${path}: ${why}`, { hint: 'choose another output folder', cause: error });
}
