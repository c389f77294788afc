/** How well the load is spread. */
import { flatten, type Monitor, type ParamTree } from '../../nn/index.ts';

export interface LoadStats {
  /** Each expert's share of the assignments. */
  readonly share: number[];
  /** Largest load over the mean, less 1: 0 is perfect balance, E - 1 collapse (Wang et al. 2024). */
  readonly maxVio: number;
  /** Entropy of the shares over ln E: 1 is uniform, 0 collapse. */
  readonly entropy: number;
  /** Experts with less than a tenth of the mean load. */
  readonly dead: number;
}

export function loadStats(load: ArrayLike<number>): LoadStats {
  const counts = Array.from(load);
  const E = counts.length;
  const total = counts.reduce((a, b) => a + b, 0);
  if (total === 0) return { share: counts.map(() => 0), maxVio: 0, entropy: 0, dead: E };
  const share = counts.map((n) => n / total);
  const nats = share.reduce((h, f) => (f > 0 ? h - f * Math.log(f) : h), 0);
  return {
    share,
    maxVio: Math.max(...share) * E - 1,
    entropy: E === 1 ? 1 : nats / Math.log(E),
    dead: share.filter((f) => f < 0.1 / E).length,
  };
}

/** Of the last finished step. */
export const loadMonitor: Monitor = {
  state: ['lastLoad'],
  measure: (load) => {
    const { maxVio, entropy, dead } = loadStats(load);
    return { maxVio, loadEntropy: entropy, deadExperts: dead };
  },
};

/** Load of the last finished step of every mixture in a model, by the layer's path. */
export function lastLoads(params: ParamTree): { path: string; load: Float32Array }[] {
  return flatten(params)
    .filter(({ path }) => path.endsWith('.lastLoad'))
    .map(({ path, tensor }) => ({
      path: path.slice(0, -'.lastLoad'.length),
      load: Float32Array.from(tensor.dataSync()),
    }));
}

/** Mean entropy of a router's rows in nats; probs [n, E]. */
export function routerEntropy(probs: ArrayLike<number>, E: number): number {
  let nats = 0;
  for (let k = 0; k < probs.length; k++) if (probs[k] > 0) nats -= probs[k] * Math.log(probs[k]);
  return nats / (probs.length / E);
}
