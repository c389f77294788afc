/** Tokens as they enter a stack, whatever the layout. */

import { type ForwardContext, type Positions, type Scales, tap } from '../nn/index.ts';
import { affine, dropout, embedding, type Tensor } from '../tensor/index.ts';
import type { ModelSpec } from './spec.ts';

/** f32 [B, T, d] of ids [B, T]: scaled, with the positions that are added to embeddings, and dropout. */
export function embedTokens(
  table: Tensor,
  ids: Tensor,
  of: { readonly spec: ModelSpec; readonly scales: Scales; readonly positions: Positions },
  c: ForwardContext,
): Tensor {
  let x_BTd = embedding(table, ids, 'f32');
  if (of.scales.embedding !== 1) x_BTd = affine(x_BTd, of.scales.embedding, 0);
  if (of.positions.embed) x_BTd = of.positions.embed(c.positionParams, x_BTd, c);
  if (c.random && of.spec.dropout > 0) x_BTd = dropout(x_BTd, c.random, of.spec.dropout, c.nextStream());
  tap(c, 'embedding', () => x_BTd);
  return x_BTd;
}
