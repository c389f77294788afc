/** Equal parameters: units of feed-forward layers are added or taken away until a model is as large as the base. */
import { AnsatzError } from '../../backend/errors.ts';
import { buildModel } from '../../model/model.ts';
import { countParams } from '../../nn/index.ts';
import { parseTrainConfig, type TrainConfig, type TrainConfigInput } from '../../train/config.ts';

/** Close enough to stop looking, and close enough to be called equal. */
const GOOD = 0.005;
export const EQUAL = 0.01;

/** Units come in multiples: of large numbers first, which suit the kernels. */
const MULTIPLES = [64, 32, 16, 8, 4, 2, 1];

type Plain = { [key: string]: unknown };
const isPlain = (v: unknown): v is Plain => typeof v === 'object' && v !== null && !Array.isArray(v);

/** A copy in which every number called `hidden` is replaced. */
function withHidden(value: unknown, change: (hidden: number) => number): unknown {
  if (Array.isArray(value)) return value.map((v) => withHidden(v, change));
  if (!isPlain(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, v]) => [
      key,
      key === 'hidden' && typeof v === 'number' ? change(v) : withHidden(v, change),
    ]),
  );
}

/** Trainable parameters of a config's model. */
export const parametersOf = (config: TrainConfig): number => countParams(buildModel(config.model));

export interface Fitted {
  readonly config: TrainConfig;
  readonly parameters: number;
}

/**
 * The config with its `hidden` sizes in their proportions, scaled so that it has `target` parameters as nearly as its
 * parts allow. It stays as it is when it is near already.
 * @throws AnsatzError when no size is accepted.
 */
export function fitParameters(input: TrainConfigInput, target: number): Fitted {
  const miss = (f: Fitted): number => Math.abs(f.parameters / target - 1);
  const given = parseTrainConfig(input);
  const asIs: Fitted = { config: given, parameters: parametersOf(given) };
  if (miss(asIs) <= GOOD) return asIs;
  let best: Fitted = asIs;
  for (const multiple of MULTIPLES) {
    const tried = nearest(given, target, multiple);
    for (const f of tried) if (miss(f) < miss(best)) best = f;
    if (miss(best) <= GOOD) break;
  }
  return best;
}

/** Bisection on the factor of all hidden sizes; empty when a part refuses this multiple. */
function nearest(given: TrainConfig, target: number, multiple: number): Fitted[] {
  const known = new Map<string, Fitted>();
  const at = (factor: number): Fitted => {
    const sizes: number[] = [];
    const model = withHidden(given.model, (h) => {
      const n = Math.max(multiple, Math.round((h * factor) / multiple) * multiple);
      sizes.push(n);
      return n;
    });
    const key = sizes.join();
    let found = known.get(key);
    if (!found) {
      const config = parseTrainConfig({ ...given, model });
      known.set(key, (found = { config, parameters: parametersOf(config) }));
    }
    return found;
  };
  let [low, high] = [0, 8];
  try {
    for (let k = 0; k < 24; k++) {
      const middle = (low + high) / 2;
      if (at(middle).parameters < target) low = middle;
      else high = middle;
    }
  } catch (error) {
    if (!(error instanceof AnsatzError)) throw error;
  }
  return [...known.values()];
}
