import { AnsatzError } from '../backend/errors.ts';
import { MixtureSchedule } from './loader-mixture.ts';
import { Permutation } from './loader-permutation.ts';
import type { Packing } from './packing.ts';
import { createBatch, type TokenBatch } from './types.ts';

export interface LoaderSource {
  name: string;
  packing: Packing;
  /** Fraction of the tokens that come from here, relative to the other sources' weights. */
  weight?: number;
}

export interface LoaderOptions {
  /** Rows in a batch of this rank. */
  batch: number;
  seed: number;
  /** This process's place among `worldSize`; together the ranks see every row once. */
  rank?: number;
  worldSize?: number;
}

export interface SourceCursor {
  name: string;
  /** Of the data and how it is cut into rows: a cursor means nothing for other data. */
  fingerprint: string;
  rows: number;
  /** Passes completed, and rows taken of the current one. */
  epoch: number;
  index: number;
}

/** Where a loader stands: plain JSON, the same on every rank, independent of batch size and number of ranks. */
export interface LoaderState {
  version: 1;
  seed: number;
  /** Rows taken by all ranks together. */
  sample: number;
  sources: SourceCursor[];
}

/**
 * An endless, shuffled, resumable sequence of batches. Every epoch of a source visits each of its rows once, in an order
 * of its own; a batch may span the end of an epoch, so no row is dropped.
 */
export class Loader {
  readonly length: number;
  readonly batch: number;
  readonly #seed: number;
  readonly #rank: number;
  readonly #worldSize: number;
  readonly #sources: readonly LoaderSource[];
  readonly #cursors: SourceCursor[];
  readonly #orders: Permutation[];
  readonly #mixture: MixtureSchedule;
  #sample = 0;

  constructor(sources: readonly LoaderSource[], options: LoaderOptions) {
    const { batch, seed, rank = 0, worldSize = 1 } = options;
    checkSources(sources);
    if (!Number.isSafeInteger(batch) || batch < 1)
      throw new RangeError(`batch must be a positive integer, not ${batch}`);
    if (!Number.isSafeInteger(seed) || seed < 0)
      throw new RangeError(`seed must be a non-negative integer, not ${seed}`);
    if (!(Number.isSafeInteger(worldSize) && Number.isSafeInteger(rank) && rank >= 0 && rank < worldSize)) {
      throw new RangeError(`rank ${rank} of ${worldSize}`);
    }
    this.length = sources[0].packing.length;
    this.batch = batch;
    this.#seed = seed;
    this.#rank = rank;
    this.#worldSize = worldSize;
    this.#sources = sources;
    this.#cursors = sources.map(({ name, packing }) => ({
      name,
      fingerprint: fingerprintOf(packing),
      rows: packing.rows,
      epoch: 0,
      index: 0,
    }));
    this.#orders = sources.map((_, s) => this.#orderOf(s));
    this.#mixture = new MixtureSchedule(
      sources.map(({ weight = 1 }) => weight),
      sources.map(({ packing }) => packing.data.tokenCount / packing.rows),
    );
  }

  /** Rows of all sources together: what one pass over everything takes. */
  get rows(): number {
    return this.#sources.reduce((sum, source) => sum + source.packing.rows, 0);
  }

  #orderOf(s: number): Permutation {
    return new Permutation(this.#sources[s].packing.rows, this.#seed, s, this.#cursors[s].epoch);
  }

  /** Fills `into` (or a new batch) with this rank's next rows; pass the same batch again to allocate nothing. */
  next(into: TokenBatch = createBatch(this.batch, this.length, this.#sources[0].packing.extras)): TokenBatch {
    if (into.batch !== this.batch || into.length !== this.length) {
      throw new RangeError(`a batch of ${into.batch} x ${into.length} for a loader of ${this.batch} x ${this.length}`);
    }
    const mine = this.#rank * this.batch;
    let targets = 0;
    // Every rank walks the whole global batch, so that the cursors agree, and reads only its own rows.
    for (let k = 0; k < this.batch * this.#worldSize; k++) {
      const s = this.#mixture.next();
      const cursor = this.#cursors[s];
      const row = k - mine;
      if (row >= 0 && row < this.batch) {
        into.sources[row] = s;
        into.samples[row] = this.#sample;
        targets += this.#sources[s].packing.fill(this.#orders[s].at(cursor.index), into, row);
      }
      this.#sample++;
      if (++cursor.index === cursor.rows) {
        cursor.index = 0;
        cursor.epoch++;
        this.#orders[s] = this.#orderOf(s);
      }
    }
    into.targetCount = targets;
    return into;
  }

  state(): LoaderState {
    return {
      version: 1,
      seed: this.#seed,
      sample: this.#sample,
      sources: this.#cursors.map((cursor) => ({ ...cursor })),
    };
  }

  restore(state: LoaderState): void {
    const why = this.#mismatch(state);
    if (why) {
      throw new AnsatzError(`cannot continue from the saved data position: ${why}`, {
        hint: 'resume with the data and settings the run was started with, or start a new run',
      });
    }
    state.sources.forEach((saved, s) => {
      this.#cursors[s].epoch = saved.epoch;
      this.#cursors[s].index = saved.index;
      this.#orders[s] = this.#orderOf(s);
    });
    this.#mixture.restore(state.sources.map(({ epoch, index, rows }) => epoch * rows + index));
    this.#sample = state.sample;
  }

  #mismatch(state: LoaderState): string | undefined {
    if (state?.version !== 1 || !Array.isArray(state.sources)) return 'it is not a loader state of version 1';
    if (state.seed !== this.#seed) return `it was saved with seed ${state.seed}, this run has ${this.#seed}`;
    if (state.sources.length !== this.#cursors.length) {
      return `it has ${state.sources.length} data sources, this run has ${this.#cursors.length}`;
    }
    let total = 0;
    for (const [s, saved] of state.sources.entries()) {
      const own = this.#cursors[s];
      if (saved.name !== own.name) return `source ${s} was "${saved.name}" and is "${own.name}" now`;
      if (saved.fingerprint !== own.fingerprint || saved.rows !== own.rows) {
        return `the data of "${own.name}", or the way it is cut into rows, has changed`;
      }
      const inRange =
        Number.isSafeInteger(saved.epoch) && saved.epoch >= 0 && saved.index >= 0 && saved.index < own.rows;
      if (!inRange || !Number.isSafeInteger(saved.index)) return `the position in "${own.name}" is out of range`;
      total += saved.epoch * saved.rows + saved.index;
    }
    return total === state.sample ? undefined : 'its counts contradict each other';
  }
}

function fingerprintOf(packing: Packing): string {
  const plain = `${packing.data.fingerprint}/${packing.mode}/${packing.documentStart}/${packing.length}`;
  return packing.transform ? `${plain}/${packing.transform}` : plain;
}

function checkSources(sources: readonly LoaderSource[]): void {
  if (sources.length === 0) throw new RangeError('a loader needs at least one source');
  const [{ packing: first }] = sources;
  for (const { name, packing, weight = 1 } of sources) {
    if (packing.rows === 0) {
      throw new AnsatzError(`the data set "${name}" is empty`, { hint: 'tokenise some text for it, or leave it out' });
    }
    if (!(weight > 0 && Number.isFinite(weight))) {
      throw new AnsatzError(`the weight of the data set "${name}" is ${weight}: it must be positive`, {
        hint: 'leave the data set out instead',
      });
    }
    if (packing.length !== first.length) {
      throw new RangeError(`rows of "${name}" have ${packing.length} tokens, others ${first.length}`);
    }
    if (packing.data.tokenizerHash !== first.data.tokenizerHash) {
      throw new AnsatzError(`the data sets "${sources[0].name}" and "${name}" were made with different tokenizers`, {
        hint: 'tokenise both with one tokenizer',
      });
    }
  }
  if (new Set(sources.map(({ name }) => name)).size !== sources.length) {
    throw new RangeError('the names of a loader’s sources must differ');
  }
}
