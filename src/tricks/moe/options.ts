/** Options of the mixture-of-experts slot: schema, defaults that depend on each other, and what is refused. */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { expertSchema } from './expert.ts';

const capacity = z.strictObject({
  kind: z.literal('capacity'),
  /** Capacity factor in training. */
  factor: z.number().positive().default(1.25),
  /** In evaluation of whole texts; 0 drops nothing there. Decoding by rows never drops. */
  evalFactor: z.number().min(0).default(2),
  /**
   * What the factor multiplies, to be stated because libraries differ: `tokens` T/E (Mesh TensorFlow, Flaxformer: top-2
   * at 1.25 has places for 62.5% of the assignments), `assignments` k T/E (MegaBlocks).
   */
  convention: z.enum(['tokens', 'assignments']),
  /** Tokens that compete for an expert's places: all of the pass, or those of one sequence. */
  scope: z.enum(['batch', 'sequence']).default('batch'),
  /**
   * Who is served first. token: tokens in order, which is causal. choice: all first choices before any second (GShard).
   * priority: the same, tokens with the largest gate first (V-MoE's batch-prioritised routing).
   */
  order: z.enum(['token', 'choice', 'priority']).default('token'),
  /** Accepts that with `choice` (k > 1) and `priority` a later token can push an earlier one out. */
  allowLeaks: z.boolean().default(false),
  /** Least places of an expert. */
  minimum: z.int().min(1).default(4),
  rounding: z.enum(['truncate', 'round']).default('truncate'),
  /**
   * Whether choices after the first are made: all; at random with probability min(1, g / threshold) of the normalised
   * gate g (GShard; in evaluation all); or where g >= threshold.
   */
  second: z.enum(['all', 'random', 'threshold']).default('all'),
  secondThreshold: z.number().positive().default(0.2),
});

const choice = z.strictObject({
  kind: z.literal('expert-choice'),
  /** Experts that a token has on average. */
  factor: z.number().positive().default(2),
  scope: z.enum(['batch', 'sequence']).default('sequence'),
});

const routing = z.preprocess(
  (value) => (typeof value === 'string' ? { kind: value } : value),
  z.discriminatedUnion('kind', [z.strictObject({ kind: z.literal('dropless') }), capacity, choice]),
);

export const moeSchema = z.strictObject({
  /** Routed experts, E. */
  experts: z.int().positive(),
  /** Experts of a token, k. */
  active: z.int().positive().default(1),
  /** What an expert is: kind, hidden units, activation. */
  expert: expertSchema,
  /** Experts that every token has besides the routed ones. */
  shared: z.int().min(0).default(0),
  routing: routing.prefault('dropless'),
  /**
   * softmax: the expert's probability (k = 1: the only one that trains the router). renormalised: divided by the sum
   * over the chosen. sigmoid: sigmoid scores, divided likewise (DeepSeek-V3). By default softmax for k = 1.
   */
  gate: z.enum(['softmax', 'renormalised', 'sigmoid']).optional(),
  /** Factor on the gates; by default sqrt(k) where they sum to 1, so that the layer's output is as large as a dense one's. */
  gateScale: z.number().positive().optional(),
  /** Standard deviation of the router's logits at the start (sqrt(0.1) in Switch). Never 0: equal logits are all ties. */
  routerStd: z.number().positive().default(0.3),
  /** Coefficient of the load-balance loss, which is 1 when the router is uniform; the mean over the model's blocks counts. */
  balanceLoss: z.number().min(0).optional(),
  /** Balance over all tokens of a step (micro-batches add up), or within each sequence. */
  balanceOver: z.enum(['batch', 'sequence']).default('batch'),
  /** Which choices the load counts: all, or the first (GShard, Switch). */
  balanceCounts: z.enum(['all', 'first']).default('all'),
  /** Coefficient of the mean squared log-partition of the router; the mean over the model's blocks counts. */
  routerZLoss: z.number().min(0).default(0.001),
  /** Multiplies the router's inputs by U(1 - jitter, 1 + jitter) in training; for k = 1. */
  jitter: z.number().min(0).lt(1).default(0),
  /** Step of the balancing bias, in units of the scores; 0 has none (Wang et al. 2024). */
  biasRate: z.number().min(0).default(0),
  /** Share of the run at its end in which the bias is left alone. */
  biasFreeze: z.number().min(0).max(1).default(0.03),
  /** Experts stand in this many groups, and a token uses those of the best `keepGroups` (DeepSeek-V2, V3). */
  groups: z.int().positive().default(1),
  keepGroups: z.int().positive().optional(),
});

type Parsed = z.output<typeof moeSchema>;
export type Capacity = Extract<Parsed['routing'], { kind: 'capacity' }>;
export type ExpertChoice = Extract<Parsed['routing'], { kind: 'expert-choice' }>;

export interface MoeOptions extends Parsed {
  readonly gate: 'softmax' | 'renormalised' | 'sigmoid';
  readonly gateScale: number;
  readonly balanceLoss: number;
  readonly keepGroups: number;
}

/**
 * Fills in the defaults that depend on other options.
 * @param causal whether a token must not depend on later ones
 * @throws AnsatzError when the options contradict each other or the place they are used in.
 */
export function resolve(o: Parsed, causal: boolean): MoeOptions {
  const { experts: E, active: k, routing: r } = o;
  const expertChoice = r.kind === 'expert-choice';
  const gate = o.gate ?? (k === 1 || expertChoice ? 'softmax' : 'renormalised');
  const keepGroups = o.keepGroups ?? o.groups;
  const refuse = (what: string, hint: string): never => {
    throw new AnsatzError(`moe: ${what}`, { hint });
  };
  if (k > E) refuse(`${k} active experts of ${E}`, `set active to at most ${E}`);
  if (E % o.groups || keepGroups > o.groups || (E / o.groups) * keepGroups < k)
    refuse(
      `${keepGroups} of ${o.groups} groups of ${E} experts leave fewer than ${k} to choose from`,
      'use a number of groups that divides the experts, and keep enough of them',
    );
  if (o.jitter > 0 && k > 1)
    refuse(`jitter with ${k} active experts`, 'jitter is for active: 1, where nothing else explores');
  if (expertChoice) {
    if (causal)
      refuse(
        'expert choice in a causal decoder: an expert picks its tokens among all of a sequence, so whether it serves a token depends on later ones, and decoding could not repeat it',
        "use routing 'dropless' (balance by loss or bias), or expert choice in an encoder",
      );
    if (o.balanceLoss)
      refuse('expert choice with a load-balance loss', 'its load is balanced as it is: drop balanceLoss');
    if (o.biasRate) refuse('expert choice with a balancing bias', 'its load is balanced as it is: drop biasRate');
    if (k !== 1 || gate !== 'softmax' || o.groups > 1)
      refuse(
        'expert choice takes neither active, gate nor groups',
        'set routing.factor, the experts that a token has on average',
      );
  }
  if (r.kind === 'capacity') {
    const leaks = r.order === 'priority' || (r.order === 'choice' && k > 1);
    if (causal && leaks && !r.allowLeaks)
      refuse(
        `capacity in order '${r.order}' in a causal decoder: a later token can take the place of an earlier one, which decoding cannot repeat`,
        "use order 'token', or allowLeaks: true to train as published and live with the difference",
      );
    if (r.second !== 'all' && k === 1) refuse(`a rule for second choices with one active expert`, "use second: 'all'");
    if (r.second !== 'all' && o.groups > 1)
      refuse('a rule for second choices with groups of experts', "use second: 'all'");
    if (r.second !== 'all' && o.biasRate > 0)
      refuse('a rule for second choices with a balancing bias', "use second: 'all'");
  }
  return {
    ...o,
    gate,
    keepGroups,
    gateScale: o.gateScale ?? (gate === 'softmax' ? 1 : Math.sqrt(k)),
    balanceLoss: o.balanceLoss ?? (expertChoice ? 0 : 0.01),
  };
}

/** Why a mixture of equal experts is not the same function as one of them, or null (sparse upcycling). */
export function unlikeOne(o: MoeOptions): string | null {
  const { kind } = o.routing;
  if (o.shared) return 'shared experts add to the routed ones';
  if (kind === 'expert-choice') return 'tokens have different numbers of experts';
  if (kind === 'capacity') return "full experts drop tokens: use routing 'dropless'";
  if (o.gate === 'softmax' || o.gateScale !== 1)
    return "its gates do not sum to 1: use gate 'renormalised', gateScale 1";
  return null;
}

/** Places of each expert in a scope of `tokens` tokens. */
export function capacityOf(r: Capacity, tokens: number, E: number, k: number, training: boolean): number {
  const factor = training ? r.factor : r.evalFactor;
  if (factor === 0) return 0;
  const raw = (factor * tokens * (r.convention === 'assignments' ? k : 1)) / E;
  const places = r.rounding === 'round' ? Math.round(raw) : Math.floor(raw);
  return Math.min(tokens, Math.max(r.minimum, places));
}
