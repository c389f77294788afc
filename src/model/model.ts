/** A spec made into something that computes: parameters it wants, a loss, logits. */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import { type ForwardContext, type Module, type ParamTree, settledSlot } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { buildDecoder } from './decoder.ts';
import { describeIssues, type ModelSpec, type ModelSpecInput, parseSpec } from './spec.ts';

/** One batch on the device. Token tensors are i32 [B, T]. */
export interface Batch {
  readonly inputs: Tensor;
  /** What each position should predict; IGNORE (-1) does not count. */
  readonly targets: Tensor;
  readonly segments: Tensor | null;
  readonly positions: Tensor | null;
  /** f32 [B, T]: weight of each target in the loss, usually 1 / number of counted targets. */
  readonly weights: Tensor;
  /** i32 [B, T]: each token sees up to this one, even ahead of it, within its segment; null: causal. */
  readonly visible?: Tensor | null;
  /** i32 [B, T]: tokens with 0 are seen by nobody but themselves; null: all are seen. */
  readonly keep?: Tensor | null;
  /** What an encoder reads; null where a layout has none. */
  readonly encoder?: EncoderBatch | null;
  /** Pairs (query, key) seen in a row on average, for cost accounting; absent: what the shape allows. */
  readonly pairs?: VisiblePairs;
}

/** Rows of an encoder, i32 [B, Te]; row b is read by row b of the decoder. */
export interface EncoderBatch {
  readonly inputs: Tensor;
  /** Tokens see each other within a segment; 0 is padding. */
  readonly segments: Tensor;
  readonly positions: Tensor;
  /** Segment of the decoder that may look at each token; null: the same as `segments`. */
  readonly readers?: Tensor | null;
}

export interface VisiblePairs {
  readonly self?: number;
  readonly encoder?: number;
  readonly cross?: number;
}

/** What a decoder needs to compute hidden states. */
export type ModelInputs = Pick<Batch, 'inputs' | 'segments' | 'positions' | 'visible' | 'keep' | 'encoder' | 'pairs'>;

/** Keys and values [B, Te, heads, D] of what an encoder has read, for each block (null: it does not look). */
export type Memory = readonly ({ readonly key: Tensor; readonly value: Tensor } | null)[];

/** The encoder of a layout that has one: a memory is computed once and read by any number of decoder passes. */
export interface EncoderPart {
  /**
   * Decoders read the states as the past of their own tokens: in decoding by rows they are the first tokens of a
   * sequence (RowPass.memory holds their vectors), and there is nothing else to look at.
   */
  readonly before?: boolean;
  /** Hidden states [B, Te, d] of the encoder, normalised. */
  encode(p: ParamTree, encoder: EncoderBatch, c: ForwardContext, pairs?: VisiblePairs): Tensor;
  /** Free of positions: memories of separate texts may be joined, dropped and reordered. */
  crossKeyValues(p: ParamTree, states: Tensor, c: ForwardContext): Memory;
  /** Hidden states of the decoder over a memory; `readers` as in EncoderBatch. */
  decode(p: ParamTree, inputs: ModelInputs, memory: Memory, readers: Tensor | null, c: ForwardContext): Tensor;
}

export interface Loss {
  /** What is minimised: weighted cross-entropy plus extra terms. Scalar, f32. */
  readonly total: Tensor;
  /** Cross-entropy of each position, unweighted, f32 [B, T]. */
  readonly rows: Tensor;
}

export interface Model extends Module {
  readonly spec: ModelSpec;
  /** Makes the constants that a step needs on a device; call before capturing. */
  prepare(device: ForwardContext['device']): void;
  /** Final hidden states [B, T, d], normalised. */
  hidden(p: ParamTree, batch: ModelInputs, c: ForwardContext): Tensor;
  /** Logits [..., vocab] of hidden states, f32. */
  logits(p: ParamTree, hidden: Tensor, c: ForwardContext): Tensor;
  loss(p: ParamTree, batch: Batch, c: ForwardContext): Loss;
  /** Layouts with an encoder. */
  readonly encoder?: EncoderPart;
  /**
   * Which parameter of another model starts the one at `path` off when that model has none of this name (a decoder's
   * weights for an encoder); undefined: it starts fresh.
   */
  startFrom?(path: string): string | undefined;
}

type Layout = (spec: ModelSpec) => Model;

/** What the rest of the code must know of a layout before it is built. */
export interface LayoutTraits {
  /** It has an encoder, which an objective must feed. */
  readonly encoder?: boolean;
  /** The longest row of a decoder, in contexts: 1, or more where it holds the encoder's tokens too. */
  readonly rowContexts?: number;
  /** Decodes by rows (src/nn/rows.ts), always or by the spec. */
  readonly rows?: boolean | ((spec: ModelSpec) => boolean);
  /** Options besides `kind`, when `layout` is an object; without a schema there are none. */
  readonly options?: z.ZodType<object>;
}

const layouts = new Map<string, { build: Layout; traits: LayoutTraits }>([
  ['decoder', { build: buildDecoder, traits: { rows: true } }],
]);

/** Adds a way to stack blocks. */
export const registerLayout = (name: string, build: Layout, traits: LayoutTraits = {}): void => {
  layouts.set(name, { build, traits });
};

function layoutOf({ layout }: Pick<ModelSpec, 'layout'>): { build: Layout; traits: LayoutTraits } {
  const name = typeof layout === 'string' ? layout : layout.kind;
  const found = layouts.get(name);
  if (!found)
    throw new AnsatzError(`model spec: unknown layout '${name}': choose from ${[...layouts.keys()].join(', ')}`);
  return found;
}

export const layoutTraits = (spec: Pick<ModelSpec, 'layout'>): LayoutTraits => layoutOf(spec).traits;

/**
 * Options of a spec's layout, checked, with defaults.
 * @throws AnsatzError that names those that are wrong.
 */
export function layoutOptions(spec: Pick<ModelSpec, 'layout'>): object {
  const { kind, ...options } = typeof spec.layout === 'string' ? { kind: spec.layout } : spec.layout;
  const parsed = (layoutTraits(spec).options ?? z.strictObject({})).safeParse(options);
  if (!parsed.success) throw new AnsatzError(`model spec: layout ${kind}: ${describeIssues(parsed.error)}`);
  return parsed.data;
}

/** The spec for rows of `length` tokens: the same weights, and the same function of rows up to the spec's own context. */
export function withContext(spec: ModelSpec, length: number): ModelSpec {
  if (length <= spec.context) return spec;
  const longest = spec.context * (layoutTraits(spec).rowContexts ?? 1);
  const settle = (slot: ModelSpec['attention']): ModelSpec['attention'] => settledSlot('attention', slot, longest);
  const overrides = spec.overrides.map((o) => (o.attention ? { ...o, attention: settle(o.attention) } : o));
  return { ...spec, context: length, attention: settle(spec.attention), overrides };
}

/**
 * The model of a spec. Builds no tensors.
 * @throws AnsatzError when the spec is impossible.
 */
export function buildModel(input: ModelSpecInput | ModelSpec): Model {
  const spec = parseSpec(input);
  layoutOptions(spec);
  return layoutOf(spec).build(spec);
}
