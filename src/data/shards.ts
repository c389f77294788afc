import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { AnsatzError } from '../backend/errors.ts';
import { decodeHeader, HEADER_BYTES, layoutOf, type ShardHeader, shardError } from './shards-format.ts';
import { MANIFEST_FORMAT, type Manifest } from './shards-write.ts';
import type { TokenData } from './types.ts';

export { type Manifest, type WriteOptions, writeShards } from './shards-write.ts';

export interface OpenOptions {
  /** Refuse shards made with another tokenizer. */
  tokenizerHash?: string;
  /** `memory` loads whole files; `file` reads what is asked for, for data larger than memory. */
  access?: 'memory' | 'file';
  /** Check the payload's checksum on opening (reads everything once). */
  verify?: boolean;
}

type Tokens = Uint16Array | Uint32Array;

/** One open shard file. */
class Shard {
  readonly header: ShardHeader;
  readonly docStarts: BigUint64Array;
  readonly docBytes: BigUint64Array;
  readonly path: string;
  #fd: number | undefined;
  #tokens: Tokens | undefined;

  constructor(path: string, options: OpenOptions) {
    this.path = path;
    this.#fd = openShard(path);
    try {
      const fileBytes = fstatSync(this.#fd).size;
      const first = Buffer.alloc(HEADER_BYTES);
      const got = readSync(this.#fd, first, 0, HEADER_BYTES, 0);
      this.header = decodeHeader(first.subarray(0, got), fileBytes, path);
      const { tokenBytes, tokens, documents } = this.header;
      const layout = layoutOf(this.header);
      if (options.tokenizerHash !== undefined && options.tokenizerHash !== this.header.tokenizerHash) {
        throw wrongTokenizer(path, this.header.tokenizerHash, options.tokenizerHash);
      }
      const tables = new BigUint64Array(3 * documents + 1);
      this.#readInto(new Uint8Array(tables.buffer), layout.tablesAt);
      const inMemory = (options.access ?? 'memory') === 'memory';
      if (inMemory) {
        const memory = new Uint8Array(layout.tablesAt - layout.tokensAt);
        this.#readInto(memory, layout.tokensAt);
        this.#tokens =
          tokenBytes === 2 ? new Uint16Array(memory.buffer, 0, tokens) : new Uint32Array(memory.buffer, 0, tokens);
        this.#close();
      }
      if (options.verify ?? true) this.#verify(layout.tokensAt, layout.tablesAt, tables);
      this.docStarts = tables.subarray(0, documents + 1);
      this.docBytes = tables.subarray(documents + 1, 2 * documents + 1);
    } catch (error) {
      this.#close();
      throw error;
    }
  }

  #verify(tokensAt: number, tablesAt: number, tables: BigUint64Array): void {
    let crc = 0;
    if (this.#tokens) crc = crc32(new Uint8Array(this.#tokens.buffer));
    else {
      const part = new Uint8Array(1 << 22);
      for (let at = tokensAt; at < tablesAt; at += part.length) {
        const piece = part.subarray(0, Math.min(part.length, tablesAt - at));
        this.#readInto(piece, at);
        crc = crc32(piece, crc);
      }
    }
    crc = crc32(new Uint8Array(tables.buffer), crc);
    if (crc !== this.header.payloadCrc) throw shardError(this.path, 'its checksum does not match: the file is damaged');
  }

  #readInto(bytes: Uint8Array, at: number): void {
    let filled = 0;
    while (filled < bytes.length) {
      const got = readSync(this.#fd as number, bytes, filled, Math.min(bytes.length - filled, 1 << 30), at + filled);
      if (got === 0) throw shardError(this.path, 'it became shorter while it was read');
      filled += got;
    }
  }

  /** Copies tokens [start, start + count) of this shard, widened to 32 bits. */
  read(start: number, count: number, out: Int32Array, at: number): void {
    if (this.#tokens) {
      const tokens = this.#tokens;
      for (let i = 0; i < count; i++) out[at + i] = tokens[start + i];
      return;
    }
    if (this.#fd === undefined) throw new Error(`the shard ${this.path} is closed`);
    const { tokenBytes } = this.header;
    const bytes = new Uint8Array(count * tokenBytes);
    this.#readInto(bytes, HEADER_BYTES + start * tokenBytes);
    out.set(tokenBytes === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer), at);
  }

  #close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  close(): void {
    this.#close();
    this.#tokens = undefined;
  }
}

/** Opens the data set `name` in `folder`; every problem is reported as one line that names the file. */
export function openTokens(
  folder: string,
  name: string,
  options: OpenOptions = {},
): TokenData & { manifest: Manifest } {
  const manifest = readManifest(folder, name);
  if (options.tokenizerHash !== undefined && options.tokenizerHash !== manifest.tokenizerHash) {
    throw wrongTokenizer(join(folder, `${name}.json`), manifest.tokenizerHash, options.tokenizerHash);
  }
  const shards: Shard[] = [];
  const close = () => {
    for (const shard of shards) shard.close();
  };
  try {
    for (const entry of manifest.shards) {
      const path = join(folder, entry.file);
      const shard = new Shard(path, { ...options, tokenizerHash: manifest.tokenizerHash });
      shards.push(shard);
      const crc = shard.header.payloadCrc.toString(16).padStart(8, '0');
      if (crc !== entry.crc32 || shard.header.tokens !== entry.tokens) {
        throw shardError(path, `it is not the one that ${name}.json lists (another checksum)`);
      }
    }
  } catch (error) {
    close();
    throw error;
  }
  return { ...joinShards(shards), ...summary(manifest), manifest, close };
}

function summary(manifest: Manifest) {
  const { name, tokens, documents, textBytes, vocabSize, eot, tokenizerHash, fingerprint } = manifest;
  return { name, tokenCount: tokens, documentCount: documents, textBytes, vocabSize, eot, tokenizerHash, fingerprint };
}

function joinShards(shards: readonly Shard[]): Pick<TokenData, 'docStarts' | 'docBytes' | 'read'> {
  const documents = shards.reduce((sum, shard) => sum + shard.header.documents, 0);
  const docStarts = new Float64Array(documents + 1);
  const docBytes = new Float64Array(documents);
  const firsts = new Float64Array(shards.length + 1);
  let d = 0;
  shards.forEach((shard, s) => {
    for (let i = 0; i < shard.header.documents; i++, d++) {
      docStarts[d] = firsts[s] + Number(shard.docStarts[i]);
      docBytes[d] = Number(shard.docBytes[i]);
    }
    firsts[s + 1] = firsts[s] + shard.header.tokens;
  });
  docStarts[documents] = firsts[shards.length];
  const read = (start: number, count: number, out: Int32Array, at: number) => {
    if (start < 0 || start + count > firsts[shards.length])
      throw new RangeError(`tokens ${start} + ${count} out of range`);
    let s = 0;
    while (firsts[s + 1] <= start) s++;
    while (count > 0) {
      const piece = Math.min(count, firsts[s + 1] - start);
      shards[s].read(start - firsts[s], piece, out, at);
      start += piece;
      at += piece;
      count -= piece;
      s++;
    }
  };
  return { docStarts, docBytes, read };
}

function openShard(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    throw shardError(path, missing ? 'the file is missing' : (error as Error).message, error);
  }
}

export function readManifest(folder: string, name: string): Manifest {
  const path = join(folder, `${name}.json`);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    throw new AnsatzError(
      `cannot open the token data ${path}: ${missing ? 'no such file' : (error as Error).message}`,
      {
        hint: 'name prepared data (--data FOLDER), or make it: ansatz prepare TEXT --out FOLDER',
        cause: error,
      },
    );
  }
  let manifest: Partial<Manifest>;
  try {
    manifest = JSON.parse(text) ?? {};
  } catch (error) {
    throw new AnsatzError(`cannot open the token data ${path}: it is not valid JSON`, {
      hint: 'delete the data folder and tokenise the text again',
      cause: error,
    });
  }
  const sound =
    manifest.format === MANIFEST_FORMAT &&
    manifest.version === 1 &&
    Array.isArray(manifest.shards) &&
    manifest.shards.every((shard) => typeof shard?.file === 'string' && Number.isSafeInteger(shard.tokens)) &&
    [manifest.tokens, manifest.documents, manifest.textBytes, manifest.vocabSize].every(Number.isSafeInteger);
  if (!sound) {
    throw new AnsatzError(`cannot open the token data ${path}: it is not a manifest of version 1`, {
      hint: 'delete the data folder and tokenise the text again',
    });
  }
  return manifest as Manifest;
}

function wrongTokenizer(path: string, found: string, wanted: string): AnsatzError {
  return new AnsatzError(
    `cannot use ${path}: it was made with tokenizer ${found.slice(0, 12)}, this run uses ${wanted.slice(0, 12)}`,
    { hint: 'tokenise the text again with this tokenizer, or use the tokenizer it was made with' },
  );
}

/** Token data held in memory, without files: for tests and small experiments. `docs` without end-of-text tokens. */
export function tokensInMemory(
  docs: readonly ArrayLike<number>[],
  options: { eot: number; vocabSize: number; name?: string; docBytes?: readonly number[]; tokenizerHash?: string },
): TokenData {
  const docStarts = new Float64Array(docs.length + 1);
  docs.forEach((doc, d) => {
    docStarts[d + 1] = docStarts[d] + doc.length + 1;
  });
  const tokens = new Int32Array(docStarts[docs.length]);
  docs.forEach((doc, d) => {
    tokens.set(doc, docStarts[d]);
    tokens[docStarts[d + 1] - 1] = options.eot;
  });
  const docBytes = Float64Array.from(options.docBytes ?? docs.map((doc) => doc.length));
  const { eot, vocabSize, name = 'memory', tokenizerHash = '0'.repeat(64) } = options;
  return {
    name,
    tokenCount: tokens.length,
    documentCount: docs.length,
    textBytes: docBytes.reduce((sum, bytes) => sum + bytes, 0),
    vocabSize,
    eot,
    tokenizerHash,
    fingerprint: `crc32:${crc32(new Uint8Array(tokens.buffer))}:${tokens.length}`,
    docStarts,
    docBytes,
    read: (start, count, out, at) => out.set(tokens.subarray(start, start + count), at),
    close: () => {},
  };
}
