// Routing of tokens to experts, rows in groups, and products with one matrix a group.
import { checkIndex, operand } from './common.ts';
import type { RefKernel } from './types.ts';

/** Indices in order of falling values; ties to the lowest index, NaN last. */
function falling(values: readonly number[]): number[] {
  const rank = (x: number): number => (Number.isNaN(x) ? Number.NEGATIVE_INFINITY : x);
  return values
    .map((_, k) => k)
    .sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
      return rank(x) === rank(y) ? a - b : rank(y) - rank(x);
    });
}

/** Experts that the best `keep` of `groups` groups leave. */
function allowed(values: readonly number[], groups: number, keep: number, two: boolean): Set<number> {
  const size = values.length / groups;
  const best = Array.from({ length: groups }, (_, g) => {
    const [first, second = Number.NEGATIVE_INFINITY] = values
      .slice(g * size, (g + 1) * size)
      .filter((x) => !Number.isNaN(x))
      .sort((a, b) => b - a);
    return two && size > 1 ? (first ?? Number.NEGATIVE_INFINITY) + second : (first ?? Number.NEGATIVE_INFINITY);
  });
  const kept = new Set(falling(best).slice(0, keep));
  return new Set(values.map((_, e) => e).filter((e) => kept.has(Math.floor(e / size))));
}

export const route: Record<string, RefKernel> = {
  route({ p, i: [n, E, k, R, span, capacity, byRow, order, groups, keep] }) {
    const [index, slot, pick, offsets, counts, scores] = p.map((x) => x!);
    const [bias, chosen, use] = [p[6], p[7], p[8]];
    for (let t = 0; t < n; t++) {
      const values = Array.from({ length: E }, (_, e) => scores[t * E + e] + (bias ? bias[e] : 0));
      const open = groups > 1 ? allowed(values, groups, keep, bias !== null) : null;
      const best = falling(values).filter((e) => !open || open.has(e));
      for (let j = 0; j < k; j++) {
        const r = t * k + j;
        index[r] = chosen ? checkIndex(chosen[r], E) : best[j];
        slot[r] = use && use[r] === 0 ? -1 : 0;
      }
    }
    counts.fill(0, 0, (n / span) * k * E);
    for (let r = 0; r < n * k; r++) if (slot[r] >= 0) counts[(Math.floor(r / k / span) * k + (r % k)) * E + index[r]]++;
    if (capacity > 0) {
      const size = byRow ? span : n;
      for (let first = 0; first < n; first += size) {
        const tokens = Array.from({ length: size }, (_, t) => first + t);
        const ask: number[] = [];
        const queue =
          order === 2 ? falling(tokens.map((t) => scores[t * E + index[t * k]])).map((at) => first + at) : tokens;
        if (order === 0) for (const t of tokens) for (let j = 0; j < k; j++) ask.push(t * k + j);
        else for (let j = 0; j < k; j++) for (const t of queue) ask.push(t * k + j);
        const taken = new Array<number>(E).fill(0);
        for (const r of ask) if (slot[r] >= 0 && taken[index[r]]++ >= capacity) slot[r] = -1;
      }
    }
    let at = 0;
    for (let e = 0; e < E; e++) {
      offsets[e] = at;
      for (let r = 0; r < n * k; r++)
        if (slot[r] >= 0 && index[r] === e) {
          checkIndex(at, R);
          pick[at] = r;
          at++;
        }
    }
    offsets[E] = at;
    for (let r = 0; r < at; r++) slot[pick[r]] = r;
    pick.fill(-1, at, R);
  },

  route_choice({ p, i: [n, E, take, size] }) {
    const [slot, pick, offsets, scores] = p.map((x) => x!);
    const use = p[4];
    let at = 0;
    slot.fill(-1, 0, n * E);
    for (let e = 0; e < E; e++) {
      offsets[e] = at;
      for (let first = 0; first < n; first += size) {
        const column = Array.from({ length: size }, (_, t) =>
          use && use[first + t] === 0 ? Number.NaN : scores[(first + t) * E + e],
        );
        const taken = falling(column)
          .slice(0, take)
          .sort((a, b) => a - b);
        for (const t of taken) {
          pick[at] = (first + t) * E + e;
          slot[pick[at]] = at;
          at++;
        }
      }
    }
    offsets[E] = at;
  },

  gather_rows({ p, i: [R, d, n, per] }) {
    const [out, x, pick] = [p[0]!, p[1]!, p[2]!];
    for (let r = 0; r < R; r++)
      for (let c = 0; c < d; c++)
        out[r * d + c] = pick[r] < 0 ? 0 : x[Math.floor(checkIndex(pick[r], n) / per) * d + c];
  },

  combine_rows({ p, i: [n, k, d, R], f: [alpha] }) {
    const [out, y, slot] = [p[0]!, p[1]!, p[2]!];
    const [w, addend] = [p[3], p[4]];
    for (let t = 0; t < n; t++)
      for (let c = 0; c < d; c++) {
        let sum = 0;
        for (let r = t * k; r < (t + 1) * k; r++)
          if (slot[r] >= 0) sum += (w ? w[r] : 1) * y[checkIndex(slot[r], R) * d + c];
        out[t * d + c] = alpha * sum + (addend ? addend[t * d + c] : 0);
      }
  },

  combine_rows_bwd({ p, i: [n, k, d, R], f: [alpha] }) {
    const [dy, dw, y, slot, pick, w, dout] = p.map((x) => x!);
    for (let t = 0; t < n; t++)
      for (let r = t * k; r < (t + 1) * k; r++) {
        dw[r] = 0;
        if (slot[r] < 0) continue;
        const row = checkIndex(slot[r], R) * d;
        let dot = 0;
        for (let c = 0; c < d; c++) {
          dot += dout[t * d + c] * y[row + c];
          dy[row + c] = alpha * w[r] * dout[t * d + c];
        }
        dw[r] = alpha * dot;
      }
    for (let r = 0; r < R; r++) if (pick[r] < 0) dy.fill(0, r * d, (r + 1) * d);
  },

  grouped_matmul({ p, i: [R, E, N, K, transB, , compute], f: [alpha] }) {
    const [C, A, B, offsets] = [p[0]!, p[1]!, p[2]!, p[3]!];
    C.fill(0, 0, R * N);
    for (let e = 0; e < E; e++) {
      const rows = checkIndex(offsets[e + 1], R + 1) - offsets[e];
      const a = operand(A, offsets[e] * K, rows, K, false, compute);
      const b = operand(B, e * N * K, K, N, transB === 1, compute);
      for (let r = 0; r < rows; r++)
        for (let n = 0; n < N; n++) {
          let sum = 0;
          for (let k = 0; k < K; k++) sum += a[r * K + k] * b[k * N + n];
          C[(offsets[e] + r) * N + n] = alpha * sum;
        }
    }
  },

  grouped_matmul_weight({ p, i: [R, E, M, N, compute], f: [alpha] }) {
    const [C, A, B, offsets] = [p[0]!, p[1]!, p[2]!, p[3]!];
    for (let e = 0; e < E; e++) {
      const rows = checkIndex(offsets[e + 1], R + 1) - offsets[e];
      const a = operand(A, offsets[e] * M, M, rows, true, compute);
      const b = operand(B, offsets[e] * N, rows, N, false, compute);
      for (let m = 0; m < M; m++)
        for (let n = 0; n < N; n++) {
          let sum = 0;
          for (let r = 0; r < rows; r++) sum += a[m * rows + r] * b[r * N + n];
          C[(e * M + m) * N + n] = alpha * sum;
        }
    }
  },
};
