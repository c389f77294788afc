/** The simple recurrent unit (Lei et al. 2018), and rows of tokens joined by segment. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';

type None = Record<string, never>;
const arg = (t: Tensor | null | undefined) => t?.arg() ?? null;
const sizes = (x: Tensor, initial: Tensor | null): number[] => [...x.shape, +(initial?.rank === 3)];

/** Inputs: dout?, dstate?, x, z, state, initial?, segments?. Outputs: dx, dz, and with an initial state its gradient. */
const sruBwd = defineOp<None>({
  name: 'sru_bwd',
  infer: ([, , x, z, , initial]) =>
    [x, z, ...(initial ? [initial] : [])].map((t) => ({ shape: t!.shape, dtype: t!.dtype })),
  launch: ([dout, dstate, x, z, state, initial, seg], [dx, dz, dinitial]) => ({
    kernel: 'sru_bwd',
    args: [dx, dz, dinitial, dout, dstate, x, z, state, initial, seg].map(arg),
    ints: sizes(x!, initial),
  }),
  flops: ([, , x]) => 40 * x!.size,
});

/** Inputs: x [B,T,n], z [B,T,3n], initial [B,n] or [B,T,n]?, segments [B,T]?. Outputs: out, state. */
const sruOp = defineOp<None>({
  name: 'sru',
  infer: ([x, z, initial, seg]) => {
    for (const t of [x, z]) wantFloat(t, 'sru');
    wantDType(initial, 'f32', 'sru', 'the initial state');
    wantDType(seg, 'i32', 'sru', 'segments');
    const [B, T, n] = x!.shape;
    if (x!.rank !== 3 || !sameShape(z!.shape, [B, T, 3 * n]) || x!.dtype !== z!.dtype)
      throw new AnsatzError(`sru: x ${x!.dtype} ${show(x!.shape)} and z ${z!.dtype} ${show(z!.shape)} do not fit`);
    if (initial && !sameShape(initial.shape, [B, n]) && !sameShape(initial.shape, x!.shape))
      throw new AnsatzError(`sru: initial state ${show(initial.shape)} for x ${show(x!.shape)}`);
    if (seg && !sameShape(seg.shape, [B, T]))
      throw new AnsatzError(`sru: segments ${show(seg.shape)} for x ${show(x!.shape)}`);
    return [
      { shape: x!.shape, dtype: x!.dtype },
      { shape: x!.shape, dtype: 'f32' },
    ];
  },
  launch: ([x, z, initial, seg], [out, state]) => ({
    kernel: 'sru',
    args: [out, state, x, z, initial, seg].map(arg),
    ints: sizes(x!, initial),
  }),
  flops: ([x]) => 20 * x!.size,
  gradient: ({ inputs: [x, z, initial, seg], outputs: [, state], grads: [dout, dstate] }) => {
    const [dx, dz, dinitial] = apply(sruBwd, [dout, dstate, x, z, state, initial, seg], {});
    return [dx, dz, dinitial ?? null, null];
  },
});

export interface SruOptions {
  /**
   * f32 [B, n]: the state that another part of the sequence left; without it, 0. [B, T, n]: the state before each token,
   * which counts where a sequence or a segment begins.
   */
  readonly initial?: Tensor | null;
  /** i32 [B, T]: the state begins anew in every segment, from 0 unless `initial` has one for every token. */
  readonly segments?: Tensor | null;
}

/**
 * c_t = f c_{t-1} + (1 - f) y, out = r c + sqrt(3) (1 - r) x with z = [r, f, y] and sigmoids on r and f. x [B, T, n],
 * z [B, T, 3n] of the same dtype. `state` holds c, f32 [B, T, n].
 */
export function sru(x: Tensor, z: Tensor, options: SruOptions = {}): { out: Tensor; state: Tensor } {
  const [out, state] = apply(sruOp, [x, z, options.initial ?? null, options.segments ?? null], {});
  return { out, state };
}

const joinOp = defineOp<None>({
  name: 'join_segments',
  infer: ([a, b]) => {
    for (const t of [a, b]) wantDType(t, 'i32', 'join_segments', 'segments');
    if (a!.rank !== 2 || b!.rank !== 2 || a!.shape[0] !== b!.shape[0])
      throw new AnsatzError(`join_segments: ${show(a!.shape)} and ${show(b!.shape)} are not rows of the same batch`);
    const joined = { shape: [a!.shape[0], a!.shape[1] + b!.shape[1]], dtype: 'i32' } as const;
    return [joined, joined, joined, { shape: b!.shape, dtype: 'i32' }];
  },
  launch: ([a, b], outputs) => ({
    kernel: 'join_segments',
    args: [...outputs, a, b].map(arg),
    ints: [a!.shape[0], a!.shape[1], b!.shape[1]],
  }),
  flops: () => 0,
});

export interface Joined {
  /** i32 [B, N]: place, in the rows of [a | b] of all batches one below the other, of the token that stands here. */
  readonly from: Tensor;
  readonly segments: Tensor;
  /** Counted from 0 in every segment; 0 in padding. */
  readonly positions: Tensor;
  /** i32 [B, Tb]: where each token of b went, in all batches' rows of N. */
  readonly place: Tensor;
}

/**
 * Order in which every segment of two rows, i32 [B, Ta] and [B, Tb], is together: tokens of a, then of b; N = Ta + Tb.
 * Segments ascend, padding (0) comes last.
 */
export function joinSegments(a: Tensor, b: Tensor): Joined {
  const [from, segments, positions, place] = noGrad(() => apply(joinOp, [a, b], {}));
  return { from, segments, positions, place };
}
