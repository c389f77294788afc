/** Rows as an objective wants them: made from stretches of the stored stream, or by changing ordinary rows. */
import { type DocumentTransform, type Objective, type Row, RowRandom, type Vocabulary } from '../objectives/index.ts';
import { createPacking, documentAt, type Packing, type PackingOptions } from './packing.ts';
import type { BatchExtras, TokenBatch, TokenData } from './types.ts';

export interface ObjectivePackingOptions extends PackingOptions {
  readonly objective: Objective;
  readonly vocabulary: Vocabulary;
  /** Names objective and options, for saved cursors. */
  readonly name: string;
  readonly seed: number;
}

export function extrasOf({ shape }: Pick<Objective, 'shape'>): BatchExtras {
  const { visible, keep, encoder } = shape;
  return { visible, keep, encoder };
}

/** Row `row` of a batch as views. */
export function rowOf(batch: TokenBatch, row: number): Row {
  const part = (array: Int32Array, length = batch.length): Int32Array =>
    array.subarray(row * length, (row + 1) * length);
  const { encoder } = batch;
  return {
    inputs: part(batch.inputs),
    targets: part(batch.targets),
    segments: part(batch.segments),
    positions: part(batch.positions),
    visible: batch.visible ? part(batch.visible) : null,
    keep: batch.keep ? part(batch.keep) : null,
    encoder: encoder
      ? {
          inputs: part(encoder.inputs, encoder.length),
          segments: part(encoder.segments, encoder.length),
          positions: part(encoder.positions, encoder.length),
        }
      : null,
  };
}

/** The rows of a data set for an objective; with one that leaves rows alone, exactly those of createPacking. */
export function createObjectivePacking(stored: TokenData, options: ObjectivePackingOptions): Packing {
  const { objective, vocabulary, name, seed } = options;
  const data = objective.documents ? changedDocuments(stored, objective.documents(vocabulary, seed), name) : stored;
  const maker = objective.rows?.(vocabulary);
  if (!maker) return createPacking(data, options);
  const common = { extras: extrasOf(objective), transform: name };
  const randomOf = (batch: TokenBatch, row: number): RowRandom => new RowRandom(seed, batch.samples[row]);
  if (maker.kind === 'row') {
    const plain = createPacking(data, options);
    const fill = (index: number, batch: TokenBatch, row: number): number => {
      plain.fill(index, batch, row);
      return maker.change(rowOf(batch, row), randomOf(batch, row));
    };
    return { ...plain, ...common, fill };
  }
  const { stored: size } = maker;
  const rows = Math.ceil(data.tokenCount / size);
  const text = new Int32Array(size + 1);
  const fill = (index: number, batch: TokenBatch, row: number): number => {
    if (!(index >= 0 && index < rows)) throw new RangeError(`row ${index} of ${rows}`);
    // The last row reaches back into the one before it rather than be padded.
    readAround(data, Math.min(index * size, data.tokenCount - size), text);
    return maker.make(text, rowOf(batch, row), randomOf(batch, row));
  };
  const { shape } = objective;
  return { data, mode: 'stream', documentStart: 'learn', length: shape.length, rows, padding: 0, ...common, fill };
}

/** The token before `start` (end of text at the beginning of the data) and as many from there as fit; a ring. */
function readAround(data: TokenData, start: number, out: Int32Array): void {
  const n = data.tokenCount;
  let from = (((start - 1) % n) + n) % n;
  for (let at = 0; at < out.length; ) {
    const count = Math.min(out.length - at, n - from);
    data.read(from, count, out, at);
    at += count;
    from = 0;
  }
}

/** A data set whose documents have been changed one by one; nothing is stored. */
function changedDocuments(data: TokenData, change: DocumentTransform, name: string): TokenData {
  const docStarts = new Float64Array(data.documentCount + 1);
  for (let d = 0; d < data.documentCount; d++)
    docStarts[d + 1] = docStarts[d] + change.lengthOf(d, data.docStarts[d + 1] - data.docStarts[d]);
  let cached: { document: number; tokens: Int32Array } = { document: -1, tokens: new Int32Array(0) };
  const tokensOf = (document: number): Int32Array => {
    if (cached.document !== document) {
      const start = data.docStarts[document];
      const tokens = new Int32Array(data.docStarts[document + 1] - start);
      data.read(start, tokens.length, tokens, 0);
      cached = { document, tokens: change.change(document, tokens) };
    }
    return cached.tokens;
  };
  return {
    name: data.name,
    tokenCount: docStarts[data.documentCount],
    documentCount: data.documentCount,
    textBytes: data.textBytes,
    vocabSize: data.vocabSize,
    eot: data.eot,
    tokenizerHash: data.tokenizerHash,
    fingerprint: `${data.fingerprint}/${name}`,
    docStarts,
    docBytes: data.docBytes,
    read: (start, count, out, at) => {
      for (let d = documentAt(docStarts, start), from = start; from < start + count; d++) {
        const stop = Math.min(start + count, docStarts[d + 1]);
        out.set(tokensOf(d).subarray(from - docStarts[d], stop - docStarts[d]), at + from - start);
        from = stop;
      }
    },
    close: () => data.close(),
  };
}
