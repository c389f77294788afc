// Attention to blocks of keys that each query has chosen, and the choice (Yuan et al. 2025), from whole score matrices.
import { AnsatzError } from '../errors.ts';
import { logSumExp } from './common.ts';
import type { RefArray, RefKernel } from './types.ts';

/** Blocks on a query's list: ascending, none beyond its own, -1 in the places that are left. */
function blocksOf(index: RefArray, row: number, n: number, own: number): number[] {
  const places = Array.from(index.subarray(row * n, (row + 1) * n));
  const end = places.indexOf(-1);
  const list = end < 0 ? places : places.slice(0, end);
  list.forEach((j, k) => {
    if (j <= (k === 0 ? -1 : list[k - 1]) || j > own)
      throw new AnsatzError(`index ${j} out of range: limit ${own + 1}`);
  });
  const stray = end < 0 ? undefined : places.slice(end).find((j) => j !== -1);
  if (stray !== undefined) throw new AnsatzError(`index ${stray} out of range: limit 0`);
  return list;
}

interface Sizes {
  readonly B: number;
  readonly T: number;
  readonly H: number;
  readonly Hkv: number;
  readonly D: number;
  readonly size: number;
  readonly n: number;
}

const sizesOf = ([B, T, H, Hkv, D, size, n]: readonly number[]): Sizes => ({ B, T, H, Hkv, D, size, n });

/** Keys that a query sees: those on its list's blocks, up to itself, of its segment. */
function keysOf(s: Sizes, index: RefArray, seg: RefArray | null, b: number, t: number, kv: number): number[] {
  const own = Math.floor(t / s.size);
  return blocksOf(index, (b * s.T + t) * s.Hkv + kv, s.n, own).flatMap((block) =>
    Array.from({ length: s.size }, (_, k) => block * s.size + k).filter(
      (j) => j <= t && (!seg || seg[b * s.T + j] === seg[b * s.T + t]),
    ),
  );
}

/** Visits every query of every head with the keys that it sees. */
function forEachQuery(
  s: Sizes,
  index: RefArray,
  seg: RefArray | null,
  visit: (at: {
    b: number;
    t: number;
    h: number;
    q: number;
    row: number;
    keys: number[];
    keyAt(j: number): number;
  }) => void,
): void {
  const group = s.H / s.Hkv;
  for (let b = 0; b < s.B; b++)
    for (let t = 0; t < s.T; t++)
      for (let h = 0; h < s.H; h++) {
        const kv = Math.floor(h / group);
        visit({
          ...{ b, t, h, row: (b * s.H + h) * s.T + t, q: ((b * s.T + t) * s.H + h) * s.D },
          keys: keysOf(s, index, seg, b, t, kv),
          keyAt: (j) => ((b * s.T + j) * s.Hkv + kv) * s.D,
        });
      }
}

const dot = (x: RefArray, i: number, y: RefArray, j: number, D: number): number => {
  let sum = 0;
  for (let d = 0; d < D; d++) sum += x[i + d] * y[j + d];
  return sum;
};

export const blockAttention: Record<string, RefKernel> = {
  block_attention({ p, i, f: [scale] }) {
    const s = sizesOf(i);
    const [out, lse, q, k, v, index] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]!, p[5]!];
    forEachQuery(s, index, p[6], ({ q: at, row, keys, keyAt }) => {
      const S = Float64Array.from(keys, (j) => scale * dot(q, at, k, keyAt(j), s.D));
      lse[row] = logSumExp(S, 0, S.length);
      for (let d = 0; d < s.D; d++)
        out[at + d] = keys.reduce((sum, j, m) => sum + Math.exp(S[m] - lse[row]) * v[keyAt(j) + d], 0);
    });
  },

  block_attention_bwd({ p, i, f: [scale] }) {
    const s = sizesOf(i);
    const [dq, dk, dv, dout, q, k, v, out, lse, index] = Array.from({ length: 10 }, (_, n) => p[n]!);
    dq.fill(0, 0, s.B * s.T * s.H * s.D);
    for (const x of [dk, dv]) x.fill(0, 0, s.B * s.T * s.Hkv * s.D);
    forEachQuery(s, index, p[10], ({ q: at, row, keys, keyAt }) => {
      const delta = dot(dout, at, out, at, s.D);
      for (const j of keys) {
        const P = Math.exp(scale * dot(q, at, k, keyAt(j), s.D) - lse[row]);
        const dS = P * (dot(dout, at, v, keyAt(j), s.D) - delta);
        for (let d = 0; d < s.D; d++) {
          dv[keyAt(j) + d] += P * dout[at + d];
          dq[at + d] += scale * dS * k[keyAt(j) + d];
          dk[keyAt(j) + d] += scale * dS * q[at + d];
        }
      }
    });
  },

  block_select({ p, i, f: [scale] }) {
    const [B, T, H, Hkv, D, count, length, stride, size, n, initial, local] = i;
    const [index, importance, q, kc, lse, seg, segC] = [p[0]!, p[1], p[2]!, p[3]!, p[4]!, p[5], p[6]];
    const [blocks, group] = [Math.ceil(T / size), H / Hkv];
    /** sum over heads of the probabilities of each compressed block, spread over the blocks of keys that it overlaps. */
    const weigh = (b: number, t: number, kv: number): Float64Array => {
      const values = new Float64Array(blocks);
      for (let h = kv * group; h < (kv + 1) * group; h++)
        for (let c = 0; c < count && c * stride + length <= t + 1; c++) {
          if (seg && segC && segC[b * count + c] !== seg[b * T + t]) continue;
          const x = scale * dot(q, ((b * T + t) * H + h) * D, kc, ((b * count + c) * Hkv + kv) * D, D);
          for (let cell = 0; cell < length / stride; cell++)
            values[Math.floor((c + cell) / (size / stride))] += Math.exp(x - lse[(b * H + h) * T + t]);
        }
      return values;
    };
    for (let b = 0; b < B; b++)
      for (let t = 0; t < T; t++)
        for (let kv = 0; kv < Hkv; kv++) {
          const row = (b * T + t) * Hkv + kv;
          const values = weigh(b, t, kv);
          importance?.set(values, row * blocks);
          const holds = (j: number): boolean => {
            if (!seg) return true;
            const of = Array.from(seg.subarray(b * T + j * size, b * T + Math.min(T, (j + 1) * size)));
            return Math.min(...of) <= seg[b * T + t] && seg[b * T + t] <= Math.max(...of);
          };
          const candidates = Array.from({ length: Math.floor(t / size) + 1 }, (_, j) => j).filter(holds);
          const fixed = candidates.filter((_, k) => k < initial || k >= candidates.length - local);
          const rest = candidates.filter((j) => !fixed.includes(j)).sort((a, c) => values[c] - values[a] || a - c);
          const list = [...fixed, ...rest.slice(0, n - fixed.length)].sort((a, c) => a - c);
          for (let k = 0; k < n; k++) index[row * n + k] = list[k] ?? -1;
        }
  },
};
