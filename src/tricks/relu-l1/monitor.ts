/** How sparse activations are. */
import { flatten, type ParamTree } from '../../nn/index.ts';

export interface Activity {
  /** Units active for a token, on average, and their share of all. */
  readonly mean: number;
  readonly share: number;
  /** Units that no token activates (at or below the threshold's share of tokens). */
  readonly dead: number;
}

/** @param share share of tokens for which each unit is not zero */
export function activityOf(share: ArrayLike<number>, threshold = 0): Activity {
  const all = Array.from(share);
  const mean = all.reduce((a, b) => a + b, 0);
  return { mean, share: mean / all.length, dead: all.filter((s) => s <= threshold).length };
}

/** The running shares of every layer that keeps them, by the layer's path. */
export const activities = (params: ParamTree): { path: string; share: Float32Array }[] =>
  flatten(params)
    .filter(({ path }) => path.endsWith('.active'))
    .map(({ path, tensor }) => ({
      path: path.slice(0, -'.active'.length),
      share: Float32Array.from(tensor.dataSync()),
    }));
