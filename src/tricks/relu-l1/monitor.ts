/** How sparse activations are: running shares of tokens for which each unit is not zero. */
import { flatten, type Monitor, type ParamSpec, type ParamTree, tensorOf } from '../../nn/index.ts';
import { vector } from '../../nn/linear.ts';
import { nonzeroShare, ones, type Tensor, track } from '../../tensor/index.ts';

export interface Activity {
  /** Units active for a token, on average, and their share of all. */
  readonly mean: number;
  readonly share: number;
  /** Units that no token activates (at or below the threshold's share of tokens). */
  readonly dead: number;
}

/**
 * @param share share of tokens for which each unit is not zero
 * @param threshold a running share never falls to 0 again: by default one token in a million
 */
export function activityOf(share: ArrayLike<number>, threshold = 1e-6): Activity {
  const all = Array.from(share);
  const mean = all.reduce((a, b) => a + b, 0);
  return { mean, share: mean / all.length, dead: all.filter((s) => s <= threshold).length };
}

const state = (size: number): ParamSpec => ({ ...vector(size, 0), trainable: false });

/** What a layer of F units keeps. `activeWeight` is the running mean of 1: what the passes so far weigh. */
export const activityParams = (F: number): Record<string, ParamSpec> => ({ active: state(F), activeWeight: state(1) });

/** Adds a training pass. */
export function trackActivity(p: ParamTree, h: Tensor, decay: number): void {
  track(tensorOf(p, 'active'), nonzeroShare(h), decay);
  track(tensorOf(p, 'activeWeight'), ones(h.device, [1]), decay);
}

const weighed = (share: ArrayLike<number>, weight: number): Float32Array =>
  Float32Array.from(share, (s) => (weight > 0 ? s / weight : 0));

export const activityMonitor: Monitor = {
  state: ['active', 'activeWeight'],
  measure: (active, weight) => {
    const { share, dead } = activityOf(weighed(active, weight[0]));
    return { activeUnits: share, deadUnits: dead / active.length };
  },
};

/** The running shares of every layer that keeps them, by the layer's path. */
export function activities(params: ParamTree): { path: string; share: Float32Array }[] {
  const all = new Map(flatten(params).map(({ path, tensor }) => [path, tensor]));
  return [...all].flatMap(([path, tensor]) => {
    const weight = /(^|\.)active$/.test(path) && all.get(`${path}Weight`);
    if (!weight) return [];
    return [{ path: path.replace(/\.?active$/, ''), share: weighed(tensor.dataSync(), weight.dataSync()[0]) }];
  });
}
