/**
 * A block of keys (or values) as one: phi(k_1 .. k_l) = W2 gelu(W1 [k_1 + e_1; ...; k_l + e_l] + b), with a learned vector
 * e_i for each place in a block. The same phi for all heads.
 */
import { type ForwardContext, type ParamSpec, type ParamTree, tensorOf } from '../../nn/index.ts';
import { linear, vector } from '../../nn/linear.ts';
import { add, cast, gelu, groupedMatmul, reshape, Tensor, unfoldBlocks } from '../../tensor/index.ts';

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
  const { length, stride, headWidth: d } = o;
  const blocks = unfoldBlocks(x, length, stride);
  const [b, count, heads] = blocks.shape;
  const rows = reshape(blocks, [b * count * heads, length * d]);
  return reshape(compressBlocks(p, name, rows, o, c), [b, count, heads, d]);
}

/**
 * Tokens of blocks, [blocks, length D] -> [blocks, D]. With `offsets` (i32 [2]: 0 and how many there are) only the first
 * blocks are computed, whatever the room for others.
 */
export function compressBlocks(
  p: ParamTree,
  name: string,
  rows: Tensor,
  { length, headWidth: d, hidden }: CompressSizes,
  c: ForwardContext,
  offsets: Tensor | null = null,
): Tensor {
  const [up, down, position] = ['Up', 'Down', 'Position'].map((part) => tensorOf(p, name + part));
  // W1 (k + e) = W1 k + W1 e: the places add the same to every block.
  const start = linear(reshape(position, [1, length * d]), up, c, { bias: tensorOf(p, `${name}UpBias`), out: 'f32' });
  const bias = reshape(start, [hidden]);
  if (!offsets) return linear(gelu(linear(rows, up, c, { bias })), down, c);
  const product = (x: Tensor, w: Tensor): Tensor => {
    // One group: the matrix as it is.
    const one = new Tensor(w.storage, w.dtype, [1, ...w.shape], w.offset);
    const options = { transB: true, compute: c.compute, out: c.activation };
    return groupedMatmul(x, one, { offsets, most: x.shape[0] }, options);
  };
  return product(gelu(add(product(rows, up), cast(bias, c.activation))), down);
}
