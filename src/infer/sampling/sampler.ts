/** Picks the tokens of one sequence. */
import { type Ask, MOST_RANGES, type Pick, type Picker, type SamplingShape } from '../engine/sequence.ts';
import { acceptOrDraw } from '../speculation/accept.ts';
import { adjust, checkSampling, drawFrom, largest, type SamplingOptions, type Weights, weigh } from './distribution.ts';
import { randomAt } from './random.ts';

/** What may come next, by a grammar that follows the tokens. */
export interface TokenMask {
  /** Sets the logits of tokens that may not come now to -inf. */
  restrict(logits: Float32Array): void;
  /** A token has come. */
  advance(token: number): void;
}

export interface SamplerOptions extends SamplingOptions {
  readonly seed?: number;
  /** How many of the likeliest tokens to name beside the one picked; absent: no log-probabilities at all. */
  readonly logprobs?: number;
  readonly mask?: TokenMask | null;
}

export class Sampler implements Picker {
  private readonly options: SamplerOptions;
  /** Random numbers that have been used. */
  private used = 0;
  private readonly uniform = (): number => randomAt((this.options.seed ?? 0) >>> 0, this.used++) / 2 ** 32;
  /** Ranges of tokens that are never drawn, where nothing but these and the temperature matters. */
  private readonly never: readonly number[] | null;
  private readonly prompt: Set<number>;
  private readonly made = new Map<number, number>();

  /** @throws AnsatzError when an option is out of range. */
  constructor(options: SamplerOptions = {}, prompt: readonly number[] = []) {
    checkSampling(options);
    this.options = options;
    this.never = plain(options) ? rangesOf(options.never ?? []) : null;
    this.prompt = new Set(options.repetitionPenalty === undefined ? [] : prompt);
  }

  get shape(): SamplingShape {
    const { temperature, topK, topP, minP, seed } = this.options;
    return { temperature, topK, topP, minP, seed };
  }

  ask(ahead: number): Ask | null {
    if (!this.never) return null;
    const { temperature = 1, seed = 0 } = this.options;
    const number = temperature > 0 ? randomAt(seed >>> 0, this.used + ahead) : 0;
    return { temperature, number, never: this.never };
  }

  take(token: number): Pick {
    if ((this.options.temperature ?? 1) > 0) this.used++;
    this.note(token);
    return { token, logprob: null };
  }

  /** Keeps a drafted token or picks another: distributed as pick() is (speculation/accept.ts). */
  verify(logits: Float32Array, token: number, from: Weights): Pick | null {
    return this.choose(logits, () => {
      const weights = weigh(logits, this.options);
      return weights ? acceptOrDraw(weights, token, from, this.uniform).token : -1;
    });
  }

  /** The distribution of the next token; `logits` is overwritten. Null when nothing may follow. */
  distribution(logits: Float32Array): Weights | null {
    this.shapeLogits(logits);
    return weigh(logits, this.options);
  }

  pick(logits: Float32Array): Pick | null {
    return this.choose(logits, () => drawFrom(logits, this.options, this.uniform));
  }

  private shapeLogits(logits: Float32Array): void {
    adjust(logits, this.options, { prompt: this.prompt, made: this.made });
    this.options.mask?.restrict(logits);
  }

  /** `by` draws from the logits once they are shaped; -1 when nothing may follow. */
  private choose(logits: Float32Array, by: () => number): Pick | null {
    const { logprobs } = this.options;
    // The model's own probabilities, whatever is done to them afterwards.
    const own = logprobs === undefined ? null : logits.slice();
    this.shapeLogits(logits);
    const token = by();
    if (token < 0) return null;
    this.note(token);
    if (!own) return { token, logprob: null };
    const scale = logSumExp(own);
    const top = Array.from(largest(own, logprobs!), (t) => ({ token: t, logprob: own[t] - scale }));
    return { token, logprob: own[token] - scale, top };
  }

  /** A token has come, picked here or not. */
  note(token: number): void {
    this.made.set(token, (this.made.get(token) ?? 0) + 1);
    this.options.mask?.advance(token);
  }
}

/** Whether tokens are drawn by temperature alone. */
function plain(o: SamplerOptions): boolean {
  const whole = (o.topK ?? 0) === 0 && (o.topP ?? 1) >= 1 && (o.minP ?? 0) === 0;
  const asTheyAre = !o.presencePenalty && !o.frequencyPenalty && (o.repetitionPenalty ?? 1) === 1;
  const alone = !o.mask && o.logprobs === undefined && !o.logitBias?.size;
  return alone && asTheyAre && (whole || o.temperature === 0);
}

/** Tokens as ranges, the first one and the one after the last; null when these are too many. */
function rangesOf(tokens: readonly number[]): number[] | null {
  const ranges: number[] = [];
  for (const id of [...new Set(tokens)].sort((a, b) => a - b))
    if (ranges[ranges.length - 1] === id) ranges[ranges.length - 1]++;
    else ranges.push(id, id + 1);
  return ranges.length <= 2 * MOST_RANGES ? ranges : null;
}

export function logSumExp(x: Float32Array): number {
  let top = Number.NEGATIVE_INFINITY;
  for (let k = 0; k < x.length; k++) if (x[k] > top) top = x[k];
  let sum = 0;
  for (let k = 0; k < x.length; k++) sum += Math.exp(x[k] - top);
  return top + Math.log(sum);
}
