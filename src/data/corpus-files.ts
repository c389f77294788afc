import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';

const NEWLINE = 10;
/** A longer line in a record file is a damaged file or not a record file. */
const MAX_RECORD_BYTES = 64 << 20;

/** The first `limit` bytes of a file, and whether there is more. */
export async function readPrefix(path: string, limit: number): Promise<{ bytes: Buffer; more: boolean }> {
  const handle = await open(path, 'r');
  try {
    const { size } = await handle.stat();
    // One byte beyond the limit tells whether the file goes on; sizes of special files are unreliable.
    const buffer = Buffer.allocUnsafeSlow(Math.min(size, limit) + 1);
    let filled = 0;
    while (filled < buffer.length) {
      const { bytesRead } = await handle.read(buffer, filled, buffer.length - filled, filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    const length = Math.min(filled, limit, buffer.length - 1);
    return { bytes: buffer.subarray(0, length), more: filled > length || size > limit };
  } finally {
    await handle.close();
  }
}

/** The file's bytes as a stream, unpacked if gzip; errors of either stage end the iteration. */
function openStream(path: string, gzip: boolean): { stream: Readable; close: () => void } {
  const file = createReadStream(path, { highWaterMark: 1 << 18 });
  if (!gzip) return { stream: file, close: () => file.destroy() };
  const unpacked = file.pipe(createGunzip({ chunkSize: 1 << 18 }));
  file.on('error', (error) => unpacked.destroy(error));
  return {
    stream: unpacked,
    close: () => {
      file.destroy();
      unpacked.destroy();
    },
  };
}

/** The first `limit` bytes inside a .gz file; unpacking stops there, so a small file cannot fill the memory. */
export async function readGzipPrefix(path: string, limit: number): Promise<{ bytes: Buffer; more: boolean }> {
  const { stream, close } = openStream(path, true);
  const parts: Buffer[] = [];
  let total = 0;
  try {
    for await (const part of stream as AsyncIterable<Buffer>) {
      parts.push(part);
      total += part.length;
      if (total > limit) break;
    }
  } finally {
    close();
  }
  const all = Buffer.concat(parts);
  return { bytes: all.subarray(0, limit), more: all.length > limit };
}

export interface TextRecord {
  readonly line: number;
  /** undefined: the line is not a JSON object with the text field. */
  readonly text: Uint8Array | undefined;
  readonly license: string | undefined;
}

/** The records of a JSON Lines file, one a line; blank lines are skipped, bad lines come without a text. */
export async function* readRecords(path: string, field: string): AsyncGenerator<TextRecord> {
  const { stream, close } = openStream(path, path.endsWith('.gz'));
  let held: Buffer[] = [];
  let heldBytes = 0;
  let line = 0;
  try {
    for await (const part of stream as AsyncIterable<Buffer>) {
      let start = 0;
      for (let end = part.indexOf(NEWLINE); end !== -1; end = part.indexOf(NEWLINE, start)) {
        held.push(part.subarray(start, end));
        line++;
        const record = parseRecord(held.length === 1 ? held[0] : Buffer.concat(held), line, field);
        if (record) yield record;
        held = [];
        heldBytes = 0;
        start = end + 1;
      }
      held.push(part.subarray(start));
      heldBytes += part.length - start;
      if (heldBytes > MAX_RECORD_BYTES) throw new Error(`line ${line + 1} is longer than ${MAX_RECORD_BYTES} bytes`);
    }
    const last = parseRecord(Buffer.concat(held), line + 1, field);
    if (last) yield last;
  } finally {
    close();
  }
}

function parseRecord(bytes: Buffer, line: number, field: string): TextRecord | undefined {
  const json = bytes.toString('utf8').trim();
  if (json === '') return undefined;
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    return { line, text: undefined, license: undefined };
  }
  const record = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>;
  const text = record[field];
  const license = record.license;
  return {
    line,
    text: typeof text === 'string' ? Buffer.from(text, 'utf8') : undefined,
    license: typeof license === 'string' ? license : undefined,
  };
}
