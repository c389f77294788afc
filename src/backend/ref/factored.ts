// The factored dense layer W[s,m,i] = D[s,i] E[m,i] (Jaszczur et al. 2021), its use as an output matrix, and the
// convolution over time and modules that goes with it.
import { checkIndex, logSumExp, operand, roundToBf16 } from './common.ts';
import type { RefArray, RefKernel } from './types.ts';
import { refOptions } from './types.ts';

/** The product weight [S M, d], rounded to bfloat16 when compute = 1. */
function productWeight(D: RefArray, E: RefArray, S: number, M: number, d: number, compute: number): Float64Array {
  const round = compute === 1 && refOptions.roundCompute;
  return Float64Array.from({ length: S * M * d }, (_, k) => {
    const [row, i] = [Math.floor(k / d), k % d];
    const w = D[Math.floor(row / M) * d + i] * E[(row % M) * d + i];
    return round ? roundToBf16(w) : w;
  });
}

/** Adds the gradient dw of one product weight to those of its factors. */
function split(
  dw: number,
  row: number,
  i: number,
  M: number,
  d: number,
  D: RefArray,
  E: RefArray,
  dD: RefArray,
  dE: RefArray,
): void {
  const [s, m] = [Math.floor(row / M), row % M];
  dD[s * d + i] += dw * E[m * d + i];
  dE[m * d + i] += dw * D[s * d + i];
}

export const factored: Record<string, RefKernel> = {
  factored_linear({ p, i: [rows, d, S, M, compute] }) {
    const [y, bias] = [p[0]!, p[4]];
    const x = operand(p[1]!, 0, rows, d, false, compute);
    const w = productWeight(p[2]!, p[3]!, S, M, d, compute);
    for (let r = 0; r < rows; r++)
      for (let o = 0; o < S * M; o++) {
        let sum = bias ? bias[o] : 0;
        for (let i = 0; i < d; i++) sum += x[r * d + i] * w[o * d + i];
        y[r * S * M + o] = sum;
      }
  },

  factored_linear_bwd({ p, i: [rows, d, S, M, compute] }) {
    const [dx, dD, dE, D, E] = [p[0]!, p[1]!, p[2]!, p[4]!, p[5]!];
    const x = operand(p[3]!, 0, rows, d, false, compute);
    const dy = operand(p[6]!, 0, rows, S * M, false, compute);
    const w = productWeight(D, E, S, M, d, compute);
    dx.fill(0, 0, rows * d);
    dD.fill(0, 0, S * d);
    dE.fill(0, 0, M * d);
    for (let o = 0; o < S * M; o++)
      for (let i = 0; i < d; i++) {
        let dw = 0;
        for (let r = 0; r < rows; r++) {
          dw += dy[r * S * M + o] * x[r * d + i];
          dx[r * d + i] += dy[r * S * M + o] * w[o * d + i];
        }
        split(dw, o, i, M, d, D, E, dD, dE);
      }
  },

  factored_cross_entropy({ p, i: [rows, d, S, M, V, ignore, compute], f: [zcoef, scale] }) {
    const [out, dh, dD, dE, h, D, E, targets, rowscale] = p;
    const w = productWeight(D!, E!, S, M, d, 0);
    dh?.fill(0, 0, rows * d);
    dD?.fill(0, 0, S * d);
    dE?.fill(0, 0, M * d);
    const round = (x: number): number => (compute === 1 && refOptions.roundCompute ? roundToBf16(x) : x);
    const x = new Float64Array(V);
    for (let r = 0; r < rows; r++) {
      out![r] = 0;
      if (targets![r] === ignore) continue;
      const t = checkIndex(targets![r], V);
      for (let o = 0; o < V; o++) {
        const [s, m] = [Math.floor(o / M), o % M];
        let dot = 0;
        for (let i = 0; i < d; i++) dot += round(h![r * d + i] * D![s * d + i]) * round(E![m * d + i]);
        x[o] = scale * dot;
      }
      const lse = logSumExp(x, 0, V);
      out![r] = lse - x[t] + zcoef * lse * lse;
      if (!dh) continue;
      for (let o = 0; o < V; o++) {
        const g = (1 + 2 * zcoef * lse) * Math.exp(x[o] - lse) - Number(o === t);
        const dx = g * scale * (rowscale ? rowscale[r] : 1);
        for (let i = 0; i < d; i++) {
          dh[r * d + i] += dx * w[o * d + i];
          split(dx * h![r * d + i], o, i, M, d, D!, E!, dD!, dE!);
        }
      }
    }
  },

  module_conv({ p, i: [B, T, S, C, O, K, J, reverse, compute] }) {
    const [y, bias, seg] = [p[0]!, p[3], p[4]];
    const x = operand(p[1]!, 0, B * T * S, C, false, compute);
    const w = operand(p[2]!, 0, O, K * J * C, false, compute);
    forTaps(B, T, S, K, J, reverse, seg, (to, from, k, j) => {
      for (let o = 0; o < O; o++) {
        if (from === null) y[to * O + o] = bias ? bias[o] : 0;
        else for (let c = 0; c < C; c++) y[to * O + o] += x[from * C + c] * w[((o * K + k) * J + j) * C + c];
      }
    });
  },

  module_conv_bwd_w({ p, i: [B, T, S, C, O, K, J, reverse, compute] }) {
    const [dw, seg] = [p[0]!, p[3]];
    const x = operand(p[1]!, 0, B * T * S, C, false, compute);
    const dy = operand(p[2]!, 0, B * T * S, O, false, compute);
    dw.fill(0, 0, O * K * J * C);
    forTaps(B, T, S, K, J, reverse, seg, (to, from, k, j) => {
      if (from === null) return;
      for (let o = 0; o < O; o++)
        for (let c = 0; c < C; c++) dw[((o * K + k) * J + j) * C + c] += dy[to * O + o] * x[from * C + c];
    });
  },
};

/** Visits each output (token, module), first with `from` null, then with every input row that a tap of it reads. */
function forTaps(
  B: number,
  T: number,
  S: number,
  K: number,
  J: number,
  reverse: number,
  seg: RefArray | null,
  visit: (to: number, from: number | null, k: number, j: number) => void,
): void {
  const sign = reverse ? -1 : 1;
  for (let token = 0; token < B * T; token++)
    for (let s = 0; s < S; s++) {
      visit(token * S + s, null, 0, 0);
      for (let k = 0; k < K; k++)
        for (let j = 0; j < J; j++) {
          const off = sign * (k - (K - 1));
          const m = s + sign * (j - (J - 1) / 2);
          const t = (token % T) + off;
          if (t < 0 || t >= T || m < 0 || m >= S || (seg && seg[token + off] !== seg[token])) continue;
          visit(token * S + s, (token + off) * S + m, k, j);
        }
    }
}
