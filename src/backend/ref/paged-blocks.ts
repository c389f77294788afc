// Attention to chosen blocks over pages (docs/kernels.md, `paged_block_*`).
import { AnsatzError } from '../errors.ts';
import { PageHead } from './paged.ts';
import type { RefArray, RefKernel } from './types.ts';

/** The compressed block that ends at token t, or -1. */
const endsAt = (t: number, length: number, stride: number): number =>
  t + 1 < length || (t + 1 - length) % stride ? -1 : (t + 1 - length) / stride;

/** Page of the block that ends at token t, counted in its sequence, and how many end there before it. */
function cellOf(t: number, length: number, stride: number, page: number): { n: number; cell: number } {
  const n = Math.floor(t / page);
  let cell = 0;
  for (let s = n * page; s < t; s++) if (endsAt(s, length, stride) >= 0) cell++;
  return { n, cell };
}

const softmax = (scores: readonly number[]): number[] => {
  const top = Math.max(...scores);
  const e = scores.map((s) => Math.exp(s - top));
  const total = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / total);
};

const dot = (x: RefArray, i: number, y: RefArray, j: number, n: number): number => {
  let sum = 0;
  for (let d = 0; d < n; d++) sum += x[i + d] * y[j + d];
  return sum;
};

export const pagedBlocks: Record<string, RefKernel> = {
  paged_block_rows({ p: [pick, offsets, sequence, position], i: [R, length, stride, heads] }) {
    const rows = Array.from({ length: R }, (_, r) => r).filter(
      (r) => sequence![r] >= 0 && endsAt(position![r], length, stride) >= 0,
    );
    for (let k = 0; k < R; k++) pick![k] = rows[k] ?? -1;
    [offsets![0], offsets![1]] = [0, rows.length * heads];
  },

  paged_block_gather({ p: [out, pool, pick, table, sequence, position], i: [R, heads, D, length, page, maxPages] }) {
    for (let k = 0; k < R && pick![k] >= 0; k++)
      for (let j = 0; j < length; j++) {
        const r = pick![k];
        const t = position![r] - length + 1 + j;
        const from = (table![sequence![r] * maxPages + Math.floor(t / page)] * page + (t % page)) * heads * D;
        for (let head = 0; head < heads; head++)
          for (let d = 0; d < D; d++) out![((k * heads + head) * length + j) * D + d] = pool![from + head * D + d];
      }
  },

  paged_block_write({
    p: [pool, k, v, pick, table, sequence, position],
    i: [R, heads, D, length, stride, page, maxPages],
  }) {
    const width = heads * D;
    for (let at = 0; at < R && pick![at] >= 0; at++) {
      const r = pick![at];
      const { n, cell } = cellOf(position![r], length, stride, page);
      const to = (table![sequence![r] * maxPages + n] * Math.ceil(page / stride) + cell) * 2 * width;
      for (let d = 0; d < width; d++) {
        pool![to + d] = k![at * width + d];
        pool![to + width + d] = v![at * width + d];
      }
    }
  },

  paged_block_choose({ p: [out, index, q, pool, table, sequence, position], i, f: [scale] }) {
    const [R, H, Hkv, D, page, maxPages, length, stride, size, n, initial, local] = i;
    const [group, width] = [H / Hkv, Hkv * D];
    out!.fill(0, 0, R * H * D);
    index!.fill(-1, 0, R * Hkv * n);
    for (let r = 0; r < R; r++)
      for (let g = 0; g < Hkv && sequence![r] >= 0; g++) {
        const t = position![r];
        const cells: number[] = [];
        for (let e = 0; e <= t; e++) {
          if (endsAt(e, length, stride) < 0) continue;
          const { n: at, cell } = cellOf(e, length, stride, page);
          const where = table![sequence![r] * maxPages + at] * Math.ceil(page / stride) + cell;
          cells.push(where * 2 * width + g * D);
        }
        const value = new Float64Array(Math.floor(t / size) + 1);
        for (let m = 0; m < group && cells.length > 0; m++) {
          const at = (r * H + g * group + m) * D;
          const P = softmax(cells.map((c) => scale * dot(q!, at, pool!, c, D)));
          for (let d = 0; d < D; d++) out![at + d] = P.reduce((sum, w, c) => sum + w * pool![cells[c] + width + d], 0);
          P.forEach((w, c) => {
            for (let cell = 0; cell < length / stride; cell++) value[Math.floor((c + cell) / (size / stride))] += w;
          });
        }
        const all = Array.from(value, (_, j) => j);
        const fixed = all.filter((j) => j < initial || j >= all.length - local);
        const rest = all.filter((j) => !fixed.includes(j)).sort((a, b) => value[b] - value[a] || a - b);
        const list = [...fixed, ...rest.slice(0, n - fixed.length)].sort((a, b) => a - b);
        list.forEach((j, k) => {
          index![(r * Hkv + g) * n + k] = j;
        });
      }
  },

  paged_block_attention({ p: [out, q, pool, index, table, sequence, position], i, f: [scale] }) {
    const [R, H, Hkv, D, page, maxPages, format, size, n] = i;
    const group = H / Hkv;
    out!.fill(0, 0, R * H * D);
    for (let r = 0; r < R; r++)
      for (let g = 0; g < Hkv && sequence![r] >= 0; g++) {
        const at = (r * Hkv + g) * n;
        const places = Array.from(index!.subarray(at, at + n));
        const list = places.includes(-1) ? places.slice(0, places.indexOf(-1)) : places;
        const t = position![r];
        const limit = Math.floor(t / size) + 1;
        list.forEach((j, k) => {
          if (j >= limit || j < 0 || (k > 0 && j <= list[k - 1]))
            throw new AnsatzError(`index ${j} out of range: limit ${limit}`);
        });
        const keys = list.flatMap((j) => Array.from({ length: size }, (_, k) => j * size + k).filter((k) => k <= t));
        if (keys.length === 0) continue;
        const heads = keys.map((j) => {
          const where = table![sequence![r] * maxPages + Math.floor(j / page)];
          return new PageHead(pool as Uint8Array, format, Hkv, D, page, where, g);
        });
        for (let m = 0; m < group; m++) {
          const row = (r * H + g * group + m) * D;
          const P = softmax(
            keys.map((j, k) => {
              let sum = 0;
              for (let d = 0; d < D; d++) sum += q![row + d] * heads[k].key(j % page, d);
              return scale * sum;
            }),
          );
          for (let d = 0; d < D; d++)
            out![row + d] = P.reduce((sum, w, k) => sum + w * heads[k].value(keys[k] % page, d), 0);
        }
      }
  },
};
