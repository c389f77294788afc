// A training pass of a small model whose activations are stored or rebuilt: what the two must have in common.
import type { Device } from '../../src/backend/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { flatten, forwardContext, initialise, type ParamTree } from '../../src/nn/index.ts';
import { type Compute, fill, gradients, RandomState, scope, type Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';
import { batchOn, hostBatch, type SpecChanges, smallSpec } from './small-models.ts';

export interface Pass {
  readonly loss: number;
  readonly names: string[];
  readonly grads: Float32Array[];
  /** Untrained state after the pass: loads, usages. */
  readonly state: Record<string, number[]>;
  readonly terms: Record<string, number>;
}

export interface PassOptions {
  readonly compute?: Compute;
  readonly batch?: number;
  readonly length?: number;
  /** Changes parameters before the pass. */
  edit?(params: ParamTree): void;
}

/** Streams as large as the branches, as the bounds on rounding errors suppose. */
export const reversibleSpec = (layout: Record<string, unknown>, changes: SpecChanges = {}) =>
  smallSpec({
    ...{ width: 16, depth: 6, context: 32, embeddingStd: 1 },
    ...changes,
    layout: { kind: 'reversible', ...layout },
  });

export function passOf(device: Device, spec: ReturnType<typeof smallSpec>, o: PassOptions = {}): Pass {
  const { compute = 'f32', batch = 2, length = 16 } = o;
  const model = buildModel(spec);
  const params = initialise(model, device, 1);
  o.edit?.(params);
  model.prepare(device);
  const random = new RandomState(device, 3);
  const progress = fill(device, [1], 0.5);
  const named = flatten(params);
  const trained = named.filter(({ tensor }) => tensor.requiresGrad);
  const result = scope((): Pass => {
    const on = batchOn(device, hostBatch('rows', spec.vocab, batch, length, true), batch, length);
    const losses = new Map<string, Tensor>();
    const c = forwardContext({ device, compute, training: true, random, progress, losses });
    const { total } = model.loss(params, on, c);
    const grads = gradients(
      total,
      trained.map((t) => t.tensor),
    ).map((g) => Float32Array.from(g.dataSync()));
    return {
      loss: total.item(),
      names: trained.map((t) => t.path),
      grads,
      state: Object.fromEntries(
        named.filter(({ tensor }) => !tensor.requiresGrad).map(({ path, tensor }) => [path, [...tensor.dataSync()]]),
      ),
      terms: Object.fromEntries([...losses].map(([name, t]) => [name, t.item()])),
    };
  });
  for (const t of [...named.map(({ tensor }) => tensor), random.tensor, progress]) t.dispose();
  return result;
}

/**
 * Largest difference of a tensor's gradients relative to their norm, or to a share of the largest norm: what is left of
 * terms that cancel has an error of their size.
 */
export function apartBy(a: Pass, b: Pass, share = 0): { off: number; at: string } {
  const norm = (g: Float32Array): number => Math.hypot(...g);
  const floor = share * Math.max(...a.grads.map(norm));
  let worst = { off: 0, at: '' };
  a.grads.forEach((g, k) => {
    const difference = norm(g.map((v, j) => v - b.grads[k][j]));
    const off = difference === 0 ? 0 : difference / Math.max(floor, norm(g));
    if (!(off <= worst.off)) worst = { off, at: a.names[k] };
  });
  return worst;
}
