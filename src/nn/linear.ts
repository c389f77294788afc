/** Weight matrices: stored [out, in] as the ecosystem does, kept in f32, multiplied in the context's precision. */
import type { DType } from '../backend/dtype.ts';
import { add, affine, dropout, matmul, type Tensor } from '../tensor/index.ts';
import type { ForwardContext } from './context.ts';
import type { ParamSpec } from './module.ts';

/**
 * A hidden matrix with variance 1/fan-in, times `gain` (residual outputs use 1/sqrt(2 depth), so that the residual
 * stream's variance does not grow with depth; Radford et al. 2019).
 */
export function matrix(fanOut: number, fanIn: number, gain = 1): ParamSpec {
  const init = { kind: 'normal', std: gain / Math.sqrt(fanIn) } as const;
  const depth = gain === 1 ? {} : { depthGain: gain };
  return { shape: [fanOut, fanIn], init, role: 'hidden', fanIn, fanOut, decay: true, ...depth };
}

/** Matrices of the same inputs, one below the other: [sum of rows, in]. */
export const packed = (rows: readonly number[], fanIn: number): ParamSpec => ({
  ...matrix(
    rows.reduce((a, b) => a + b, 0),
    fanIn,
  ),
  parts: rows,
});

export function vector(size: number, value: number): ParamSpec {
  return { shape: [size], init: { kind: 'constant', value }, role: 'vector', fanIn: 1, fanOut: size, decay: false };
}

/** alpha x W^T (+ bias) (+ addend). x [..., in], w [out, in] -> [..., out]. */
export function linear(
  x: Tensor,
  w: Tensor,
  c: ForwardContext,
  options: { bias?: Tensor | null; addend?: Tensor | null; out?: DType; alpha?: number } = {},
): Tensor {
  return matmul(x, w, {
    transB: true,
    compute: c.compute,
    bias: options.bias ?? null,
    addend: options.addend ?? null,
    alpha: options.alpha ?? 1,
    out: options.out ?? c.activation,
  });
}

/**
 * residual + scale dropout(x W^T + bias): how a branch writes to the f32 residual stream. Without dropout the sum is
 * fused into the product.
 */
export function writeBranch(
  x: Tensor,
  w: Tensor,
  residual: Tensor,
  c: ForwardContext,
  o: { bias: Tensor | null; scale: number; dropout: number },
): Tensor {
  const bias = o.bias && o.scale !== 1 ? affine(o.bias, o.scale, 0) : o.bias;
  const options = { bias, out: 'f32', alpha: o.scale } as const;
  if (!c.random || o.dropout === 0) return linear(x, w, c, { ...options, addend: residual });
  return add(residual, dropout(linear(x, w, c, options), c.random, o.dropout, c.nextStream()));
}
