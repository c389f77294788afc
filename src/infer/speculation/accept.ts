/**
 * Exact speculative sampling (Leviathan et al. 2023, Chen et al. 2023): a token x that was drawn from q is kept with
 * probability min(1, p(x) / q(x)); otherwise the token is drawn from max(0, p - q), normalised. What comes out is
 * distributed as p, whatever q is. p and q are the distributions after temperature, truncation, penalties and masks.
 */
import { draw, probabilityOf, type Weights } from '../sampling/distribution.ts';

/** Keeps `token`, or draws another; `uniform` is asked for one number, or two. */
export function acceptOrDraw(
  p: Weights,
  token: number,
  q: Weights,
  uniform: () => number,
): { token: number; accepted: boolean } {
  const [px, qx] = [probabilityOf(p, token), probabilityOf(q, token)];
  if (qx > 0 && uniform() * qx < px) return { token, accepted: true };
  return { token: draw(remainder(p, q), uniform()), accepted: false };
}

/** max(0, p - q) over the tokens of p; p itself where rounding leaves nothing. */
export function remainder(p: Weights, q: Weights): Weights {
  const { tokens, weights, total } = p;
  const dense = q.tokens === null;
  const byToken = new Map<number, number>();
  q.tokens?.forEach((t, k) => {
    byToken.set(t, q.weights[k] / q.total);
  });
  let left = 0;
  const rest = weights.map((w, k) => {
    const token = tokens ? tokens[k] : k;
    const qx = dense ? q.weights[token] / q.total : (byToken.get(token) ?? 0);
    const r = Math.max(0, w / total - qx);
    left += r;
    return r;
  });
  return left > 0 ? { tokens, weights: rest, total: left } : p;
}
