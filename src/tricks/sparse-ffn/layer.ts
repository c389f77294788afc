/** The layer: relu(x W1^T) with one unit of each block alive, times W2. */
import type { Mixer, ParamSpec, SlotContext } from '../../nn/index.ts';
import { tensorOf } from '../../nn/index.ts';
import { linear, vector, writeBranch } from '../../nn/linear.ts';
import { matmul, reshape } from '../../tensor/index.ts';
import { maskedUnits } from './gate.ts';
import { type SparseFfnOptions, sparseParams } from './options.ts';

export function buildSparseFfn(o: SparseFfnOptions, { dims, scales }: SlotContext): Mixer {
  const { width, depth } = dims;
  return {
    params: {
      ...sparseParams(o, { width, depth }, [width, o.hidden]),
      ...(o.bias ? { upBias: vector(o.hidden, 0), downBias: vector(width, 0) } : {}),
    } as Record<string, ParamSpec>,
    forward: (p, x, residual, c) => {
      const flat = reshape(x, [-1, width]);
      const h = linear(flat, tensorOf(p, 'up'), c, { bias: o.bias ? tensorOf(p, 'upBias') : null });
      // The controller runs in f32: a rounded logit is another choice.
      const t = matmul(flat, tensorOf(p, 'low'), { transB: true, compute: 'f32', out: 'f32' });
      const a = maskedUnits(o, p, h, t, c);
      return writeBranch(reshape(a, [...x.shape.slice(0, -1), o.hidden]), tensorOf(p, 'down'), residual, c, {
        bias: o.bias ? tensorOf(p, 'downBias') : null,
        scale: scales.branch,
        dropout: o.dropout,
      });
    },
  };
}
