/** What surrounds the branches of block-sparse attention: overlapping blocks as rows, their masks, the gated sum. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { compressedBlocks } from './block-attention.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';

interface Unfold {
  readonly tokens: number;
  readonly length: number;
  readonly stride: number;
}

/** x [B,T,H,D] -> [B,blocks,H,length,D]. */
const unfoldOp: Op<Unfold> = defineOp<Unfold>({
  name: 'unfold_blocks',
  infer: ([x], p) => {
    wantFloat(x, 'unfold_blocks');
    if (x!.rank !== 4 || p.length < 1 || p.stride < 1)
      throw new AnsatzError(`unfold_blocks: ${show(x!.shape)} in blocks of ${p.length}, one every ${p.stride}`);
    const [b, t, h, d] = x!.shape;
    return [{ shape: [b, compressedBlocks(t, p.length, p.stride), h, p.length, d], dtype: x!.dtype }];
  },
  launch: ([x], [y], p) => {
    const [b, count, h, , d] = y.shape;
    return {
      kernel: 'unfold_blocks',
      args: [y.arg(), x!.arg()],
      ints: [b, p.tokens, count, h, d, p.length, p.stride],
    };
  },
  flops: () => 0,
  gradient: ({ grads: [dy], params }) => [apply(foldOp, [dy], params)[0]],
});

/** The adjoint: every token sums what the blocks that hold it say of it. */
const foldOp: Op<Unfold> = defineOp<Unfold>({
  name: 'fold_blocks',
  infer: ([y], p) => {
    wantFloat(y, 'fold_blocks');
    const [b, count, h, length, d] = y!.shape;
    if (y!.rank !== 5 || length !== p.length || count !== compressedBlocks(p.tokens, p.length, p.stride))
      throw new AnsatzError(`fold_blocks: ${show(y!.shape)} does not fit ${p.tokens} tokens`);
    return [{ shape: [b, p.tokens, h, d], dtype: y!.dtype }];
  },
  launch: ([y], [x], p) => {
    const [b, count, h, , d] = y!.shape;
    return {
      kernel: 'fold_blocks',
      args: [x.arg(), y!.arg()],
      ints: [b, p.tokens, count, h, d, p.length, p.stride],
    };
  },
  flops: ([y]) => y!.size,
  gradient: ({ grads: [dx], params }) => [apply(unfoldOp, [dx], params)[0]],
});

/** Blocks of `length` tokens, one every `stride`: x [B,T,H,D] -> [B,blocks,H,length,D]. */
export const unfoldBlocks = (x: Tensor, length: number, stride: number): Tensor =>
  apply(unfoldOp, [x], { tokens: x.shape[1], length, stride })[0];

/** Sums blocks [B,blocks,H,length,D] back to `tokens` places: the adjoint of unfoldBlocks. */
export const foldBlocks = (y: Tensor, tokens: number, stride: number): Tensor =>
  apply(foldOp, [y], { tokens, length: y.shape[3], stride })[0];

/** Inputs: a tensor of the device, segments?. Outputs: visible, and block segments with segments. */
const masksOp = defineOp<{ b: number; t: number; length: number; stride: number }>({
  name: 'block_masks',
  infer: ([, seg], p) => {
    wantDType(seg, 'i32', 'block_masks', 'segments');
    if (seg && !sameShape(seg.shape, [p.b, p.t]))
      throw new AnsatzError(`block_masks: segments ${show(seg.shape)} should be [${p.b}, ${p.t}]`);
    const visible = { shape: [p.b, p.t], dtype: 'i32' } as const;
    const count = compressedBlocks(p.t, p.length, p.stride);
    return seg ? [visible, { shape: [p.b, count], dtype: 'i32' }] : [visible];
  },
  launch: ([, seg], [visible, segments], p) => ({
    kernel: 'block_masks',
    args: [visible.arg(), segments?.arg() ?? null, seg?.arg() ?? null],
    ints: [p.b, p.t, compressedBlocks(p.t, p.length, p.stride), p.length, p.stride],
  }),
  flops: () => 0,
  bytes: (_, outputs) => outputs.reduce((n, y) => n + 4 * y.size, 0),
});

export interface BlockMasks {
  /** i32 [B, T]: the last compressed block that lies wholly before or at a token; -1 for none. */
  readonly visible: Tensor;
  /** i32 [B, blocks]: segment of a block; one of two segments gets a number that no token has. */
  readonly segments: Tensor | null;
}

/** Which compressed blocks the tokens of `like` [B,T,...] see. */
export function blockMasks(like: Tensor, length: number, stride: number, segments: Tensor | null = null): BlockMasks {
  const [b, t] = like.shape;
  const [visible, of] = noGrad(() => apply(masksOp, [like, segments], { b, t, length, stride }));
  return { visible, segments: of ?? null };
}

type None = Record<string, never>;
const none: None = {};

/** Inputs: three branches [B,T,H,D], gates [B,T,3,H]. */
const gateOp = defineOp<None>({
  name: 'gate_branches',
  infer: ([x, y, z, gates]) => {
    for (const t of [x, y, z, gates]) wantFloat(t, 'gate_branches');
    const [b, t, h] = x!.shape;
    if ([y, z].some((u) => !sameShape(u!.shape, x!.shape) || u!.dtype !== x!.dtype) || x!.rank !== 4)
      throw new AnsatzError(`gate_branches: ${show(x!.shape)}, ${show(y!.shape)} and ${show(z!.shape)} differ`);
    if (!sameShape(gates!.shape, [b, t, 3, h]))
      throw new AnsatzError(`gate_branches: gates ${show(gates!.shape)} should be [${b}, ${t}, 3, ${h}]`);
    return [{ shape: x!.shape, dtype: x!.dtype }];
  },
  launch: ([x, y, z, gates], [out]) => ({
    kernel: 'gate_branches',
    args: [out.arg(), x!.arg(), y!.arg(), z!.arg(), gates!.arg()],
    ints: gateInts(x!),
  }),
  flops: ([x]) => 6 * x!.size,
  gradient: ({ inputs, grads: [dout] }) => apply(gateBwd, [dout, ...inputs], none),
});

const gateInts = (x: Tensor): number[] => [x.shape[0] * x.shape[1], x.shape[2], x.shape[3]];

const gateBwd = defineOp<None>({
  name: 'gate_branches_bwd',
  infer: ([, ...like]) => like.map((t) => ({ shape: t!.shape, dtype: t!.dtype })),
  launch: ([dout, x, y, z, gates], outputs) => ({
    kernel: 'gate_branches_bwd',
    args: [...outputs, dout, x, y, z, gates].map((t) => t!.arg()),
    ints: gateInts(x!),
  }),
  flops: ([, x]) => 9 * x!.size,
});

/** sum over the three branches [B,T,H,D] of gate times branch; gates [B,T,3,H]. */
export const gateBranches = (branches: readonly [Tensor, Tensor, Tensor], gates: Tensor): Tensor =>
  apply(gateOp, [...branches, gates], none)[0];
