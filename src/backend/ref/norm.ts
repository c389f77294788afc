// RMS and layer normalisation of the rows of x[rows, d].
import type { RefArray, RefKernel } from './types.ts';

/**
 * Gradient of y = xhat w (+ b) with xhat = (x - mean) rstd, for one row. With g = dy w:
 * dx = rstd (g - mean(g) - xhat mean(g xhat)); the middle term is there only when the mean was subtracted.
 */
function rowGradient(
  row: { x: RefArray; dy: RefArray; dx: RefArray; w: RefArray | null; add: RefArray | null; offset: number; d: number },
  stats: { mean: number; rstd: number; centred: boolean },
): void {
  const { x, dy, dx, w, add, offset, d } = row;
  const { mean, rstd, centred } = stats;
  const g = (k: number) => dy[offset + k] * (w ? w[k] : 1);
  const xhat = (k: number) => (x[offset + k] - mean) * rstd;
  let [meanG, meanGx] = [0, 0];
  for (let k = 0; k < d; k++) {
    meanG += g(k) / d;
    meanGx += (g(k) * xhat(k)) / d;
  }
  const own = Array.from({ length: d }, (_, k) => rstd * (g(k) - (centred ? meanG : 0) - xhat(k) * meanGx));
  for (let k = 0; k < d; k++) dx[offset + k] = own[k] + (add ? add[offset + k] : 0);
}

export const norm: Record<string, RefKernel> = {
  rms_norm({ p, i: [rows, d], f: [eps] }) {
    const [y, rstd, x] = [p[0]!, p[1]!, p[2]!];
    const w = p[3];
    for (let r = 0; r < rows; r++) {
      let square = 0;
      for (let k = 0; k < d; k++) square += x[r * d + k] ** 2;
      rstd[r] = 1 / Math.sqrt(square / d + eps);
      for (let k = 0; k < d; k++) y[r * d + k] = x[r * d + k] * rstd[r] * (w ? w[k] : 1);
    }
  },

  rms_norm_bwd({ p, i: [rows, d] }) {
    const [dx, x, rstd, dy] = [p[0]!, p[2]!, p[4]!, p[5]!];
    const [dw, w] = [p[1], p[3]];
    dw?.fill(0, 0, d);
    for (let r = 0; r < rows; r++) {
      if (dw) for (let k = 0; k < d; k++) dw[k] += dy[r * d + k] * x[r * d + k] * rstd[r];
      rowGradient({ x, dy, dx, w, add: p[6] ?? null, offset: r * d, d }, { mean: 0, rstd: rstd[r], centred: false });
    }
  },

  layer_norm({ p, i: [rows, d], f: [eps] }) {
    const [y, mean, rstd, x] = [p[0]!, p[1]!, p[2]!, p[3]!];
    const [w, b] = [p[4], p[5]];
    for (let r = 0; r < rows; r++) {
      let sum = 0;
      for (let k = 0; k < d; k++) sum += x[r * d + k];
      mean[r] = sum / d;
      let square = 0;
      for (let k = 0; k < d; k++) square += (x[r * d + k] - mean[r]) ** 2;
      rstd[r] = 1 / Math.sqrt(square / d + eps);
      for (let k = 0; k < d; k++) {
        y[r * d + k] = (x[r * d + k] - mean[r]) * rstd[r] * (w ? w[k] : 1) + (b ? b[k] : 0);
      }
    }
  },

  layer_norm_bwd({ p, i: [rows, d] }) {
    const [dx, x, mean, rstd, dy] = [p[0]!, p[3]!, p[5]!, p[6]!, p[7]!];
    const [dw, db, w] = [p[1], p[2], p[4]];
    dw?.fill(0, 0, d);
    db?.fill(0, 0, d);
    for (let r = 0; r < rows; r++) {
      for (let k = 0; k < d; k++) {
        if (dw) dw[k] += dy[r * d + k] * (x[r * d + k] - mean[r]) * rstd[r];
        if (db) db[k] += dy[r * d + k];
      }
      rowGradient(
        { x, dy, dx, w, add: p[8] ?? null, offset: r * d, d },
        { mean: mean[r], rstd: rstd[r], centred: true },
      );
    }
  },
};
