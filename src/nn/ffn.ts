/** Feed-forward slot: a plain two-matrix layer, or a gated one. */
import { z } from 'zod';
import { gelu, geluErf, glu, relu, relu2, silu, type Tensor } from '../tensor/index.ts';
import { type ForwardContext, tap } from './context.ts';
import { linear, matrix, packed, vector, writeBranch } from './linear.ts';
import { type ParamSpec, type ParamTree, tensorOf } from './module.ts';
import type { Scales } from './parametrise.ts';
import { type ModelDims, registerSlot } from './slots.ts';

const activations = { gelu, gelu_erf: geluErf, relu, relu2, silu } as const;

interface Options {
  readonly bias: boolean;
  readonly dropout: number;
}

const shared = {
  /** Units of the hidden layer. */
  hidden: z.int().positive(),
  bias: z.boolean().default(false),
  dropout: z.number().min(0).lt(1).default(0),
};

const down = (p: ParamTree, h: Tensor, residual: Tensor, c: ForwardContext, o: Options, scales: Scales): Tensor =>
  writeBranch(h, tensorOf(p, 'down'), residual, c, {
    bias: o.bias ? tensorOf(p, 'downBias') : null,
    scale: scales.branch,
    dropout: o.dropout,
  });

const params = (
  dims: ModelDims,
  inner: readonly number[],
  hidden: number,
  bias: boolean,
): Record<string, ParamSpec> => ({
  up: inner.length > 1 ? packed(inner, dims.width) : matrix(hidden, dims.width),
  down: matrix(dims.width, hidden, 1 / Math.sqrt(2 * dims.depth)),
  ...(bias ? { upBias: vector(inner.length * hidden, 0), downBias: vector(dims.width, 0) } : {}),
});

registerSlot({
  slot: 'ffn',
  kind: 'mlp',
  summary: 'up, activation, down',
  options: z.strictObject({
    ...shared,
    activation: z.enum(['gelu', 'gelu_erf', 'relu', 'relu2', 'silu']).default('gelu'),
  }),
  build: (o, { dims, scales, layer }) => ({
    params: params(dims, [o.hidden], o.hidden, o.bias),
    forward: (p, x, residual, c) => {
      const h = linear(x, tensorOf(p, 'up'), c, { bias: o.bias ? tensorOf(p, 'upBias') : null });
      tap(c, `blocks.${layer}.ffn.pre`, () => h);
      return down(p, activations[o.activation](h), residual, c, o, scales);
    },
  }),
});

registerSlot({
  slot: 'ffn',
  kind: 'glu',
  summary: 'gated: act(gate) times value (Shazeer 2020); gate and value are one packed matrix',
  options: z.strictObject({
    ...shared,
    activation: z.enum(['silu', 'gelu', 'relu', 'sigmoid', 'identity', 'gelu_erf']).default('silu'),
  }),
  build: (o, { dims, scales, layer }) => ({
    params: params(dims, [o.hidden, o.hidden], o.hidden, o.bias),
    forward: (p, x, residual, c) => {
      const h = linear(x, tensorOf(p, 'up'), c, { bias: o.bias ? tensorOf(p, 'upBias') : null });
      tap(c, `blocks.${layer}.ffn.pre`, () => h);
      return down(p, glu(h, o.activation), residual, c, o, scales);
    },
  }),
});
