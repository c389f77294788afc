import { isUtf8 } from 'node:buffer';

/** Above this share of bytes outside valid UTF-8 (or control codes) a file is not text; Latin-1 prose stays near 2%. */
const MAX_INVALID_SHARE = 0.1;
const NEWLINE = 10;

/** Bytes that belong to no well-formed UTF-8 sequence (RFC 3629), plus control codes that text does not contain. */
export function countInvalidUtf8(bytes: Uint8Array): number {
  let invalid = 0;
  let i = 0;
  while (i < bytes.length) {
    const b = bytes[i];
    if (b < 0x80) {
      // Tab to carriage return and escape (terminal colours) occur in text.
      if (b < 0x20 && (b < 9 || b > 13) && b !== 27) invalid++;
      i++;
      continue;
    }
    const length = b >= 0xc2 && b < 0xe0 ? 2 : b >= 0xe0 && b < 0xf0 ? 3 : b >= 0xf0 && b < 0xf5 ? 4 : 0;
    let ok = length > 0 && i + length <= bytes.length;
    for (let k = 1; ok && k < length; k++) ok = (bytes[i + k] & 0xc0) === 0x80;
    if (ok && length > 2) {
      // Overlong forms, surrogates, and code points above U+10FFFF are decided by the second byte.
      const c = bytes[i + 1];
      ok = !(
        (b === 0xe0 && c < 0xa0) ||
        (b === 0xed && c > 0x9f) ||
        (b === 0xf0 && c < 0x90) ||
        (b === 0xf4 && c > 0x8f)
      );
    }
    if (ok) i += length;
    else {
      invalid++;
      i++;
    }
  }
  return invalid;
}

/** True for bytes that look like text in UTF-8 or an ASCII-compatible encoding. */
export function looksLikeText(bytes: Uint8Array): boolean {
  if (bytes.indexOf(0) !== -1) return false;
  if (isUtf8(bytes)) return true;
  return countInvalidUtf8(bytes) <= MAX_INVALID_SHARE * bytes.length;
}

/** Strips a UTF-8 byte order mark and turns UTF-16 with a mark into UTF-8; everything else is returned as it is. */
export function withoutByteOrderMark(bytes: Uint8Array): Uint8Array {
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) return bytes.subarray(3);
  const utf16 =
    bytes[0] === 0xff && bytes[1] === 0xfe ? 'utf-16le' : bytes[0] === 0xfe && bytes[1] === 0xff ? 'utf-16be' : '';
  if (utf16 === '') return bytes;
  return new TextEncoder().encode(new TextDecoder(utf16).decode(bytes));
}

/** The longest prefix of at most `limit` bytes that ends after a newline, or, if that would lose a lot, a character. */
export function cutText(bytes: Uint8Array, limit: number): Uint8Array {
  if (bytes.length <= limit) return bytes;
  const newline = bytes.lastIndexOf(NEWLINE, limit - 1);
  if (newline + 1 >= limit * 0.75) return bytes.subarray(0, newline + 1);
  let end = limit;
  for (let back = 0; back < 3 && end > 0 && (bytes[end] & 0xc0) === 0x80; back++) end--;
  return bytes.subarray(0, end);
}

/** Generated code on a few huge lines: it would teach the model, and the tokenizer, little but noise. */
export function looksMinified(bytes: Uint8Array): boolean {
  let lines = 0;
  let start = 0;
  while (start < bytes.length) {
    const newline = bytes.indexOf(NEWLINE, start);
    const end = newline === -1 ? bytes.length : newline;
    if (end - start > 5000) return true;
    lines++;
    start = end + 1;
  }
  return bytes.length > 2000 && bytes.length > 200 * lines;
}

/** True if nothing but ASCII white space is in it. */
export function isBlank(bytes: Uint8Array): boolean {
  for (let i = 0; i < bytes.length; i++) {
    const b = bytes[i];
    if (b !== 32 && (b < 9 || b > 13)) return false;
  }
  return true;
}
