/**
 * ModelSpec: everything that determines a model, as data. Every slot names a kind and its options; kinds come from a
 * registry (src/nn/slots.ts), so a spec can combine parts that do not know of each other.
 */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import { parametrisationSchema, type SlotConfig, slotSchema } from '../nn/index.ts';

export const modelSpecSchema = z.strictObject({
  /** How blocks are stacked: a name, or { kind, ...options }; layouts register themselves (src/model/model.ts). */
  layout: z.union([z.string(), z.looseObject({ kind: z.string() })]).default('decoder'),
  /** Number of token ids. */
  vocab: z.int().positive(),
  /** Longest sequence that positions are made for. */
  context: z.int().positive(),
  /** Width of the residual stream, d. */
  width: z.int().positive(),
  /** Number of blocks. */
  depth: z.int().positive(),
  attention: slotSchema('attention'),
  ffn: slotSchema('ffn'),
  norm: slotSchema('norm').prefault({ kind: 'rms' }),
  positions: slotSchema('positions').prefault({ kind: 'rope' }),
  /** Output matrix = embedding matrix. */
  tied: z.boolean().default(true),
  /** Standard deviation of the embeddings at the start. */
  embeddingStd: z.number().positive().default(0.02),
  dropout: z.number().min(0).lt(1).default(0),
  /** Coefficient of lse^2, which keeps logits from drifting (z-loss; Chowdhery et al. 2022). */
  zLoss: z.number().min(0).default(0),
  /** From hidden states to logits and loss. */
  head: slotSchema('head').prefault({ kind: 'linear' }),
  /** How initialisation, learning rates and forward factors depend on the sizes. */
  parametrisation: parametrisationSchema.prefault('standard'),
  /** Blocks that differ from the rest: the parts named here replace those above. */
  overrides: z
    .array(
      z.strictObject({
        /** Indices of blocks; negative ones count from the end. */
        layers: z.array(z.int()).min(1),
        attention: slotSchema('attention').optional(),
        ffn: slotSchema('ffn').optional(),
      }),
    )
    .default([]),
});

export type ModelSpec = z.output<typeof modelSpecSchema>;
export type ModelSpecInput = z.input<typeof modelSpecSchema>;

/** One line a problem: where, what. */
export function describeIssues(error: z.ZodError): string {
  return error.issues.map((i) => `${i.path.length ? `${i.path.join('.')}: ` : ''}${i.message}`).join('; ');
}

/**
 * Checks a spec and fills in defaults.
 * @throws AnsatzError that names every field that is wrong.
 */
export function parseSpec(input: unknown): ModelSpec {
  const parsed = modelSpecSchema.safeParse(input);
  if (!parsed.success)
    throw new AnsatzError(`model spec: ${describeIssues(parsed.error)}`, { hint: 'see docs/spec.md for the fields' });
  const spec = parsed.data;
  headWidth(spec);
  for (const o of spec.overrides)
    for (const k of o.layers)
      if (k >= spec.depth || k < -spec.depth)
        throw new AnsatzError(`model spec: overrides name block ${k}, the model has ${spec.depth}`, {
          hint: `use indices from 0 to ${spec.depth - 1}, or -1 for the last`,
        });
  return spec;
}

/** Width of an attention head: stated, or width / heads. */
export function headWidth(spec: Pick<ModelSpec, 'width' | 'attention'>): number {
  const a = spec.attention as SlotConfig & { heads?: number; headWidth?: number };
  if (a.headWidth) return a.headWidth;
  const heads = a.heads ?? 1;
  if (spec.width % heads)
    throw new AnsatzError(`model spec: ${heads} heads do not divide width ${spec.width}`, {
      hint: `use a number of heads that divides ${spec.width}, or set attention.headWidth`,
    });
  return spec.width / heads;
}

/** What stands in a block's slot: an override if one names the block (the last one wins), else the spec's own. */
export function blockSlot(spec: ModelSpec, slot: 'attention' | 'ffn', layer: number): SlotConfig {
  let found: SlotConfig = spec[slot];
  for (const o of spec.overrides)
    if (o[slot] && o.layers.some((k) => (k < 0 ? k + spec.depth : k) === layer)) found = o[slot];
  return found;
}
