import { packBestFit } from './packing-best-fit.ts';
import { type BatchExtras, IGNORE, PAD_SEGMENT, type TokenBatch, type TokenData } from './types.ts';

/**
 * `learn`: the end-of-text token in front of a document is its first input, so the first word is predicted from
 * "a document begins here" alone, and every stored token is a target once. `ignore`: a document's inputs are its own
 * tokens, its first one is never predicted, and the end-of-text token is the last input, without a target.
 * In neither case does a target depend on another document.
 */
export type DocumentStart = 'learn' | 'ignore';

export interface PackingOptions {
  /** T: inputs in a row. */
  length: number;
  /** `stream`: documents in order, cut every T tokens, no padding but at the very end.
   *  `whole`: documents stay in one row (those longer than T are cut), rows are filled by best fit and padded. */
  mode?: 'stream' | 'whole';
  documentStart?: DocumentStart;
  /** Decides which documents share a row in mode `whole`. */
  seed?: number;
}

/** A data set seen as numbered rows of T positions. */
export interface Packing {
  readonly data: TokenData;
  readonly mode: 'stream' | 'whole';
  readonly documentStart: DocumentStart;
  readonly length: number;
  readonly rows: number;
  /** Share of positions that hold padding. */
  readonly padding: number;
  /** What its batches have beyond inputs and targets. */
  readonly extras?: BatchExtras;
  /** Names what rows are made into, where they are not plain rows of the stream. */
  readonly transform?: string;
  /** Writes row `index` into row `row` of the batch, whose sample number is there already; returns the number of targets that are not IGNORE. */
  fill(index: number, batch: TokenBatch, row: number): number;
}

export function createPacking(data: TokenData, options: PackingOptions): Packing {
  const { length, mode = 'stream', documentStart = 'learn', seed = 0 } = options;
  if (!Number.isSafeInteger(length) || length < 1) throw new RangeError(`rows need at least one token, not ${length}`);
  const filler = new RowFiller(data, length, documentStart);
  const common = { data, mode, documentStart, length };
  if (mode === 'stream') {
    const rows = Math.ceil(data.tokenCount / length);
    const fill = (index: number, batch: TokenBatch, row: number) => {
      checkRow(index, rows);
      filler.begin(batch, row);
      filler.range(index * length, Math.min(length, data.tokenCount - index * length));
      return filler.end();
    };
    return { ...common, rows, padding: rows === 0 ? 0 : 1 - data.tokenCount / (rows * length), fill };
  }
  const packed = packBestFit(data.docStarts, length, seed);
  const rows = packed.rowStarts.length - 1;
  const fill = (index: number, batch: TokenBatch, row: number) => {
    checkRow(index, rows);
    filler.begin(batch, row);
    for (let p = packed.rowStarts[index]; p < packed.rowStarts[index + 1]; p++) {
      filler.range(packed.starts[p], packed.counts[p]);
    }
    return filler.end();
  };
  return { ...common, rows, padding: rows === 0 ? 0 : 1 - data.tokenCount / (rows * length), fill };
}

function checkRow(index: number, rows: number): void {
  if (!(index >= 0 && index < rows)) throw new RangeError(`row ${index} of ${rows}`);
}

/** The last document d with docStarts[d] <= position. */
export function documentAt(docStarts: Float64Array, position: number): number {
  let low = 0;
  let high = docStarts.length - 2;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (docStarts[middle] <= position) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** Writes ranges of the token stream, one after the other, into one row of a batch. */
export class RowFiller {
  readonly #data: TokenData;
  readonly #length: number;
  readonly #documentStart: DocumentStart;
  readonly #scratch: Int32Array;
  #batch!: TokenBatch;
  #first = 0;
  #used = 0;
  #segment = 0;
  #targets = 0;

  constructor(data: TokenData, length: number, documentStart: DocumentStart) {
    this.#data = data;
    this.#length = length;
    this.#documentStart = documentStart;
    this.#scratch = new Int32Array(length + 1);
  }

  begin(batch: TokenBatch, row: number): void {
    if (batch.length !== this.#length)
      throw new RangeError(`rows of ${this.#length} tokens in a batch of ${batch.length}`);
    this.#batch = batch;
    this.#first = row * this.#length;
    this.#used = 0;
    this.#segment = PAD_SEGMENT;
    this.#targets = 0;
  }

  /**
   * Appends the stored tokens [start, start + count): as targets with `learn`, as inputs with `ignore`.
   * The first `context` of them get no target: they were predicted elsewhere and are here to be looked at.
   */
  range(start: number, count: number, context = 0): void {
    const { docStarts } = this.#data;
    const end = start + count;
    for (let d = documentAt(docStarts, start), at = start; at < end; d++) {
      const stop = Math.min(end, docStarts[d + 1]);
      this.#piece(d, at, stop - at, Math.max(0, start + context - at));
      at = stop;
    }
  }

  /** Stored tokens [start, start + count) of document d: one segment. */
  #piece(d: number, start: number, count: number, context: number): void {
    const { inputs, targets, segments, positions } = this.#batch;
    const learn = this.#documentStart === 'learn';
    const docStart = this.#data.docStarts[d];
    const docEnd = this.#data.docStarts[d + 1];
    const scratch = this.#scratch;
    // scratch[k] is the k-th input, scratch[k + 1] its target.
    if (!learn) {
      const next = start + count < docEnd ? 1 : 0;
      this.#data.read(start, count + next, scratch, 0);
      if (next === 0) scratch[count] = IGNORE;
    } else if (start === docStart) {
      scratch[0] = this.#data.eot;
      this.#data.read(start, count, scratch, 1);
    } else this.#data.read(start - 1, count + 1, scratch, 0);
    const segment = ++this.#segment;
    const base = this.#first + this.#used;
    for (let k = 0; k < count; k++) {
      inputs[base + k] = scratch[k];
      targets[base + k] = k < context ? IGNORE : scratch[k + 1];
      segments[base + k] = segment;
      positions[base + k] = k;
    }
    this.#targets += Math.max(0, count - context) - (!learn && start + count === docEnd && context < count ? 1 : 0);
    this.#used += count;
  }

  /** Pads the rest of the row and returns its number of targets. */
  end(): number {
    const { inputs, targets, segments, positions } = this.#batch;
    const from = this.#first + this.#used;
    const to = this.#first + this.#length;
    inputs.fill(this.#data.eot, from, to);
    targets.fill(IGNORE, from, to);
    segments.fill(PAD_SEGMENT, from, to);
    // Padding is a segment of its own, so its positions count from 0 like any other's.
    for (let i = from; i < to; i++) positions[i] = i - from;
    return this.#targets;
  }
}
