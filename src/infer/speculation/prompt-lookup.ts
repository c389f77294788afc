/**
 * Prompt lookup (Saxena 2023): a text that repeats itself goes on as it did before. The last tokens are looked up in
 * prompt and continuation; what followed them is the draft. Costs nothing but wrong guesses, so it stops guessing while
 * they do not pay.
 */
import type { Drafter } from '../engine/index.ts';

export interface LookupOptions {
  /** Longest and shortest run of tokens to look up. */
  readonly longest?: number;
  readonly shortest?: number;
  /** Acceptance below which it pauses, and for how many tokens. */
  readonly least?: number;
  readonly pause?: number;
}

export class PromptLookup implements Drafter {
  private readonly longest: number;
  private readonly shortest: number;
  private readonly least: number;
  private readonly firstPause: number;
  private pause: number;
  /** Where each run of n tokens was last followed by something: run -> place after it, by n. */
  private readonly seen: Map<string, number>[] = [];
  private indexed = 0;
  private pending: { at: number; draft: readonly number[] } | null = null;
  /** Exponentially weighted share of drafts that were right; starts at 1, so that it gets a chance. */
  private rate = 1;
  private silentUntil = 0;

  constructor({ longest = 3, shortest = 1, least = 0.2, pause = 32 }: LookupOptions = {}) {
    [this.longest, this.shortest, this.least] = [longest, shortest, least];
    this.pause = this.firstPause = pause;
    for (let n = 0; n <= longest; n++) this.seen.push(new Map());
  }

  /** Acceptance so far, as it is weighed. */
  get acceptance(): number {
    return this.rate;
  }

  draft(tokens: readonly number[], most: number): readonly number[] {
    this.learn(tokens);
    this.index(tokens);
    if (tokens.length < this.silentUntil) return [];
    for (let n = Math.min(this.longest, tokens.length - 1); n >= this.shortest; n--) {
      const at = this.seen[n].get(tokens.slice(tokens.length - n).join());
      if (at === undefined) continue;
      const draft = tokens.slice(at, at + most);
      if (draft.length === 0) continue;
      this.pending = { at: tokens.length, draft };
      return draft;
    }
    return [];
  }

  /** Compares the last draft with what came. */
  private learn(tokens: readonly number[]): void {
    const { pending } = this;
    this.pending = null;
    if (!pending) return;
    for (let k = 0; k < pending.draft.length && pending.at + k < tokens.length; k++) {
      const right = tokens[pending.at + k] === pending.draft[k];
      this.rate += 0.1 * ((right ? 1 : 0) - this.rate);
      if (!right) break;
    }
    if (this.rate > 2 * this.least) this.pause = this.firstPause;
    if (this.rate >= this.least) return;
    // Each pause in a row is twice as long: a text without repetitions is hardly ever guessed at.
    this.silentUntil = tokens.length + this.pause;
    this.pause = Math.min(2 * this.pause, 1024);
    this.rate = 1.5 * this.least;
  }

  /** Notes what followed every run; the last token is followed by nothing yet. */
  private index(tokens: readonly number[]): void {
    for (; this.indexed < tokens.length - 1; this.indexed++)
      for (let n = this.shortest; n <= this.longest; n++) {
        const from = this.indexed - n + 1;
        if (from >= 0) this.seen[n].set(tokens.slice(from, this.indexed + 1).join(), this.indexed + 1);
      }
  }
}
