/** What a kind of tokenizer must do; everything else of a Tokenizer is the same for all kinds. */
import type { Match } from './addon.ts';
import { symbolsToBytes } from './byte-level.ts';
import { Encoder } from './encoder.ts';
import { type AddedToken, parseTokenizer } from './format.ts';
import type { JsonObject } from './json.ts';
import type { Template } from './template.ts';

export interface Codec {
  /** Entries of the model's vocabulary. */
  readonly vocab: ReadonlyMap<string, number>;
  readonly added: readonly AddedToken[];
  readonly template: Template;
  /** Whether texts begin with a space that was not there: decode() takes it away. */
  readonly leadingSpace: boolean;
  encode(text: Uint8Array, match: Match): Int32Array;
  encodeBatch(texts: Uint8Array[], match: Match, threads: number): Int32Array[];
  encodeBatchAsync(texts: Uint8Array[], match: Match, threads: number): Promise<Int32Array[]>;
  /** The bytes that a token stands for, `added` or an entry of the vocabulary; undefined if it stands for its own name. */
  bytesOf(token: string, added: boolean): Uint8Array | undefined;
}

/** Byte-level BPE, encoded natively. */
export function byteLevelCodec(json: JsonObject): Codec {
  const tables = parseTokenizer(json);
  const encoder = new Encoder(tables);
  const { vocab, added, template } = tables;
  return {
    ...{ vocab, added, template },
    leadingSpace: false,
    encode: (text, match) => encoder.encode(text, match),
    encodeBatch: (texts, match, threads) => encoder.encodeBatch(texts, match, threads),
    encodeBatchAsync: (texts, match, threads) => encoder.encodeBatchAsync(texts, match, threads),
    bytesOf: (token, added) => (added ? undefined : symbolsToBytes(token)),
  };
}
