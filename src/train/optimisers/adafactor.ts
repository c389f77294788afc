/** Adafactor (Shazeer and Stern 2018), without momentum, as T5X has it: second moments of matrices by rows and columns. */
import { z } from 'zod';
import type { ParamSpec } from '../../nn/index.ts';
import { adafactor, assign, matricesOf, type Tensor, zeros } from '../../tensor/index.ts';
import { registerOptimiser, type TrainedParam } from './registry.ts';

/**
 * A step is a share of the weights' root mean square. That is Theta(1/sqrt(m)) for a hidden matrix m times as wide, where
 * a parametrisation wants changes of Theta(1/m); outputs start at Theta(1/m) already.
 */
function rateOf({ role, lrMult = 1, decayMult = 1, widthMult = 1 }: ParamSpec): { lrMult: number; decayMult: number } {
  const factor = role === 'output' ? widthMult : Math.sqrt(widthMult);
  return { lrMult: lrMult * factor, decayMult: decayMult / factor };
}

registerOptimiser({
  kind: 'adafactor',
  summary: 'Adafactor (Shazeer and Stern 2018): factored second moments; state of rows + columns',
  options: z.strictObject({
    /** Largest change of a matrix in a step, relative to its root mean square. */
    lr: z.number().positive().default(1e-2),
    /** 1 - beta2 of step t is t^-decayExponent. */
    decayExponent: z.number().positive().lt(1).default(0.8),
    eps1: z.number().positive().default(1e-30),
    eps2: z.number().positive().default(1e-3),
    clip: z.number().positive().default(1),
    /** Second moments are factored when both axes are at least this long. */
    factorFrom: z.int().positive().default(128),
    decay: z.number().min(0).default(0),
  }),
  make: ({ decayExponent, eps1, eps2, clip, factorFrom, decay }, params, device) => {
    const state = new Map<string, Tensor>();
    const add = (name: string, p: TrainedParam, shape: readonly number[]): Tensor => {
      const t = zeros(device, shape).keep();
      state.set(`${name}.${p.path}`, t);
      return t;
    };
    const moments = params.map((p) => {
      const { batch, rows, cols } = matricesOf(p.tensor.shape);
      return Math.min(rows, cols) >= factorFrom
        ? { r: add('r', p, [batch, rows]), c: add('c', p, [batch, cols]) }
        : { v: add('v', p, p.tensor.shape) };
    });
    return {
      state,
      reset: () => {
        for (const t of state.values()) assign(t, 0);
      },
      update: (grads, scalars) => {
        params.forEach((p, k) => {
          const { lrMult, decayMult } = rateOf(p.spec);
          const options = { lrMult, eps1, eps2, clip, decay: p.spec.decay ? decay * decayMult : 0 };
          adafactor(p.tensor, moments[k], grads[k], scalars, options);
        });
      },
      corrections: (t) => [1, t ** -decayExponent],
    };
  },
});
