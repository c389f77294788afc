/**
 * Learning from examples of what to say: a document is what is given and what is answered, in turns, and only answers
 * are targets. Where they begin and end is marked in the stored text by ids beyond the vocabulary, which are taken out
 * again when a row is made.
 */
import { z } from 'zod';
import { plainShape } from './causal.ts';
import { IGNORE, type Objective, type Row, type RowMaker, type Sizes, type Vocabulary } from './objective.ts';
import { segmentsOf } from './prefix-lm.ts';
import { buildObjective, objectiveSchema, registerObjective, settledObjective } from './registry.ts';
import { decoderWriter, encoderWriter } from './write.ts';

/** Marks in the stored text, counted from `marks`: an answer begins, it ends, what an encoder reads ends. */
export const ANSWER = 0;
export const ANSWERED = 1;
export const READ = 2;
export const MARKS = 3;

const options = z.strictObject({
  /** The id of the first mark: the vocabulary's size. */
  marks: z.int().positive(),
  /** Token that stands before a text; by default the end-of-text token. */
  start: z.int().min(0).optional(),
  /** What the model was trained with before: it says how an encoder's text is framed. */
  base: objectiveSchema.optional(),
});
type Options = z.output<typeof options>;

interface Example {
  /** The token before the first, and the tokens. */
  readonly first: number;
  readonly tokens: number[];
  readonly targets: boolean[];
  readonly encoder: number[];
}

/** An example without its marks. One that was cut goes on as its next mark says; one without any has no targets. */
function read(sequence: ArrayLike<number>, marks: number): Example {
  const all = Array.from(sequence);
  const next = all.find((id) => id === marks + ANSWER || id === marks + ANSWERED);
  let answering = next === marks + ANSWERED;
  const kept: { id: number; counts: boolean }[] = [];
  let encoder: number[] = [];
  let first: number | undefined;
  for (const id of all) {
    if (id === marks + ANSWER) answering = true;
    else if (id === marks + ANSWERED) answering = false;
    else if (id === marks + READ) encoder = kept.splice(0).map((t) => t.id);
    else if (first === undefined) first = id;
    else kept.push({ id, counts: answering });
  }
  return { first: first ?? 0, tokens: kept.map((t) => t.id), targets: kept.map((t) => t.counts), encoder };
}

function change(row: Row, v: Vocabulary, o: Options, base: Objective | undefined): number {
  const examples = segmentsOf(row).map(([start, end]) =>
    read([row.inputs[start], ...row.targets.subarray(start, end)], o.marks),
  );
  const encoder = row.encoder ? encoderWriter(row) : null;
  const decoder = decoderWriter(row);
  for (const { first, tokens, targets, encoder: text } of examples) {
    if (tokens.length === 0) continue;
    let start = first === v.eot ? (o.start ?? v.eot) : first;
    if (encoder) {
      const put = base?.prompt?.(v, [], { context: text });
      encoder.segment(put?.encoder ?? [...text, v.eot]);
      start = put?.decoder[0] ?? start;
    }
    decoder.counted(
      start,
      tokens,
      targets.map((counts, k) => (counts ? tokens[k] : IGNORE)),
    );
  }
  encoder?.end(v.eot);
  return decoder.end(v.eot);
}

function build(o: Options, sizes: Sizes): Objective {
  const base = o.base && buildObjective(o.base, sizes);
  const encoder = sizes.encoder ? sizes.length : 0;
  const prompt = sizes.encoder ? base?.prompt : undefined;
  return {
    shape: { ...plainShape(sizes), encoder, segmented: true, targets: sizes.length / 2 },
    specials: base?.specials ?? [],
    rows: (v): RowMaker => ({ kind: 'row', change: (row) => change(row, v, o, base) }),
    heldOut: (v) => ({ overlap: 0, encoder, change: (row) => void change(row, v, o, base) }),
    ...(prompt && { prompt }),
    ...(prompt && base?.modes && { modes: base.modes }),
  };
}

registerObjective({
  kind: 'supervised',
  summary: 'answers predicted from what was given; what was given is no target (fine-tuning)',
  options,
  build,
  settled: (o, sizes) => ({ ...o, ...(o.base && { base: settledObjective(o.base, sizes) }) }),
});
