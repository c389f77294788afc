/**
 * Whether drafting pays, by the clock: tokens a millisecond of steps with drafts and of steps without are kept apart,
 * the faster way is taken, and the other is tried again now and then. How many sequences run together changes what a
 * draft costs (a step with many rows is no longer free), so a change of it forgets what was measured.
 */
interface Speed {
  tokens: number;
  ms: number;
}

export interface GovernorOptions {
  /** Steps of each kind before they are compared, and steps between trials of the slower one. */
  readonly trial?: number;
  readonly every?: number;
}

export class Governor {
  private readonly trial: number;
  private readonly every: number;
  private readonly speeds: { with: Speed; without: Speed } = {
    with: { tokens: 0, ms: 0 },
    without: { tokens: 0, ms: 0 },
  };
  private readonly steps = { with: 0, without: 0 };
  private sequences = 0;
  private sinceTrial = 0;

  constructor({ trial = 8, every = 128 }: GovernorOptions = {}) {
    [this.trial, this.every] = [trial, every];
  }

  /** Whether the next step, of so many sequences, should have drafts. */
  wants(sequences: number): boolean {
    if (sequences > 2 * this.sequences || 2 * sequences < this.sequences) this.forget(sequences);
    if (this.steps.with < this.trial) return true;
    if (this.steps.without < this.trial) return false;
    const better = this.faster;
    if (++this.sinceTrial < this.every) return better;
    this.sinceTrial = 0;
    // A few steps of the slower way again: texts change.
    const slower = better ? 'without' : 'with';
    this.steps[slower] = this.trial - 2;
    this.speeds[slower] = { tokens: this.speeds[slower].tokens / 4, ms: this.speeds[slower].ms / 4 };
    return !better;
  }

  /** Whether drafting is the faster way, as far as is known. */
  get faster(): boolean {
    const { with: a, without: b } = this.speeds;
    return b.ms === 0 || (a.ms > 0 && a.tokens / a.ms >= b.tokens / b.ms);
  }

  note(drafted: boolean, tokens: number, ms: number): void {
    const kind = drafted ? 'with' : 'without';
    const s = this.speeds[kind];
    this.speeds[kind] = { tokens: 0.95 * s.tokens + tokens, ms: 0.95 * s.ms + ms };
    this.steps[kind]++;
  }

  private forget(sequences: number): void {
    this.sequences = sequences;
    this.steps.with = this.steps.without = this.sinceTrial = 0;
    this.speeds.with = { tokens: 0, ms: 0 };
    this.speeds.without = { tokens: 0, ms: 0 };
  }
}
