/** Buckets, and what hashed chunks cost. Closed formulas; the tests hold them against what is dispatched. */
import { lshPairs } from '../../tensor/index.ts';

/** More buckets than this are hashed in two steps, so that the axes grow with their square root (Trax). */
const MOST_AT_ONCE = 128;

/**
 * Factors of the number of buckets for t tokens: twice the chunks unless given, split in two even ones above 128 (the
 * product may then exceed what was asked for). None for a single bucket.
 */
export function bucketFactors(t: number, chunk: number, asked?: number): number[] {
  const n = asked ?? 2 * Math.ceil(t / chunk);
  if (n <= 1) return [];
  if (n <= MOST_AT_ONCE) return [n];
  const first = 2 ** Math.ceil(Math.log2(Math.sqrt(n)));
  return [first, 2 * Math.ceil(n / (2 * first))];
}

export interface LshSizes {
  readonly width: number;
  readonly heads: number;
  readonly headWidth: number;
  readonly tokens: number;
  readonly chunk: number;
  readonly rounds: number;
  readonly lookBack: number;
  readonly buckets?: number;
}

/** FLOPs of a forward pass over one row of tokens, by part. */
export function lshFlops(s: LshSizes): { projections: number; hashing: number; attention: number } {
  const perHead = s.heads * s.headWidth;
  const axes = bucketFactors(s.tokens, s.chunk, s.buckets).reduce((n, f) => n + f / 2, 0);
  return {
    projections: 6 * s.tokens * s.width * perHead,
    hashing: 2 * s.tokens * perHead * s.rounds * axes,
    attention: 4 * perHead * s.rounds * lshPairs(s.tokens, s.chunk, s.lookBack),
  };
}
