/**
 * What can be an expert: E feed-forward parts of the same kind, each applied to its own rows.
 *
 * Kinds register themselves, so that another trick can offer its layer as an expert (a sparse one: sparsity within
 * sparsity). A kind gets all experts' rows at once, sorted by expert, with the group sizes in device memory.
 */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import type { ForwardContext, Module, ParamSpec, ParamTree, SlotConfig } from '../../nn/index.ts';
import { kindSchema, tensorOf } from '../../nn/index.ts';
import {
  dropout,
  type GateActivation,
  gelu,
  geluErf,
  glu,
  groupedMatmul,
  isBlock,
  type Routing,
  relu,
  relu2,
  silu,
  type Tensor,
} from '../../tensor/index.ts';

/** Rows of expert e are [offsets[e], offsets[e + 1]); what lies after the last group is zero and of no consequence. */
export type Groups = Pick<Routing, 'offsets' | 'most'>;

export interface Experts extends Module {
  /** x [R, d] sorted by expert, in the activation dtype -> [R, d]. Gates and the residual are not its business. */
  forward(p: ParamTree, x: Tensor, groups: Groups, c: ForwardContext): Tensor;
  /** Matrix products of a row, forward. */
  readonly flopsPerRow: number;
}

export interface ExpertContext {
  readonly experts: number;
  /** Width of the residual stream. */
  readonly width: number;
  readonly depth: number;
  readonly layer: number;
}

export interface ExpertKind<C> {
  readonly kind: string;
  readonly summary: string;
  /** Options besides `kind`, with defaults. */
  readonly options: z.ZodType<C>;
  build(config: C, context: ExpertContext): Experts;
}

const registry = new Map<string, ExpertKind<unknown>>();

export function registerExpert<C>(kind: ExpertKind<C>): void {
  registry.set(kind.kind, kind as unknown as ExpertKind<unknown>);
}

export const expertSchema: z.ZodType<SlotConfig> = kindSchema(
  { what: 'expert', find: (kind) => registry.get(kind), names: () => [...registry.keys()] },
  { bare: false },
);

export function buildExperts(config: SlotConfig, context: ExpertContext): Experts {
  const known = registry.get(config.kind);
  if (!known) throw new AnsatzError(`unknown expert '${config.kind}'`);
  return known.build(config, context);
}

/**
 * E matrices, [E, rows, cols]. Fan-in and fan-out are one expert's: each expert is a layer of its own to
 * initialisation and learning rates, whatever E is.
 */
export function expertMatrix(
  shape: readonly [number, number, number],
  fan: { in: number; out: number; gain?: number },
  /** Whether a single layer of the kind has rows and columns the other way. */
  turned = false,
): ParamSpec {
  const { gain = 1 } = fan;
  const init = { kind: 'normal', std: gain / Math.sqrt(fan.in) } as const;
  const depth = gain === 1 ? {} : { depthGain: gain };
  const stackOf = { turned };
  return { shape, init, role: 'hidden', fanIn: fan.in, fanOut: fan.out, decay: true, ...depth, stackOf };
}

/**
 * Product of each row with its expert's matrix, in the context's precision. Weights in blocks hold their outputs in rows
 * however the layer keeps its own: `down` is packed as [E, d, f].
 */
export const expertLinear = (x: Tensor, w: Tensor, groups: Groups, c: ForwardContext, transB: boolean): Tensor =>
  groupedMatmul(x, w, groups, { transB: transB || isBlock(w.dtype), compute: c.compute, out: c.activation });

interface DenseOptions {
  readonly hidden: number;
  readonly dropout: number;
}

/** up [E, n f, d] and down [E, f, d]: in both, a row is one hidden unit. */
function dense(o: DenseOptions, context: ExpertContext, gated: boolean, act: (h: Tensor) => Tensor): Experts {
  const { experts: E, width: d, depth } = context;
  const f = o.hidden;
  const inner = gated ? 2 * f : f;
  const up = expertMatrix([E, inner, d], { in: d, out: f });
  const down = expertMatrix([E, f, d], { in: f, out: d, gain: 1 / Math.sqrt(2 * depth) }, true);
  return {
    params: { up: gated ? { ...up, parts: [f, f] } : up, down },
    flopsPerRow: 2 * d * (inner + f),
    forward: (p, x, groups, c) => {
      let h = act(expertLinear(x, tensorOf(p, 'up'), groups, c, true));
      if (c.random && o.dropout > 0) h = dropout(h, c.random, o.dropout, c.nextStream());
      return expertLinear(h, tensorOf(p, 'down'), groups, c, false);
    },
  };
}

const shared = {
  /** Units of one expert. */
  hidden: z.int().positive(),
  /** On the hidden units; fine-tuning sparse models wants more here than elsewhere (Fedus et al. 2022, table 4). */
  dropout: z.number().min(0).lt(1).default(0),
};
const activations = { gelu, gelu_erf: geluErf, relu, relu2, silu } as const;

registerExpert({
  kind: 'mlp',
  summary: 'up, activation, down',
  options: z.strictObject({
    ...shared,
    activation: z.enum(['gelu', 'gelu_erf', 'relu', 'relu2', 'silu']).default('gelu'),
  }),
  build: (o, context) => dense(o, context, false, activations[o.activation]),
});

registerExpert({
  kind: 'glu',
  summary: 'gated: act(gate) times value',
  options: z.strictObject({
    ...shared,
    activation: z.enum(['silu', 'gelu', 'relu', 'sigmoid', 'identity', 'gelu_erf']).default('silu'),
  }),
  build: (o, context) => dense(o, context, true, (h) => glu(h, o.activation as GateActivation)),
});
