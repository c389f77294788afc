/** Prefix language modelling (src/tricks/prefix-lm): the beginning of a text is given, its continuation predicted. */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import { plainShape } from './causal.ts';
import { continuationRows } from './held-out.ts';
import { IGNORE, type Objective, type Row, type Sizes, type Vocabulary } from './objective.ts';
import type { RowRandom } from './random.ts';
import { registerObjective } from './registry.ts';
import { decoderWriter, encoderWriter } from './write.ts';

interface Options {
  readonly share: number;
  readonly bidirectional: boolean;
  readonly start?: string;
  readonly closed?: boolean;
}

/** Segments of a row as [start, end); padding is none. */
export function segmentsOf(row: Row): [number, number][] {
  const out: [number, number][] = [];
  for (let start = 0; start < row.segments.length; ) {
    let end = start + 1;
    while (end < row.segments.length && row.segments[end] === row.segments[start]) end++;
    if (row.segments[start] !== 0) out.push([start, end]);
    start = end;
  }
  return out;
}

/**
 * In one stream a prefix of p tokens stands at inputs 0..p (0 is the end-of-text token, or the last token before a cut):
 * those see each other, and the first target is that of input p.
 */
function oneStream({ share, bidirectional, start, closed }: Options, sizes: Sizes): Objective {
  if (start !== undefined || closed)
    throw new AnsatzError('objective prefix-lm: start and closed are for models with an encoder');
  return {
    shape: {
      ...{ ...plainShape(sizes), visible: bidirectional, segmented: true },
      targets: sizes.length * (1 - share / 2),
    },
    specials: [],
    rows: () => ({
      kind: 'row',
      change: (row, random) => {
        row.visible?.fill(-1);
        let targets = 0;
        for (const [start, end] of segmentsOf(row)) {
          const given = random.uniform() < share && end - start > 1 ? 1 + random.below(end - start - 1) : 0;
          for (let k = start; k < start + given; k++) row.targets[k] = IGNORE;
          if (given > 0) row.visible?.fill(start + given, start, start + given + 1);
          for (let k = start + given; k < end; k++) if (row.targets[k] !== IGNORE) targets++;
        }
        return targets;
      },
    }),
    prompt: ({ eot }, ids) => ({
      decoder: [eot, ...ids],
      stop: [],
      ...(bidirectional ? { visible: ids.length } : {}),
    }),
  };
}

/**
 * Two texts of P tokens cut at s and P - s fill an encoder and a decoder row of P tokens exactly (T5's packing): the
 * encoder reads a[:s] and b[:P-s], the decoder predicts a[s:] and b[P-s:].
 */
function twoStacks({ share, start, closed }: Options, { length }: Sizes): Objective {
  if (share < 1) throw new AnsatzError('objective prefix-lm: share below 1 is for decoders; an encoder always reads');
  if (length < 2) throw new AnsatzError(`objective prefix-lm: rows of ${length} tokens cannot be divided`);
  const end = closed ? 1 : 0;
  const first = ({ eot, id }: Vocabulary): number => (start === undefined ? eot : id(start));
  const closing = ({ eot }: Vocabulary): number[] => (closed ? [eot] : []);
  // Means over the split, uniform in 1 .. P-1.
  let [encoder, self, cross] = [0, 0, 0];
  for (let s = 1; s < length; s++)
    for (const [given, rest] of [
      [s, length - s],
      [length - s, s],
    ]) {
      encoder += (given + end) ** 2 / (length - 1);
      self += (rest * (rest + 1)) / 2 / (length - 1);
      cross += ((given + end) * rest) / (length - 1);
    }
  const shape = { ...plainShape({ length, encoder: true }), encoder: length + 2 * end, segmented: true };
  return {
    shape: { ...shape, pairs: { encoder, self, cross } },
    specials: [],
    packs: true,
    rows: (vocabulary) => ({
      kind: 'text',
      stored: 2 * length,
      make: (text, row, random: RowRandom) => {
        const s = 1 + random.below(length - 1);
        const [encoder, decoder] = [encoderWriter(row), decoderWriter(row)];
        [s, length - s].forEach((given, k) => {
          const tokens = text.subarray(1 + k * length, 1 + (k + 1) * length);
          encoder.segment(tokens.subarray(0, given), closing(vocabulary));
          decoder.segment(first(vocabulary), tokens.subarray(given));
        });
        encoder.end(vocabulary.eot);
        return decoder.end(vocabulary.eot);
      },
    }),
    heldOut: (v) => {
      const { eot } = v;
      return continuationRows(length, { start: first(v), before: [], after: closing(v), alone: [eot], pad: eot });
    },
    prompt: (v, ids, { context }) => ({
      encoder: orElse([...(context ?? ids), ...closing(v)], v.eot),
      decoder: [first(v), ...(context ? ids : [])],
      stop: [],
    }),
  };
}

const orElse = (ids: readonly number[], one: number): readonly number[] => (ids.length > 0 ? ids : [one]);

registerObjective({
  kind: 'prefix-lm',
  summary: 'the beginning of a text is seen from both sides, the rest predicted (Raffel et al. 2020)',
  options: z.strictObject({
    /** Share of the texts with a prefix, of a length drawn uniformly; the others are predicted whole. */
    share: z.number().min(0).max(1).default(1),
    /** In a decoder: prefix tokens see each other. False leaves the causal mask. */
    bidirectional: z.boolean().default(true),
    /** With an encoder: special token that the decoder begins with (T5: <pad>); by default the end-of-text token. */
    start: z.string().min(1).optional(),
    /** With an encoder: what it reads ends with the end-of-text token (T5). */
    closed: z.boolean().optional(),
  }),
  build: (options, sizes) => (sizes.encoder ? twoStacks(options, sizes) : oneStream(options, sizes)),
});
