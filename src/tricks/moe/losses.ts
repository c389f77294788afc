/** Losses that keep a router healthy. All are means over tokens, so that they do not depend on the batch size. */
import { affine, clamp, div, logsumexp, mul, reshape, square, sum, type Tensor } from '../../tensor/index.ts';

/** x / sum over the last axis; where there is nothing, 0. */
const shareOf = (x: Tensor): Tensor => div(x, clamp(sum(x, [-1], true), 1e-30, Number.MAX_VALUE));

/** Mean over tokens: x [..., n, E] weighted by use [..., n] -> [..., E]. */
function tokenMean(x: Tensor, use: Tensor | null): Tensor {
  const n = x.shape[x.rank - 2];
  if (!use) return affine(sum(x, [-2]), 1 / n, 0);
  const w = reshape(use, [...use.shape, 1]);
  return div(sum(mul(x, w), [-2]), clamp(sum(w, [-2]), 1, Number.MAX_VALUE));
}

/**
 * E sum_e f_e P_e (Fedus et al. 2022, eq. 4): f_e is expert e's share of the load (no gradient), P_e its mean
 * probability. 1 when the router is uniform, E when one expert has everything. Not a bound: f and P of a batch can run
 * against each other, which gives less than 1.
 * @param probs f32 [n, E] (or [B, T, E] with load [B, E]: the mean of the sequences' losses)
 * @param load f32 [E]: assignments of each expert, of this pass or of more
 * @param use f32 of probs' leading shape, 0 for padding
 */
export function balanceLoss(probs: Tensor, load: Tensor, use: Tensor | null = null): Tensor {
  const E = probs.shape[probs.rank - 1];
  const products = mul(shareOf(load), tokenMean(probs, use));
  const passes = products.size / E;
  return affine(sum(products), E / passes, 0);
}

/** Mean of log(sum exp(z))^2 over tokens (Zoph et al. 2022, eq. 5): keeps logits small. logits f32 [n, E]. */
export function routerZLoss(logits: Tensor, use: Tensor | null = null): Tensor {
  const squares = square(logsumexp(logits));
  const [n, E] = [squares.size, 1];
  return sum(tokenMean(reshape(squares, [n, E]), use && reshape(use, [n])));
}
