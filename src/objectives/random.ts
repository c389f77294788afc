/**
 * Random choices of a row of training data: number k for (seed, sample) is one fixed value, whatever was drawn before,
 * so a run that resumes in the middle of an epoch draws what it would have drawn (Philox, docs/kernels.md).
 */
import { philox } from '../backend/ref/random.ts';

export class RowRandom {
  private readonly key: readonly [number, number];
  private readonly sample: readonly [number, number];
  private readonly stream: number;
  private words: readonly number[] = [];
  private drawn = 0;

  /** `sample`: which row of the run, counted from 0; `stream` separates uses of one sample number. */
  constructor(seed: number, sample: number, stream = 0) {
    this.key = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0];
    this.sample = [sample >>> 0, Math.floor(sample / 2 ** 32) >>> 0];
    this.stream = stream;
  }

  private word(): number {
    const lane = this.drawn % 4;
    if (lane === 0) this.words = philox([this.drawn / 4, ...this.sample, this.stream], this.key);
    this.drawn++;
    return this.words[lane];
  }

  /** In [0, 1). */
  uniform(): number {
    return this.word() / 2 ** 32;
  }

  /** A whole number in [0, n), n at most 2^32; no value is favoured. */
  below(n: number): number {
    const limit = 2 ** 32 - (2 ** 32 % n);
    for (;;) {
      const word = this.word();
      if (word < limit) return word % n;
    }
  }

  /** A permutation of 0 .. n-1. */
  order(n: number): number[] {
    const out = Array.from({ length: n }, (_, k) => k);
    for (let k = n - 1; k > 0; k--) {
      const other = this.below(k + 1);
      [out[k], out[other]] = [out[other], out[k]];
    }
    return out;
  }
}
