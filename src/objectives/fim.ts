/** Fill in the middle (src/tricks/fim): part of the texts are turned round so that their middle comes last. */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import {
  cutText,
  cutTokens,
  FIM_MIDDLE,
  FIM_OVERHEAD,
  FIM_PREFIX,
  FIM_SUFFIX,
  type FimIds,
  fimSequence,
  fimSpecials,
  type Order,
  type Parts,
} from '../tricks/fim/fim.ts';
import { decoderOnly, plainShape } from './causal.ts';
import { type DocumentTransform, IGNORE, type Row, type RowMaker, type Vocabulary } from './objective.ts';
import { segmentsOf } from './prefix-lm.ts';
import { RowRandom } from './random.ts';
import { registerObjective } from './registry.ts';

interface Options {
  readonly rate: number;
  readonly spm: number;
  readonly level: 'context' | 'document';
  readonly unit?: 'character' | 'token';
}

/** Texts of fewer tokens stay as they are. */
const SHORTEST = 3;
/** A text that is cut short is read this much further, so that what its parts encode to fills the row. */
const SLACK = 8;

const idsOf = (v: Vocabulary): FimIds => ({
  prefix: v.id(FIM_PREFIX),
  suffix: v.id(FIM_SUFFIX),
  middle: v.id(FIM_MIDDLE),
  end: v.eot,
});

const orderOf = (random: RowRandom, spm: number): Order => (random.uniform() < spm ? 'spm' : 'psm');

/** Collects a row's tokens; the last text is cut where the row ends. */
class RowText {
  readonly row: Row;
  readonly control: Set<number>;
  at = 0;
  segment = 0;
  targets = 0;
  constructor(row: Row, control: Set<number>) {
    this.row = row;
    this.control = control;
  }

  get room(): number {
    return this.row.inputs.length - this.at;
  }

  /** A text and the token that stands before it. */
  add(before: number, tokens: ArrayLike<number>): void {
    const { inputs, targets, segments, positions } = this.row;
    this.segment++;
    for (let k = 0; k < tokens.length && this.at < inputs.length; k++, this.at++) {
      inputs[this.at] = k === 0 ? before : tokens[k - 1];
      targets[this.at] = this.control.has(tokens[k]) ? IGNORE : tokens[k];
      segments[this.at] = this.segment;
      positions[this.at] = k;
      if (targets[this.at] !== IGNORE) this.targets++;
    }
  }

  end(pad: number): number {
    const { inputs, targets, segments, positions } = this.row;
    inputs.fill(pad, this.at);
    targets.fill(IGNORE, this.at);
    segments.fill(0, this.at);
    for (let k = this.at; k < positions.length; k++) positions[k] = k - this.at;
    return this.targets;
  }
}

/** The parts of a text whose end is left out where there is no room for it. */
function fitted(parts: Parts, room: number): Parts {
  let left = room;
  const [prefix, middle, suffix] = parts.map((part) => {
    const kept = Array.from(part).slice(0, left);
    left -= kept.length;
    return kept;
  });
  return [prefix, middle, suffix];
}

/** The texts of a row one by one: what the control tokens add is taken from the row's last text. */
function contextLevel({ rate, spm, unit = 'character' }: Options, v: Vocabulary): RowMaker {
  const ids = idsOf(v);
  const control = new Set([ids.prefix, ids.suffix, ids.middle]);
  const cut = (content: Int32Array, random: RowRandom): Parts => {
    if (unit === 'token') return cutTokens(content, random);
    const [p, m, s] = cutText(v.decode(content), random).map((part) => v.encode(part));
    return [p, m, s];
  };
  return {
    kind: 'row',
    change: (row, random) => {
      const old = { inputs: row.inputs.slice(), targets: row.targets.slice() };
      const pieces = segmentsOf(row);
      const out = new RowText(row, control);
      for (const [start, end] of pieces) {
        const tokens = old.targets.slice(start, end).filter((id) => id >= 0);
        const whole = tokens[tokens.length - 1] === v.eot ? tokens.subarray(0, -1) : tokens;
        const content = whole.subarray(0, out.room - FIM_OVERHEAD + SLACK);
        const turned = random.uniform() < rate && Math.min(content.length, out.room - FIM_OVERHEAD) >= SHORTEST;
        if (!turned) {
          out.add(old.inputs[start], tokens);
          continue;
        }
        out.add(v.eot, fimSequence(fitted(cut(content, random), out.room - FIM_OVERHEAD), ids, orderOf(random, spm)));
      }
      return out.end(v.eot);
    },
  };
}

/** Whole documents, before rows are cut from the stream. Their end-of-text token ends the middle. */
function documentLevel({ rate, spm }: Options, v: Vocabulary, seed: number): DocumentTransform {
  const ids = idsOf(v);
  const turned = (document: number, length: number): RowRandom | undefined => {
    const random = new RowRandom(seed, document, 1);
    return random.uniform() < rate && length - 1 >= SHORTEST ? random : undefined;
  };
  return {
    lengthOf: (document, length) => length + (turned(document, length) ? FIM_OVERHEAD - 1 : 0),
    change: (document, tokens) => {
      const random = turned(document, tokens.length);
      if (!random) return tokens;
      const order = orderOf(random, spm);
      return Int32Array.from(fimSequence(cutTokens(tokens.subarray(0, -1), random), ids, order));
    },
  };
}

/** Control tokens are given, not predicted. */
function withoutControl(v: Vocabulary): RowMaker {
  const { prefix, suffix, middle } = idsOf(v);
  return {
    kind: 'row',
    change: ({ targets }) => {
      let counted = 0;
      for (let k = 0; k < targets.length; k++) {
        if (targets[k] === prefix || targets[k] === suffix || targets[k] === middle) targets[k] = IGNORE;
        if (targets[k] !== IGNORE) counted++;
      }
      return counted;
    },
  };
}

registerObjective({
  kind: 'fim',
  summary: 'next-token prediction; part of the texts with the middle last (Bavarian et al. 2022)',
  options: z.strictObject({
    /** Share of texts that are turned round. */
    rate: z.number().min(0).max(1).default(0.5),
    /** Share of those with the suffix first. */
    spm: z.number().min(0).max(1).default(0.5),
    /** Each text within a row, or whole documents before rows are cut from them. */
    level: z.enum(['context', 'document']).default('context'),
    /** Where texts are cut; by default at characters, and at tokens on the level of documents. */
    unit: z.enum(['character', 'token']).optional(),
  }),
  build: (options, sizes) => {
    decoderOnly(sizes, 'fim');
    if (options.level === 'document' && options.unit === 'character')
      throw new AnsatzError("objective fim: whole documents are cut at tokens; unit 'character' needs level 'context'");
    const shape = { ...plainShape(sizes), segmented: options.level === 'context' };
    if (options.level === 'context') return { shape, specials: fimSpecials, rows: (v) => contextLevel(options, v) };
    return {
      shape,
      specials: fimSpecials,
      rows: withoutControl,
      documents: (v, seed) => documentLevel(options, v, seed),
    };
  },
});
