/**
 * A block of keys (or values) as one: phi(k_1 .. k_l) = W2 gelu(W1 [k_1 + e_1; ...; k_l + e_l] + b), with a learned vector
 * e_i for each place in a block. The same phi for all heads.
 */
import { type ForwardContext, type ParamSpec, type ParamTree, tensorOf } from '../../nn/index.ts';
import { linear, vector } from '../../nn/linear.ts';
import { gelu, matmul, reshape, type Tensor, unfoldBlocks } from '../../tensor/index.ts';

export interface CompressSizes {
  readonly length: number;
  readonly stride: number;
  readonly headWidth: number;
  readonly hidden: number;
}

/** Sizes do not grow with the model's width: to a parametrisation these are vectors, one for each use. */
const fixed = (fanOut: number, fanIn: number): ParamSpec => ({
  shape: [fanOut, fanIn],
  init: { kind: 'normal', std: 1 / Math.sqrt(fanIn) },
  role: 'vector',
  fanIn,
  fanOut,
  decay: true,
});

/** Parameters of one phi, under names that begin with `name`. */
export const compressParams = (name: string, o: CompressSizes): Record<string, ParamSpec> => ({
  [`${name}Position`]: {
    shape: [o.length, o.headWidth],
    init: { kind: 'normal', std: 0.02 },
    role: 'embedding',
    fanIn: 1,
    fanOut: o.headWidth,
    decay: false,
  },
  [`${name}Up`]: fixed(o.hidden, o.length * o.headWidth),
  [`${name}UpBias`]: vector(o.hidden, 0),
  [`${name}Down`]: fixed(o.headWidth, o.hidden),
});

/** x [B,T,heads,D] -> [B,blocks,heads,D]. */
export function compress(p: ParamTree, name: string, x: Tensor, o: CompressSizes, c: ForwardContext): Tensor {
  const { length, stride, headWidth: d, hidden } = o;
  const [up, position] = [tensorOf(p, `${name}Up`), tensorOf(p, `${name}Position`)];
  const blocks = unfoldBlocks(x, length, stride);
  const [b, count, heads] = blocks.shape;
  // W1 (k + e) = W1 k + W1 e: the places add the same to every block.
  const start = matmul(reshape(position, [1, length * d]), up, { transB: true, bias: tensorOf(p, `${name}UpBias`) });
  const rows = reshape(blocks, [b * count * heads, length * d]);
  const inner = gelu(linear(rows, up, c, { bias: reshape(start, [hidden]) }));
  return reshape(linear(inner, tensorOf(p, `${name}Down`), c), [b, count, heads, d]);
}
