/** Tokens of a request, added up over its choices. */
import type { Meter } from '../http/meter.ts';
import type { Ending } from '../models/generation.ts';

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  completion_tokens_details: {
    reasoning_tokens: number;
    accepted_prediction_tokens: number;
    rejected_prediction_tokens: number;
  };
}

export class Tally {
  private readonly meter: Meter;
  private completion = 0;
  private accepted = 0;
  private rejected = 0;
  private readonly prompts = new Map<number, { tokens: number; cached: number }>();

  constructor(meter: Meter) {
    this.meter = meter;
  }

  /** A choice for prompt `prompt` has ended. A prompt counts once, however many choices it has. */
  add(prompt: number, e: Ending): void {
    const known = this.prompts.get(prompt);
    const cached = Math.min(known?.cached ?? Number.POSITIVE_INFINITY, e.cachedTokens);
    this.prompts.set(prompt, { tokens: e.promptTokens, cached });
    this.completion += e.completionTokens;
    this.accepted += e.accepted;
    this.rejected += e.rejected;
    const of = (what: 'tokens' | 'cached'): number => [...this.prompts.values()].reduce((n, p) => n + p[what], 0);
    this.meter.promptTokens = of('tokens');
    this.meter.cachedTokens = of('cached');
    this.meter.completionTokens = this.completion;
  }

  get total(): number {
    return this.meter.promptTokens + this.completion;
  }

  usage(): Usage {
    return {
      prompt_tokens: this.meter.promptTokens,
      completion_tokens: this.completion,
      total_tokens: this.total,
      prompt_tokens_details: { cached_tokens: this.meter.cachedTokens },
      completion_tokens_details: {
        reasoning_tokens: 0,
        accepted_prediction_tokens: this.accepted,
        rejected_prediction_tokens: this.rejected,
      },
    };
  }
}
