/** The loss of hidden states, with the extra terms that layers have left. */

import { type ForwardContext, type Head, type ParamTree, tap } from '../nn/index.ts';
import { add, affine, type Tensor } from '../tensor/index.ts';
import type { Batch, Loss } from './model.ts';

export function lossOf(
  head: Head,
  p: ParamTree,
  table: Tensor,
  h: Tensor,
  batch: Pick<Batch, 'targets' | 'weights'>,
  c: ForwardContext,
): Loss {
  tap(c, 'logits', () => head.logits(p, table, h, c));
  const { loss, rows } = head.loss(p, table, h, batch.targets, batch.weights, c);
  let total = loss;
  for (const term of c.losses.values()) total = add(total, c.share === 1 ? term : affine(term, c.share, 0));
  return { total, rows };
}
