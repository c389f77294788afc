/** The choices of a request: every one a continuation of its own, all of them at once. */
import { setMaxListeners } from 'node:events';
import { ApiError } from '../http/errors.ts';
import { type Ctx, leaseModel, reserveTokens } from '../http/exchange.ts';
import { type Ask, type Ending, generate, interleave, refuseOverload, type TextPiece } from '../models/generation.ts';
import type { Lease, Registry } from '../models/registry.ts';
import type { ScoredToken } from '../models/token-log.ts';
import { anySeed, choiceSeed, foldSeed } from './asks.ts';
import { Tally } from './usage.ts';

export interface Wanted {
  readonly prompts: readonly Ask[];
  /** Choices of each prompt. */
  readonly each: number;
  readonly seed: number | undefined;
  /** What hears of the log-probabilities of a choice's prompt. */
  readonly scorer?: (index: number) => Ask['scorePrompt'];
}

/** A choice has more text, or has ended. Choices are numbered prompt by prompt. */
export type ChoiceEvent = { readonly index: number } & (
  | { readonly piece: TextPiece; readonly end?: undefined }
  | { readonly piece?: undefined; readonly end: Ending }
);

/** A request in progress. `close` must be called however it ends. */
export class Choices {
  readonly lease: Lease;
  readonly tally: Tally;
  private readonly control = new AbortController();
  private readonly gone: AbortSignal;
  private readonly forward = (): void => this.control.abort();
  private readonly settle: (used: number) => void;
  private readonly wanted: Wanted;
  private readonly c: Ctx;

  private constructor(c: Ctx, lease: Lease, wanted: Wanted) {
    [this.c, this.lease, this.wanted] = [c, lease, wanted];
    this.tally = new Tally(c.get('meter'));
    const most = wanted.prompts.reduce(
      (n, p) => n + p.prompt.length + (p.encoder?.length ?? 0) + p.maxTokens * wanted.each,
      0,
    );
    this.settle = reserveTokens(c, most);
    this.gone = c.get('gone');
    // Every choice listens.
    setMaxListeners(0, this.control.signal);
    if (this.gone.aborted) this.control.abort();
    this.gone.addEventListener('abort', this.forward);
  }

  /** Opens the model, asks `make` what is wanted of it, and takes the tokens that it may cost. */
  static async begin(c: Ctx, registry: Registry, name: string, make: (lease: Lease) => Wanted): Promise<Choices> {
    const lease = await leaseModel(c, registry, name);
    try {
      refuseOverload(lease.model);
      return new Choices(c, lease, make(lease));
    } catch (error) {
      lease.release();
      throw error;
    }
  }

  async *events(): AsyncGenerator<ChoiceEvent> {
    const { prompts, each, seed, scorer } = this.wanted;
    const base = seed === undefined ? anySeed() : foldSeed(seed);
    const meter = this.c.get('meter');
    const sources = prompts.flatMap((ask, p) =>
      Array.from({ length: each }, (_, k) => {
        const sampling = { ...ask.sampling, seed: choiceSeed(base, k) };
        const scorePrompt = scorer?.(p * each + k);
        return generate(this.lease.model, { ...ask, sampling, scorePrompt }, this.control.signal, meter.choice());
      }),
    );
    try {
      for await (const { index, value, end } of interleave(sources, this.lease.model.options.sequences)) {
        if (end) {
          if (end.reason === 'cancelled' && !this.control.signal.aborted)
            throw new ApiError(503, 'The model was closed before the answer was complete.', { code: 'model_closed' });
          this.tally.add(Math.floor(index / each), end);
          yield { index, end };
        } else if (value) yield { index, piece: value };
      }
    } finally {
      this.control.abort();
    }
  }

  close(): void {
    this.control.abort();
    this.gone.removeEventListener('abort', this.forward);
    this.settle(this.tally.total);
    this.lease.release();
  }
}

/** How the API calls the ways in which a text ends. A request that was cut off is not answered at all. */
/** One choice when it is whole. */
export interface Made {
  text: string;
  tokens: ScoredToken[];
  reason: string;
}

/** All choices, when they are whole. */
export async function whole(choices: Choices, count: number): Promise<Made[]> {
  const made = Array.from({ length: count }, (): Made => ({ text: '', tokens: [], reason: 'stop' }));
  for await (const { index, piece, end } of choices.events()) {
    if (piece) {
      made[index].text += piece.text;
      made[index].tokens.push(...piece.tokens);
    } else made[index].reason = finishReason(end);
  }
  return made;
}

export const finishReason = (e: Ending): 'stop' | 'length' => (e.reason === 'length' ? 'length' : 'stop');
