// Statistical top-k, the L1 term, and how often units are active.
import type { RefKernel } from './types.ts';

export const unitSparsity: Record<string, RefKernel> = {
  stat_topk({ p, i: [rows, n], f: [c] }) {
    const [y, mean, std, x] = [p[0]!, p[1]!, p[2]!, p[3]!];
    for (let r = 0; r < rows; r++) {
      let [sum, squares] = [0, 0];
      for (let k = 0; k < n; k++) sum += x[r * n + k];
      mean[r] = sum / n;
      for (let k = 0; k < n; k++) squares += (x[r * n + k] - mean[r]) ** 2;
      std[r] = Math.sqrt(squares / n);
      for (let k = 0; k < n; k++) y[r * n + k] = Math.max(0, x[r * n + k] - (mean[r] + c * std[r]));
    }
  },

  stat_topk_bwd({ p, i: [rows, n], f: [c] }) {
    const [dx, x, y, mean, std, dy] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]!, p[5]!];
    for (let r = 0; r < rows; r++) {
      const g = Array.from({ length: n }, (_, k) => (y[r * n + k] > 0 ? dy[r * n + k] : 0));
      const total = g.reduce((a, b) => a + b, 0);
      for (let k = 0; k < n; k++) {
        const slope = std[r] > 0 ? (c * (x[r * n + k] - mean[r])) / (n * std[r]) : 0;
        dx[r * n + k] = g[k] - total * (1 / n + slope);
      }
    }
  },

  abs_sum({ p, i: [n] }) {
    const [out, x] = [p[0]!, p[1]!];
    let sum = 0;
    for (let k = 0; k < n; k++) sum += Math.abs(x[k]);
    out[0] = sum;
  },

  abs_sum_bwd({ p, i: [n] }) {
    const [dx, x, g, addend] = [p[0]!, p[1]!, p[2]!, p[3]];
    for (let k = 0; k < n; k++) dx[k] = Math.sign(x[k]) * g[0] + (addend ? addend[k] : 0);
  },

  nonzero_share({ p, i: [rows, F] }) {
    const [share, x] = [p[0]!, p[1]!];
    for (let j = 0; j < F; j++) {
      let count = 0;
      for (let r = 0; r < rows; r++) count += Number(x[r * F + j] !== 0);
      share[j] = count / Math.max(1, rows);
    }
  },
};
