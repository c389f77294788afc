// Long convolutions over pages (docs/kernels.md, `paged_conv`).
import type { RefKernel } from './types.ts';

export const pagedConv: Record<string, RefKernel> = {
  paged_conv({ p: [out, pool, h, beta, table, sequence, position], i: [R, C, taps, page, maxPages] }) {
    out!.fill(0, 0, R * C);
    for (let r = 0; r < R; r++) {
      if (sequence![r] < 0) continue;
      const at = (t: number): number =>
        (table![sequence![r] * maxPages + Math.floor(t / page)] * page + (t % page)) * C;
      const t = position![r];
      for (let c = 0; c < C; c++) {
        let sum = beta ? beta[c] * pool![at(t) + c] : 0;
        for (let j = 0; j < taps && j <= t; j++) sum += h![j * C + c] * pool![at(t - j) + c];
        out![r * C + c] = sum;
      }
    }
  },
};
