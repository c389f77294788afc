/**
 * Tokens at experts: which expert gets which token, rows brought together by group and back, and products with one
 * matrix a group. Indices and group sizes stay on the device, so that a captured step can follow them.
 *
 * Shapes: n tokens, k choices of a token, E experts, R grouped rows (an upper bound where tokens may be dropped).
 */
import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { cast } from './binary.ts';
import { like, sameShape, show, wantDType, wantFloat } from './common.ts';
import type { Compute } from './matmul.ts';
import { affine } from './unary.ts';

/** Where tokens went. */
export interface Routing {
  /** i32 [n, k]: row of each token's choices among the grouped rows; -1 where it was dropped. */
  readonly slot: Tensor;
  /** i32 [R]: which choice (token * k + j) stands in each grouped row; -1 where none does. */
  readonly pick: Tensor;
  /** i32 [E + 1]: first row of each expert's group. */
  readonly offsets: Tensor;
  /** No group is larger than this. */
  readonly most: number;
}

export interface TopkRouting extends Routing {
  /** i32 [n, k]: experts of each token, best first. */
  readonly index: Tensor;
  /** f32 [n / span, k, E]: how often each expert is the j-th choice, before anything is dropped. */
  readonly counts: Tensor;
}

/** Who is served first where an expert takes a limited number of tokens. */
export type FillOrder = 'token' | 'choice' | 'priority';
const orders: readonly FillOrder[] = ['token', 'choice', 'priority'];

export interface RouteOptions {
  readonly k: number;
  /** Tokens of one sequence: counts are kept for each. */
  readonly span: number;
  /** Tokens that an expert takes; 0 takes all. */
  readonly capacity?: number;
  /** Whether the capacity is for each sequence or for all tokens together. */
  readonly bySequence?: boolean;
  /**
   * token: one token after the other. choice: all first choices before any second. priority: the same, tokens with the
   * largest first score first.
   */
  readonly order?: FillOrder;
  /** Experts stand in this many groups, of which a token may use the best `keepGroups`. */
  readonly groups?: number;
  readonly keepGroups?: number;
  /** f32 [E], added to the scores for the selection. */
  readonly bias?: Tensor | null;
  /** i32 [n, k]: experts chosen elsewhere. */
  readonly chosen?: Tensor | null;
  /** f32 [n, k]: choices at 0 are not made. */
  readonly use?: Tensor | null;
}

interface RouteParams {
  readonly k: number;
  readonly span: number;
  readonly capacity: number;
  readonly bySequence: boolean;
  readonly order: FillOrder;
  readonly groups: number;
  readonly keep: number;
}

/** Grouped rows that there can be at most. */
function boundOf(n: number, E: number, p: RouteParams): number {
  if (p.capacity === 0) return n * p.k;
  return Math.min(n * p.k, E * p.capacity * (p.bySequence ? n / p.span : 1));
}

const routeOp = defineOp<RouteParams>({
  name: 'route',
  infer: ([scores, bias, chosen, use], p) => {
    for (const t of [scores, bias, use]) wantDType(t, 'f32', 'route', 'scores, bias and use');
    wantDType(chosen, 'i32', 'route', 'chosen experts');
    const [n, E] = scores!.shape;
    const { k, span, groups, keep } = p;
    if (scores!.rank !== 2) throw new AnsatzError(`route: scores ${show(scores!.shape)} are not [tokens, experts]`);
    if (!Number.isInteger(k) || k < 1 || k > E) throw new AnsatzError(`route: ${k} of ${E} experts`);
    if (!(span > 0) || n % span) throw new AnsatzError(`route: ${n} tokens are no sequences of ${span}`);
    if (E % groups || keep > groups || (E / groups) * keep < k)
      throw new AnsatzError(`route: ${keep} of ${groups} groups of ${E} experts leave fewer than ${k} to choose from`);
    if (bias && !sameShape(bias.shape, [E])) throw new AnsatzError(`route: bias ${show(bias.shape)} for ${E} experts`);
    for (const t of [chosen, use])
      if (t && !sameShape(t.shape, [n, k]))
        throw new AnsatzError(`route: ${show(t.shape)} for ${k} choices of ${n} tokens`);
    return [
      { shape: [n, k], dtype: 'i32' },
      { shape: [n, k], dtype: 'i32' },
      { shape: [boundOf(n, E, p)], dtype: 'i32' },
      { shape: [E + 1], dtype: 'i32' },
      { shape: [n / span, k, E], dtype: 'f32' },
    ];
  },
  launch: ([scores, bias, chosen, use], outputs, p) => {
    const [n, E] = scores!.shape;
    const { k, span, capacity, bySequence, order, groups, keep } = p;
    return {
      kernel: 'route',
      args: [...outputs.map((t) => t.arg()), scores!.arg(), ...[bias, chosen, use].map((t) => t?.arg() ?? null)],
      ints: [n, E, k, boundOf(n, E, p), span, capacity, +bySequence, orders.indexOf(order), groups, keep],
    };
  },
  flops: ([scores], _, p) => scores!.size * p.k,
});

/** Each token's k best experts (ties to the lowest index), and its places there. Not differentiable. */
export function route(scores: Tensor, options: RouteOptions): TopkRouting {
  const [n, E] = scores.shape;
  const p: RouteParams = {
    k: options.k,
    span: options.span,
    capacity: options.capacity ?? 0,
    bySequence: options.bySequence ?? false,
    order: options.order ?? 'token',
    groups: options.groups ?? 1,
    keep: options.keepGroups ?? options.groups ?? 1,
  };
  const inputs = [scores, options.bias ?? null, options.chosen ?? null, options.use ?? null];
  const [index, slot, pick, offsets, counts] = apply(routeOp, inputs, p);
  // A token goes to an expert once, unless the choices come from elsewhere.
  const each = options.chosen ? n * p.k : n;
  const most = p.capacity === 0 ? each : Math.min(each, p.capacity * (p.bySequence ? n / p.span : 1));
  return { index, slot, pick, offsets, counts, most: Math.min(most, boundOf(n, E, p)) };
}

const choiceOp = defineOp<{ take: number; size: number }>({
  name: 'route_choice',
  infer: ([scores, use], p) => {
    for (const t of [scores, use]) wantDType(t, 'f32', 'route_choice', 'scores and use');
    if (scores!.rank !== 2)
      throw new AnsatzError(`route_choice: scores ${show(scores!.shape)} are not [tokens, experts]`);
    const [n, E] = scores!.shape;
    if (!(p.size > 0) || n % p.size || !Number.isInteger(p.take) || p.take < 0 || p.take > p.size)
      throw new AnsatzError(`route_choice: ${p.take} of ${p.size} tokens at a time, of ${n}`);
    if (use && !sameShape(use.shape, [n])) throw new AnsatzError(`route_choice: use ${show(use.shape)} of ${n} tokens`);
    return [
      { shape: [n, E], dtype: 'i32' },
      { shape: [E * p.take * (n / p.size)], dtype: 'i32' },
      { shape: [E + 1], dtype: 'i32' },
    ];
  },
  launch: ([scores, use], outputs, p) => ({
    kernel: 'route_choice',
    args: [...outputs.map((t) => t.arg()), scores!.arg(), use?.arg() ?? null],
    ints: [scores!.shape[0], scores!.shape[1], p.take, p.size],
  }),
  flops: ([scores]) => 2 * scores!.size,
});

/**
 * Each expert's `take` best tokens among every `size` tokens. A token's choices are then numbered by expert: slot is
 * [n, E]. use f32 [n]: tokens at 0 come last.
 */
export function routeChoice(scores: Tensor, options: { take: number; size: number; use?: Tensor | null }): Routing {
  const { take, size, use = null } = options;
  const [slot, pick, offsets] = apply(choiceOp, [scores, use], { take, size });
  return { slot, pick, offsets, most: take * (scores.shape[0] / size) };
}

/** Inputs: x [n, d], pick, slot. */
const gatherRows: Op<{ out: DType }> = defineOp<{ out: DType }>({
  name: 'gather_rows',
  infer: ([x, pick, slot], p) => {
    wantFloat(x, 'gather_rows');
    if (x!.rank !== 2 || x!.shape[0] !== slot!.shape[0])
      throw new AnsatzError(`gather_rows: rows ${show(x!.shape)} for ${slot!.shape[0]} routed tokens`);
    return [{ shape: [pick!.size, x!.shape[1]], dtype: p.out }];
  },
  launch: ([x, pick, slot], [y]) => ({
    kernel: 'gather_rows',
    args: [y.arg(), x!.arg(), pick!.arg()],
    ints: [pick!.size, x!.shape[1], slot!.size, slot!.shape[1]],
  }),
  flops: () => 0,
  gradient: ({ inputs: [x, pick, slot], grads: [dy] }) => [
    apply(combineRows, [dy, null, null, slot, pick], { alpha: 1, out: x!.dtype })[0],
    null,
    null,
  ],
});

interface CombineParams {
  readonly alpha: number;
  readonly out: DType;
}

/** Inputs: y [R, d], w f32 [n, k] or null, addend [n, d] or null, slot, pick. */
const combineRows: Op<CombineParams> = defineOp<CombineParams>({
  name: 'combine_rows',
  infer: ([y, w, addend, slot, pick], p) => {
    for (const t of [y, addend]) wantFloat(t, 'combine_rows');
    wantDType(w, 'f32', 'combine_rows', 'weights');
    const shape = [slot!.shape[0], y!.shape[1]];
    if (y!.rank !== 2 || y!.shape[0] !== pick!.size)
      throw new AnsatzError(`combine_rows: ${show(y!.shape)} for ${pick!.size} grouped rows`);
    if (w && !sameShape(w.shape, slot!.shape))
      throw new AnsatzError(`combine_rows: weights ${show(w.shape)} for choices ${show(slot!.shape)}`);
    if (addend && !sameShape(addend.shape, shape))
      throw new AnsatzError(`combine_rows: addend ${show(addend.shape)} for output ${show(shape)}`);
    return [{ shape, dtype: p.out }];
  },
  launch: ([y, w, addend, slot], [out], p) => ({
    kernel: 'combine_rows',
    args: [out.arg(), y!.arg(), slot!.arg(), w?.arg() ?? null, addend?.arg() ?? null],
    ints: [...slot!.shape, y!.shape[1], y!.shape[0]],
    floats: [p.alpha],
  }),
  flops: ([y, w]) => (w ? 2 : 1) * y!.size,
  gradient: ({ inputs: [y, w, addend, slot, pick], grads: [dout], params, needs }) => {
    const daddend = addend && needs(2) ? cast(dout!, addend.dtype) : null;
    if (!w) {
      const dy = apply(gatherRows, [dout, pick, slot], { out: y!.dtype })[0];
      return [params.alpha === 1 ? dy : affine(dy, params.alpha, 0), null, daddend, null, null];
    }
    const [dy, dw] = apply(combineBwd, [y, w, dout, slot, pick], { alpha: params.alpha });
    return [dy, dw, daddend, null, null];
  },
});

const combineBwd = defineOp<{ alpha: number }>({
  name: 'combine_rows_bwd',
  infer: ([y, w]) => [...like([y]), ...like([w])],
  launch: ([y, w, dout, slot, pick], [dy, dw], p) => ({
    kernel: 'combine_rows_bwd',
    args: [dy.arg(), dw.arg(), y!.arg(), slot!.arg(), pick!.arg(), w!.arg(), dout!.arg()],
    ints: [...slot!.shape, y!.shape[1], y!.shape[0]],
    floats: [p.alpha],
  }),
  flops: ([y]) => 3 * y!.size,
});

/** Rows of x [n, d] as they stand in groups: [R, d]; unused rows are 0. */
export const groupRows = (x: Tensor, routing: Routing, out: DType = x.dtype): Tensor =>
  apply(gatherRows, [x, routing.pick, routing.slot], { out })[0];

/**
 * addend[t] + alpha sum_j weights[t, j] y[row of choice j of t]: grouped rows back at their tokens, [n, d].
 * Dropped choices add nothing. weights f32 [n, k]; null: all 1.
 */
export const combineGroups = (
  y: Tensor,
  weights: Tensor | null,
  routing: Routing,
  options: { addend?: Tensor | null; alpha?: number; out?: DType } = {},
): Tensor => {
  const { addend = null, alpha = 1, out = addend?.dtype ?? y.dtype } = options;
  return apply(combineRows, [y, weights, addend, routing.slot, routing.pick], { alpha, out })[0];
};

interface GroupedParams {
  readonly transB: boolean;
  readonly alpha: number;
  readonly compute: Compute;
  readonly out: DType;
  readonly most: number;
}

/** Inputs: x [R, K], w [E, N, K] (transB) or [E, K, N], offsets. */
const groupedOp: Op<GroupedParams> = defineOp<GroupedParams>({
  name: 'grouped_matmul',
  infer: ([x, w, offsets], p) => {
    for (const t of [x, w]) wantFloat(t, 'grouped_matmul');
    wantDType(offsets, 'i32', 'grouped_matmul', 'offsets');
    const K = w!.shape[p.transB ? 2 : 1];
    if (x!.rank !== 2 || w!.rank !== 3 || x!.shape[1] !== K || offsets!.size !== w!.shape[0] + 1)
      throw new AnsatzError(
        `grouped_matmul: rows ${show(x!.shape)}, matrices ${show(w!.shape)}${p.transB ? ' transposed' : ''} and ${offsets!.size} offsets do not fit`,
      );
    return [{ shape: [x!.shape[0], w!.shape[p.transB ? 1 : 2]], dtype: p.out }];
  },
  launch: ([x, w, offsets], [y], p) => ({
    kernel: 'grouped_matmul',
    args: [y.arg(), x!.arg(), w!.arg(), offsets!.arg()],
    ints: [x!.shape[0], w!.shape[0], y.shape[1], x!.shape[1], +p.transB, p.most, p.compute === 'bf16' ? 1 : 0],
    floats: [p.alpha],
  }),
  // A row meets one matrix, however many there are.
  flops: ([x], [y]) => 2 * x!.size * y.shape[1],
  gradient: ({ inputs: [x, w, offsets], grads: [dy], params: p, needs }) => {
    const { alpha, compute } = p;
    const dx = needs(0) ? apply(groupedOp, [dy, w, offsets], { ...p, transB: !p.transB, out: x!.dtype })[0] : null;
    const [a, b] = p.transB ? [dy, x] : [x, dy];
    const dw = needs(1) ? apply(weightOp, [a, b, offsets], { alpha, compute, out: w!.dtype })[0] : null;
    return [dx, dw, null];
  },
});

/** Inputs: a [R, M], b [R, N], offsets. */
const weightOp = defineOp<{ alpha: number; compute: Compute; out: DType }>({
  name: 'grouped_matmul_weight',
  infer: ([a, b, offsets], p) => [{ shape: [offsets!.size - 1, a!.shape[1], b!.shape[1]], dtype: p.out }],
  launch: ([a, b, offsets], [dw], p) => ({
    kernel: 'grouped_matmul_weight',
    args: [dw.arg(), a!.arg(), b!.arg(), offsets!.arg()],
    ints: [a!.shape[0], dw.shape[0], dw.shape[1], dw.shape[2], p.compute === 'bf16' ? 1 : 0],
    floats: [p.alpha],
  }),
  flops: ([a, b]) => 2 * a!.size * b!.shape[1],
});

/**
 * alpha x W_e (or alpha x W_e^T) for the rows x of each group e: x [R, K], w [E, K, N] (transB: [E, N, K]) -> [R, N].
 * A row's result does not depend on how many rows its group has.
 */
export function groupedMatmul(
  x: Tensor,
  w: Tensor,
  groups: Pick<Routing, 'offsets' | 'most'>,
  options: { transB?: boolean; alpha?: number; compute?: Compute; out?: DType } = {},
): Tensor {
  return apply(groupedOp, [x, w, groups.offsets], {
    transB: options.transB ?? false,
    alpha: options.alpha ?? 1,
    compute: options.compute ?? (x.dtype === 'bf16' || w.dtype === 'bf16' ? 'bf16' : 'f32'),
    out: options.out ?? (x.dtype === 'bf16' && w.dtype === 'bf16' ? 'bf16' : 'f32'),
    most: groups.most,
  })[0];
}
