/** Norm slot: RMSNorm and LayerNorm, with or without learned parameters. */
import { z } from 'zod';
import { layerNorm, rmsNorm } from '../tensor/index.ts';
import { vector } from './linear.ts';
import { type ParamSpec, tensorOf } from './module.ts';
import { registerSlot } from './slots.ts';

registerSlot({
  slot: 'norm',
  kind: 'rms',
  summary: 'root-mean-square normalisation (Zhang and Sennrich 2019)',
  options: z.strictObject({ eps: z.number().positive().default(1e-6), scale: z.boolean().default(true) }),
  build: ({ eps, scale }, { dims }) => ({
    params: (scale ? { weight: vector(dims.width, 1) } : {}) as Record<string, ParamSpec>,
    forward: (p, x, c) => rmsNorm(x, scale ? tensorOf(p, 'weight') : null, { eps, out: c.activation }),
  }),
});

registerSlot({
  slot: 'norm',
  kind: 'layer',
  summary: 'layer normalisation (Ba et al. 2016)',
  options: z.strictObject({
    eps: z.number().positive().default(1e-5),
    scale: z.boolean().default(true),
    bias: z.boolean().default(false),
  }),
  build: ({ eps, scale, bias }, { dims }) => ({
    params: {
      ...(scale ? { weight: vector(dims.width, 1) } : {}),
      ...(bias ? { bias: vector(dims.width, 0) } : {}),
    } as Record<string, ParamSpec>,
    forward: (p, x, c) =>
      layerNorm(x, scale ? tensorOf(p, 'weight') : null, bias ? tensorOf(p, 'bias') : null, { eps, out: c.activation }),
  }),
});
