// Cross-entropy on logits, and fused with the output projection. For one row, with p = softmax(x):
//   loss = lse - (1-s) x[t] - s mean(x) + z lse^2,   d loss / d x_j = (1 + 2 z lse) p_j - (1-s) [j = t] - s / V.
import { checkIndex, logSumExp, operand } from './common.ts';
import type { RefArray, RefKernel } from './types.ts';

interface Row {
  readonly x: RefArray;
  readonly offset: number;
  readonly V: number;
  readonly target: number;
  readonly smoothing: number;
  readonly zcoef: number;
}

function rowLoss({ x, offset, V, target, smoothing, zcoef }: Row, lse: number): number {
  let mean = 0;
  for (let j = 0; j < V; j++) mean += x[offset + j] / V;
  return lse - (1 - smoothing) * x[offset + target] - smoothing * mean + zcoef * lse * lse;
}

/** Writes scale * d loss / d x over out[offset ...]; out may be x. */
function rowGradient({ x, offset, V, target, smoothing, zcoef }: Row, lse: number, scale: number, out: RefArray): void {
  for (let j = 0; j < V; j++) {
    const p = Math.exp(x[offset + j] - lse);
    const g = (1 + 2 * zcoef * lse) * p - (1 - smoothing) * Number(j === target) - smoothing / V;
    out[offset + j] = scale * g;
  }
}

export const loss: Record<string, RefKernel> = {
  cross_entropy({ p, i: [rows, V, ignore], f: [smoothing, zcoef] }) {
    const [out, lse, x, targets] = [p[0]!, p[1]!, p[2]!, p[3]!];
    for (let r = 0; r < rows; r++) {
      lse[r] = logSumExp(x, r * V, V);
      out[r] = 0;
      if (targets[r] === ignore) continue;
      const target = checkIndex(targets[r], V);
      out[r] = rowLoss({ x, offset: r * V, V, target, smoothing, zcoef }, lse[r]);
    }
  },

  cross_entropy_bwd({ p, i: [rows, V, ignore], f: [smoothing, zcoef] }) {
    const [dx, x, lse, targets, dloss] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]!];
    for (let r = 0; r < rows; r++) {
      if (targets[r] === ignore) {
        dx.fill(0, r * V, (r + 1) * V);
        continue;
      }
      const target = checkIndex(targets[r], V);
      rowGradient({ x, offset: r * V, V, target, smoothing, zcoef }, lse[r], dloss[r], dx);
    }
  },

  linear_cross_entropy({ p, i: [rows, d, V, ignore, compute], f: [zcoef, logitScale] }) {
    const [out, targets] = [p[0]!, p[5]!];
    const [dh, dw, rowscale] = [p[1], p[2], p[6]];
    const h = operand(p[3]!, 0, rows, d, false, compute);
    const w = operand(p[4]!, 0, V, d, false, compute);
    dh?.fill(0, 0, rows * d);
    dw?.fill(0, 0, V * d);
    const x = new Float64Array(V);
    for (let r = 0; r < rows; r++) {
      out[r] = 0;
      if (targets[r] === ignore) continue;
      const row = { x, offset: 0, V, target: checkIndex(targets[r], V), smoothing: 0, zcoef };
      for (let j = 0; j < V; j++) {
        let dot = 0;
        for (let c = 0; c < d; c++) dot += h[r * d + c] * w[j * d + c];
        x[j] = logitScale * dot;
      }
      const lse = logSumExp(x, 0, V);
      out[r] = rowLoss(row, lse);
      rowGradient(row, lse, logitScale * (rowscale ? rowscale[r] : 1), x);
      for (let j = 0; j < V; j++) {
        for (let c = 0; c < d; c++) {
          if (dh) dh[r * d + c] += x[j] * w[j * d + c];
          if (dw) dw[j * d + c] += x[j] * h[r * d + c];
        }
      }
    }
  },
};
