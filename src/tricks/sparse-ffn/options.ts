/** Options of the sparse feed-forward layer, and the parameters that its controller and units have. */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import type { ParamSpec } from '../../nn/index.ts';

export const sparseFfnSchema = z.strictObject({
  /** Units, F. */
  hidden: z.int().positive(),
  /** Units of a block, N, of which one is active. */
  block: z.int().min(2).default(32),
  /** Rank of the controller; by default width / block (the paper's text; its code has hidden / block). */
  rank: z.int().positive().optional(),
  /** q: probability that a training pass of the layer masks with the chosen units instead of their probabilities. */
  hard: z.number().min(0).max(1).default(0.3),
  /** Share of the run at its end in which q rises to 1, linearly; 0 keeps it (as published). */
  anneal: z.number().min(0).max(1).default(0.2),
  /** Factor of the Gumbel noise that is added to the logits when choosing in training. */
  tau: z.number().min(0).default(0.1),
  /** Multiply the mask after the ReLU (the paper's formula) or before it (its code): the gradients differ. */
  mask: z.enum(['after', 'before']).default('after'),
  /** Larger initial output weights, by sqrt(block): one unit of a block writes what a dense layer's N write. */
  scale: z.boolean().default(true),
  /** Multiply chosen units by their probability. */
  multiply: z.boolean().default(false),
  controllerBias: z.boolean().default(true),
  /** Initial units: variance 1/fan-in as the dense layers here, or Glorot's 2/(fan-in + fan-out) as published. */
  init: z.enum(['fan-in', 'glorot']).default('fan-in'),
  bias: z.boolean().default(false),
  dropout: z.number().min(0).lt(1).default(0),
  /** Keep the share of tokens that chose each unit, for usage(); decays by this factor a pass. 0 keeps none. */
  usageDecay: z.number().min(0).lt(1).default(0.99),
});
export type SparseFfnOptions = z.output<typeof sparseFfnSchema>;

export interface Sizes {
  readonly width: number;
  readonly depth: number;
  /** Independent layers of these sizes, stacked in front of every shape; none when absent. */
  readonly experts?: number;
}

export const rankOf = (o: SparseFfnOptions, width: number): number =>
  o.rank ?? Math.max(1, Math.round(width / o.block));

/** Standard deviation of Glorot and Bengio 2010 for a matrix. */
export const glorot = (fanIn: number, fanOut: number): number => Math.sqrt(2 / (fanIn + fanOut));

/**
 * up [F, d], down, low [r, d] and logits [F, r] of the controller, and what the options add.
 * @param down shape of the output matrix
 * @throws AnsatzError when the units do not split into blocks.
 */
export function sparseParams(
  o: SparseFfnOptions,
  { width, depth, experts }: Sizes,
  down: number[],
): Record<string, ParamSpec> {
  const { hidden, block } = o;
  if (hidden % block)
    throw new AnsatzError(`sparse-ffn: ${hidden} units do not split into blocks of ${block}`, {
      hint: `use a multiple of ${block} for hidden, such as ${block * Math.max(1, Math.round(hidden / block))}`,
    });
  const rank = rankOf(o, width);
  const lead = experts === undefined ? [] : [experts];
  const normal = (std: number) => ({ kind: 'normal', std }) as const;
  const depthGain = 1 / Math.sqrt(2 * depth);
  const glorotUnits = o.init === 'glorot';
  // A fixed rank is a fixed fan-out of `low` and a fixed fan-in of `logits`; the default grows with the width.
  const fixed = o.rank !== undefined;
  const state = {
    role: 'vector',
    fanIn: 1,
    fanOut: hidden,
    decay: false,
    init: { kind: 'constant', value: 0 },
  } as const;
  const params: Record<string, ParamSpec> = {
    up: {
      shape: [...lead, hidden, width],
      init: normal(glorotUnits ? glorot(width, hidden) : 1 / Math.sqrt(width)),
      ...{ role: 'hidden', fanIn: width, fanOut: hidden, decay: true, used: 1 / block },
    },
    down: {
      shape: [...lead, ...down],
      init: normal(
        (glorotUnits ? glorot(hidden, width) : depthGain / Math.sqrt(hidden)) * (o.scale ? Math.sqrt(block) : 1),
      ),
      // An output is a sum over the active units.
      ...{ role: 'hidden', fanIn: hidden / block, fanOut: width, decay: true, used: 1 / block },
      ...(glorotUnits ? {} : { depthGain }),
    },
    low: {
      shape: [...lead, rank, width],
      init: normal(glorot(width, rank)),
      ...{ role: fixed ? 'output' : 'hidden', fanIn: width, fanOut: rank, decay: true },
      ...(fixed ? { fans: { grows: width, fixed: rank } } : {}),
    },
    logits: {
      shape: [...lead, hidden, rank],
      init: normal(glorot(rank, hidden)),
      ...{ role: fixed ? 'embedding' : 'hidden', fanIn: rank, fanOut: hidden, decay: true },
      ...(fixed ? { fans: { grows: hidden, fixed: rank } } : {}),
    },
    ...(o.controllerBias ? { logitsBias: { shape: [...lead, hidden], ...state } } : {}),
    ...(o.usageDecay > 0 ? { usage: { shape: [...lead, hidden], ...state, trainable: false } } : {}),
  };
  if (experts === undefined) return params;
  // Experts may start as copies of one layer, whose output matrix has a unit's weights in a column.
  const of = (name: string): ParamSpec => ({ ...params[name], stackOf: { turned: name === 'down' } });
  return Object.fromEntries(Object.keys(params).map((name) => [name, of(name)]));
}
