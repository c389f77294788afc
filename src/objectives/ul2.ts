/**
 * The mixture of denoisers (src/tricks/ul2): every row holds the same examples, in a new order and with new masks, so
 * all rows have one shape without padding and the mixture is exact in every row.
 */
import { z } from 'zod';
import { corrupt } from '../tricks/ul2/corrupt.ts';
import { denoiserSchema, type mixtures } from '../tricks/ul2/mixtures.ts';
import { END, modeToken, START, sentinelToken, ul2Specials } from '../tricks/ul2/specials.ts';
import { continuationRows } from './held-out.ts';
import type { Objective, RowMaker, Sizes, Vocabulary } from './objective.ts';
import type { RowRandom } from './random.ts';
import { registerObjective } from './registry.ts';
import { type Example, maskOf, planRow, type RowPlan } from './ul2-plan.ts';
import { decoderWriter, encoderWriter } from './write.ts';

const options = z.strictObject({
  /** A named mixture, or its denoisers. */
  mixture: z
    .union([
      z.enum(['ul2', 't5gemma2', 'ul2r', 'clm'] satisfies (keyof typeof mixtures)[]),
      z.array(denoiserSchema).min(1),
    ])
    .default('ul2'),
  /** Share of examples of mode S; the other modes keep their proportions. */
  sequentialShare: z.number().gt(0).lt(1).optional(),
  /** Largest example: encoder tokens, or positions of a decoder. By default the run's `length`. */
  budget: z.int().min(16).optional(),
  /** Examples in a row; by default the fewest that hold the shares exactly. */
  examples: z.int().positive().optional(),
  /** Whether examples begin with a mode token, and how often it gives way to one more token of text. */
  modes: z.boolean().default(true),
  modeDrop: z.number().min(0).max(1).default(0.1),
  /** Masks that may begin and end either way, or T5's. */
  sampler: z.enum(['open', 't5']).default('open'),
  /** In a decoder: the given part of an example sees itself from both sides. */
  bidirectional: z.boolean().default(true),
});
export type Ul2Options = z.output<typeof options>;

interface Ids {
  readonly start: number;
  readonly end: number;
  readonly mode: Readonly<Record<string, number>>;
  readonly sentinels: readonly number[];
}

const MODES = ['R', 'S', 'X'] as const;

const idsOf = (v: Vocabulary, plan: RowPlan): Ids => ({
  start: v.id(START),
  end: v.id(END),
  mode: Object.fromEntries(MODES.map((m) => [m, v.id(modeToken(m))])),
  sentinels: Array.from({ length: plan.sentinels }, (_, k) => v.id(sentinelToken(k))),
});

/** The given and the predicted part of an example, without its frame. */
function split(e: Example, text: Int32Array, split: number, ids: Ids, o: Ul2Options, random: RowRandom) {
  if (e.denoiser.kind === 'spans') return corrupt(text, maskOf(e, o.sampler, random), ids.sentinels);
  return { inputs: text.subarray(0, split), targets: text.subarray(split) };
}

function makeRows(plan: RowPlan, o: Ul2Options, sizes: Sizes, v: Vocabulary): RowMaker {
  const ids = idsOf(v, plan);
  return {
    kind: 'text',
    stored: plan.stored,
    make: (text, row, random) => {
      const encoder = sizes.encoder ? encoderWriter(row) : null;
      const decoder = decoderWriter(row);
      let at = 1;
      // The second of two texts that share a split is cut at its complement, so that together they have one size.
      let pending: number | undefined;
      for (const k of random.order(plan.groups.length)) {
        for (const e of plan.groups[k]) {
          const tokens = text.subarray(at, at + e.raw);
          let cut = e.given ?? 0;
          if (e.paired) {
            cut = pending ?? 1 + random.below(e.raw - 1);
            pending = pending === undefined ? e.raw - cut : undefined;
          } else if (e.denoiser.kind === 'prefix' && e.given === undefined) cut = 1 + random.below(e.raw - 1);
          const { inputs, targets } = split(e, tokens, cut, ids, o, random);
          // Without its mode token an example gets the token of text before it, and keeps its size.
          const first = !o.modes ? [] : [random.uniform() < o.modeDrop ? text[at - 1] : ids.mode[e.denoiser.mode]];
          if (encoder) {
            encoder.segment(first, inputs, [ids.end]);
            decoder.segment(ids.start, targets, [ids.end]);
          } else {
            const sequence = [...first, ...inputs, ids.start, ...targets, ids.end];
            decoder.stream(sequence, first.length + inputs.length + 1);
          }
          at += e.raw;
        }
      }
      encoder?.end(v.eot);
      return decoder.end(v.eot);
    },
  };
}

function build(o: Ul2Options, sizes: Sizes): Objective {
  const plan = planRow(o, sizes);
  const shape = {
    length: plan.length,
    encoder: plan.encoder,
    visible: !sizes.encoder && o.bidirectional,
    keep: false,
    segmented: true,
    targets: plan.targets,
    pairs: plan.pairs,
  };
  return {
    shape,
    specials: ul2Specials(plan.sentinels - 1),
    modes: MODES,
    packs: true,
    rows: (v) => makeRows(plan, o, sizes, v),
    ...(sizes.encoder && {
      heldOut: (v: Vocabulary) => {
        const ids = idsOf(v, plan);
        const before = o.modes ? [ids.mode.S] : [];
        const frame = { start: ids.start, before, after: [ids.end], alone: [...before, ids.end], pad: v.eot };
        return continuationRows(sizes.length, frame);
      },
    }),
    prompt: (v, text, { mode = 'S', context }) => {
      const ids = idsOf(v, plan);
      const first = o.modes ? [ids.mode[mode]] : [];
      // A continuation is text; the answers of other modes are marked with sentinels.
      const special = [ids.start, ...Object.values(ids.mode), ...(mode === 'S' ? ids.sentinels : [])];
      const common = { stop: [ids.end], never: special };
      if (sizes.encoder)
        return {
          encoder: [...first, ...(context ?? text), ids.end],
          decoder: context ? [ids.start, ...text] : [ids.start],
          ...common,
        };
      const given = [...first, ...(context ?? text), ids.start];
      const decoder = context ? [...given, ...text] : given;
      return { decoder, ...common, ...(o.bidirectional ? { visible: given.length - 1 } : {}) };
    },
  };
}

registerObjective({
  kind: 'ul2',
  summary: 'mixture of denoisers with mode tokens (Tay et al. 2022), for decoders and encoder-decoders',
  options,
  build,
  settled: (o, { length }) => ({ ...o, budget: o.budget ?? length }),
});
