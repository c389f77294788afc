/** T5's relative positions (Raffel et al. 2020): a learned bias for each head and bucket of distances. */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { registerSlot, tensorOf } from '../../nn/index.ts';
import { perDevice } from '../../nn/positions.ts';
import { embedding, slice, Tensor, transpose } from '../../tensor/index.ts';
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
    bidirectional: z.boolean().default(false),
    /** Query heads; by default those of the model's attention. */
    heads: z.int().positive().optional(),
  }),
  build: (o, context) => {
    const heads = o.heads ?? context.heads;
    if (heads === undefined)
      throw new AnsatzError('positions t5-bias: this layout does not say how many heads there are', {
        hint: 'set positions.heads',
      });
    if (o.maxDistance <= o.buckets / (o.bidirectional ? 4 : 2))
      throw new AnsatzError(`positions t5-bias: a maxDistance of ${o.maxDistance} leaves nothing beyond exact buckets`);
    const n = context.dims.context;
    // Element x of the full row is the distance n - 1 - x.
    const ids = perDevice((device) => {
      const all = Int32Array.from({ length: 2 * n - 1 }, (_, x) => bucketOf(n - 1 - x, o));
      return Tensor.from(device, all, [2 * n - 1], 'i32').keep();
    });
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
      prepare: (device) => void ids(device),
      bias: (p, wanted, tq, tk, c) => {
        if (wanted !== heads)
          throw new AnsatzError(`positions t5-bias: a table for ${heads} heads, a layer with ${wanted}`);
        if (tk > n) throw new AnsatzError(`positions t5-bias: ${tk} tokens, the model's context is ${n}`);
        const row = slice(ids(c.device), 0, n - tk, n - tk + tq + tk - 1);
        return transpose(embedding(tensorOf(p, 'weight'), row, 'f32'), 0, 1);
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
