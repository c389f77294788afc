// Hashed attention over pages (docs/kernels.md, `paged_lsh_*`).
import type { RefKernel } from './types.ts';

export const pagedLsh: Record<string, RefKernel> = {
  paged_lsh_write({ p: [pool, buckets, table, sequence, position], i: [R, lists, page, maxPages] }) {
    for (let r = 0; r < R; r++) {
      if (sequence![r] < 0) continue;
      const n = table![sequence![r] * maxPages + Math.floor(position![r] / page)];
      for (let k = 0; k < lists; k++) pool![(n * lists + k) * page + (position![r] % page)] = buckets![k * R + r];
    }
  },

  paged_lsh_attention({ p: [out, pool, buckets, table, sequence, position], i, f: [scale] }) {
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
          for (let d = 0; d < D; d++) out![at + d] = value(own, d);
          continue;
        }
        const weights = seen.map(({ t, n }) => {
          let [dot, square] = [0, 0];
          for (let d = 0; d < D; d++) {
            dot += key(own, d) * key(t, d);
            square += key(t, d) ** 2;
          }
          return Math.exp((scale * dot) / Math.sqrt(square + 1e-12)) * (dedupe ? 1 : n);
        });
        const total = weights.reduce((a, b) => a + b, 0);
        for (let d = 0; d < D; d++)
          out![at + d] = seen.reduce((sum, { t }, k) => sum + (weights[k] / total) * value(t, d), 0);
      }
  },
};
