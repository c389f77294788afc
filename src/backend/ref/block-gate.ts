// Units in blocks of which a low-rank controller picks one (Jaszczur et al. 2021), and how often each is picked.
import { checkIndex } from './common.ts';
import { randomWords, unit } from './random.ts';
import type { RefArray, RefKernel } from './types.ts';

const EDGE = 1e-6;

/** Gumbel noise of element k of a stream: -ln(-ln u), u in [EDGE, 1 - EDGE]. */
export function gumbel(state: RefArray, stream: number, k: number): number {
  const u = EDGE + (1 - 2 * EDGE) * unit(randomWords(state, stream, Math.floor(k / 4))[k % 4]);
  return -Math.log(-Math.log(u));
}

/** Group of each row; -1 outside all groups. */
function groupsOf(offsets: RefArray | null, rows: number): (row: number) => number {
  if (!offsets) return () => 0;
  for (const end of offsets) checkIndex(end, rows + 1);
  return (row) => {
    for (let e = 0; e + 1 < offsets.length; e++) if (row >= offsets[e] && row < offsets[e + 1]) return e;
    return -1;
  };
}

interface Controller {
  readonly t: RefArray;
  readonly c2: RefArray;
  readonly cb: RefArray | null;
  readonly F: number;
  readonly r: number;
}

/** Logits of block b of a row, by the controller of group e. */
function logits({ t, c2, cb, F, r }: Controller, row: number, e: number, b: number, N: number): number[] {
  return Array.from({ length: N }, (_, n) => {
    const j = b * N + n;
    let z = cb ? cb[e * F + j] : 0;
    for (let k = 0; k < r; k++) z += t[row * r + k] * c2[(e * F + j) * r + k];
    return z;
  });
}

function softmax(z: readonly number[]): number[] {
  const top = Math.max(...z);
  if (top === Number.NEGATIVE_INFINITY) return z.map(() => 0);
  const e = z.map((x) => Math.exp(x - top));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / sum);
}

/** First index of the largest; NaN never wins. */
function choose(z: readonly number[]): number {
  let [best, at] = [Number.NEGATIVE_INFINITY, 0];
  z.forEach((x, n) => {
    if (x > best) [best, at] = [x, n];
  });
  return at;
}

const relu = (x: number): number => (x <= 0 ? 0 : x);

export const blockGate: Record<string, RefKernel> = {
  block_gate({ p, i: [rows, F, N, r, groups, stream, multiply], f: [tau] }) {
    const [a, index, h] = [p[0]!, p[1]!, p[2]!];
    const controller: Controller = { t: p[3]!, c2: p[4]!, cb: p[5], F, r };
    const [hard, state, recalled] = [p[7] ? p[7][0] !== 0 : true, p[8], p[9]];
    const groupOf = groupsOf(p[6]?.subarray(0, groups + 1) ?? null, rows);
    for (let row = 0; row < rows; row++) {
      const e = groupOf(row);
      for (let b = 0; b < F / N; b++) {
        const z = e < 0 ? [] : logits(controller, row, e, b, N);
        const noisy = z.map((x, n) => x + (state && tau > 0 ? tau * gumbel(state, stream, row * F + b * N + n) : 0));
        const chosen = recalled ? recalled[(row * F) / N + b] : choose(noisy);
        const prob = softmax(z);
        index[(row * F) / N + b] = e < 0 ? 0 : chosen;
        for (let n = 0; n < N; n++) {
          const at = row * F + b * N + n;
          const mask = hard ? (n === chosen ? (multiply ? prob[n] : 1) : 0) : prob[n];
          a[at] = e < 0 || mask === 0 ? 0 : relu(h[at]) * mask;
        }
      }
    }
  },

  block_gate_bwd({ p, i: [rows, F, N, r, groups, before, multiply] }) {
    const [dh, dt, dc2, dcb, da, h, index] = [p[0]!, p[1]!, p[2]!, p[3], p[4]!, p[5]!, p[6]!];
    const controller: Controller = { t: p[7]!, c2: p[8]!, cb: p[9], F, r };
    const hard = p[11] ? p[11][0] !== 0 : true;
    const groupOf = groupsOf(p[10]?.subarray(0, groups + 1) ?? null, rows);
    dt.fill(0, 0, rows * r);
    dh.fill(0, 0, rows * F);
    dc2.fill(0, 0, groups * F * r);
    dcb?.fill(0, 0, groups * F);
    for (let row = 0; row < rows; row++) {
      const e = groupOf(row);
      if (e < 0) continue;
      for (let b = 0; b < F / N; b++) {
        const prob = softmax(logits(controller, row, e, b, N));
        const chosen = index[(row * F) / N + b];
        const dm = prob.map((pn, n) => {
          const at = row * F + b * N + n;
          const up = hard && multiply ? da[at] * pn : da[at];
          const mask = hard ? Number(n === chosen) : pn;
          dh[at] = h[at] <= 0 || mask === 0 ? 0 : up * mask;
          return hard && before && n !== chosen ? 0 : up * relu(h[at]);
        });
        const mean = dm.reduce((s, g, n) => s + prob[n] * g, 0);
        prob.forEach((pn, n) => {
          const [j, dz] = [e * F + b * N + n, pn * (dm[n] - mean)];
          if (dcb) dcb[j] += dz;
          for (let k = 0; k < r; k++) {
            dt[row * r + k] += dz * controller.c2[j * r + k];
            dc2[j * r + k] += dz * controller.t[row * r + k];
          }
        });
      }
    }
  },

  choice_share({ p, i: [rows, A, N, groups] }) {
    const [share, index] = [p[0]!, p[1]!];
    const groupOf = groupsOf(p[2]?.subarray(0, groups + 1) ?? null, rows);
    const size = new Array<number>(groups).fill(0);
    share.fill(0, 0, groups * A * N);
    for (let row = 0; row < rows; row++) {
      const e = groupOf(row);
      if (e < 0) continue;
      size[e]++;
      for (let b = 0; b < A; b++) share[e * A * N + b * N + index[row * A + b]]++;
    }
    for (let k = 0; k < groups * A * N; k++) share[k] /= Math.max(1, size[Math.floor(k / (A * N))]);
  },
};
