/** ALiBi (Press et al. 2022): a penalty on attention logits that grows with distance. */
import { z } from 'zod';
import { registerSlot } from '../../nn/index.ts';
import { abs, concat, fill, iota, mul, pad, pow, reshape, type Tensor } from '../../tensor/index.ts';
import { registerTrick } from '../registry.ts';

/** Exponents of 2 of the slopes: -8h/p for the largest power of two p, then every second of those for 2p. */
export function alibiExponents(heads: number): { start: number; step: number; count: number }[] {
  const p = 2 ** Math.floor(Math.log2(heads));
  const parts = [{ start: -8 / p, step: -8 / p, count: p }];
  if (heads > p) parts.push({ start: -4 / p, step: -8 / p, count: heads - p });
  return parts;
}

/** Slope of each head. */
export const alibiSlopes = (heads: number): number[] =>
  alibiExponents(heads).flatMap(({ start, step, count }) =>
    Array.from({ length: count }, (_, k) => 2 ** (start + step * k)),
  );

registerSlot({
  slot: 'positions',
  kind: 'alibi',
  summary: 'a penalty on attention logits, linear in distance, with a slope for each head (Press et al. 2022)',
  options: z.strictObject({
    /** Share of the heads that have a penalty; the rest see all distances alike. */
    share: z.number().positive().max(1).default(1),
  }),
  build: ({ share }) => ({
    bias: (_, heads, tq, tk, c): Tensor => {
      const biased = Math.max(1, Math.round(share * heads));
      const exponents = alibiExponents(biased).map(({ start, step, count }) => iota(c.device, count, start, step));
      const slopes = pow(fill(c.device, [biased], 2), exponents.length > 1 ? concat(exponents, 0) : exponents[0]);
      // Element x stands for the distance query - key = tk - 1 - x.
      const distance = abs(iota(c.device, tq + tk - 1, tk - 1, -1));
      const all = mul(reshape(mul(slopes, fill(c.device, [1], -1)), [biased, 1]), distance);
      return biased < heads ? pad(all, 0, 0, heads - biased) : all;
    },
  }),
});

registerTrick({
  name: 'alibi',
  summary: 'attention logits lose slope times distance; nothing is added to tokens',
  hypothesis: 'A model trained at length l has at 2 l to 4 l the loss per token that it had at l, or less.',
  confidence: 'rival',
  tier: 'foundational',
  source: 'Press et al. 2022, Train Short, Test Long (arXiv 2108.12409)',
  patch: () => ({ model: { positions: { kind: 'alibi' } } }),
});
