// Units as records: packing, the layer that uses one of each block, and the choice.
import { bf16Bits, bf16Value } from '../dtype.ts';
import { checkIndex } from './common.ts';
import { GROUP, Q4, Q8, q4Levels, quantisedRow } from './quant-format.ts';
import { groupCodes } from './quant-pack.ts';
import type { RefArray, RefKernel } from './types.ts';
import { refOptions } from './types.ts';

const [BF16] = [2];
const padded = (d: number): number => Math.ceil(d / 64) * 64;
const codeBytes = (format: number, d: number): number => padded(d) * [1, 0.5, 2, 4][format];
export const partBytes = (format: number, d: number): number =>
  Math.ceil((codeBytes(format, d) + (format <= Q4 ? (padded(d) / GROUP) * 2 : 0)) / 64) * 64;

const word = new DataView(new ArrayBuffer(4));
const q4At = (k: number): number => Math.floor(k / 64) * 32 + (k % 32);
const q4Shift = (k: number): number => (k % 64 < 32 ? 0 : 4);
const half = (b: RefArray, at: number): number => bf16Value(b[at] | (b[at + 1] << 8));

function put(b: RefArray, at: number, bits: number): void {
  b[at] = bits & 255;
  b[at + 1] = bits >> 8;
}

/** Value k of a part. */
function valueAt(b: RefArray, format: number, k: number, d: number): number {
  if (format === BF16) return half(b, 2 * k);
  if (format > BF16) {
    for (let j = 0; j < 4; j++) word.setUint8(j, b[4 * k + j]);
    return word.getFloat32(0, true);
  }
  const scale = half(b, codeBytes(format, d) + 2 * Math.floor(k / GROUP));
  return scale * (format === Q8 ? (b[k] << 24) >> 24 : q4Levels[(b[q4At(k)] >> q4Shift(k)) & 15]);
}

function packPart(b: RefArray, format: number, d: number, value: (k: number) => number): void {
  for (let k0 = 0; k0 < padded(d); k0 += GROUP) {
    const x = Array.from({ length: GROUP }, (_, k) => (k0 + k < d ? value(k0 + k) : 0));
    if (format > Q4)
      x.forEach((v, k) => {
        if (format === BF16) put(b, 2 * (k0 + k), bf16Bits(v));
        else {
          word.setFloat32(0, v, true);
          for (let j = 0; j < 4; j++) b[4 * (k0 + k) + j] = word.getUint8(j);
        }
      });
    else {
      const { scale, codes } = groupCodes(x, format, null);
      put(b, codeBytes(format, d) + (2 * k0) / GROUP, bf16Bits(scale));
      codes.forEach((code, k) => {
        if (format === Q8) b[k0 + k] = (code - 128) & 255;
        else b[q4At(k0 + k)] |= code << q4Shift(k0 + k);
      });
    }
  }
}

export const quantUnits: Record<string, RefKernel> = {
  unit_pack({ p, i: [F, d, format, columns] }) {
    const [out, up, gate, down] = [p[0]!, p[1]!, p[2], p[3]!];
    const part = partBytes(format, d);
    const record = part * (gate ? 3 : 2);
    out.fill(0, 0, F * record);
    for (let u = 0; u < F; u++) {
      const parts = [up, ...(gate ? [gate] : []), down];
      parts.forEach((w, m) => {
        const byColumn = m === parts.length - 1 && columns === 1;
        const at = u * record + m * part;
        packPart(out.subarray(at, at + part), format, d, (k) => w[byColumn ? k * F + u : u * d + k]);
      });
    }
  },

  sparse_units({ p, i: [rows, d, F, N, format, gated], f: [alpha] }) {
    const [y, touched, x, choice, records] = [p[0]!, p[1], p[2]!, p[3]!, p[4]!];
    const [bias, gateBias, weight, outBias, addend] = [p[5], p[6], p[7], p[8], p[9]];
    const [A, part] = [F / N, partBytes(format, d)];
    const record = part * (gated ? 3 : 2);
    const [units, seconds] = [new Set<string>(), new Set<string>()];
    let [pairs, secondPairs] = [0, 0];
    for (let k = 0; k < rows * A; k++) checkIndex(choice[k], N);
    for (let r = 0; r < rows; r++) {
      const a =
        format <= Q4 && refOptions.roundCompute
          ? quantisedRow(x, r * d, d)
          : Float64Array.from({ length: d }, (_, k) => x[r * d + k]);
      const sum = new Float64Array(d);
      for (let b = 0; b < A; b++) {
        const u = b * N + choice[r * A + b];
        const own = (m: number): RefArray => records.subarray(u * record + m * part, u * record + (m + 1) * part);
        const dot = (m: number): number => a.reduce((s, v, k) => s + v * valueAt(own(m), format, k, d), 0);
        // Rows are read 64 at a time.
        const key = `${Math.floor(r / 64)}:${u}`;
        units.add(key);
        pairs++;
        let h = dot(0) + (bias ? bias[u] : 0);
        const g = gated ? dot(1) + (gateBias ? gateBias[u] : 0) : h;
        if (g <= 0) continue;
        if (gated) h *= g;
        seconds.add(key);
        secondPairs++;
        if (weight) h *= weight[r * A + b];
        const down = own(gated ? 2 : 1);
        for (let k = 0; k < d; k++) sum[k] += h * valueAt(down, format, k, d);
      }
      for (let k = 0; k < d; k++)
        y[r * d + k] = alpha * sum[k] + (outBias ? outBias[k] : 0) + (addend ? addend[r * d + k] : 0);
    }
    touched?.set([units.size, seconds.size, pairs, secondPairs]);
  },

  unit_choice({ p, i: [rows, d, r, F, N, layout] }) {
    const [choice, x, low, logits, bias] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]];
    const pairs = Math.ceil(r / 2);
    const weight = (j: number, k: number): number => {
      if (layout === 0) return logits[j * r + k];
      const [strip, unit] = [Math.floor(j / 16), j % 16];
      if (layout === 1) return logits[(strip * r + k) * 16 + unit];
      return logits[((strip * pairs + Math.floor(k / 2)) * 16 + unit) * 2 + (k % 2)];
    };
    for (let row = 0; row < rows; row++) {
      const t = Array.from({ length: r }, (_, k) => {
        let sum = 0;
        for (let c = 0; c < d; c++) sum += x[row * d + c] * low[k * d + c];
        return sum;
      });
      for (let b = 0; b < F / N; b++) {
        let [best, at] = [Number.NEGATIVE_INFINITY, 0];
        for (let n = 0; n < N; n++) {
          const j = b * N + n;
          const z = t.reduce((sum, v, k) => sum + v * weight(j, k), 0) + (bias ? bias[j] : 0);
          if (z > best) [best, at] = [z, n];
        }
        choice[row * (F / N) + b] = at;
      }
    }
  },
};
