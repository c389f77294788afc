/**
 * Which expert gets which token. Indices and group sizes stay on the device, so that a captured step can follow them.
 *
 * Shapes: n tokens, k choices of a token, E experts, R grouped rows (an upper bound where tokens may be dropped).
 */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType } from './common.ts';

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
