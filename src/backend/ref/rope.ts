// Rotary position embedding.
import { checkIndex } from './common.ts';
import type { RefKernel } from './types.ts';

export const rope: Record<string, RefKernel> = {
  rope({ p, i: [B, T, Htotal, Hrot, D, R, maxT, interleaved, inverse, tokX, tokOut] }) {
    const [out, x, cos, sin] = [p[0]!, p[1]!, p[2]!, p[3]!];
    const pos = p[4];
    for (let token = 0; token < B * T; token++) {
      const position = checkIndex(pos ? pos[token] : token % T, maxT);
      for (let head = 0; head < Htotal; head++) {
        const from = token * tokX + head * D;
        const to = token * tokOut + head * D;
        const rotated = head < Hrot ? R : 0;
        for (let k = 0; k < rotated / 2; k++) {
          const [first, second] = interleaved ? [2 * k, 2 * k + 1] : [k, k + R / 2];
          const [x1, x2] = [x[from + first], x[from + second]];
          const c = cos[position * (R / 2) + k];
          const s = (inverse ? -1 : 1) * sin[position * (R / 2) + k];
          out[to + first] = x1 * c - x2 * s;
          out[to + second] = x2 * c + x1 * s;
        }
        for (let k = rotated; k < D; k++) out[to + k] = x[from + k];
      }
    }
  },
};
