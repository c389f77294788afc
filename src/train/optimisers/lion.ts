/** Lion (Chen et al. 2023): the sign of an interpolated momentum; one state tensor. */
import { z } from 'zod';
import { assign, lion, type Tensor, zeros } from '../../tensor/index.ts';
import { registerOptimiser } from './registry.ts';

registerOptimiser({
  kind: 'lion',
  summary: 'Lion (Chen et al. 2023): sign updates; one state tensor',
  options: z.strictObject({
    /** A third to a tenth of AdamW's, with `decay` as much larger. */
    lr: z.number().positive().default(6e-4),
    beta1: z.number().min(0).lt(1).default(0.9),
    beta2: z.number().min(0).lt(1).default(0.99),
    decay: z.number().min(0).default(0.5),
  }),
  make: ({ beta1, beta2, decay }, params, device) => {
    const state = new Map<string, Tensor>(params.map((p) => [`m.${p.path}`, zeros(device, p.tensor.shape).keep()]));
    return {
      state,
      reset: () => {
        for (const t of state.values()) assign(t, 0);
      },
      update: (grads, scalars) => {
        params.forEach((p, k) => {
          const { lrMult = 1, decayMult = 1 } = p.spec;
          const options = { lrMult, beta1, beta2, decay: p.spec.decay ? decay * decayMult : 0 };
          lion(p.tensor, state.get(`m.${p.path}`)!, grads[k], scalars, options);
        });
      },
      corrections: () => [1, 1],
    };
  },
});
