// Rows of an objective over made-up documents whose tokens all differ, so that a token names its place.
import { createObjectivePacking, extrasOf } from '../../src/data/packing-objective.ts';
import { tokensInMemory } from '../../src/data/shards.ts';
import { createBatch, type TokenBatch, type TokenData } from '../../src/data/types.ts';
import { buildObjective, type Objective, objectiveSchema, type Vocabulary } from '../../src/objectives/index.ts';

export const EOT = 0;
/** Ids of special tokens start here. */
export const SPECIAL = 1_000_000;

export function distinctDocuments(lengths: readonly number[]): TokenData {
  let next = 1;
  const docs = lengths.map((length) => Array.from({ length }, () => next++));
  return tokensInMemory(docs, { eot: EOT, vocabSize: 2_000_000, name: 'made-up' });
}

export const storedTokens = (data: TokenData): Int32Array => {
  const out = new Int32Array(data.tokenCount);
  data.read(0, data.tokenCount, out, 0);
  return out;
};

/** A vocabulary for an objective's special tokens; text is one byte a token. */
export const vocabularyFor = (objective: Objective): Vocabulary => ({
  eot: EOT,
  id: (name) => SPECIAL + objective.specials.indexOf(name),
  encode: (text) => Int32Array.from(text, (byte) => byte + 1),
  decode: (ids) => Uint8Array.from(ids, (id) => id - 1),
});

export interface MadeRows {
  readonly objective: Objective;
  readonly vocabulary: Vocabulary;
  readonly rows: number;
  /** Row `index` as sample `sample`, alone in a batch that held something else before. */
  row(index: number, sample?: number): TokenBatch & { counted: number };
}

export function rowsOf(
  data: TokenData,
  config: string | { kind: string; [option: string]: unknown },
  options: { length: number; encoder?: boolean; seed?: number; mode?: 'stream' | 'whole' },
): MadeRows {
  const { length, encoder = false, seed = 7, mode } = options;
  const objective = buildObjective(objectiveSchema.parse(config), { length, encoder });
  const vocabulary = vocabularyFor(objective);
  const packing = createObjectivePacking(data, { length, mode, objective, vocabulary, name: 'test', seed });
  return {
    objective,
    vocabulary,
    rows: packing.rows,
    row: (index, sample = index) => {
      const batch = createBatch(1, packing.length, extrasOf(objective));
      const { encoder: e } = batch;
      for (const array of [batch.inputs, batch.targets, batch.segments, batch.positions, batch.visible, batch.keep])
        array?.fill(-77);
      for (const array of e ? [e.inputs, e.segments, e.positions] : []) array.fill(-77);
      batch.samples[0] = sample;
      const counted = packing.fill(index, batch, 0);
      return { ...batch, counted };
    },
  };
}

export interface Segment {
  readonly inputs: number[];
  readonly targets: number[];
  readonly positions: number[];
  readonly visible: number[];
  /** Where it starts in the row. */
  readonly start: number;
}

/** Contiguous segments of a row (or of its encoder's), by number; padding is left out. */
export function segmentsIn(
  rows: Pick<TokenBatch, 'inputs' | 'segments' | 'positions'> & { targets?: Int32Array; visible?: Int32Array },
): Map<number, Segment> {
  const found = new Map<number, Segment>();
  rows.segments.forEach((s, k) => {
    if (s === 0) return;
    if (!found.has(s)) found.set(s, { inputs: [], targets: [], positions: [], visible: [], start: k });
    const segment = found.get(s)!;
    if (segment.start + segment.inputs.length !== k) throw new Error(`segment ${s} is in two places`);
    segment.inputs.push(rows.inputs[k]);
    segment.positions.push(rows.positions[k]);
    if (rows.targets) segment.targets.push(rows.targets[k]);
    if (rows.visible) segment.visible.push(rows.visible[k]);
  });
  return found;
}
