/** Optimisers: state per parameter, and the in-place update of all parameters from their gradients. */
import type { Device } from '../backend/device.ts';
import type { NamedParam } from '../nn/index.ts';
import { adamw, assign, type Tensor, zeros } from '../tensor/index.ts';
import type { OptimiserConfig } from './config.ts';

export interface TrainedParam extends NamedParam {
  readonly tensor: Tensor;
}

export interface Optimiser {
  /** State tensors by name ("m.blocks.0.ffn.up"), for checkpoints. */
  readonly state: ReadonlyMap<string, Tensor>;
  /** Puts the state back to its start. */
  reset(): void;
  /** Dispatches the update of every parameter; `scalars` holds this step's rates (docs/kernels.md, optimisers). */
  update(grads: readonly Tensor[], scalars: Tensor): void;
  /** Bias corrections 1 - beta^t of step t (counted from 1). */
  corrections(t: number): [number, number];
}

function makeAdamW(config: OptimiserConfig, params: readonly TrainedParam[], device: Device): Optimiser {
  const { beta1, beta2, eps, decay } = config;
  const state = new Map<string, Tensor>();
  for (const p of params)
    for (const name of ['m', 'v']) state.set(`${name}.${p.path}`, zeros(device, p.tensor.shape).keep());
  const of = (name: string, p: TrainedParam): Tensor => state.get(`${name}.${p.path}`)!;
  return {
    state,
    reset: () => {
      for (const t of state.values()) assign(t, 0);
    },
    update: (grads, scalars) => {
      params.forEach((p, k) => {
        const { lrMult = 1, decayMult = 1, epsMult = 1 } = p.spec;
        const options = { lrMult, beta1, beta2, eps: eps * epsMult, decay: p.spec.decay ? decay * decayMult : 0 };
        adamw(p.tensor, of('m', p), of('v', p), grads[k], scalars, null, options);
      });
    },
    corrections: (t) => [1 - beta1 ** t, 1 - beta2 ** t],
  };
}

const makers = { adamw: makeAdamW } as const;

export const makeOptimiser = (config: OptimiserConfig, params: readonly TrainedParam[], device: Device): Optimiser =>
  makers[config.kind](config, params, device);
