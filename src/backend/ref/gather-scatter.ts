// Gather, scatter and sort.
import { checkIndex } from './common.ts';
import type { RefKernel } from './types.ts';

export const gather: Record<string, RefKernel> = {
  embedding({ p, i: [n, d, rows] }) {
    const [out, table, ids] = [p[0]!, p[1]!, p[2]!];
    for (let k = 0; k < n; k++) {
      const id = checkIndex(ids[k], rows);
      for (let c = 0; c < d; c++) out[k * d + c] = table[id * d + c];
    }
  },

  embedding_bwd({ p, i: [n, d, rows] }) {
    const [dtable, ids, dy] = [p[0]!, p[1]!, p[2]!];
    dtable.fill(0, 0, rows * d);
    for (let k = 0; k < n; k++) {
      const id = checkIndex(ids[k], rows);
      for (let c = 0; c < d; c++) dtable[id * d + c] += dy[k * d + c];
    }
  },

  gather({ p, i: [outer, n, m, inner] }) {
    const [out, x, idx] = [p[0]!, p[1]!, p[2]!];
    for (let o = 0; o < outer; o++) {
      for (let k = 0; k < m; k++) {
        for (let c = 0; c < inner; c++) {
          const at = (o * m + k) * inner + c;
          out[at] = x[(o * n + checkIndex(idx[at], n)) * inner + c];
        }
      }
    }
  },

  scatter_add({ p, i: [outer, n, m, inner] }) {
    const [out, idx, x] = [p[0]!, p[1]!, p[2]!];
    out.fill(0, 0, outer * n * inner);
    for (let o = 0; o < outer; o++) {
      for (let k = 0; k < m; k++) {
        for (let c = 0; c < inner; c++) {
          const at = (o * m + k) * inner + c;
          out[(o * n + checkIndex(idx[at], n)) * inner + c] += x[at];
        }
      }
    }
  },

  one_hot({ p, i: [n, classes] }) {
    const [out, ids] = [p[0]!, p[1]!];
    out.fill(0, 0, n * classes);
    for (let k = 0; k < n; k++) out[k * classes + checkIndex(ids[k], classes)] = 1;
  },

  sort({ p, i: [rows, n, descending] }) {
    const [values, idx, x] = [p[0]!, p[1]!, p[2]!];
    for (let r = 0; r < rows; r++) {
      sortedRow(x.subarray(r * n, (r + 1) * n), descending === 1).forEach((from, k) => {
        idx[r * n + k] = from;
        values[r * n + k] = x[r * n + from];
      });
    }
  },

  topk({ p, i: [rows, n, k] }) {
    const [values, idx, x] = [p[0]!, p[1]!, p[2]!];
    for (let r = 0; r < rows; r++) {
      const order = sortedRow(x.subarray(r * n, (r + 1) * n), true);
      for (let c = 0; c < k; c++) {
        idx[r * k + c] = order[c];
        values[r * k + c] = x[r * n + order[c]];
      }
    }
  },
};

/** Indices of a row's elements in sorted order: stable, NaN after everything else in both directions. */
function sortedRow(row: ArrayLike<number>, descending: boolean): number[] {
  const compare = (a: number, b: number): number => {
    const [x, y] = [row[a], row[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number(Number.isNaN(x)) - Number(Number.isNaN(y));
    if (x === y) return 0;
    return x < y === descending ? 1 : -1;
  };
  return Array.from(row, (_, k) => k).sort(compare);
}
