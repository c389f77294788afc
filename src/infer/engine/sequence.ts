/** A request while it is being served: what is known of its text, what has been computed, how it goes on. */
import type { Truncation, Weights } from '../sampling/distribution.ts';
import type { Flow } from './flow.ts';
import type { Memory } from './memories.ts';
import type { PageList } from './pages.ts';

/** What is picked for one place. */
export interface Pick {
  readonly token: number;
  /** Natural logarithm of the model's own probability of the token, before temperature and penalties; if asked for. */
  readonly logprob: number | null;
  /** The most likely tokens with theirs, when asked for. */
  readonly top?: readonly { readonly token: number; readonly logprob: number }[];
}

/** How a picker draws: what a draft model must know to draw alike. */
export type SamplingShape = Truncation & { readonly seed?: number };

/** How a token is to be drawn from logits where they lie. */
export interface Ask {
  /** 0: the likeliest. */
  readonly temperature: number;
  /** Of 32 bits: which one (tensor/ops/draw.ts). */
  readonly number: number;
  /** Ranges of tokens that are not drawn: the first one, the one after the last, and so on; MOST_RANGES at most. */
  readonly never: readonly number[];
}

export const MOST_RANGES = 8;

/** Picks tokens of one sequence, in order: keeps whatever state that takes (random numbers, counts, a grammar). */
export interface Picker {
  /** The next token after logits [vocab]; they are its to overwrite. Null: nothing may follow. */
  pick(logits: Float32Array): Pick | null;
  /** How the token `ahead` places on would be drawn; absent or null: it wants the logits. */
  ask?(ahead: number): Ask | null;
  /** The next token, drawn as it was asked for. */
  take?(token: number): Pick;
  /** How it draws; absent: drafts are compared with what it picks. */
  readonly shape?: SamplingShape;
  /** Keeps a token that was drawn from `from`, or picks another, so that the result is distributed as pick() is. */
  verify?(logits: Float32Array, token: number, from: Weights): Pick | null;
}

/** Guesses for sequences of a large model, by a small one. */
export interface DraftRequest {
  /** Stands for the sequence from call to call. */
  readonly key: object;
  readonly tokens: readonly number[];
  readonly sampling: SamplingShape;
  /** Tokens that there is room for. */
  readonly most?: number;
}

export interface Draft {
  readonly tokens: readonly number[];
  /** The distributions that they were drawn from; absent: certain. */
  readonly weights?: readonly Weights[];
}

export interface Drafting {
  draft(requests: readonly DraftRequest[], most: number): Promise<Draft[]>;
  /** A sequence has ended. */
  forget(key: object): void;
}

/** Guesses how a text goes on; wrong guesses cost time, never correctness. */
export interface Drafter {
  /** At most `most` tokens that may follow `tokens`. */
  draft(tokens: readonly number[], most: number): readonly number[];
}

export interface Request {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  /** What an encoder reads, for models that have one. */
  readonly encoder?: readonly number[];
  /** Whose parameters it is for (Passes.add); absent: the passes' own. */
  readonly variant?: number;
  readonly picker: Picker;
  /** Tokens that end the text; they are not part of it. */
  readonly stop?: readonly number[];
  /** The first so many tokens see each other (prefix-LM); 0: causal. */
  readonly ahead?: number;
  /** Log-probabilities of the prompt's own tokens (the first has none). */
  readonly scorePrompt?: (token: number, place: number, logits: Float32Array) => void;
  readonly drafter?: Drafter | null;
  /** Called for every token as it comes; returning false ends the text (a stop string). */
  onToken(pick: Pick): boolean | undefined;
  readonly signal?: AbortSignal;
  /** How far it may run ahead of whoever takes its tokens; absent: to its end. */
  readonly flow?: Flow;
}

export type FinishReason = 'stop' | 'length' | 'cancelled';

export interface Finished {
  readonly reason: FinishReason;
  readonly promptTokens: number;
  /** Prompt tokens that were taken from the cache. */
  readonly cachedTokens: number;
  readonly tokens: number;
  /** Tokens that were drafted, and those of them that were right. */
  readonly drafted: number;
  readonly accepted: number;
}

/** The engine's view of a request. */
export interface Sequence {
  readonly request: Request;
  readonly resolve: (f: Finished) => void;
  readonly reject: (e: Error) => void;
  /** Tokens that an encoder has read and that stand before the others (EncoderPart.before). */
  readonly before: number;
  /** Where what is picked begins: behind those and the prompt. */
  readonly start: number;
  /** Those, the prompt, and what has been picked so far. */
  readonly tokens: number[];
  /** Tokens whose state lies in the pages. */
  computed: number;
  pages: PageList | null;
  memory: Memory | null;
  /** Row of the page table. */
  slot: number;
  cached: number;
  drafted: number;
  accepted: number;
  /** What was drafted for the next step. */
  draft: Draft | null;
  /** Prompt tokens that have been scored. */
  scored: number;
}

export const finishOf = (s: Sequence, reason: FinishReason): Finished => ({
  reason,
  promptTokens: s.request.prompt.length,
  cachedTokens: s.cached,
  tokens: s.tokens.length - s.start,
  drafted: s.drafted,
  accepted: s.accepted,
});
