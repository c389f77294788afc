// Tokens drawn from rows of logits, as the inverse of the cumulative distribution says.
import type { RefKernel } from './types.ts';

export const draws: Record<string, RefKernel> = {
  draw_rows({ p, i: [R, V, N] }) {
    const [token, x, temperature, number, never] = p.map((t) => t!);
    for (let r = 0; r < R; r++) {
      const value = (k: number): number => {
        for (let j = 0; j < N; j++)
          if (k >= never[2 * (N * r + j)] && k < never[2 * (N * r + j) + 1]) return Number.NEGATIVE_INFINITY;
        const v = x[r * V + k];
        return Number.isNaN(v) ? Number.NEGATIVE_INFINITY : v;
      };
      let best = -1;
      for (let k = 0; k < V; k++) if (value(k) > (best < 0 ? Number.NEGATIVE_INFINITY : value(best))) best = k;
      token[r] = best;
      const T = temperature[r];
      if (best < 0 || !(T > 0) || value(best) === Number.POSITIVE_INFINITY) continue;
      const weight = (k: number): number => Math.exp((value(k) - value(best)) / T);
      let total = 0;
      for (let k = 0; k < V; k++) total += weight(k);
      let left = ((number[r] >>> 0) / 2 ** 32) * total;
      for (let k = 0; k < V; k++) {
        const w = weight(k);
        if (w === 0) continue;
        token[r] = k;
        left -= w;
        if (left < 0) break;
      }
    }
  },
};
