// Attention over hashed chunks by its definition (Kitaev et al. 2020): every pair of every round by itself.
//   u_j = q_j / sqrt(|q_j|^2 + 1e-12),  x_ij = scale q_i.u_j - ln N_ij,  lse_i over all pairs that any round sees,
//   out_i = sum_r sum_j exp(x_ij - lse_i) v_j;  a query that sees nothing gives its own v, and lse = -inf.
import { checkIndex, logSumExp } from './common.ts';
import type { RefArray, RefKernel } from './types.ts';

interface Lsh {
  readonly B: number;
  readonly T: number;
  readonly H: number;
  readonly D: number;
  readonly R: number;
  readonly chunks: number;
  readonly back: number;
  readonly dedupe: boolean;
  readonly scale: number;
  readonly place: RefArray;
  readonly buckets: RefArray | null;
  readonly segments: RefArray | null;
}

function lshOf(i: readonly number[], f: readonly number[], tensors: readonly (RefArray | null)[]): Lsh {
  const [B, T, H, D, R, C, back, dedupe] = i;
  const chunks = Math.ceil(T / C);
  const [place, buckets, segments] = tensors;
  return { B, T, H, D, R, chunks, back, dedupe: dedupe === 1, scale: f[0], place: place!, buckets, segments };
}

/** Whether query i sees key j in round r of a head. */
function seen(s: Lsh, head: number, r: number, i: number, j: number): boolean {
  const row = (head * s.R + r) * s.T;
  const batch = Math.floor(head / s.H) * s.T;
  if (j >= i || (s.segments && s.segments[batch + i] !== s.segments[batch + j])) return false;
  if (s.buckets && s.buckets[row + i] !== s.buckets[row + j]) return false;
  return (s.place[row + i] - s.place[row + j] + s.chunks) % s.chunks <= s.back;
}

interface Pair {
  readonly j: number;
  readonly x: number;
}

/** Where the query-key vector of a token begins; its value lies H D further on. */
const tokenAt = (s: Lsh, head: number, t: number): number =>
  (Math.floor(head / s.H) * s.T + t) * 2 * s.H * s.D + (head % s.H) * s.D;
const outAt = (s: Lsh, head: number, t: number): number =>
  (Math.floor(head / s.H) * s.T + t) * s.H * s.D + (head % s.H) * s.D;

function inverseNorm(s: Lsh, x: RefArray, at: number): number {
  let sum = 1e-12;
  for (let d = 0; d < s.D; d++) sum += x[at + d] ** 2;
  return 1 / Math.sqrt(sum);
}

/** Pairs of query i, one for each round that sees them. */
function pairs(s: Lsh, x: RefArray, head: number, i: number): Pair[] {
  const out: Pair[] = [];
  const qi = tokenAt(s, head, i);
  for (let j = 0; j < i; j++) {
    let times = 0;
    for (let r = 0; r < s.R; r++) times += +seen(s, head, r, i, j);
    if (times === 0) continue;
    const kj = tokenAt(s, head, j);
    let dot = 0;
    for (let d = 0; d < s.D; d++) dot += x[qi + d] * x[kj + d];
    const logit = s.scale * dot * inverseNorm(s, x, kj) - (s.dedupe ? Math.log(times) : 0);
    for (let n = 0; n < times; n++) out.push({ j, x: logit });
  }
  return out;
}

export const lsh: Record<string, RefKernel> = {
  lsh_hash({ p, i }) {
    const [B, T, H, D, R, f1, f2, tok] = i;
    const [buckets, x, rotations] = [p[0]!, p[1]!, p[2]!];
    const halves = [f1 / 2, f2 / 2];
    for (let head = 0; head < B * H; head++)
      for (let r = 0; r < R; r++)
        for (let t = 0; t < T; t++) {
          const from = (Math.floor(head / H) * T + t) * tok + (head % H) * D;
          let axis = ((head % H) * R + r) * (halves[0] + halves[1]);
          let [bucket, unit] = [0, 1];
          for (const half of halves) {
            const y = Array.from({ length: half }, (_, k) => {
              let dot = 0;
              for (let d = 0; d < D; d++) dot += x[from + d] * rotations[(axis + k) * D + d];
              return dot;
            });
            let [best, index] = [Number.NEGATIVE_INFINITY, 0];
            [...y, ...y.map((v) => -v)].forEach((v, k) => {
              if (v > best) [best, index] = [v, k];
            });
            bucket += unit * index;
            [axis, unit] = [axis + half, unit * 2 * half];
          }
          buckets[(head * R + r) * T + t] = bucket;
        }
  },

  lsh_sort({ p, i }) {
    const [B, T, H, R, nb, C] = i;
    const [order, place, buckets, segments] = [p[0]!, p[1]!, p[2], p[3]];
    if (buckets) for (let k = 0; k < B * H * R * T; k++) checkIndex(buckets[k], nb);
    for (let row = 0; row < B * H * R; row++) {
      const batch = Math.floor(row / (H * R)) * T;
      let run = 0;
      const keys = Array.from({ length: T }, (_, t) => {
        if (segments && t > 0 && segments[batch + t] !== segments[batch + t - 1]) run++;
        return { t, run, bucket: buckets ? buckets[row * T + t] : 0 };
      });
      keys.sort((a, b) => a.run - b.run || a.bucket - b.bucket || a.t - b.t);
      for (let begin = 0; begin < T; begin += C) {
        const chunk = keys.slice(begin, begin + C).map(({ t }) => t);
        chunk.sort((a, b) => a - b);
        chunk.forEach((t, k) => {
          order[row * T + begin + k] = t;
          place[row * T + t] = begin / C;
        });
      }
    }
  },

  lsh_attention({ p, i: ints, f }) {
    const s = lshOf(ints, f, [p[4], p[5], p[6]]);
    const [out, lse, x] = [p[0]!, p[1]!, p[2]!];
    const apart = s.H * s.D;
    for (let head = 0; head < s.B * s.H; head++)
      for (let i = 0; i < s.T; i++) {
        const list = pairs(s, x, head, i);
        const row = logSumExp(
          Float64Array.from(list, ({ x }) => x),
          0,
          list.length,
        );
        lse[head * s.T + i] = row;
        const to = outAt(s, head, i);
        const own = tokenAt(s, head, i) + apart;
        for (let d = 0; d < s.D; d++) out[to + d] = list.length === 0 ? x[own + d] : 0;
        for (const { j, x: logit } of list) {
          const vj = tokenAt(s, head, j) + apart;
          for (let d = 0; d < s.D; d++) out[to + d] += Math.exp(logit - row) * x[vj + d];
        }
      }
  },

  lsh_attention_bwd({ p, i: ints, f }) {
    const s = lshOf(ints, f, [p[6], p[7], p[8]]);
    const [dx, dout, x, out, lse] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]!];
    const apart = s.H * s.D;
    dx.fill(0, 0, s.B * s.T * 2 * apart);
    for (let head = 0; head < s.B * s.H; head++)
      for (let i = 0; i < s.T; i++) {
        const [qi, oi, row] = [tokenAt(s, head, i), outAt(s, head, i), lse[head * s.T + i]];
        const list = pairs(s, x, head, i);
        if (list.length === 0) for (let d = 0; d < s.D; d++) dx[qi + apart + d] += dout[oi + d];
        let rowDot = 0;
        for (let d = 0; d < s.D; d++) rowDot += dout[oi + d] * out[oi + d];
        for (const { j, x: logit } of list) {
          const kj = tokenAt(s, head, j);
          const inverse = inverseNorm(s, x, kj);
          const P = Math.exp(logit - row);
          let [dP, dot] = [0, 0];
          for (let d = 0; d < s.D; d++) {
            dP += dout[oi + d] * x[kj + apart + d];
            dot += x[qi + d] * x[kj + d];
          }
          const dS = s.scale * P * (dP - rowDot);
          for (let d = 0; d < s.D; d++) {
            dx[kj + apart + d] += P * dout[oi + d];
            dx[qi + d] += dS * inverse * x[kj + d];
            // d (q / |q|) = (1 - u u^T) / |q|
            dx[kj + d] += dS * inverse * (x[qi + d] - x[kj + d] * dot * inverse * inverse);
          }
        }
      }
  },
};
