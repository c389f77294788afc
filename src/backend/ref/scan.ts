// The simple recurrent unit, and rows of tokens joined by segment.
import type { RefArray, RefKernel } from './types.ts';

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const root3 = Math.sqrt(3);

/** Whether the state goes on from token t - 1. */
const goesOn = (seg: RefArray | null | undefined, b: number, t: number, T: number): boolean =>
  t > 0 && (!seg || seg[b * T + t] === seg[b * T + t - 1]);

/** The state before token t of row b; with `each`, every token has its own to begin with. */
function before(
  state: RefArray,
  initial: RefArray | null | undefined,
  seg: RefArray | null | undefined,
  [b, t, j]: readonly number[],
  [T, n, each]: readonly number[],
): number {
  if (goesOn(seg, b, t, T)) return state[(b * T + t - 1) * n + j];
  if (each) return initial ? initial[(b * T + t) * n + j] : 0;
  return t === 0 && initial ? initial[b * n + j] : 0;
}

export const scan: Record<string, RefKernel> = {
  sru({ p, i: [B, T, n, each] }) {
    const [out, state, x, z, initial, seg] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4], p[5]];
    for (let b = 0; b < B; b++)
      for (let t = 0; t < T; t++)
        for (let j = 0; j < n; j++) {
          const [row, at] = [(b * T + t) * 3 * n + j, (b * T + t) * n + j];
          const [r, f, y] = [sigmoid(z[row]), sigmoid(z[row + n]), z[row + 2 * n]];
          state[at] = f * before(state, initial, seg, [b, t, j], [T, n, each]) + (1 - f) * y;
          out[at] = r * state[at] + root3 * (1 - r) * x[at];
        }
  },

  sru_bwd({ p, i: [B, T, n, each] }) {
    const [dx, dz, dinitial, dout, dstate] = [p[0]!, p[1]!, p[2], p[3], p[4]];
    const [x, z, state, initial, seg] = [p[5]!, p[6]!, p[7]!, p[8], p[9]];
    for (let b = 0; b < B; b++)
      for (let j = 0; j < n; j++) {
        let later = 0;
        for (let t = T - 1; t >= 0; t--) {
          const [row, at] = [(b * T + t) * 3 * n + j, (b * T + t) * n + j];
          const [r, f, y] = [sigmoid(z[row]), sigmoid(z[row + n]), z[row + 2 * n]];
          const g = dout ? dout[at] : 0;
          dx[at] = root3 * (1 - r) * g;
          dz[row] = g * (state[at] - root3 * x[at]) * r * (1 - r);
          const dc = later + g * r + (dstate ? dstate[at] : 0);
          dz[row + n] = dc * (before(state, initial, seg, [b, t, j], [T, n, each]) - y) * f * (1 - f);
          dz[row + 2 * n] = dc * (1 - f);
          const on = goesOn(seg, b, t, T);
          if (dinitial && each) dinitial[at] = on ? 0 : dc * f;
          if (dinitial && !each && t === 0) dinitial[b * n + j] = dc * f;
          later = on ? dc * f : 0;
        }
        if (dinitial && !each && T === 0) dinitial[b * n + j] = 0;
      }
  },

  join_segments({ p, i: [B, Ta, Tb] }) {
    const [from, segments, positions, place, a, b] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]!, p[5]!];
    const N = Ta + Tb;
    for (let row = 0; row < B; row++) {
      const of = (k: number): number => (k < Ta ? a[row * Ta + k] : b[row * Tb + k - Ta]);
      const rank = (k: number): number => (of(k) === 0 ? Number.POSITIVE_INFINITY : of(k));
      const order = Array.from({ length: N }, (_, k) => k).sort((k, l) =>
        rank(k) === rank(l) ? k - l : rank(k) - rank(l),
      );
      order.forEach((k, at) => {
        from[row * N + at] = row * N + k;
        segments[row * N + at] = of(k);
        positions[row * N + at] =
          of(k) !== 0 && at > 0 && of(order[at - 1]) === of(k) ? positions[row * N + at - 1] + 1 : 0;
        if (k >= Ta) place[row * Tb + k - Ta] = row * N + at;
      });
    }
  },
};
