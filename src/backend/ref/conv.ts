// 1-D convolution: y[b, t, o] = bias[o] + sum_{k, c} w[o, c, k] x[b, t stride - padL + k dilation, group(o) c].
import type { RefKernel } from './types.ts';

/** Visits every (output, weight, input) triple that meets in one product; positions in the padding are skipped. */
function forEachProduct(ints: readonly number[], visit: (y: number, w: number, x: number) => void): void {
  const [B, T, Cin, Cout, K, groups, stride, padL, dilation, Tout] = ints;
  const [groupIn, groupOut] = [Cin / groups, Cout / groups];
  for (let b = 0; b < B; b++) {
    for (let t = 0; t < Tout; t++) {
      for (let o = 0; o < Cout; o++) {
        const firstIn = Math.floor(o / groupOut) * groupIn;
        for (let k = 0; k < K; k++) {
          const from = t * stride - padL + k * dilation;
          if (from < 0 || from >= T) continue;
          for (let c = 0; c < groupIn; c++) {
            visit((b * Tout + t) * Cout + o, (o * groupIn + c) * K + k, (b * T + from) * Cin + firstIn + c);
          }
        }
      }
    }
  }
}

export const conv: Record<string, RefKernel> = {
  conv1d({ p, i }) {
    const [y, x, w] = [p[0]!, p[1]!, p[2]!];
    const bias = p[3];
    const [B, , , Cout, , , , , , Tout] = i;
    for (let k = 0; k < B * Tout * Cout; k++) y[k] = bias ? bias[k % Cout] : 0;
    forEachProduct(i, (ny, nw, nx) => {
      y[ny] += w[nw] * x[nx];
    });
  },

  conv1d_bwd_x({ p, i }) {
    const [dx, w, dy] = [p[0]!, p[1]!, p[2]!];
    const [B, T, Cin] = i;
    dx.fill(0, 0, B * T * Cin);
    forEachProduct(i, (ny, nw, nx) => {
      dx[nx] += w[nw] * dy[ny];
    });
  },

  conv1d_bwd_w({ p, i }) {
    const [dw, x, dy] = [p[0]!, p[2]!, p[3]!];
    const dbias = p[1];
    const [B, , Cin, Cout, K, groups, , , , Tout] = i;
    dw.fill(0, 0, Cout * (Cin / groups) * K);
    forEachProduct(i, (ny, nw, nx) => {
      dw[nw] += dy[ny] * x[nx];
    });
    dbias?.fill(0, 0, Cout);
    if (dbias) for (let k = 0; k < B * Tout * Cout; k++) dbias[k % Cout] += dy[k];
  },
};
