/**
 * Sparse upcycling (Komatsuzaki et al. 2023): a mixture that starts as a trained dense model. Every expert is a copy of
 * the dense layer and the router is fresh, so with gates that sum to 1 the output is the dense one's at step 0.
 * The optimiser starts anew.
 */
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { buildModel } from '../../model/model.ts';
import { blockSlot, type ModelSpec, type ModelSpecInput, parseSpec } from '../../model/spec.ts';
import {
  declared,
  flatten,
  initialise,
  type NamedParam,
  type ParamTree,
  type SlotConfig,
  singleOf,
  singleShape,
  stacked,
} from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { moeSchema, resolve, unlikeOne } from './options.ts';

/** Options of the mixture besides experts: as in the `moe` slot. */
export interface UpcycleOptions {
  readonly experts: number;
  readonly active: number;
  /** Blocks that become mixtures; by default all but the first. */
  readonly layers?: readonly number[];
  readonly [option: string]: unknown;
}

/** The spec of a dense decoder with mixtures in place of feed-forward layers, such that the function stays the same. */
export function upcycledSpec(dense: ModelSpecInput, options: UpcycleOptions): ModelSpecInput {
  const spec = parseSpec(dense);
  const { layers = Array.from({ length: spec.depth - 1 }, (_, k) => k + 1), ...rest } = options;
  const mixtures = layers.map((k) => {
    const { kind, hidden, activation, bias } = blockSlot(spec, 'ffn', k) as SlotConfig & { bias?: boolean };
    if (kind !== 'mlp' && kind !== 'glu')
      throw new AnsatzError(`upcycle: block ${k} has a feed-forward layer '${kind}', not mlp or glu`);
    if (bias) throw new AnsatzError(`upcycle: block ${k} has biases, which experts do not`);
    const expert = { kind, hidden, activation };
    return { layers: [k], ffn: { kind: 'moe', ...rest, gate: 'renormalised', gateScale: 1, expert } };
  });
  return { ...dense, overrides: [...(dense.overrides ?? []), ...mixtures] };
}

/** Why a block would not start as the dense one, or null. */
function obstacle(ffn: SlotConfig): string | null {
  if (ffn.kind !== 'moe') return null;
  const { kind: _, ...options } = ffn;
  return unlikeOne(resolve(moeSchema.parse(options), false));
}

/**
 * Parameters for `spec` (see upcycledSpec) from a dense model's: copies where names and sizes agree, experts from the
 * dense layer of the same block, fresh routers.
 * @throws AnsatzError when the two do not belong together.
 */
export function upcycle(dense: ParamTree, spec: ModelSpecInput, device: Device, seed = 1): ParamTree {
  const model = buildModel(spec);
  for (let k = 0; k < model.spec.depth; k++) {
    const why = obstacle(blockSlot(model.spec as ModelSpec, 'ffn', k));
    if (why) throw new AnsatzError(`upcycle: block ${k} would not start as the dense one: ${why}`);
  }
  const old = new Map(flatten(dense).map((t) => [t.path, t.tensor]));
  const params = initialise(model, device, seed);
  const specs = new Map(declared(model).map((p) => [p.path, p]));
  for (const { path, tensor } of flatten(params)) {
    const same = old.get(path);
    const named = specs.get(path)!;
    if (same) copy(path, same, tensor);
    else if (named.spec.stackOf) copyToExperts(named, old, tensor);
    else if (!/\.ffn\.(router|load|lastLoad|bias|rate)$/.test(path))
      throw new AnsatzError(`upcycle: the dense model has no '${path}'`, {
        hint: 'use the spec that it was trained with',
      });
  }
  return params;
}

function copy(path: string, from: Tensor, to: Tensor): void {
  if (String(from.shape) !== String(to.shape))
    throw new AnsatzError(`upcycle: '${path}' is [${from.shape.join(', ')}], not [${to.shape.join(', ')}]`);
  to.writeBits(from.bitsSync());
}

function copyToExperts({ path, spec }: NamedParam, old: ReadonlyMap<string, Tensor>, to: Tensor): void {
  const from = old.get(singleOf(path));
  if (!from) throw new AnsatzError(`upcycle: the dense model has no layer for '${path}'`);
  const wanted = singleShape(spec);
  if (String(from.shape) !== String(wanted))
    throw new AnsatzError(
      `upcycle: '${path}' takes [${wanted.join(', ')}], the dense layer has [${from.shape.join(', ')}]`,
      {
        hint: 'an expert has as many units as the dense layer',
      },
    );
  to.write(stacked(spec, from.dataSync()));
}
