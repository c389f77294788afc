// Gradients of a whole model against finite differences along one direction a tensor, in float64.
import assert from 'node:assert/strict';
import type { Device } from '../../src/backend/device.ts';
import { type Batch, buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { type ForwardContext, flatten, forwardContext } from '../../src/nn/index.ts';
import { gradients, noGrad, scope, type Tensor } from '../../src/tensor/index.ts';
import { Rng } from './kernel-cases/build.ts';
import { refValues, valuesOf } from './ref-values.ts';
import { perturbedParams } from './small-models.ts';

export interface DirectionOptions {
  /** What every pass is given besides device and precision. */
  readonly context?: Partial<ForwardContext>;
  /** Parameters that may have no gradient here. */
  readonly idle?: RegExp;
  /** Error allowed, relative to gradients above 1. */
  readonly tolerance?: number;
}

/** (loss(p + h u) - loss(p - h u)) / 2h against u . gradient, for every trained tensor of a model on the reference. */
export function checkDirections(device: Device, spec: ModelSpecInput, batch: Batch, o: DirectionOptions = {}): void {
  const model = buildModel(spec);
  const params = perturbedParams(model, device);
  model.prepare(device);
  const all = flatten(params).filter(({ tensor }) => tensor.requiresGrad);
  const loss = (): Tensor =>
    model.loss(params, batch, forwardContext({ device, compute: 'f32', ...o.context, losses: new Map() })).total;
  const grads = scope(() =>
    gradients(
      loss(),
      all.map((t) => t.tensor),
    ).map((g) => Array.from(valuesOf(g))),
  );
  const value = (): number => scope(() => noGrad(() => refValues(loss())[0]));
  all.forEach(({ path, tensor }, k) => {
    const rng = new Rng(path);
    const at = Float64Array.from(valuesOf(tensor));
    const direction = at.map(() => rng.normal());
    const moved = (h: number): number => {
      refValues(tensor).set(at.map((x, j) => x + h * direction[j]));
      return value();
    };
    const h = 1e-5;
    const difference = (moved(h) - moved(-h)) / (2 * h);
    refValues(tensor).set(at);
    const exact = direction.reduce((n, u, j) => n + u * grads[k][j], 0);
    const allowed = (o.tolerance ?? 2e-6) * Math.max(1, Math.abs(exact));
    assert.ok(Math.abs(difference - exact) <= allowed, `${path}: gradient ${exact}, difference ${difference}`);
    const some = grads[k].some((g) => g !== 0);
    assert.ok(some || o.idle?.test(path), `${path} has no gradient at all`);
  });
}
