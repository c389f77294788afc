/** Tokenizers: training, encoding, decoding, tokenizer.json. */
export type { JsonObject } from './json.ts';
export { NAMED_PATTERNS } from './patterns.ts';
export { reserveSpecials } from './reserve.ts';
export { StreamDecoder } from './stream.ts';
export { type BatchOptions, type DecodeOptions, type EncodeOptions, Tokenizer } from './tokenizer.ts';
export type { Documents, TrainOptions, TrainProgress } from './train.ts';
