/** AdamW (Loshchilov and Hutter 2019): the default, and what other optimisers leave the tensors to that they do not suit. */
import { z } from 'zod';
import type { Device } from '../../backend/device.ts';
import { adamw, assign, type Tensor, zeros } from '../../tensor/index.ts';
import { type Optimiser, registerOptimiser, type TrainedParam } from './registry.ts';

export interface AdamWOptions {
  readonly lr: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly decay: number;
}

/** @param rate factor on the learning rate of the step scalars, for parameters with a rate of their own */
export function makeAdamW(config: AdamWOptions, params: readonly TrainedParam[], device: Device, rate = 1): Optimiser {
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
        const decayed = p.spec.decay ? decay * decayMult : 0;
        const options = { lrMult: lrMult * rate, beta1, beta2, eps: eps * epsMult, decay: decayed };
        adamw(p.tensor, of('m', p), of('v', p), grads[k], scalars, null, options);
      });
    },
    corrections: (t) => [1 - beta1 ** t, 1 - beta2 ** t],
  };
}

registerOptimiser({
  kind: 'adamw',
  summary: 'AdamW (Loshchilov and Hutter 2019); two state tensors',
  options: z.strictObject({
    lr: z.number().positive().default(3e-3),
    beta1: z.number().min(0).lt(1).default(0.9),
    beta2: z.number().min(0).lt(1).default(0.95),
    eps: z.number().positive().default(1e-8),
    /** Decoupled weight decay of matrices (norms and biases have none). */
    decay: z.number().min(0).default(0.1),
  }),
  make: makeAdamW,
});
