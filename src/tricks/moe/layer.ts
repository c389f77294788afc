/** The layer: route, bring tokens to their experts, compute, bring the results back onto the residual stream. */
import {
  buildSlot,
  childOf,
  choose,
  type ForwardContext,
  type Mixer,
  type Module,
  type ParamSpec,
  type ParamTree,
  repeats,
  type SlotContext,
  tap,
  tensorOf,
} from '../../nn/index.ts';
import {
  accumulate,
  affine,
  assign,
  combineGroups,
  fill,
  groupRows,
  lt,
  mean,
  noGrad,
  reshape,
  scaleBy,
  sign,
  slice,
  sub,
  sum,
  type Tensor,
} from '../../tensor/index.ts';
import { buildExperts, type Experts } from './expert.ts';
import { balanceLoss, routerZLoss } from './losses.ts';
import { loadMonitor } from './monitor.ts';
import { type MoeOptions, unlikeOne } from './options.ts';
import { type Decision, decide, routerWeight } from './router.ts';

/** Saved with the weights, but not trained. */
const state = (size: number): ParamSpec => ({
  shape: [size],
  init: { kind: 'constant', value: 0 },
  role: 'vector',
  fanIn: 1,
  fanOut: size,
  decay: false,
  trainable: false,
});

/** Sets a state tensor. */
const put = (t: Tensor, value: Tensor): void => accumulate(t, sub(value, t));

/**
 * Experts as parts of a mixture: a token uses k of E, and what keeps them from starting as the dense layer of which they
 * are copies.
 */
function ofMixture({ params = {}, ...rest }: Experts, o: MoeOptions): Experts {
  const unlike = unlikeOne(o);
  const k = o.routing.kind === 'expert-choice' ? Math.min(o.routing.factor, o.experts) : o.active;
  const noted = ({ stackOf, used = 1, ...spec }: ParamSpec): ParamSpec => ({
    ...{ ...spec, used: (used * k) / o.experts },
    ...(stackOf ? { stackOf: unlike === null ? stackOf : { ...stackOf, unlike } } : {}),
  });
  return { ...rest, params: Object.fromEntries(Object.entries(params).map(([name, spec]) => [name, noted(spec)])) };
}

export function buildMoe(o: MoeOptions, context: SlotContext): Mixer {
  const { dims, layer, scales } = context;
  const { width, depth } = dims;
  const { experts: E } = o;
  const experts = ofMixture(buildExperts(o.expert, { experts: E, width, depth, layer }), o);
  const shared = o.shared > 0 ? sharedExperts(o, context) : null;
  const counted = o.routing.kind !== 'expert-choice';
  return {
    params: {
      router: routerWeight(E, width, o.routerStd),
      // load: assignments of the step so far; lastLoad: of the step before, for monitoring.
      ...(counted ? { load: state(E), lastLoad: state(E) } : {}),
      ...(o.biasRate > 0 ? { bias: state(E), rate: state(1) } : {}),
    } as Record<string, ParamSpec>,
    children: { experts, ...(shared ? { shared } : {}) } as Record<string, Module>,
    forward: (p, x, residual, c) => {
      const d = decide(o, p, x, c);
      if (c.training) observe(o, p, d, x.shape[0], depth, layer, c);
      tap(c, `blocks.${layer}.ffn.router`, () => d.logits);
      const base = shared ? shared.forward(childOf(p, 'shared'), x, residual, c) : residual;
      const rows = groupRows(reshape(x, [-1, width]), d.routing);
      const y = experts.forward(childOf(p, 'experts'), rows, d.routing, c);
      const addend = reshape(base, [-1, width]);
      return reshape(combineGroups(y, d.gates, d.routing, { addend, alpha: scales.branch }), residual.shape);
    },
    ...(counted ? { afterStep: (p: ParamTree) => finishStep(o, p), monitor: loadMonitor } : {}),
  };
}

/** One dense layer with the units of all shared experts: the sum over experts is the sum over units. */
function sharedExperts(o: MoeOptions, context: SlotContext): Mixer {
  const { hidden } = o.expert as { hidden?: number } & typeof o.expert;
  return buildSlot('ffn', { ...o.expert, bias: false, hidden: o.shared * (hidden ?? 0) }, context);
}

/** Notes the load and adds this layer's losses. */
function observe(
  o: MoeOptions,
  p: ParamTree,
  d: Decision,
  B: number,
  depth: number,
  layer: number,
  c: ForwardContext,
): void {
  const { experts: E } = o;
  // The mean over the model's blocks: a coefficient means the same at any depth.
  const add = (name: string, coefficient: number, term: Tensor): void => {
    let key = `moe.${name}.${layer}`;
    for (let n = 2; c.losses.has(key); n++) key = `moe.${name}.${layer}.${n}`; // another stack of the model
    c.losses.set(key, affine(term, coefficient / depth, 0));
  };
  if (o.routerZLoss > 0) add('z', o.routerZLoss, routerZLoss(d.logits, d.use));
  if (!d.counts) return;
  const load = tensorOf(p, 'load');
  const counts = noGrad(() =>
    o.balanceCounts === 'first' ? reshape(slice(d.counts!, 1, 0, 1), [B, E]) : sum(d.counts!, [1]),
  );
  // A pass that is computed again has been counted.
  if (!repeats(c)) {
    // Micro-batches of a step add up here, so that the load is the global batch's by the last of them.
    accumulate(
      load,
      noGrad(() => sum(counts, [0])),
    );
    if (o.biasRate > 0) noteRate(o, tensorOf(p, 'rate'), c);
  }
  if (o.balanceLoss === 0) return;
  const T = d.probs.shape[0] / B;
  if (o.balanceOver === 'batch') {
    const now = choose(c, () => noGrad(() => affine(load, 1, 0))); // the values as they are at this point of the step
    add('balance', o.balanceLoss, balanceLoss(d.probs, now, d.use));
  } else {
    const use = d.use && reshape(d.use, [B, T]);
    add('balance', o.balanceLoss, balanceLoss(reshape(d.probs, [B, T, E]), counts, use));
  }
}

/** The bias moves by this much at the end of the step: nothing in the last part of a run. */
function noteRate(o: MoeOptions, rate: Tensor, c: ForwardContext): void {
  const { progress } = c;
  noGrad(() => {
    if (!progress || o.biasFreeze === 0) {
      assign(rate, o.biasRate);
      return;
    }
    const open = lt(progress, fill(progress.device, [1], 1 - o.biasFreeze));
    put(rate, affine(open, o.biasRate, 0));
  });
}

/** b_e += rate sign(mean load - load_e) (Wang et al. 2024, alg. 1), then a new count begins. */
function finishStep(o: MoeOptions, p: ParamTree): void {
  noGrad(() => {
    const load = tensorOf(p, 'load');
    if (o.biasRate > 0)
      accumulate(tensorOf(p, 'bias'), scaleBy(sign(sub(mean(load, [0], true), load)), tensorOf(p, 'rate')));
    put(tensorOf(p, 'lastLoad'), load);
    assign(load, 0);
  });
}
