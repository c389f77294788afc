/**
 * What decoding one token has to read, from what the pass used: every parameter that some op read, of the size that it
 * has in memory; of tables that are only looked up in, one row; of experts, those that fired; of layers that choose
 * their units before computing them, the units that fired. What a pass reads of the tokens before it: state.ts. At batch 1:
 * what several sequences read together is read once for all of them.
 */
import type { Watcher } from './watcher.ts';

export interface WeightSizes {
  /** Read for every token. */
  readonly always: number;
  /** Of one expert, by the mixture's path. */
  readonly expert: ReadonlyMap<string, number>;
  /** By the layer's path: matrices whose rows or columns belong to single units, and whether idle ones are never read. */
  readonly units: ReadonlyMap<string, { readonly bytes: number; readonly skips: boolean }>;
  /** All parameters that are read at all. */
  readonly all: number;
}

/** Names of a feed-forward layer's matrices with a row or column for each unit, or of its units as records. */
const unitMatrices = /^(up|gate|down|units_\w+)$/;

export function weightSizes(watcher: Watcher): WeightSizes {
  let [always, all] = [0, 0];
  const expert = new Map<string, number>();
  const units = new Map<string, { bytes: number; skips: boolean }>();
  const mixtures = [...watcher.routed].map(([path, { experts }]) => ({ path, experts }));
  for (const [path, { tensor, row }] of watcher.read) {
    const { bytes } = tensor.storage.memory;
    all += bytes;
    const [part, name] = [path.slice(0, path.lastIndexOf('.')), path.slice(path.lastIndexOf('.') + 1)];
    const mixture = watcher.expertParts.has(part) && mixtures.find((m) => path.startsWith(`${m.path}.`));
    const layer = watcher.units.get(part);
    if (mixture) expert.set(mixture.path, (expert.get(mixture.path) ?? 0) + bytes / mixture.experts);
    else if (row) always += bytes / tensor.shape[0];
    else if (layer && unitMatrices.test(name)) {
      const known = units.get(part)?.bytes ?? 0;
      units.set(part, { bytes: known + bytes, skips: layer.chosenFirst });
    } else always += bytes;
  }
  return { always, expert, units, all };
}
