/**
 * Any bytes as a JavaScript string and back, without loss: a byte b that is not part of well-formed UTF-8 becomes the
 * lone surrogate U+DC00 + b (Python's `surrogateescape`, PEP 383). No letter, digit or space class holds a surrogate, and
 * `normalize` leaves it alone, so such bytes behave in patterns as the native scanners treat them.
 */
import { isAscii, isUtf8 } from 'node:buffer';

const LONE_SURROGATE = /\p{Surrogate}/u;

const view = (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Length of the well-formed UTF-8 sequence at `at`, 0 if there is none. */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const lead = bytes[at];
  const length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  return length && isUtf8(bytes.subarray(at, at + length)) ? length : 0;
}

export function textFromBytes(bytes: Uint8Array): string {
  if (isAscii(bytes)) return view(bytes).toString('latin1');
  if (isUtf8(bytes)) return view(bytes).toString('utf8');
  let text = '';
  let begin = 0;
  for (let at = 0; at < bytes.length; ) {
    const length = sequenceLength(bytes, at);
    if (length) {
      at += length;
      continue;
    }
    text += view(bytes).toString('utf8', begin, at) + String.fromCharCode(0xdc00 + bytes[at]);
    begin = ++at;
  }
  return text + view(bytes).toString('utf8', begin);
}

export function bytesFromText(text: string): Uint8Array {
  if (!LONE_SURROGATE.test(text)) return Buffer.from(text, 'utf8');
  const parts: Uint8Array[] = [];
  for (const part of text.split(/(\p{Surrogate})/u)) {
    const unit = part.charCodeAt(0);
    const escaped = part.length === 1 && unit >= 0xdc80 && unit <= 0xdcff;
    parts.push(escaped ? Uint8Array.of(unit - 0xdc00) : Buffer.from(part, 'utf8'));
  }
  return Buffer.concat(parts);
}

export function byteLengthOfText(text: string): number {
  return LONE_SURROGATE.test(text) ? bytesFromText(text).length : Buffer.byteLength(text, 'utf8');
}
