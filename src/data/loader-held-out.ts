import { documentAt, RowFiller } from './packing.ts';
import { createBatch, type TokenBatch, type TokenData } from './types.ts';

export interface HeldOutOptions {
  batch: number;
  length: number;
  /** Tokens before a cut that the next row sees again, without a loss: more context for the tokens after the cut. */
  overlap?: number;
  /** Use only the first tokens (whole rows); the bytes are counted to match. */
  maxTokens?: number;
  rank?: number;
  worldSize?: number;
}

/**
 * Reads a data set once, in order: every stored token, end-of-text included, is the target of exactly one position, the
 * first of a document being predicted from the end-of-text token alone. Summed loss over `textBytes` is then exact.
 */
export class HeldOutLoader {
  readonly batch: number;
  readonly length: number;
  readonly rows: number;
  /** Batches that this rank gets. */
  readonly batches: number;
  /** Tokens that are targets, over all ranks. */
  readonly tokens: number;
  /** Bytes of text they stand for: exact if all tokens are read, else in proportion within the last document. */
  readonly textBytes: number;
  readonly #filler: RowFiller;
  readonly #rank: number;
  readonly #worldSize: number;
  readonly #starts: Float64Array;
  readonly #contexts: Int32Array;

  constructor(data: TokenData, options: HeldOutOptions) {
    const { batch, length, overlap = 0, maxTokens = Number.POSITIVE_INFINITY, rank = 0, worldSize = 1 } = options;
    if (!(batch >= 1 && length >= 1)) throw new RangeError(`a held-out batch of ${batch} x ${length}`);
    if (!(overlap >= 0 && overlap < length)) throw new RangeError(`an overlap of ${overlap} in rows of ${length}`);
    this.batch = batch;
    this.length = length;
    this.#rank = rank;
    this.#worldSize = worldSize;
    this.#filler = new RowFiller(data, length, 'learn');
    const starts: number[] = [0];
    const contexts: number[] = [];
    for (let start = 0; start < Math.min(data.tokenCount, maxTokens); ) {
      // Only tokens of the same document are context; a new document starts with an empty one.
      const context = Math.min(overlap, start - data.docStarts[documentAt(data.docStarts, start)]);
      contexts.push(context);
      start = Math.min(start + length - context, data.tokenCount);
      starts.push(start);
    }
    this.#starts = Float64Array.from(starts);
    this.#contexts = Int32Array.from(contexts);
    this.rows = contexts.length;
    const all = Math.ceil(this.rows / batch);
    this.batches = Math.max(0, Math.ceil((all - rank) / worldSize));
    this.tokens = starts[this.rows];
    this.textBytes = bytesBefore(data, this.tokens);
  }

  /** Batch `index` of this rank; the last one may end in empty rows (sources -1, all targets ignored). */
  read(index: number, into: TokenBatch = createBatch(this.batch, this.length)): TokenBatch {
    if (!(index >= 0 && index < this.batches)) throw new RangeError(`held-out batch ${index} of ${this.batches}`);
    const first = (index * this.#worldSize + this.#rank) * this.batch;
    into.targetCount = 0;
    for (let row = 0; row < this.batch; row++) {
      const r = first + row;
      this.#filler.begin(into, row);
      if (r < this.rows) {
        const context = this.#contexts[r];
        this.#filler.range(this.#starts[r] - context, this.#starts[r + 1] - this.#starts[r] + context, context);
      }
      into.targetCount += this.#filler.end();
      into.sources[row] = r < this.rows ? 0 : -1;
      into.samples[row] = r;
    }
    return into;
  }

  /** All batches of this rank, in one reused buffer. */
  *[Symbol.iterator](): Generator<TokenBatch> {
    const batch = createBatch(this.batch, this.length);
    for (let index = 0; index < this.batches; index++) yield this.read(index, batch);
  }
}

function bytesBefore(data: TokenData, position: number): number {
  if (position >= data.tokenCount) return data.textBytes;
  const d = documentAt(data.docStarts, position);
  let bytes = 0;
  for (let i = 0; i < d; i++) bytes += data.docBytes[i];
  const part = (position - data.docStarts[d]) / (data.docStarts[d + 1] - data.docStarts[d]);
  return bytes + data.docBytes[d] * part;
}
