// One-shot rounding and removal as the papers write it (GPTQ, SparseGPT): an inverse, its Cholesky factor, and a loop
// over columns that corrects all later ones at once.
import { checkIndex } from './common.ts';
import { GROUP, nearestEven, Q4, q4Levels } from './quant-format.ts';
import { groupCodes } from './quant-pack.ts';
import type { RefKernel } from './types.ts';

const COLUMNS = 128;
const KEEP = 2;

/** The inverse of a symmetric matrix by Gauss-Jordan elimination; null when it has none. */
function inverse(h: Float64Array, n: number): Float64Array | null {
  const a = Float64Array.from(h);
  const out = new Float64Array(n * n);
  for (let k = 0; k < n; k++) out[k * n + k] = 1;
  for (let k = 0; k < n; k++) {
    const pivot = a[k * n + k];
    if (!(pivot > 0)) return null;
    for (const m of [a, out]) for (let j = 0; j < n; j++) m[k * n + j] /= pivot;
    for (let i = 0; i < n; i++) {
      const f = a[i * n + k];
      if (i === k || f === 0) continue;
      for (const m of [a, out]) for (let j = 0; j < n; j++) m[i * n + j] -= f * m[k * n + j];
    }
  }
  return out;
}

/** Marks the `count` least of `score`, ties to the first. */
function leastOf(score: readonly number[], count: number): boolean[] {
  const order = score.map((_, j) => j).sort((a, b) => score[a] - score[b] || a - b);
  const chosen = new Set(order.slice(0, Math.max(0, count)));
  return score.map((_, j) => chosen.has(j));
}

export const obs: Record<string, RefKernel> = {
  inverse_factor({ p, i: [K], f: [damp] }) {
    const [out, h, order] = [p[0]!, p[2]!, p[3]];
    const at = (k: number): number => (order ? checkIndex(order[k], K) : k);
    const a = new Float64Array(K * K);
    for (let i = 0; i < K; i++) for (let j = 0; j < K; j++) a[i * K + j] = h[at(i) * K + at(j)];
    for (let k = 0; k < K; k++) if (a[k * K + k] === 0) a[k * K + k] = 1;
    let mean = 0;
    for (let k = 0; k < K; k++) mean += a[k * K + k] / K;
    for (let k = 0; k < K; k++) a[k * K + k] += damp * mean;
    const m = inverse(a, K);
    if (!m) {
      out.fill(Number.NaN, 0, K * K);
      return;
    }
    // m = L L^T, U = L^T.
    for (let j = 0; j < K; j++)
      for (let i = j; i < K; i++) {
        let s = m[i * K + j];
        for (let k = 0; k < j; k++) s -= out[i * K + k] * out[j * K + k];
        out[i * K + j] = i === j ? Math.sqrt(s) : s / out[j * K + j];
      }
    for (let i = 0; i < K; i++) for (let j = 0; j < i; j++) out[j * K + i] = out[i * K + j];
  },

  obs_round({ p, i: [N, K, format, least, among, zeros], f: [sparsity] }) {
    const [out, scales, weights, u, order] = [p[0]!, p[1], p[2]!, p[3]!, p[4]];
    const at = Array.from({ length: K }, (_, k) => (order ? checkIndex(order[k], K) : k));
    const groupAt = at.map((k) => Math.floor(k / GROUP));
    const share = (k: number): number => Math.floor(sparsity * k + 0.5);
    for (let row = 0; row < N; row++) {
      const w = at.map((k) => weights[row * K + k]);
      const gone = w.map((x) => zeros === 1 && x === 0);
      const mark = (from: number, to: number, count: number): void => {
        const score = w.slice(from, to).map((x, j) => (x / u[(from + j) * K + from + j]) ** 2);
        leastOf(score, count).forEach((yes, j) => {
          if (yes) gone[from + j] = true;
        });
      };
      let scale = 0;
      for (let j = 0; j < K; j++) {
        const block = Math.min(K, j + COLUMNS);
        if (sparsity > 0 && among === 0 && j % COLUMNS === 0) mark(j, block, share(block) - share(j));
        if (among > 0 && j % among === 0) mark(j, Math.min(K, j + among), least - Math.max(0, j + among - K));
        if (format !== KEEP && (j === 0 || groupAt[j] !== groupAt[j - 1])) {
          const members = w.filter((_, t) => t >= j && groupAt[t] === groupAt[j]);
          const padded = [...members, ...new Array<number>(GROUP - members.length).fill(0)];
          scale = groupCodes(padded, format, null).scale;
          scales![row * Math.ceil(K / GROUP) + groupAt[j]] = scale;
        }
        const q = gone[j] ? 0 : rounded(w[j], format, scale);
        const e = (w[j] - q) / u[j * K + j];
        w[j] = q;
        for (let t = j + 1; t < K; t++) w[t] -= e * u[j * K + t];
      }
      at.forEach((k, j) => {
        out[row * K + k] = w[j];
      });
    }
  },
};

function rounded(x: number, format: number, scale: number): number {
  if (format === KEEP) return x;
  if (Math.abs(scale) <= 1e-37) return 0;
  const y = x / scale;
  if (format !== Q4) return Math.max(-127, Math.min(127, nearestEven(y))) * scale;
  let q = 0;
  while (q < 15 && y > (q4Levels[q] + q4Levels[q + 1]) / 2) q++;
  return q4Levels[q] * scale;
}
