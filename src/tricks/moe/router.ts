/**
 * The router: f32 logits whatever the precision, who goes where, and with what weight.
 *
 * Shapes: N = B T tokens, E experts, k choices of a token.
 */
import { choose, evenForRows, type ForwardContext, type ParamSpec, type ParamTree, tensorOf } from '../../nn/index.ts';
import {
  affine,
  cast,
  concat,
  div,
  expand,
  fill,
  gather,
  ge,
  lt,
  matmul,
  mul,
  ne,
  noGrad,
  ones,
  type Routing,
  reshape,
  route,
  routeChoice,
  sigmoid,
  slice,
  softmax,
  sum,
  type Tensor,
  type TopkRouting,
  topk,
  uniform,
} from '../../tensor/index.ts';
import { type Capacity, capacityOf, type ExpertChoice, type MoeOptions } from './options.ts';

/** What was decided for the tokens of a pass. */
export interface Decision {
  readonly routing: Routing;
  /** f32 [N, k] ([N, E] for expert choice): weights of a token's choices. */
  readonly gates: Tensor;
  /** f32 [N, E]. */
  readonly logits: Tensor;
  /** f32 [N, E], rows sum to 1: what the balance loss looks at. */
  readonly probs: Tensor;
  /** f32 [B, k, E]: assignments by sequence and rank of choice, before drops; null for expert choice. */
  readonly counts: Tensor | null;
  /** f32 [N]: 0 for padding; null where there is none. */
  readonly use: Tensor | null;
}

/**
 * W_r [E, d], no bias; logits of unit rows have standard deviation `std`. E does not grow with the width: to
 * initialisation and rates it is an output matrix.
 */
export const routerWeight = (E: number, width: number, std: number): ParamSpec => ({
  shape: [E, width],
  init: { kind: 'normal', std: std / Math.sqrt(width) },
  role: 'output',
  fanIn: width,
  fanOut: E,
  decay: true,
});

/** Logits f32 [N, E] of x [B, T, d]. */
export function routerLogits(w: Tensor, x: Tensor, jitter: number, c: ForwardContext): Tensor {
  let rows = reshape(x, [-1, x.shape[x.rank - 1]]);
  if (jitter > 0 && c.training && c.random)
    rows = mul(cast(rows, 'f32'), uniform(c.random, rows.shape, c.nextStream(), 1 - jitter, 1 + jitter));
  // In blocks, a row's sums do not depend on how many rows there are: neither do its experts.
  const weight = evenForRows(c.rows, w);
  return matmul(rows, weight, { transB: true, compute: 'f32', out: 'f32' });
}

/** f32 [N]: 1 for tokens, 0 for padding (segment 0). */
const useOf = (c: ForwardContext): Tensor | null => {
  const s = c.segments;
  if (!s) return null;
  return noGrad(() => cast(ne(s, fill(s.device, [1], 0, 'i32')), 'f32'));
};

export function decide(o: MoeOptions, p: ParamTree, x: Tensor, c: ForwardContext): Decision {
  const [B, T] = x.shape;
  const logits = routerLogits(tensorOf(p, 'router'), x, o.jitter, c);
  const use = useOf(c);
  const flat = use && reshape(use, [B * T]);
  if (o.routing.kind === 'expert-choice') return byExperts(o, o.routing, logits, flat, T, c);
  const scores = o.gate === 'sigmoid' ? sigmoid(logits) : softmax(logits);
  // Selection and order have no gradient. By logits, probabilities that underflow still differ.
  const bias = o.biasRate > 0 ? tensorOf(p, 'bias') : null;
  const ranked = o.routing.kind === 'capacity' && o.routing.order === 'priority';
  const routing = choose(c, () => noGrad(() => select(o, bias || ranked ? scores : logits, scores, bias, flat, T, c)));
  const gates = gatesOf(o, logits, scores, routing.index);
  const probs = o.gate === 'sigmoid' ? div(scores, sum(scores, [-1], true)) : scores;
  return { routing, gates, logits, probs, counts: routing.counts, use: flat };
}

function select(
  o: MoeOptions,
  by: Tensor,
  scores: Tensor,
  bias: Tensor | null,
  use: Tensor | null,
  T: number,
  c: ForwardContext,
): TopkRouting {
  const { experts: E, active: k, groups, keepGroups } = o;
  const [N] = by.shape;
  const tokens = use && expand(reshape(use, [N, 1]), [N, k]);
  const base = { k, span: T, groups, keepGroups, bias, use: tokens };
  if (o.routing.kind !== 'capacity') return route(by, base);
  const r = o.routing;
  // Rows of a decoding pass belong to any sequences: who else is being served must not take places.
  const capacity = c.rows ? 0 : capacityOf(r, r.scope === 'sequence' ? T : N, E, k, c.training);
  const limits = { ...base, capacity, bySequence: r.scope === 'sequence', order: r.order };
  if (r.second === 'all' || (r.second === 'random' && !(c.training && c.random))) return route(by, limits);
  // The rule looks at the gates of the chosen, so choosing comes first.
  const chosen = topk(by, k).indices;
  const made = secondChoices(r, scores, chosen, c);
  return route(by, { ...limits, chosen, use: tokens ? mul(tokens, made) : made });
}

/** f32 [N, k]: 1 for first choices, and for those of the others that the rule lets through. */
function secondChoices(r: Capacity, scores: Tensor, chosen: Tensor, c: ForwardContext): Tensor {
  const [N, k] = chosen.shape;
  const g = gather(scores, -1, chosen);
  const share = slice(div(g, affine(sum(g, [-1], true), 1, 1e-9)), 1, 1, k);
  const made =
    r.second === 'random'
      ? lt(uniform(c.random!, [N, k - 1], c.nextStream()), affine(share, 1 / r.secondThreshold, 0))
      : ge(share, fill(share.device, [1], r.secondThreshold));
  return concat([ones(scores.device, [N, 1]), made], 1);
}

/**
 * Weights [N, k] of the chosen experts. Dropped choices keep theirs, and the others' are not made larger: what an
 * overfull expert does not take is missing from the token's output (Mesh TensorFlow, Flaxformer).
 */
function gatesOf(o: MoeOptions, logits: Tensor, scores: Tensor, index: Tensor): Tensor {
  let w: Tensor;
  if (o.gate === 'softmax') w = gather(scores, -1, index);
  else if (o.gate === 'renormalised') w = softmax(gather(logits, -1, index));
  else {
    const s = gather(scores, -1, index);
    w = div(s, sum(s, [-1], true));
  }
  return o.gateScale === 1 ? w : affine(w, o.gateScale, 0);
}

function byExperts(
  o: MoeOptions,
  r: ExpertChoice,
  logits: Tensor,
  use: Tensor | null,
  T: number,
  c: ForwardContext,
): Decision {
  const [N, E] = logits.shape;
  const size = r.scope === 'sequence' ? T : N;
  const take = Math.min(size, Math.max(1, Math.floor((r.factor * size) / E)));
  const probs = softmax(logits);
  const routing = choose(c, () => noGrad(() => routeChoice(probs, { take, size, use })));
  const gates = use ? mul(probs, reshape(use, [N, 1])) : probs;
  return {
    routing,
    gates: o.gateScale === 1 ? gates : affine(gates, o.gateScale, 0),
    logits,
    probs,
    counts: null,
    use,
  };
}
