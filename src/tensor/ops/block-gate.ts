/**
 * Units in blocks of which a low-rank controller picks one a row (Jaszczur et al. 2021, section 3.1). Rows may come from
 * anywhere, and may be grouped with one controller a group.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Inputs } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType, wantFloat } from './common.ts';
import type { RandomState } from './random.ts';
import { reshape } from './shape.ts';

interface Params {
  readonly block: number;
  readonly tau: number;
  readonly stream: number;
  readonly before: boolean;
  readonly multiply: boolean;
}

const groupsOf = (c2: Tensor): number => (c2.rank === 3 ? c2.shape[0] : 1);
const rankOf = (c2: Tensor): number => c2.shape[c2.rank - 1];

function check([h, t, c2, cb, offsets, hard, state, recalled]: Inputs, { block, tau }: Params): void {
  const name = 'block_gate';
  wantFloat(h, name);
  for (const [x, what] of [
    [t, 'the low-rank input'],
    [c2, 'the controller'],
    [cb, 'the bias'],
    [hard, 'the hard flag'],
  ] as const)
    wantDType(x, 'f32', name, what);
  for (const [x, what] of [
    [offsets, 'offsets'],
    [state, 'the random state'],
    [recalled, 'recalled choices'],
  ] as const)
    wantDType(x, 'i32', name, what);
  const [rows, F] = h!.shape;
  const E = groupsOf(c2!);
  const shapes = `units ${show(h!.shape)}, input ${show(t!.shape)}, controller ${show(c2!.shape)}`;
  if (h!.rank !== 2 || t!.rank !== 2 || t!.shape[0] !== rows || rankOf(c2!) !== t!.shape[1])
    throw new AnsatzError(`${name}: ${shapes} do not fit`);
  if (c2!.shape[c2!.rank - 2] !== F || (cb && cb.size !== E * F))
    throw new AnsatzError(`${name}: ${shapes} do not fit`);
  if (F % block) throw new AnsatzError(`${name}: ${F} units do not split into blocks of ${block}`);
  if (offsets ? offsets.size !== E + 1 : E !== 1)
    throw new AnsatzError(`${name}: ${E} controllers need ${E + 1} offsets of their groups of rows`);
  if (recalled && recalled.size !== (rows * F) / block)
    throw new AnsatzError(`${name}: recalled choices ${show(recalled.shape)} for ${rows} rows of ${F / block} blocks`);
  if (!(tau >= 0)) throw new AnsatzError(`${name}: temperature ${tau} must not be negative`);
}

const ints = (h: Tensor, c2: Tensor, p: Params): number[] => [...h.shape, p.block, rankOf(c2), groupsOf(c2)];
const arg = (t: Tensor | null | undefined) => t?.arg() ?? null;

/** Inputs: h, t, c2, cb?, offsets?, hard?, state?, recalled?. Outputs: masked activations, chosen unit of each block. */
const gateOp = defineOp<Params>({
  name: 'block_gate',
  infer: (inputs, p) => {
    check(inputs, p);
    const [h] = inputs;
    return [
      { shape: h!.shape, dtype: h!.dtype },
      { shape: [h!.shape[0], h!.shape[1] / p.block], dtype: 'i32' },
    ];
  },
  launch: ([h, t, c2, cb, offsets, hard, state, recalled], [a, choice], p) => ({
    kernel: 'block_gate',
    args: [...[a, choice, h, t, c2, cb, offsets, hard, state, recalled].map(arg)],
    ints: [...ints(h!, c2!, p), p.stream, +p.multiply],
    floats: [p.tau],
  }),
  flops: ([h, t]) => 2 * h!.size * t!.shape[1],
  gradient: ({ inputs: [h, t, c2, cb, offsets, hard], outputs: [, choice], grads: [da], params }) => {
    const [dh, dt, dc2, dcb] = apply(gateBwd, [da, h, choice, t, c2, cb, offsets, hard], params);
    return [dh, dt, dc2, dcb ?? null, null, null, null, null];
  },
});

const gateBwd = defineOp<Params>({
  name: 'block_gate_bwd',
  infer: ([, h, , t, c2, cb]) => [h, t, c2, ...(cb ? [cb] : [])].map((x) => ({ shape: x!.shape, dtype: x!.dtype })),
  launch: ([da, h, choice, t, c2, cb, offsets, hard], [dh, dt, dc2, dcb], p) => ({
    kernel: 'block_gate_bwd',
    args: [dh, dt, dc2, dcb, da, h, choice, t, c2, cb, offsets, hard].map(arg),
    ints: [...ints(h!, c2!, p), +p.before, +p.multiply],
  }),
  // The logits once more, and the gradients of both factors.
  flops: ([, h, , t]) => 6 * h!.size * t!.shape[1],
});

export interface BlockGateOptions {
  /** Units of a block, N. */
  readonly block: number;
  /** Added to the logits: f32 [F], or [groups, F]. */
  readonly bias?: Tensor | null;
  /** i32 [groups + 1]: rows of group e are [offsets[e], offsets[e+1]); rows of no group give zeros. */
  readonly offsets?: Tensor | null;
  /** f32 [1]: not 0 masks with the chosen unit, 0 with the probabilities. Absent: the chosen unit. */
  readonly hard?: Tensor | null;
  /** Gumbel noise times `tau` on the logits, when choosing. */
  readonly random?: RandomState | null;
  readonly tau?: number;
  readonly stream?: number;
  /** Where the mask is multiplied: after or before the ReLU. Values are the same, gradients of the hard mask are not. */
  readonly mask?: 'after' | 'before';
  /** Chosen units are multiplied by their probability too (which gets no gradient by that). */
  readonly multiply?: boolean;
  /** Choices of an earlier pass, i32 [rows, F/N], for passes that must repeat it exactly. */
  readonly recalled?: Tensor | null;
}

/**
 * relu(h) times a mask over blocks of units: with p = softmax over each block of t c2^T + bias, the mask is p, or one at
 * the largest logit (ties: the lowest index). Straight-through: gradients reach the controller as if the mask were p.
 * h [rows, F], t f32 [rows, r], c2 f32 [F, r] or [groups, F, r].
 */
export function blockGate(h: Tensor, t: Tensor, c2: Tensor, o: BlockGateOptions): { out: Tensor; choice: Tensor } {
  const noisy = o.random && (o.tau ?? 0) > 0;
  const inputs = [
    ...[h, t, c2, o.bias ?? null, o.offsets ?? null, o.hard ?? null],
    ...[noisy ? o.random!.tensor : null, o.recalled ?? null],
  ];
  const [out, choice] = apply(gateOp, inputs, {
    block: o.block,
    tau: o.tau ?? 0,
    stream: o.stream ?? 0,
    before: o.mask === 'before',
    multiply: o.multiply ?? false,
  });
  return { out, choice };
}

/** Share of rows that chose each unit. Inputs: choices i32 [rows, A], offsets?. */
const shareOp = defineOp<{ block: number; groups: number }>({
  name: 'choice_share',
  infer: ([choice, offsets], p) => {
    wantDType(choice, 'i32', 'choice_share', 'choices');
    wantDType(offsets, 'i32', 'choice_share', 'offsets');
    return [{ shape: [p.groups, choice!.shape[1] * p.block], dtype: 'f32' }];
  },
  launch: ([choice, offsets], [y], p) => ({
    kernel: 'choice_share',
    args: [y.arg(), choice!.arg(), arg(offsets)],
    ints: [...choice!.shape, p.block, p.groups],
  }),
  flops: ([choice]) => choice!.size,
});

/** How often each unit is chosen, of the rows of its group: f32 [F], or [groups, F] with offsets. */
export function choiceShare(choice: Tensor, block: number, offsets: Tensor | null = null): Tensor {
  const groups = offsets ? offsets.size - 1 : 1;
  const [share] = noGrad(() => apply(shareOp, [choice, offsets], { block, groups }));
  return offsets ? share : reshape(share, [share.size]);
}
