/** Types of the native half (native/text). */
import { native } from '../../backend/native.ts';
import type { NativePattern } from './patterns.ts';

export interface NativeAddedToken {
  bytes: Uint8Array;
  id: number;
  normalized: boolean;
  singleWord: boolean;
  lstrip: boolean;
  rstrip: boolean;
}

export interface NativeEncoderSpec {
  byteIds: Uint32Array;
  /** (left, right, product) in order of rank. */
  merges: Uint32Array;
  pattern: NativePattern;
  /** Where a missing leading space is added: 0 nowhere, 1 to each section between added tokens, 2 to each piece. */
  prefix: 0 | 1 | 2;
  /** Pieces that are taken whole (`ignore_merges`): word k is wordBytes[wordEnds[k - 1]..wordEnds[k]). */
  wordBytes: Uint8Array;
  wordEnds: Uint32Array;
  wordIds: Uint32Array;
  added: NativeAddedToken[];
}

export const MATCH_ALL = 0;
export const MATCH_NOTHING = 1;
export type Match = typeof MATCH_ALL | typeof MATCH_NOTHING;

export interface NativeEncoder {
  encode(bytes: Uint8Array, match: Match): Int32Array;
  encodeBatch(texts: Uint8Array[], match: Match, threads: number): Int32Array[];
  encodeBatchAsync(texts: Uint8Array[], match: Match, threads: number): Promise<Int32Array[]>;
  encodePieces(bytes: Uint8Array, ends: Uint32Array): Int32Array;
  /** (begin, end, id or -1 for text) of each section. */
  splitAdded(bytes: Uint8Array, normalized: boolean): Float64Array;
}

export interface NativeTrainerSpec {
  vocabSize: number;
  minFrequency: number;
  byteIds: Uint32Array;
  /** One for each special token: bytes that no merge may produce (empty: no restriction). */
  reserved: Uint8Array[];
  pattern: NativePattern;
}

export interface NativeTrainer {
  addTexts(texts: Uint8Array[], threads: number): void;
  addTextsAsync(texts: Uint8Array[], threads: number): Promise<void>;
  addPieces(bytes: Uint8Array, ends: Uint32Array): void;
  /** Works for about so many milliseconds; true when done. */
  run(milliseconds: number): boolean;
  runAsync(): Promise<void>;
  progress(): { bytes: number; tokens: number };
  merges(): Uint32Array;
}

interface TextAddon {
  BpeEncoder: new (spec: NativeEncoderSpec) => NativeEncoder;
  BpeTrainer: new (spec: NativeTrainerSpec) => NativeTrainer;
}

const addon = () => native() as unknown as TextAddon;

export const createEncoder = (spec: NativeEncoderSpec): NativeEncoder => new (addon().BpeEncoder)(spec);
export const createTrainer = (spec: NativeTrainerSpec): NativeTrainer => new (addon().BpeTrainer)(spec);
