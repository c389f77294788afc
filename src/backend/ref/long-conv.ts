// Long and short causal convolutions over runs of one segment, and the decay of implicit filters.
import type { RefArray, RefKernel } from './types.ts';

/** Whether token t of a row reads the one at s <= t: all tokens between them are of one segment. */
function runStarts(seg: RefArray | null, B: number, T: number): Int32Array {
  const start = new Int32Array(B * T);
  for (let b = 0; b < B; b++)
    for (let t = 0; t < T; t++) {
      const at = b * T + t;
      start[at] = t > 0 && (!seg || seg[at] === seg[at - 1]) ? start[at - 1] : t;
    }
  return start;
}

/** Visits (index of the later token, index of the earlier one, index of the filter's tap) for every product. */
function longProducts(
  i: readonly number[],
  seg: RefArray | null,
  visit: (y: number, v: number, h: number) => void,
): void {
  const [B, T, C, taps] = i;
  const start = runStarts(seg, B, T);
  for (let b = 0; b < B; b++)
    for (let t = 0; t < T; t++)
      for (let s = Math.max(start[b * T + t], t - taps + 1); s <= t; s++)
        for (let c = 0; c < C; c++) visit((b * T + t) * C + c, (b * T + s) * C + c, (t - s) * C + c);
}

/** Part p of D channels: its values, and for every product (value, tap, source) what it is made of. */
function shortValues(
  i: readonly number[],
  z: RefArray,
  w: RefArray,
  bias: RefArray | null,
  seg: RefArray | null,
  visit?: (value: number, tap: number, source: number) => void,
): Float64Array {
  const [B, T, D, parts, convolved, K] = i;
  const width = D * parts;
  const values = new Float64Array(B * T * width);
  for (let b = 0; b < B; b++)
    for (let t = 0; t < T; t++)
      for (let c = 0; c < width; c++) {
        const at = (b * T + t) * width + c;
        if (c >= convolved * D) {
          values[at] = z[at];
          continue;
        }
        values[at] = bias ? bias[c] : 0;
        for (let k = 0; k < K; k++) {
          const from = t - (K - 1) + k;
          if (from < 0 || (seg && seg[b * T + from] !== seg[b * T + t])) continue;
          const source = (b * T + from) * width + c;
          values[at] += w[c * K + k] * z[source];
          visit?.(at, c * K + k, source);
        }
      }
  return values;
}

export const longConv: Record<string, RefKernel> = {
  long_conv({ p, i }) {
    const [y, v, h, beta, seg] = [p[0]!, p[1]!, p[2]!, p[3], p[4]];
    const [B, T, C] = i;
    for (let k = 0; k < B * T * C; k++) y[k] = beta ? beta[k % C] * v[k] : 0;
    longProducts(i, seg, (ny, nv, nh) => {
      y[ny] += h[nh] * v[nv];
    });
  },

  long_conv_bwd({ p, i }) {
    const [dv, dh, dbeta, v, h, beta, dy, seg] = [p[0]!, p[1]!, p[2], p[3]!, p[4]!, p[5], p[6]!, p[7]];
    const [B, T, C, taps] = i;
    dh.fill(0, 0, taps * C);
    dbeta?.fill(0, 0, C);
    for (let k = 0; k < B * T * C; k++) {
      dv[k] = beta ? beta[k % C] * dy[k] : 0;
      if (dbeta) dbeta[k % C] += dy[k] * v[k];
    }
    longProducts(i, seg, (ny, nv, nh) => {
      dv[nv] += h[nh] * dy[ny];
      dh[nh] += dy[ny] * v[nv];
    });
  },

  short_conv({ p, i }) {
    const [out, rest, z, w, bias, seg] = [p[0]!, p[1], p[2]!, p[3]!, p[4], p[5]];
    const [B, T, D, parts] = i;
    const values = shortValues(i, z, w, bias, seg);
    const others = Math.max(0, parts - 2) * D;
    for (let r = 0; r < B * T; r++) {
      const last = (r + 1) * D * parts - D;
      for (let d = 0; d < D; d++) out[r * D + d] = values[last + d] * (parts > 1 ? values[last - D + d] : 1);
      for (let c = 0; c < others; c++) rest![r * others + c] = values[r * D * parts + c];
    }
  },

  short_conv_bwd({ p, i }) {
    const [dz, dw, dbias, z, w, bias] = [p[0]!, p[1]!, p[2], p[3]!, p[4]!, p[5]];
    const [seg, dout, drest] = [p[6], p[7]!, p[8]];
    const [B, T, D, parts, convolved, K] = i;
    const width = D * parts;
    const values = shortValues(i, z, w, bias, seg);
    const others = Math.max(0, parts - 2) * D;
    const g = new Float64Array(B * T * width);
    for (let r = 0; r < B * T; r++) {
      const last = (r + 1) * width - D;
      for (let d = 0; d < D; d++) {
        const dy = dout[r * D + d];
        g[last + d] = parts > 1 ? dy * values[last - D + d] : dy;
        if (parts > 1) g[last - D + d] = dy * values[last + d];
      }
      for (let c = 0; c < others; c++) g[r * width + c] = drest ? drest[r * others + c] : 0;
    }
    dw.fill(0, 0, convolved * D * K);
    dbias?.fill(0, 0, convolved * D);
    for (let k = 0; k < B * T * width; k++) {
      const c = k % width;
      dz[k] = c < convolved * D ? 0 : g[k];
      if (dbias && c < convolved * D) dbias[c] += g[k];
    }
    shortValues(i, z, w, bias, seg, (value, tap, source) => {
      dz[source] += w[tap] * g[value];
      dw[tap] += z[source] * g[value];
    });
  },

  decay_window({ p, i: [rows, C], f: [first, last, shift] }) {
    const [out, x] = [p[0]!, p[1]!];
    for (let t = 0; t < rows; t++)
      for (let c = 0; c < C; c++) {
        const rate = first + (C > 1 ? ((last - first) * c) / (C - 1) : 0);
        out[t * C + c] = x[t * C + c] * (Math.exp(-rate * t) + shift);
      }
  },
};
