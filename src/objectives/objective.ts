/**
 * What a model is trained to predict, as a transform over plain arrays of tokens. An objective says which tensors a
 * batch has (fixed shapes, so that steps can be captured), makes rows of training data, and says how a prompt is put to
 * a model that was trained with it.
 */
import type { VisiblePairs } from '../model/model.ts';
import type { RowRandom } from './random.ts';

/** Target of a position without a loss. */
export const IGNORE = -1;

/** What an objective is fitted to. */
export interface Sizes {
  /** Tokens of a row as the run config says: `length`, or the model's context. */
  readonly length: number;
  /** Positions that the model has; absent: as many as `length`. */
  readonly longest?: number;
  /** Whether the model has an encoder. */
  readonly encoder: boolean;
}

/** One row of a batch, to be written into. */
export interface Row {
  readonly inputs: Int32Array;
  /** Next token, or IGNORE. */
  readonly targets: Int32Array;
  /** From 1; 0 is padding. */
  readonly segments: Int32Array;
  /** Counted from 0 in every segment. */
  readonly positions: Int32Array;
  /** Index in the row up to which a token sees, beyond those before it. */
  readonly visible: Int32Array | null;
  /** 0 hides a token from all others. */
  readonly keep: Int32Array | null;
  readonly encoder: EncoderRow | null;
}

/** Segment s of the decoder reads segment s of the encoder. */
export interface EncoderRow {
  readonly inputs: Int32Array;
  readonly segments: Int32Array;
  readonly positions: Int32Array;
}

export interface RowShape {
  /** Positions of the decoder. */
  readonly length: number;
  /** Positions of the encoder; 0: there is none. */
  readonly encoder: number;
  readonly visible: boolean;
  readonly keep: boolean;
  /** Segments separate examples, also where documents may see each other. */
  readonly segmented: boolean;
  /** Targets in a row on average, where that is known. */
  readonly targets: number;
  readonly pairs?: VisiblePairs;
}

/** Ids of special tokens, and text for objectives that cut it. */
export interface Vocabulary {
  readonly eot: number;
  id(special: string): number;
  encode(text: Uint8Array): Int32Array;
  decode(ids: Int32Array): Uint8Array;
}

/** How rows are made: both kinds return the number of targets. */
export type RowMaker =
  | {
      /** From `stored` tokens of the text, of which no row gets another's. */
      readonly kind: 'text';
      readonly stored: number;
      /** text[0] is the token before the row's own (the end-of-text token at the very beginning). */
      make(text: Int32Array, row: Row, random: RowRandom): number;
    }
  | {
      /** By changing an ordinary row: documents one after the other, each input's target the next token. */
      readonly kind: 'row';
      change(row: Row, random: RowRandom): number;
    };

/** Documents as another stream of tokens, before rows are cut from it. Document d always becomes the same. */
export interface DocumentTransform {
  /** Tokens that a document of `length` tokens (its end-of-text included) becomes. */
  lengthOf(document: number, length: number): number;
  change(document: number, tokens: Int32Array): Int32Array;
}

/** Held-out text for models with an encoder: what a row's first tokens become when they are given, not predicted. */
export interface HeldOutRows {
  /** Tokens at the start of a row that were predicted in an earlier one. */
  readonly overlap: number;
  readonly encoder: number;
  /** Row of the loader (context has no targets) to a row of the model. */
  change(row: Row): void;
}

/** A prompt as a model of this objective wants it. */
export interface Prompt {
  readonly encoder?: readonly number[];
  readonly decoder: readonly number[];
  /** Decoder tokens up to this index see each other. */
  readonly visible?: number;
  /** Tokens that end the answer, besides the end of text. */
  readonly stop: readonly number[];
  /** Tokens that no answer holds. */
  readonly never?: readonly number[];
}

export interface PromptOptions {
  /** A mode of a mixture of denoisers. */
  readonly mode?: string;
  /** Text for the encoder; the prompt is then what the decoder has said so far. */
  readonly context?: readonly number[];
}

export interface Objective {
  readonly shape: RowShape;
  /** Special tokens it uses, in the order in which a tokenizer gets them. */
  readonly specials: readonly string[];
  /** Its rows come straight from the stored text: how documents are packed into ordinary rows does not matter. */
  readonly packs?: boolean;
  /** Absent: ordinary rows. */
  rows?(vocabulary: Vocabulary): RowMaker;
  documents?(vocabulary: Vocabulary, seed: number): DocumentTransform;
  /** Absent: held-out rows are ordinary rows, each token predicted from those before it. */
  heldOut?(vocabulary: Vocabulary): HeldOutRows;
  /** Modes that a prompt may ask for; absent: there are none. */
  readonly modes?: readonly string[];
  /** Absent: the end-of-text token, then the prompt. */
  prompt?(vocabulary: Vocabulary, ids: readonly number[], options: PromptOptions): Prompt;
}
