/** The records that the data layer hands from stage to stage. */

/** One document: bytes exactly as read (a byte-level tokenizer takes any), and where they came from. */
export interface Document {
  readonly text: Uint8Array;
  /** Path relative to the corpus root with forward slashes; `file.jsonl:12` for the record of line 12. */
  readonly source: string;
  /** SPDX expression or name, where the source states one. */
  readonly license?: string;
  /** SHA-256 of `text` in hex; computed on demand where absent. */
  readonly hash?: string;
}

/** What the data layer needs of a tokenizer. */
export interface DocumentEncoder {
  readonly vocabSize: number;
  /** Id of the end-of-text token that separates documents. */
  readonly eot: number;
  /** `special: 'text'`: the spelling of a special token inside a document is plain text. */
  encodeBatch(docs: Uint8Array[], opts?: { special?: 'text' }): Promise<Int32Array[]> | Int32Array[];
  /** The same off the JavaScript thread; preferred where it exists. */
  encodeBatchAsync?(docs: Uint8Array[], opts?: { special?: 'text' }): Promise<Int32Array[]>;
}

/**
 * Tokenised documents as one long stream, each document followed by the end-of-text token.
 * Positions are numbers: exact up to 2^53.
 */
export interface TokenData {
  readonly name: string;
  readonly tokenCount: number;
  readonly documentCount: number;
  /** Bytes of text that the tokens stand for: the denominator of bits per byte. */
  readonly textBytes: number;
  readonly vocabSize: number;
  readonly eot: number;
  readonly tokenizerHash: string;
  /** Changes whenever the tokens do; a saved cursor is only valid for the same one. */
  readonly fingerprint: string;
  /** documentCount + 1 ascending positions; document d is [docStarts[d], docStarts[d + 1]), its end-of-text included. */
  readonly docStarts: Float64Array;
  /** Bytes of text of every document. */
  readonly docBytes: Float64Array;
  /** Copies `count` tokens from position `start` into out[at..]. */
  read(start: number, count: number, out: Int32Array, at: number): void;
  close(): void;
}

/** Target value of a position without a loss. */
export const IGNORE = -1;
/** Segment of padding; documents in a row are numbered from 1. */
export const PAD_SEGMENT = 0;

/** B rows of T tokens, row-major; row b of every B*T array starts at b * T. */
export interface TokenBatch {
  readonly batch: number;
  readonly length: number;
  readonly inputs: Int32Array;
  /** Next token, or IGNORE. */
  readonly targets: Int32Array;
  /** Equal numbers may attend to each other; PAD_SEGMENT marks padding. */
  readonly segments: Int32Array;
  /** Distance from the segment's first token in this row. */
  readonly positions: Int32Array;
  /** Which data set each row comes from (-1: an empty row). */
  readonly sources: Int32Array;
  /** Global sample number of each row: with the run's seed, a key for the random choices of a batch transform. */
  readonly samples: Float64Array;
  /** Targets that are not IGNORE. */
  targetCount: number;
  /** Index in the row up to which a token sees, also ahead of it; absent where no objective asks for it. */
  readonly visible?: Int32Array;
  /** 0 hides a token from all others. */
  readonly keep?: Int32Array;
  /** B rows of another length that an encoder reads, segment s for segment s of the decoder. */
  readonly encoder?: EncoderRows;
}

export interface EncoderRows {
  readonly length: number;
  readonly inputs: Int32Array;
  readonly segments: Int32Array;
  readonly positions: Int32Array;
}

/** What a batch has beyond inputs and targets. */
export interface BatchExtras {
  readonly visible?: boolean;
  readonly keep?: boolean;
  /** Positions of an encoder row. */
  readonly encoder?: number;
}

export function createBatch(batch: number, length: number, extras: BatchExtras = {}): TokenBatch {
  const n = batch * length;
  const rows = batch * (extras.encoder ?? 0);
  const encoder = () => ({
    length: extras.encoder!,
    inputs: new Int32Array(rows),
    segments: new Int32Array(rows),
    positions: new Int32Array(rows),
  });
  return {
    batch,
    length,
    inputs: new Int32Array(n),
    targets: new Int32Array(n),
    segments: new Int32Array(n),
    positions: new Int32Array(n),
    sources: new Int32Array(batch),
    samples: new Float64Array(batch),
    targetCount: 0,
    ...(extras.visible ? { visible: new Int32Array(n).fill(-1) } : {}),
    ...(extras.keep ? { keep: new Int32Array(n).fill(1) } : {}),
    ...(rows > 0 ? { encoder: encoder() } : {}),
  };
}
