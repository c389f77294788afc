/**
 * The byte alphabet of byte-level BPE (GPT-2, reused by every Hugging Face `ByteLevel` tokenizer): each byte is written
 * as one printable character, so that a vocabulary of byte strings can be a JSON object of ordinary strings. Printable
 * Latin-1 bytes stand for themselves; the other 68 become U+0100, U+0101, ... in order.
 */
const printable = (byte: number) =>
  (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);

/** byte -> its character. */
export const BYTE_SYMBOLS: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();

/** UTF-16 code unit -> byte, -1 outside the alphabet. */
const SYMBOL_BYTES = (() => {
  const table = new Int16Array(0x10000).fill(-1);
  BYTE_SYMBOLS.forEach((symbol, byte) => {
    table[symbol.charCodeAt(0)] = byte;
  });
  return table;
})();

/** The bytes in the order in which a trained vocabulary lists them: by the code point of their characters. */
export const ALPHABET_ORDER: readonly number[] = Array.from({ length: 256 }, (_, byte) => byte).sort(
  (a, b) => BYTE_SYMBOLS[a].charCodeAt(0) - BYTE_SYMBOLS[b].charCodeAt(0),
);

/** The bytes that a vocabulary entry stands for; undefined if it holds a character outside the alphabet. */
export function symbolsToBytes(symbols: string): Uint8Array | undefined {
  const bytes = new Uint8Array(symbols.length);
  for (let k = 0; k < symbols.length; k++) {
    const byte = SYMBOL_BYTES[symbols.charCodeAt(k)];
    if (byte < 0) return undefined;
    bytes[k] = byte;
  }
  return bytes;
}
