import { crc32 } from 'node:zlib';
import { AnsatzError } from '../backend/errors.ts';

/**
 * A token shard is one file, little-endian:
 *
 *   0    magic "ANSTOKEN"                 8 bytes
 *   8    u32  format version (1)
 *   12   u32  bytes of this header (128)
 *   16   u32  bytes of a token: 2 if the vocabulary has at most 65536 entries, else 4
 *   20   u32  vocabulary size
 *   24   u32  id of the end-of-text token
 *   28   u32  CRC-32 of everything after the header
 *   32   u64  tokens
 *   40   u64  documents D
 *   48   u64  bytes of text that the tokens stand for
 *   56   8 zero bytes
 *   64   SHA-256 of the tokenizer        32 bytes
 *   96   28 zero bytes
 *   124  u32  CRC-32 of bytes 0 to 123
 *   128  tokens, zero-padded to a multiple of 8 bytes
 *        u64[D + 1]  first token of every document, then the number of tokens
 *        u64[D]      bytes of text of every document
 *        u64[D]      first 8 bytes (big-endian) of the SHA-256 of every document's text
 *
 * Every document's last token is the end-of-text token. The tables let a document be found, scored or removed
 * without the tokenizer.
 */
export const MAGIC = 'ANSTOKEN';
export const VERSION = 1;
export const HEADER_BYTES = 128;

export interface ShardHeader {
  readonly tokenBytes: 2 | 4;
  readonly vocabSize: number;
  readonly eot: number;
  readonly payloadCrc: number;
  readonly tokens: number;
  readonly documents: number;
  readonly textBytes: number;
  /** 64 hex digits. */
  readonly tokenizerHash: string;
}

export interface ShardLayout {
  readonly tokensAt: number;
  readonly tablesAt: number;
  readonly fileBytes: number;
}

export function tokenBytesFor(vocabSize: number): 2 | 4 {
  return vocabSize <= 65536 ? 2 : 4;
}

export function layoutOf(header: Pick<ShardHeader, 'tokenBytes' | 'tokens' | 'documents'>): ShardLayout {
  const tablesAt = HEADER_BYTES + Math.ceil((header.tokens * header.tokenBytes) / 8) * 8;
  return { tokensAt: HEADER_BYTES, tablesAt, fileBytes: tablesAt + 8 * (3 * header.documents + 1) };
}

export function encodeHeader(header: ShardHeader): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt32LE(VERSION, 8);
  bytes.writeUInt32LE(HEADER_BYTES, 12);
  bytes.writeUInt32LE(header.tokenBytes, 16);
  bytes.writeUInt32LE(header.vocabSize, 20);
  bytes.writeUInt32LE(header.eot, 24);
  bytes.writeUInt32LE(header.payloadCrc, 28);
  bytes.writeBigUInt64LE(BigInt(header.tokens), 32);
  bytes.writeBigUInt64LE(BigInt(header.documents), 40);
  bytes.writeBigUInt64LE(BigInt(header.textBytes), 48);
  bytes.write(header.tokenizerHash, 64, 'hex');
  bytes.writeUInt32LE(crc32(bytes.subarray(0, 124)), 124);
  return bytes;
}

/** Checks a shard's first bytes and its size; `path` is for the message only. */
export function decodeHeader(bytes: Buffer, fileBytes: number, path: string): ShardHeader {
  if (bytes.length < 8 || bytes.toString('latin1', 0, 8) !== MAGIC) {
    throw shardError(
      path,
      fileBytes === 0 ? 'the file is empty' : 'it is not a token shard (its first 8 bytes differ)',
    );
  }
  if (bytes.length < HEADER_BYTES) throw shardError(path, `it is truncated: ${fileBytes} bytes, the header has 128`);
  const version = bytes.readUInt32LE(8);
  if (version !== VERSION) throw shardError(path, `its format version is ${version}, this program reads ${VERSION}`);
  if (crc32(bytes.subarray(0, 124)) !== bytes.readUInt32LE(124)) throw shardError(path, 'its header is damaged');
  const header: ShardHeader = {
    tokenBytes: bytes.readUInt32LE(16) === 4 ? 4 : 2,
    vocabSize: bytes.readUInt32LE(20),
    eot: bytes.readUInt32LE(24),
    payloadCrc: bytes.readUInt32LE(28),
    tokens: Number(bytes.readBigUInt64LE(32)),
    documents: Number(bytes.readBigUInt64LE(40)),
    textBytes: Number(bytes.readBigUInt64LE(48)),
    tokenizerHash: bytes.toString('hex', 64, 96),
  };
  const expected = layoutOf(header).fileBytes;
  if (fileBytes < expected) throw shardError(path, `it is truncated: ${fileBytes} of ${expected} bytes`);
  if (fileBytes > expected) throw shardError(path, `it has ${fileBytes - expected} bytes too many`);
  return header;
}

export function shardError(path: string, why: string, cause?: unknown): AnsatzError {
  return new AnsatzError(`cannot use the token shard ${path}: ${why}`, {
    hint: 'delete the data folder and tokenise the text again',
    cause,
  });
}
