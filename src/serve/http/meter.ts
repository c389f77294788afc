/** What is measured of one request. */

/** One continuation: when its tokens came. */
export class ChoiceMeter {
  readonly started: number;
  first: number | null = null;
  last = 0;
  tokens = 0;

  constructor(started: number) {
    this.started = started;
  }

  token(): void {
    this.last = performance.now();
    this.first ??= this.last;
    this.tokens++;
  }
}

export class Meter {
  readonly started = performance.now();
  readonly choices: ChoiceMeter[] = [];
  model: string | null = null;
  stream = false;
  promptTokens = 0;
  completionTokens = 0;
  cachedTokens = 0;

  choice(): ChoiceMeter {
    const made = new ChoiceMeter(this.started);
    this.choices.push(made);
    return made;
  }

  /** Milliseconds to the first token; null when there was none. */
  get firstToken(): number | null {
    const firsts = this.choices.flatMap((c) => (c.first === null ? [] : [c.first - this.started]));
    return firsts.length > 0 ? Math.min(...firsts) : null;
  }
}
