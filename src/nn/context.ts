/** What a forward pass knows besides its input. */
import type { Device } from '../backend/device.ts';
import type { DType } from '../backend/dtype.ts';
import type { Compute, RandomState, Tensor } from '../tensor/index.ts';
import type { ParamTree } from './module.ts';
import type { RowPass } from './rows.ts';

/**
 * What layers chose in their first pass (routes, buckets, winners): a pass that is computed again must repeat it, since
 * a near-tie falls the other way on inputs that were rebuilt with rounding (Jaszczur et al. 2021, trax reversible.py).
 */
export class Choices {
  /** In the order in which they were made; whoever ends a scope between the two passes must let their tensors live. */
  readonly kept: unknown[] = [];
  private next = 0;
  private making = false;
  /** True in a pass that is computed again: layers repeat what they chose, and count nothing a second time. */
  again = false;

  /** Begins the second pass. */
  rewind(): void {
    this.again = true;
    this.next = 0;
  }

  take<T>(make: () => T): T {
    if (this.again) {
      if (this.next >= this.kept.length) throw new Error('a layer chooses more in its second pass than in its first');
      return this.kept[this.next++] as T;
    }
    // What is chosen in the course of a choice is part of it: the second pass does not come there.
    if (this.making) return make();
    this.making = true;
    try {
      const made = make();
      this.kept.push(made);
      return made;
    } finally {
      this.making = false;
    }
  }

  /** Ends the second pass. */
  end(): void {
    if (this.next !== this.kept.length) throw new Error('a layer chooses less in its second pass than in its first');
  }
}

export interface ForwardContext {
  readonly device: Device;
  /** Precision of matrix products, and dtype of activations between them. The residual stream is always f32. */
  readonly compute: Compute;
  readonly activation: DType;
  readonly training: boolean;
  /** i32 [B, T]: tokens attend within their segment only; null: one segment. */
  readonly segments: Tensor | null;
  /** i32 [B, T]: positions of tokens; null: 0, 1, 2, ... */
  readonly positions: Tensor | null;
  /** i32 [B, T]: a query sees keys up to this one even if they lie ahead of it (prefix-LM); null: none ahead. */
  readonly visible: Tensor | null;
  /** i32 [B, T]: keys with 0 are seen by their own query only (forgetful masking); null: all are kept. */
  readonly keep: Tensor | null;
  /** Pairs (query, key) seen in a row on average where segments make that known: for cost accounting alone. */
  readonly pairs?: number;
  /** Parameters of the model's positions part, for biases that attention layers share. */
  readonly positionParams: ParamTree;
  /** Random numbers of this step; null outside training. */
  readonly random: RandomState | null;
  /** f32 [1]: share of the training run that is done, in [0, 1); null outside training. A replayed step reads it anew. */
  readonly progress: Tensor | null;
  /** This pass's share of the step's batch (1 / micro-batches): what a mean over the pass weighs in the step's loss. */
  readonly share: number;
  /** A fresh random stream for each use within a step. */
  nextStream(): number;
  /** The pass is over rows of any sequences, whose past lies in pages; null: over whole sequences. */
  readonly rows: RowPass | null;
  /** Choices of this pass, kept for a second one; null when there will be none. */
  readonly choices: Choices | null;
  /** Where tap() puts activations under their names; null outside of measurements. */
  readonly taps: Map<string, Tensor> | null;
  /** Named extra terms of the training loss (load balance and the like), each a scalar. */
  readonly losses: Map<string, Tensor>;
}

export function forwardContext(
  options: Partial<ForwardContext> & Pick<ForwardContext, 'device' | 'compute'>,
): ForwardContext {
  let stream = 0;
  return {
    activation: options.compute === 'bf16' ? 'bf16' : 'f32',
    training: false,
    segments: null,
    positions: null,
    visible: null,
    keep: null,
    random: null,
    progress: null,
    share: 1,
    losses: new Map(),
    rows: null,
    choices: null,
    taps: null,
    positionParams: {},
    nextStream: () => stream++,
    ...options,
  };
}

/**
 * A discrete choice, or random numbers, of a layer: made once, and repeated by a second pass over the same layer.
 * `make` gives what the rest of the layer needs of it, without gradients.
 */
export const choose = <T>(c: ForwardContext, make: () => T): T => (c.choices ? c.choices.take(make) : make());

/** Whether this pass is computed a second time: state that counts passes must stay as it is. */
export const repeats = (c: ForwardContext): boolean => c.choices?.again ?? false;

/** Notes a named activation when somebody asked for them. What only a measurement needs is computed in `make`. */
export function tap(c: ForwardContext, name: string, make: () => Tensor): void {
  c.taps?.set(name, make());
}
