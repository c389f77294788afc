/** One continuation of one prompt: text as it comes, with its tokens, and how it ended. */
import type { Drafter, FinishReason, Pick, Picker } from '../../infer/engine/index.ts';
import { Sampler, type SamplerOptions } from '../../infer/sampling/index.ts';
import { complete } from '../../infer/text/completion.ts';
import { ApiError } from '../http/errors.ts';
import type { AnswerGrammar } from './grammars.ts';
import type { ServedModel } from './served.ts';
import { type ScoredToken, TokenLog } from './token-log.ts';

export interface Ask {
  readonly prompt: readonly number[];
  /** What an encoder reads. */
  readonly encoder?: readonly number[];
  /** The first so many tokens see each other. */
  readonly ahead?: number;
  readonly maxTokens: number;
  readonly sampling: Omit<SamplerOptions, 'mask'>;
  readonly grammar?: AnswerGrammar | null;
  /** Whether stop strings leave alone what the grammar is about. */
  readonly uncut?: boolean;
  /** Tokens and texts that end it. */
  readonly stop: readonly number[];
  readonly stopStrings: readonly string[];
  /** What guesses, made anew for every choice. */
  readonly drafter?: () => Drafter | null;
  readonly scorePrompt?: (token: number, place: number, logits: Float32Array) => void;
  /** Characters that stand before the continuation, for the offsets of its tokens. */
  readonly offset?: number;
}

export interface TextPiece {
  readonly text: string;
  readonly tokens: readonly ScoredToken[];
}

export interface Ending {
  readonly reason: FinishReason;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** The tokens of the text, and those that ended it. */
  readonly completionTokens: number;
  readonly accepted: number;
  readonly rejected: number;
}

/** Sees every token as it comes. */
export interface Watcher {
  token(): void;
}

/** The sampler as the engine sees it; remembers the token that ended the text. */
class EndingPicker implements Picker {
  private readonly sampler: Sampler;
  private readonly stop: readonly number[];
  ending: Pick | null = null;

  constructor(sampler: Sampler, stop: readonly number[]) {
    [this.sampler, this.stop] = [sampler, stop];
  }

  get shape(): Sampler['shape'] {
    return this.sampler.shape;
  }

  pick(logits: Float32Array): Pick | null {
    return this.note(this.sampler.pick(logits));
  }

  ask(ahead: number): ReturnType<Sampler['ask']> {
    return this.sampler.ask(ahead);
  }

  take(token: number): Pick {
    return this.note(this.sampler.take(token))!;
  }

  verify(...args: Parameters<Sampler['verify']>): Pick | null {
    return this.note(this.sampler.verify(...args));
  }

  private note(pick: Pick | null): Pick | null {
    if (pick && this.stop.includes(pick.token)) this.ending = pick;
    return pick;
  }
}

export async function* generate(
  model: ServedModel,
  ask: Ask,
  signal: AbortSignal,
  watcher: Watcher,
): AsyncGenerator<TextPiece, Ending> {
  const { tokenizer, decoding } = model;
  const mask = ask.grammar?.begin() ?? null;
  const never = [...(ask.sampling.never ?? []), ...model.unused];
  const picker = new EndingPicker(new Sampler({ ...ask.sampling, never, mask }, ask.prompt), ask.stop);
  const log = new TokenLog(tokenizer, ask.offset);
  const pieces = complete(decoding, tokenizer, {
    prompt: ask.prompt,
    encoder: ask.encoder,
    ahead: ask.ahead,
    maxTokens: ask.maxTokens,
    picker,
    stop: ask.stop,
    stopStrings: ask.stopStrings,
    whole: () => ask.uncut === true && mask !== null && mask.bound,
    drafter: ask.drafter?.() ?? null,
    scorePrompt: ask.scorePrompt,
    signal,
  });
  let seen = 0;
  let step = await pieces.next();
  try {
    for (; !step.done; step = await pieces.next()) {
      const { text, picks } = step.value;
      for (const pick of picks) {
        log.push(pick);
        watcher.token();
      }
      seen += picks.length;
      const tokens = log.release(text);
      if (text !== '' || tokens.length > 0) yield { text, tokens };
    }
    const end = step.value;
    // Programs that score texts count on one entry for every token that was made.
    if (ask.scorePrompt && picker.ending) log.push(picker.ending);
    const rest = log.end(end.stopString !== null);
    if (rest.length > 0) yield { text: '', tokens: rest };
    if (mask && !mask.complete && end.reason === 'stop' && end.stopString === null)
      throw new ApiError(500, 'The model found no way to complete the answer under the schema.');
    return {
      reason: end.reason,
      promptTokens: end.promptTokens + (ask.encoder?.length ?? 0),
      cachedTokens: end.cachedTokens,
      completionTokens: Math.max(seen, end.tokens) + (picker.ending ? 1 : 0),
      accepted: end.accepted,
      rejected: end.drafted - end.accepted,
    };
  } finally {
    await pieces.return?.(undefined as never);
  }
}

/** What one of several sources gave, or how it ended. */
export type Interleaved<T, R> =
  | { readonly index: number; readonly value: T; readonly end?: undefined }
  | { readonly index: number; readonly value?: undefined; readonly end: R };

/** @throws ApiError 503 when too many texts are waiting already. */
export function refuseOverload({ decoding, options }: ServedModel): void {
  const { waiting } = decoding.stats();
  if (waiting < options.queue) return;
  throw new ApiError(503, `The model is overloaded: ${waiting} texts are waiting.`, {
    code: 'overloaded',
    headers: { 'retry-after': '1', 'retry-after-ms': '1000' },
  });
}

/**
 * Several sources at once, as they come, `most` of them at a time. The first begins alone: once it has something, what
 * it read of a prompt that all share lies in the cache.
 */
export async function* interleave<T, R>(
  sources: readonly AsyncGenerator<T, R>[],
  most = Number.POSITIVE_INFINITY,
): AsyncGenerator<Interleaved<T, R>> {
  type Next = { index: number; result: IteratorResult<T, R> };
  const pending = new Map<number, Promise<Next>>();
  const ask = (index: number): void => {
    pending.set(
      index,
      sources[index].next().then((result) => ({ index, result })),
    );
  };
  let started = 1;
  if (sources.length > 0) ask(0);
  try {
    while (pending.size > 0) {
      const { index, result } = await Promise.race(pending.values());
      pending.delete(index);
      if (!result.done) ask(index);
      for (; started < sources.length && pending.size < most; started++) ask(started);
      yield result.done ? { index, end: result.value } : { index, value: result.value };
    }
  } finally {
    for (const promise of pending.values()) promise.catch(() => {});
    // A source that waits for its next token cannot be asked to return before it has it: the signal ends those.
    await Promise.allSettled(sources.map((s, k) => (pending.has(k) ? undefined : s.return(undefined as never))));
  }
}
