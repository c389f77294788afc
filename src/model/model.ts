/** A spec made into something that computes: parameters it wants, a loss, logits. */
import { AnsatzError } from '../backend/errors.ts';
import type { ForwardContext, Module, ParamTree } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { buildDecoder } from './decoder.ts';
import { type ModelSpec, type ModelSpecInput, parseSpec } from './spec.ts';

/** One batch on the device. Token tensors are i32 [B, T]. */
export interface Batch {
  readonly inputs: Tensor;
  /** What each position should predict; IGNORE (-1) does not count. */
  readonly targets: Tensor;
  readonly segments: Tensor | null;
  readonly positions: Tensor | null;
  /** f32 [B, T]: weight of each target in the loss, usually 1 / number of counted targets. */
  readonly weights: Tensor;
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
  hidden(p: ParamTree, batch: Pick<Batch, 'inputs' | 'segments' | 'positions'>, c: ForwardContext): Tensor;
  /** Logits [..., vocab] of hidden states, f32. */
  logits(p: ParamTree, hidden: Tensor, c: ForwardContext): Tensor;
  loss(p: ParamTree, batch: Batch, c: ForwardContext): Loss;
}

type Layout = (spec: ModelSpec) => Model;
const layouts = new Map<string, Layout>([['decoder', buildDecoder]]);

/** Adds a way to stack blocks. */
export const registerLayout = (name: string, layout: Layout): void => {
  layouts.set(name, layout);
};

/**
 * The model of a spec. Builds no tensors.
 * @throws AnsatzError when the spec is impossible.
 */
export function buildModel(input: ModelSpecInput | ModelSpec): Model {
  const spec = parseSpec(input);
  const layout = layouts.get(spec.layout);
  if (!layout)
    throw new AnsatzError(`model spec: unknown layout '${spec.layout}': choose from ${[...layouts.keys()].join(', ')}`);
  return layout(spec);
}
