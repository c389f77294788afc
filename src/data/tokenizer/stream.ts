/** Decoding while tokens arrive. */
import type { DecodeOptions, Tokenizer } from './tokenizer.ts';

/** Gives out text as soon as it is certain: a character whose bytes are not all there yet is held back. */
export class StreamDecoder {
  private readonly tokenizer: Tokenizer;
  private readonly options: DecodeOptions;
  private decoder = new TextDecoder('utf-8', { ignoreBOM: true });

  constructor(tokenizer: Tokenizer, options: DecodeOptions = {}) {
    this.tokenizer = tokenizer;
    this.options = options;
  }

  /** The text that these tokens complete; may be empty. */
  push(ids: number | Iterable<number>): string {
    const bytes = this.tokenizer.decodeBytes(typeof ids === 'number' ? [ids] : ids, this.options);
    return this.decoder.decode(bytes, { stream: true });
  }

  /** What is left: U+FFFD for an incomplete character. The decoder can be used again. */
  end(): string {
    const rest = this.decoder.decode();
    this.decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    return rest;
  }
}
