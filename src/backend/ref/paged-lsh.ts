// Hashed attention over pages (docs/kernels.md, `paged_lsh_*`).
import type { RefKernel } from './types.ts';

export const pagedLsh: Record<string, RefKernel> = {
  paged_lsh_write({ p: [pool, kept, x, buckets, table, sequence, position], i: [R, H, D, page, maxPages, rounds] }) {
    for (let r = 0; r < R; r++) {
      if (sequence![r] < 0) continue;
      const n = table![sequence![r] * maxPages + Math.floor(position![r] / page)];
      const slot = position![r] % page;
      for (let head = 0; head < 2 * H; head++) {
        const from = (r * 2 * H + head) * D;
        let square = 0;
        for (let d = 0; d < D; d++) square += x![from + d] ** 2;
        const scale = head < H ? 1 / Math.sqrt(square + 1e-12) : 1;
        for (let d = 0; d < D; d++) pool![((n * page + slot) * 2 * H + head) * D + d] = x![from + d] * scale;
      }
      for (let k = 0; buckets && k < H * rounds; k++) kept![(n * H * rounds + k) * page + slot] = buckets[k * R + r];
    }
  },

  paged_lsh_attention({ p: [out, x, pool, buckets, table, sequence, position], i, f: [scale] }) {
    const [R, H, D, page, maxPages, rounds, most, chunk, back, fill, dedupe] = i;
    out!.fill(0, 0, R * H * D);
    for (let r = 0; r < R; r++)
      for (let h = 0; h < H && sequence![r] >= 0; h++) {
        const own = position![r];
        const pageOf = (t: number): number => table![sequence![r] * maxPages + Math.floor(t / page)];
        const key = (t: number, d: number): number => pool![((pageOf(t) * page + (t % page)) * 2 * H + h) * D + d];
        const value = (t: number, d: number): number => key(t, H * D + d);
        const bucket = (t: number, k: number): number =>
          buckets![((pageOf(t) * H + h) * rounds + k) * page + (t % page)];
        const before = Array.from({ length: own }, (_, k) => own - 1 - k);
        let seen: { t: number; n: number }[];
        if (buckets) {
          const all = before.map((t) => ({
            t,
            n: Array.from({ length: rounds }, (_, k) => k).filter((k) => bucket(t, k) === bucket(own, k)).length,
          }));
          const others = fill ? all.filter(({ n }) => n === 0).map(({ t }) => ({ t, n: 1 })) : [];
          seen = [...all.filter(({ n }) => n > 0), ...others].slice(0, most);
        } else {
          const first = (Math.floor(own / chunk) - back) * chunk;
          seen = before.filter((t) => t >= first).map((t) => ({ t, n: 1 }));
        }
        const at = (r * H + h) * D;
        if (seen.length === 0) {
          for (let d = 0; d < D; d++) out![at + d] = x![(r * 2 * H + H + h) * D + d];
          continue;
        }
        const weights = seen.map(({ t, n }) => {
          let dot = 0;
          for (let d = 0; d < D; d++) dot += x![(r * 2 * H + h) * D + d] * key(t, d);
          return Math.exp(scale * dot) * (dedupe ? 1 : n);
        });
        const total = weights.reduce((a, b) => a + b, 0);
        for (let d = 0; d < D; d++)
          out![at + d] = seen.reduce((sum, { t }, k) => sum + (weights[k] / total) * value(t, d), 0);
      }
  },
};
