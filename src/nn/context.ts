/** What a forward pass knows besides its input. */
import type { Device } from '../backend/device.ts';
import type { DType } from '../backend/dtype.ts';
import type { Compute, RandomState, Tensor } from '../tensor/index.ts';
import type { ParamTree } from './module.ts';

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
  /** Parameters of the model's positions part, for biases that attention layers share. */
  readonly positionParams: ParamTree;
  /** Random numbers of this step; null outside training. */
  readonly random: RandomState | null;
  /** A fresh random stream for each use within a step. */
  nextStream(): number;
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
    random: null,
    losses: new Map(),
    positionParams: {},
    nextStream: () => stream++,
    ...options,
  };
}
