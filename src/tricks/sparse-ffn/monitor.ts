/** Which units are used. */
import { flatten, type Monitor, type ParamTree } from '../../nn/index.ts';

export interface Usage {
  /** Entropy of each block's choices over ln N: 1 is uniform, 0 collapse to one unit. */
  readonly entropy: number[];
  readonly meanEntropy: number;
  readonly leastEntropy: number;
  /** Units that were chosen by no more than the threshold's share of tokens. */
  readonly dead: number;
  /** Share of the units that are dead. */
  readonly deadShare: number;
}

/**
 * @param share share of tokens that chose each unit, blocks of `block` one after the other. Running shares lack what
 *   passes before the first would have added, so they count relative to their block's sum
 * @param threshold a unit at or below this share counts as dead. A running share never falls to 0 again: by default one
 *   choice in a million tokens, which is about what passes of the last 10^6 tokens leave
 */
export function usageOf(share: ArrayLike<number>, block: number, threshold = 1e-6): Usage {
  const entropy: number[] = [];
  let dead = 0;
  for (let b = 0; b < share.length; b += block) {
    let [total, nats] = [0, 0];
    for (let n = 0; n < block; n++) total += share[b + n];
    for (let n = 0; n < block; n++) {
      const f = total > 0 ? share[b + n] / total : 0;
      dead += +(f <= threshold);
      if (f > 0) nats -= f * Math.log(f);
    }
    entropy.push(nats / Math.log(block));
  }
  return {
    entropy,
    meanEntropy: entropy.reduce((a, b) => a + b, 0) / entropy.length,
    leastEntropy: Math.min(...entropy),
    dead,
    deadShare: dead / share.length,
  };
}

/** Of the running shares of a layer, or of all experts of a mixture. */
export const usageMonitor = (block: number): Monitor => ({
  state: ['usage'],
  measure: (share) => {
    const { meanEntropy, leastEntropy, deadShare } = usageOf(share, block);
    return { choiceEntropy: meanEntropy, leastChoiceEntropy: leastEntropy, deadUnits: deadShare };
  },
});

/** The running shares of every layer that keeps them, by the layer's path. */
export const usages = (params: ParamTree): { path: string; share: Float32Array }[] =>
  flatten(params)
    .filter(({ path }) => path.endsWith('.usage'))
    .map(({ path, tensor }) => ({
      path: path.slice(0, -'.usage'.length),
      share: Float32Array.from(tensor.dataSync()),
    }));
