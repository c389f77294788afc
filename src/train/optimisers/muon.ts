/**
 * Muon (Jordan et al. 2024): the momentum of a hidden matrix is orthogonalised before it is applied, so that all
 * directions move alike. Embeddings, heads, routers and vectors are AdamW's.
 */
import { z } from 'zod';
import type { ParamSpec } from '../../nn/index.ts';
import {
  affine,
  applyUpdate,
  assign,
  concat,
  momentum as momentumOp,
  noGrad,
  reshape,
  split,
  type Tensor,
  zeros,
} from '../../tensor/index.ts';
import { makeAdamW } from './adamw.ts';
import { type Iteration, iterations, orthogonalise } from './orthogonalise.ts';
import { type Optimiser, registerOptimiser, type TrainedParam } from './registry.ts';

const isHidden = ({ spec }: TrainedParam): boolean => spec.role === 'hidden' && matrixShape(spec) !== null;

/** A matrix, or a batch of them (experts); a convolution [out, ...] is one matrix from all its taps. */
function matrixShape({ shape, fanIn, fanOut }: ParamSpec): readonly number[] | null {
  if (shape.length < 2) return null;
  const taps = shape.slice(1).reduce((a, b) => a * b, 1);
  if (shape.length > 2 && shape[0] === fanOut && taps === fanIn) return [fanOut, fanIn];
  return shape.length > 3 ? null : shape;
}

type Scaling = 'spectral' | 'rms';

/**
 * Factor on an orthogonal direction. spectral: its operator norm between root-mean-square norms stays at 1 for any shape
 * that grows; rms: its elements are as large as AdamW's usually are (Liu et al. 2025).
 */
const scaleOf = (kind: Scaling, fanOut: number, fanIn: number): number =>
  kind === 'spectral' ? Math.sqrt(Math.max(1, fanOut / fanIn)) : 0.2 * Math.sqrt(Math.max(fanOut, fanIn));

/** Orthogonalises each of the matrices that are packed into one; their scales are applied here when they differ. */
function direction(u: Tensor, spec: ParamSpec, kind: Scaling, iteration: Iteration): { u: Tensor; scale: number } {
  const parts = spec.parts ?? [spec.fanOut];
  const scales = parts.map((rows) => scaleOf(kind, rows, spec.fanIn));
  if (parts.length === 1) return { u: orthogonalise(u, iteration), scale: scales[0] };
  const axis = u.rank - 2;
  const pieces = split(u, parts, axis).map((piece, k) => {
    const y = orthogonalise(piece, iteration);
    return scales[k] === scales[0] ? y : affine(y, scales[k] / scales[0], 0);
  });
  return { u: concat(pieces, axis), scale: scales[0] };
}

const matrixOptions = z.strictObject({
  lr: z.number().positive().default(0.02),
  momentum: z.number().min(0).lt(1).default(0.95),
  /** Steps over which the momentum rises from 0.85. */
  momentumWarmup: z.int().min(0).default(0),
  decay: z.number().min(0).default(0.05),
  scale: z.enum(['spectral', 'rms']).default('spectral'),
  iteration: z.enum(['quintic', 'polar-express']).default('quintic'),
  /** AdamW for what is not a hidden matrix. */
  aux: z
    .strictObject({
      lr: z.number().positive().default(3e-3),
      beta1: z.number().min(0).lt(1).default(0.9),
      beta2: z.number().min(0).lt(1).default(0.95),
      eps: z.number().positive().default(1e-10),
      decay: z.number().min(0).default(0.1),
    })
    .prefault({}),
});

registerOptimiser({
  kind: 'muon',
  summary: 'Muon (Jordan et al. 2024): orthogonalised momentum for hidden matrices, AdamW for the rest',
  options: matrixOptions,
  make: (config, params, device): Optimiser => {
    const hidden = params.filter(isHidden);
    const rest = params.filter((p) => !isHidden(p));
    const adamw = makeAdamW(config.aux, rest, device, config.aux.lr / config.lr);
    const own = new Map(hidden.map((p) => [p.path, zeros(device, p.tensor.shape).keep()]));
    const state = new Map<string, Tensor>([
      ...adamw.state,
      ...[...own].map(([k, t]): [string, Tensor] => [`m.${k}`, t]),
    ]);
    const iteration = iterations[config.iteration];

    const step = (p: TrainedParam, grad: Tensor, scalars: Tensor): void => {
      const { lrMult = 1, decayMult = 1, widthMult = 1 } = p.spec;
      const u = reshape(momentumOp(own.get(p.path)!, grad, scalars), matrixShape(p.spec)!);
      const d = direction(u, p.spec, config.scale, iteration);
      // A spectral step is as large as it should be at any width; one matched to AdamW's elements is sqrt(width) too large.
      const rate = lrMult * (config.scale === 'spectral' ? widthMult : Math.sqrt(widthMult));
      const decay = p.spec.decay ? (config.decay * decayMult * lrMult) / rate : 0;
      applyUpdate(p.tensor, reshape(d.u, p.tensor.shape), scalars, { lrMult: rate, scale: d.scale, decay });
    };

    return {
      state,
      reset: () => {
        for (const t of state.values()) assign(t, 0);
      },
      update: (grads, scalars) => {
        const of = new Map(params.map((p, k) => [p.path, grads[k]]));
        noGrad(() => {
          for (const p of hidden) step(p, of.get(p.path)!, scalars);
        });
        adamw.update(
          rest.map((p) => of.get(p.path)!),
          scalars,
        );
      },
      corrections: adamw.corrections,
      momentum: (t) => {
        const { momentum, momentumWarmup } = config;
        const share = momentumWarmup > 0 ? Math.min(1, (t - 1) / momentumWarmup) : 1;
        return Math.min(momentum, 0.85) * (1 - share) + momentum * share;
      },
    };
  },
});
