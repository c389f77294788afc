import { spawn } from 'node:child_process';
import { promisify } from 'node:util';
import { brotliCompress, gzip, constants as zlibConstants } from 'node:zlib';
import type { Document } from './types.ts';

export interface Baseline {
  /** The program and its settings, as they should be reported. */
  name: string;
  compressedBytes: number;
  bitsPerByte: number;
  seconds: number;
}

export interface Baselines {
  textBytes: number;
  gzip: Baseline;
  /** xz -9e where the program is installed, otherwise brotli: `name` says which, `note` why. */
  strong: Baseline;
  note?: string;
}

/**
 * What general compressors need for the same held-out text, as one stream in document order, headers included.
 * A language model's bits per byte on that text, end-of-text tokens included, compare directly.
 */
export async function compressionBaselines(documents: readonly Document[], xzCommand = 'xz'): Promise<Baselines> {
  const text = Buffer.concat(documents.map((document) => document.text));
  if (text.length === 0) throw new RangeError('no text to compress');
  const gzipped = await measure('gzip -9', text, async () => (await promisify(gzip)(text, { level: 9 })).length);
  try {
    const strong = await measure('xz -9e', text, () => xzBytes(text, xzCommand));
    return { textBytes: text.length, gzip: gzipped, strong };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    const note = code === 'ENOENT' ? 'xz is not installed' : `xz failed: ${(error as Error).message}`;
    const strong = await measure('brotli -q 11 --large_window', text, () => brotliBytes(text));
    return { textBytes: text.length, gzip: gzipped, strong, note };
  }
}

async function measure(name: string, text: Uint8Array, compress: () => Promise<number>): Promise<Baseline> {
  const start = performance.now();
  const compressedBytes = await compress();
  const seconds = (performance.now() - start) / 1000;
  return { name, compressedBytes, bitsPerByte: (8 * compressedBytes) / text.length, seconds };
}

/** Size of the .xz file. The dictionary is no larger than the text: the same result as -9e with far less memory. */
function xzBytes(text: Uint8Array, command: string): Promise<number> {
  const dictionary = Math.min(Math.max(text.length, 4096), 64 << 20);
  return new Promise((resolve, reject) => {
    const child = spawn(command, ['--format=xz', '--stdout', `--lzma2=preset=9e,dict=${dictionary}`], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    let bytes = 0;
    let message = '';
    child.on('error', reject);
    child.stdout.on('data', (part: Buffer) => {
      bytes += part.length;
    });
    child.stderr.on('data', (part: Buffer) => {
      message = (message + part.toString()).slice(0, 500);
    });
    // A child that dies early closes the pipe; its exit status is the better account of what happened.
    child.stdin.on('error', () => {});
    child.on('close', (status, signal) => {
      if (status === 0) resolve(bytes);
      else reject(new Error(message.trim() || `it ended with ${signal ?? `status ${status}`}`));
    });
    child.stdin.end(text);
  });
}

async function brotliBytes(text: Uint8Array): Promise<number> {
  const window = Math.min(Math.max(Math.ceil(Math.log2(text.length + 16)), 16), 30);
  const compressed = await promisify(brotliCompress)(text, {
    params: {
      [zlibConstants.BROTLI_PARAM_QUALITY]: 11,
      [zlibConstants.BROTLI_PARAM_LARGE_WINDOW]: 1,
      [zlibConstants.BROTLI_PARAM_LGWIN]: window,
      [zlibConstants.BROTLI_PARAM_SIZE_HINT]: text.length,
    },
  });
  return compressed.length;
}

/** Bits per byte of a model from its summed loss in nats over a text of that many bytes. */
export function bitsPerByte(totalNats: number, textBytes: number): number {
  return totalNats / Math.LN2 / textBytes;
}
