// Weights into blocks and back, and rows of a table in blocks.
import { bf16Bits } from '../dtype.ts';
import { checkIndex, roundToBf16 } from './common.ts';
import { BF16X16, GROUP, matrixBytes, nearestEven, placeOf, Q8, q4Levels, weightAt } from './quant-format.ts';
import type { RefArray, RefKernel } from './types.ts';

const word = new DataView(new ArrayBuffer(4));

/** The code of the level nearest to u. */
const nearestLevel = (u: number): number => {
  let q = 0;
  while (q < 15 && u > (q4Levels[q] + q4Levels[q + 1]) / 2) q++;
  return q;
};

const inverse = (s: number): number => (Math.abs(s) > 1e-37 ? 1 / s : 0);

/** With the codes that scale s gives, the least-squares scale, and what it takes off the squared error. */
function fit(x: readonly number[], s: number): { scale: number; gain: number } {
  let [xl, ll] = [0, 0];
  for (const v of x) {
    const level = q4Levels[nearestLevel(v * inverse(s))];
    xl += v * level;
    ll += level * level;
  }
  const scale = ll > 0 ? xl / ll : 0;
  return { scale, gain: scale * xl };
}

/** The best scale of either sign for a group of q4: several ends of the table, then two more fits. */
function q4Scale(x: readonly number[]): number {
  const top = Math.max(...x.map(Math.abs));
  let best = { scale: 0, gain: 0 };
  for (let t = 0; t < 16; t++) {
    const end = 79 + ((146 - 79) / 7) * Math.floor(t / 2);
    const tried = fit(x, (t % 2 ? -top : top) / end);
    if (tried.gain > best.gain) best = tried;
  }
  for (let t = 0; t < 2; t++) {
    const tried = fit(x, best.scale);
    if (tried.gain >= best.gain) best = tried;
  }
  return best.scale;
}

/** Scale and codes of a group; `given` replaces the scale that would be chosen. */
export function groupCodes(
  x: readonly number[],
  format: number,
  given: number | null,
): { scale: number; codes: number[] } {
  if (!x.every(Number.isFinite)) return { scale: Number.NaN, codes: x.map(() => (format === Q8 ? 128 : 8)) };
  const chosen = given ?? (format === Q8 ? Math.max(...x.map(Math.abs)) / 127 : q4Scale(x));
  const scale = roundToBf16(chosen);
  const codes = x.map((v) => {
    const u = v * inverse(scale);
    return format === Q8 ? Math.max(-127, Math.min(127, nearestEven(u))) + 128 : nearestLevel(u);
  });
  return { scale, codes };
}

function put16(out: RefArray, at: number, bits: number): void {
  out[at] = bits & 255;
  out[at + 1] = bits >> 8;
}

export const quantPack: Record<string, RefKernel> = {
  quant_pack({ p, i: [batch, N, K, format] }) {
    const [out, w, scales] = [p[0]!, p[1]!, format <= 1 ? p[2] : null];
    const bytes = matrixBytes(format, N, K);
    const [rows, inputs] = [Math.ceil(N / 16) * 16, Math.ceil(K / 64) * 64];
    out.fill(0, 0, batch * bytes);
    for (let b = 0; b < batch; b++) {
      const matrix = out.subarray(b * bytes, (b + 1) * bytes);
      const value = (row: number, k: number): number => (row < N && k < K ? w[(b * N + row) * K + k] : 0);
      for (let row = 0; row < rows; row++)
        for (let k0 = 0; k0 < inputs; k0 += GROUP) {
          const x = Array.from({ length: GROUP }, (_, k) => value(row, k0 + k));
          if (format >= BF16X16) {
            x.forEach((v, k) => {
              const { at } = placeOf(format, row, k0 + k, K);
              if (format === BF16X16) put16(matrix, at, bf16Bits(v));
              else {
                word.setFloat32(0, v, true);
                for (let j = 0; j < 4; j++) matrix[at + j] = word.getUint8(j);
              }
            });
            continue;
          }
          const groups = Math.ceil(K / GROUP);
          const own = row < N && k0 < K ? scales?.[(b * N + row) * groups + k0 / GROUP] : 0;
          const { scale, codes } = groupCodes(x, format, scales ? own! : null);
          put16(matrix, placeOf(format, row, k0, K).scale, bf16Bits(scale));
          codes.forEach((code, k) => {
            const { at, shift } = placeOf(format, row, k0 + k, K);
            matrix[at] |= code << shift;
          });
        }
    }
  },

  quant_unpack({ p, i: [batch, N, K, format] }) {
    const [out, packed] = [p[0]!, p[1]!];
    const bytes = matrixBytes(format, N, K);
    for (let b = 0; b < batch; b++)
      for (let row = 0; row < N; row++)
        for (let k = 0; k < K; k++)
          out[(b * N + row) * K + k] = weightAt(packed.subarray(b * bytes), format, row, k, K);
  },

  quant_embedding({ p, i: [n, d, rows, format] }) {
    const [out, table, ids] = [p[0]!, p[1]!, p[2]!];
    for (let k = 0; k < n; k++) {
      const id = checkIndex(ids[k], rows);
      for (let c = 0; c < d; c++) out[k * d + c] = weightAt(table, format, id, c, d);
    }
  },
};
