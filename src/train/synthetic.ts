/** An endless made-up language, for measurements that need something to learn but no text: a random process of order two. */
import type { TokenBatch } from '../data/types.ts';

/** Continuations of a pair of tokens and their probabilities (1.21 nats when they differ). */
const CHANCES = [0.5, 0.25, 0.15, 0.1];

/** A 32-bit hash (the finaliser of MurmurHash3). */
function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Rows of tokens; the same for the same seed. The language is the same for every seed. */
export class SyntheticRows {
  private readonly vocab: number;
  private state: number;

  constructor(vocab: number, seed: number) {
    this.vocab = vocab;
    this.state = mix(seed + 1);
  }

  private draw(): number {
    this.state = (this.state + 0x9e3779b9) | 0;
    return mix(this.state) / 2 ** 32;
  }

  /** The token after a pair: which class of pairs it is, and a chance. */
  private after(before: number, last: number): number {
    const u = this.draw();
    let choice = 0;
    for (let sum = CHANCES[0]; choice < CHANCES.length - 1 && u >= sum; sum += CHANCES[choice]) choice++;
    return mix(mix(last * 8 + (before % 8)) + choice) % this.vocab;
  }

  /** Fills a batch with fresh rows: every position has a target. */
  fill(batch: TokenBatch): TokenBatch {
    const { length } = batch;
    for (let row = 0; row < batch.batch; row++) {
      let [before, last] = [Math.floor(this.draw() * this.vocab), Math.floor(this.draw() * this.vocab)];
      for (let t = 0; t < length; t++) {
        const at = row * length + t;
        const next = this.after(before, last);
        batch.inputs[at] = last;
        batch.targets[at] = next;
        batch.positions[at] = t;
        batch.segments[at] = 1;
        [before, last] = [last, next];
      }
    }
    batch.targetCount = batch.batch * length;
    return batch;
  }
}
