// Products with weights in blocks: as many rows as there are, each as if it were alone.
import { checkIndex, roundToBf16 } from './common.ts';
import { BF16X16, matrixBytes, Q4, quantisedRow, weightAt } from './quant-format.ts';
import type { RefArray, RefKernel } from './types.ts';
import { refOptions } from './types.ts';

/** Row `row` of x [.., K] as the products of a format take it. */
function activations(x: RefArray, row: number, K: number, format: number, compute: number): Float64Array {
  if (refOptions.roundCompute && format <= Q4) return quantisedRow(x, row * K, K);
  const round = refOptions.roundCompute && format === BF16X16 && compute === 1;
  return Float64Array.from({ length: K }, (_, k) => (round ? roundToBf16(x[row * K + k]) : x[row * K + k]));
}

/** In float32 where kernels round like that: what is quantised next must be the same. */
const product = (a: number, b: number): number => (refOptions.roundCompute ? Math.fround(a * b) : a * b);

function dot(a: Float64Array, w: RefArray, format: number, n: number, K: number): number {
  let sum = 0;
  for (let k = 0; k < K; k++) sum += a[k] * weightAt(w, format, n, k, K);
  return sum;
}

export const quant: Record<string, RefKernel> = {
  quant_matmul({ p, i: [R, N, K, format, compute], f: [alpha] }) {
    const [y, x, w, bias, addend] = [p[0]!, p[1]!, p[2]!, p[3], p[4]];
    for (let r = 0; r < R; r++) {
      const a = activations(x, r, K, format, compute);
      for (let n = 0; n < N; n++) {
        const at = r * N + n;
        y[at] = alpha * dot(a, w, format, n, K) + (bias ? bias[n] : 0) + (addend ? addend[at] : 0);
      }
    }
  },

  quant_grouped_matmul({ p, i: [R, E, N, K, format, compute], f: [alpha] }) {
    const [y, x, w, offsets] = [p[0]!, p[1]!, p[2]!, p[3]!];
    const bytes = matrixBytes(format, N, K);
    for (let e = 0; e <= E; e++) {
      if (offsets[e] < (e ? offsets[e - 1] : 0)) checkIndex(-1, R + 1);
      checkIndex(offsets[e], R + 1);
    }
    y.fill(0, 0, R * N);
    for (let e = 0; e < E; e++)
      for (let r = offsets[e]; r < offsets[e + 1]; r++) {
        const a = activations(x, r, K, format, compute);
        for (let n = 0; n < N; n++) y[r * N + n] = alpha * dot(a, w.subarray(e * bytes), format, n, K);
      }
  },

  quant_factored({ p, i: [R, S, M, d, format, compute], f: [alpha] }) {
    const [y, x, E, D, bias] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]];
    for (let r = 0; r < R; r++)
      for (let s = 0; s < S; s++) {
        const scaled = Float64Array.from({ length: d }, (_, k) => product(x[r * d + k], D[s * d + k]));
        const a = activations(scaled, 0, d, format, compute);
        for (let m = 0; m < M; m++)
          y[(r * S + s) * M + m] = alpha * dot(a, E, format, m, d) + (bias ? bias[s * M + m] : 0);
      }
  },

  quant_module_conv({ p, i: [R, S, M, reach, format, compute, parts, ...J] }) {
    const [y, x] = [p[0]!, p[1]!];
    for (let q = 0; q < parts; q++) {
      const [w, bias, K] = [p[2 + 2 * q]!, p[3 + 2 * q], reach * J[q] * M];
      for (let r = 0; r < R; r++)
        for (let s = 0; s < S; s++) {
          // Taps in the order of the weights: token, module, channel.
          const taps = Float64Array.from({ length: K }, (_, k) => {
            const [t, j, m] = [Math.floor(k / (J[q] * M)), Math.floor(k / M) % J[q], k % M];
            const from = s + j - (J[q] - 1) / 2;
            return from < 0 || from >= S ? 0 : x[((r * reach + t) * S + from) * M + m];
          });
          const a = activations(taps, 0, K, format, compute);
          for (let o = 0; o < M; o++)
            y[((r * parts + q) * S + s) * M + o] = dot(a, w, format, o, K) + (bias ? bias[o] : 0);
        }
    }
  },
};
