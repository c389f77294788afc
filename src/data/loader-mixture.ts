/**
 * Chooses data sets so that their shares follow the weights at every moment, without randomness: the next row comes
 * from the set that is furthest behind its share. The choice depends on the counts alone, so they are the whole state.
 */
export class MixtureSchedule {
  /** Rows taken from every set so far. */
  readonly counts: number[];
  readonly #shares: readonly number[];
  #total = 0;

  /** `weights`: fractions of the tokens; `rowTokens`: mean tokens in a row of each set (padding excluded). */
  constructor(weights: readonly number[], rowTokens: readonly number[]) {
    const perRow = weights.map((weight, i) => weight / rowTokens[i]);
    const sum = perRow.reduce((a, b) => a + b, 0);
    this.#shares = perRow.map((share) => share / sum);
    this.counts = weights.map(() => 0);
  }

  restore(counts: readonly number[]): void {
    counts.forEach((count, i) => {
      this.counts[i] = count;
    });
    this.#total = counts.reduce((a, b) => a + b, 0);
  }

  next(): number {
    const total = ++this.#total;
    let best = 0;
    let behind = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < this.counts.length; i++) {
      const lag = this.#shares[i] * total - this.counts[i];
      if (lag > behind) {
        behind = lag;
        best = i;
      }
    }
    this.counts[best]++;
    return best;
  }
}
