/** One text that is being written: its tokens as they come, how fast, how it ended. */
import type { Piece, Usage } from '../lib/api.ts';
import { type ApiError, asError, wasStopped } from '../lib/errors.ts';
import { type Candidate, type Token, textOf } from '../lib/tokens.ts';

/** Milliseconds between updates of the page: several tokens may come in between. */
const FRAME = 30;

export class Generation {
  tokens = $state.raw<readonly Token[]>([]);
  running = $state(false);
  error = $state.raw<ApiError | null>(null);
  /** Why it ended: stop, length, or stopped by the user. */
  reason = $state<string | null>(null);
  usage = $state.raw<Usage | null>(null);
  /** Milliseconds to the first token, and tokens a second after it. */
  first = $state<number | null>(null);
  rate = $state<number | null>(null);
  private control: AbortController | null = null;

  get text(): string {
    return textOf(this.tokens);
  }

  /** Writes on after `keep`. Settles when it has ended, however it ended. */
  async run(start: (signal: AbortSignal) => AsyncGenerator<Piece>, keep: readonly Token[] = []): Promise<void> {
    this.stop();
    const control = new AbortController();
    this.control = control;
    const current = (): boolean => this.control === control;
    [this.tokens, this.running, this.error, this.reason, this.usage] = [keep, true, null, null, null];
    [this.first, this.rate] = [null, null];
    const began = performance.now();
    let [firstAt, lastAt] = [0, 0];
    let [came, early] = [0, 0];
    let waiting: Token[] = [];
    let timer: ReturnType<typeof setTimeout> | undefined;
    const show = (): void => {
      clearTimeout(timer);
      timer = undefined;
      if (!current() || waiting.length === 0) return;
      this.tokens = [...this.tokens, ...waiting];
      waiting = [];
      // What arrives all at once says nothing of the time between tokens.
      const between = (lastAt - firstAt) / 1000;
      this.rate = between > 0.1 ? (came - early) / between : came / ((lastAt - began) / 1000);
    };
    try {
      for await (const piece of start(control.signal)) {
        if (!current()) return;
        if (piece.kind === 'tokens') {
          lastAt = performance.now();
          if (came === 0) {
            firstAt = lastAt;
            this.first = firstAt - began;
            early = piece.tokens.length;
          }
          came += piece.tokens.length;
          waiting.push(...piece.tokens);
          timer ??= setTimeout(show, FRAME);
        } else if (piece.kind === 'end') this.reason = piece.reason;
        else this.usage = piece.usage;
      }
    } catch (error) {
      if (!current()) return;
      if (wasStopped(error)) this.reason = 'stopped';
      else this.error = asError(error);
    } finally {
      if (current()) {
        show();
        this.running = false;
        this.control = null;
      }
    }
  }

  stop(): void {
    this.control?.abort();
  }

  /** Ends the text before the token at `k`. */
  cut(k: number): void {
    this.stop();
    this.control = null;
    [this.tokens, this.running, this.reason, this.usage] = [this.tokens.slice(0, k), false, 'stop', null];
    [this.first, this.rate] = [null, null];
  }

  /** What is kept when the token at `k` becomes another one. */
  with(k: number, other: Candidate): Token[] {
    return [...this.tokens.slice(0, k), { ...other, top: this.tokens[k].top, forced: true }];
  }

  clear(): void {
    this.stop();
    this.control = null;
    [this.tokens, this.running, this.error, this.reason, this.usage] = [[], false, null, null, null];
    [this.first, this.rate] = [null, null];
  }
}
