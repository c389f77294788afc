/** T5's relative positions (Raffel et al. 2020): a learned bias for each head and bucket of distances. */
import { z } from 'zod';
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { registerSlot, tensorOf } from '../../nn/index.ts';
import { perDevice } from '../../nn/positions.ts';
import { concat, embedding, fill, slice, Tensor, transpose } from '../../tensor/index.ts';
import { registerTrick } from '../registry.ts';

export interface Buckets {
  readonly buckets: number;
  readonly maxDistance: number;
  readonly bidirectional: boolean;
}

/**
 * Bucket of a distance query - key: half of the buckets are exact, the rest grow logarithmically up to maxDistance. A
 * causal model has no use for keys in the future (they share bucket 0); otherwise they have half of the buckets.
 */
export function bucketOf(distance: number, { buckets, maxDistance, bidirectional }: Buckets): number {
  const n = bidirectional ? buckets / 2 : buckets;
  const future = bidirectional && distance < 0 ? n : 0;
  const away = bidirectional ? Math.abs(distance) : Math.max(0, distance);
  const exact = n / 2;
  if (away < exact) return future + away;
  const log = (Math.log(away / exact) / Math.log(maxDistance / exact)) * (n - exact);
  return future + Math.min(n - 1, exact + Math.floor(log));
}

registerSlot({
  slot: 'positions',
  kind: 't5-bias',
  summary: 'a learned bias on attention logits for each head and bucket of distances (Raffel et al. 2020)',
  options: z.strictObject({
    buckets: z.int().positive().multipleOf(4).default(32),
    maxDistance: z.int().positive().default(128),
    /** Buckets of their own for keys in the future; by default in encoders only. */
    bidirectional: z.boolean().optional(),
    /** Query heads; by default those of the model's attention. */
    heads: z.int().positive().optional(),
  }),
  build: (options, context) => {
    const heads = options.heads ?? context.heads;
    if (heads === undefined)
      throw new AnsatzError('positions t5-bias: this layout does not say how many heads there are', {
        hint: 'set positions.heads',
      });
    const o: Buckets = { ...options, bidirectional: options.bidirectional ?? context.causal === false };
    if (o.maxDistance <= o.buckets / (o.bidirectional ? 4 : 2))
      throw new AnsatzError(`positions t5-bias: a maxDistance of ${o.maxDistance} leaves nothing beyond exact buckets`);
    const far = o.maxDistance;
    // Element x is the distance far - x; all distances beyond either end share that end's bucket.
    const near = perDevice((device) => {
      const all = Int32Array.from({ length: 2 * far + 1 }, (_, x) => bucketOf(far - x, o));
      return Tensor.from(device, all, [2 * far + 1], 'i32').keep();
    });
    /** Buckets of the distances tk - 1 down to 1 - tq. */
    const buckets = (tq: number, tk: number, device: Device): Tensor => {
      const [past, future] = [Math.max(0, tk - 1 - far), Math.max(0, tq - 1 - far)];
      const middle = slice(near(device), 0, far - (tk - 1 - past), far + (tq - 1 - future) + 1);
      if (past + future === 0) return middle;
      const end = (n: number, distance: number): Tensor => fill(device, [n], bucketOf(distance, o), 'i32');
      return concat([...(past ? [end(past, far)] : []), middle, ...(future ? [end(future, -far)] : [])], 0);
    };
    return {
      params: {
        weight: {
          shape: [o.buckets, heads],
          init: { kind: 'normal', std: 0.02 },
          role: 'vector',
          fanIn: 1,
          fanOut: heads,
          decay: false,
        },
      },
      prepare: (device) => void near(device),
      bias: (p, wanted, tq, tk, c) => {
        if (wanted !== heads)
          throw new AnsatzError(`positions t5-bias: a table for ${heads} heads, a layer with ${wanted}`);
        return transpose(embedding(tensorOf(p, 'weight'), buckets(tq, tk, c.device), 'f32'), 0, 1);
      },
    };
  },
});

registerTrick({
  name: 't5-bias',
  summary: 'learned biases by bucket of distance, shared by all layers',
  hypothesis: 'Distances past the training length fall into a trained bucket, so loss per token does not rise there.',
  confidence: 'rival',
  tier: 'foundational',
  source: 'Raffel et al. 2020 (arXiv 1910.10683), section 2.1; TorchScale relative_position_bias',
  patch: () => ({ model: { positions: { kind: 't5-bias' } } }),
});
