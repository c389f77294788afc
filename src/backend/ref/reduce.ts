// Reductions over the middle axis of [outer, R, inner], and the softmax family over rows.
import { logSumExp } from './common.ts';
import type { RefKernel } from './types.ts';

/** out = finish(combine(... combine(start, x_0) ..., x_{R-1}), R). */
function reduction(
  start: number,
  combine: (a: number, x: number) => number,
  finish: (a: number, count: number) => number = (a) => a,
): RefKernel {
  return ({ p, i: [outer, R, inner] }) => {
    const [out, x] = [p[0]!, p[1]!];
    for (let o = 0; o < outer; o++) {
      for (let n = 0; n < inner; n++) {
        let a = start;
        for (let r = 0; r < R; r++) a = combine(a, x[(o * R + r) * inner + n]);
        out[o * inner + n] = finish(a, R);
      }
    }
  };
}

/** Index of the first element that no other one beats. */
function argExtreme(beats: (x: number, best: number) => boolean): RefKernel {
  return ({ p, i: [outer, R, inner] }) => {
    const [out, x] = [p[0]!, p[1]!];
    for (let o = 0; o < outer; o++) {
      for (let n = 0; n < inner; n++) {
        let best = 0;
        for (let r = 1; r < R; r++) {
          if (beats(x[(o * R + r) * inner + n], x[(o * R + best) * inner + n])) best = r;
        }
        out[o * inner + n] = best;
      }
    }
  };
}

export const reduce: Record<string, RefKernel> = {
  sum: reduction(0, (a, x) => a + x),
  prod: reduction(1, (a, x) => a * x),
  mean: reduction(
    0,
    (a, x) => a + x,
    (a, count) => a / count,
  ),
  // Math.max and Math.min of anything with NaN are NaN.
  max: reduction(Number.NEGATIVE_INFINITY, Math.max),
  min: reduction(Number.POSITIVE_INFINITY, Math.min),
  argmax: argExtreme((x, best) => x > best),
  argmin: argExtreme((x, best) => x < best),

  sumsq({ p, i: [n] }) {
    const [out, x] = [p[0]!, p[1]!];
    let sum = 0;
    for (let k = 0; k < n; k++) sum += x[k] * x[k];
    out[0] = sum;
  },

  cumsum({ p, i: [outer, R, inner, reverse, exclusive] }) {
    const [out, x] = [p[0]!, p[1]!];
    for (let o = 0; o < outer; o++) {
      for (let n = 0; n < inner; n++) {
        let sum = 0;
        for (let step = 0; step < R; step++) {
          const r = reverse ? R - 1 - step : step;
          const at = (o * R + r) * inner + n;
          const value = x[at];
          out[at] = exclusive ? sum : sum + value;
          sum += value;
        }
      }
    }
  },

  softmax({ p, i: [rows, cols] }) {
    const [y, x] = [p[0]!, p[1]!];
    for (let r = 0; r < rows; r++) {
      const lse = logSumExp(x, r * cols, cols);
      for (let c = 0; c < cols; c++) {
        y[r * cols + c] = lse === Number.NEGATIVE_INFINITY ? 0 : Math.exp(x[r * cols + c] - lse);
      }
    }
  },

  log_softmax({ p, i: [rows, cols] }) {
    const [y, x] = [p[0]!, p[1]!];
    for (let r = 0; r < rows; r++) {
      const lse = logSumExp(x, r * cols, cols);
      for (let c = 0; c < cols; c++) y[r * cols + c] = x[r * cols + c] - lse;
    }
  },

  softmax_bwd({ p, i: [rows, cols] }) {
    const [dx, y, dy] = [p[0]!, p[1]!, p[2]!];
    for (let r = 0; r < rows; r++) {
      let dot = 0;
      for (let c = 0; c < cols; c++) dot += y[r * cols + c] * dy[r * cols + c];
      for (let c = 0; c < cols; c++) dx[r * cols + c] = y[r * cols + c] * (dy[r * cols + c] - dot);
    }
  },

  log_softmax_bwd({ p, i: [rows, cols] }) {
    const [dx, y, dy] = [p[0]!, p[1]!, p[2]!];
    for (let r = 0; r < rows; r++) {
      let sum = 0;
      for (let c = 0; c < cols; c++) sum += dy[r * cols + c];
      for (let c = 0; c < cols; c++) dx[r * cols + c] = dy[r * cols + c] - Math.exp(y[r * cols + c]) * sum;
    }
  },

  logsumexp({ p, i: [rows, cols] }) {
    const [out, x] = [p[0]!, p[1]!];
    for (let r = 0; r < rows; r++) out[r] = logSumExp(x, r * cols, cols);
  },
};
