// Lion (Chen et al. 2023), momentum and steps along a direction, Adafactor (Shazeer and Stern 2018).
import type { RefArray, RefKernel } from './types.ts';

function adafactorMatrix(
  w: RefArray,
  r: RefArray | null,
  c: RefArray | null,
  v: RefArray | null,
  g: RefArray,
  at: { w: number; r: number; c: number; rows: number; cols: number },
  o: { rate: number; beta: number; eps1: number; eps2: number; clip: number; decay: number; scale: number },
): void {
  const { rows, cols } = at;
  const grad = (i: number, j: number): number => g[at.w + i * cols + j] * o.scale;
  const u = new Float64Array(rows * cols);
  if (r && c) {
    let mean = 0;
    for (let i = 0; i < rows; i++) {
      let sum = 0;
      for (let j = 0; j < cols; j++) sum += grad(i, j) ** 2 + o.eps1;
      r[at.r + i] = o.beta * r[at.r + i] + ((1 - o.beta) * sum) / cols;
      mean += r[at.r + i] / rows;
    }
    for (let j = 0; j < cols; j++) {
      let sum = 0;
      for (let i = 0; i < rows; i++) sum += grad(i, j) ** 2 + o.eps1;
      c[at.c + j] = o.beta * c[at.c + j] + ((1 - o.beta) * sum) / rows;
    }
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < cols; j++)
        u[i * cols + j] = grad(i, j) / Math.sqrt(r[at.r + i] / mean) / Math.sqrt(c[at.c + j]);
  } else {
    for (let k = 0; k < rows * cols; k++) {
      v![at.w + k] = o.beta * v![at.w + k] + (1 - o.beta) * ((g[at.w + k] * o.scale) ** 2 + o.eps1);
      u[k] = (g[at.w + k] * o.scale) / Math.sqrt(v![at.w + k]);
    }
  }
  let [squaresU, squaresW] = [0, 0];
  for (let k = 0; k < rows * cols; k++) {
    squaresU += u[k] ** 2;
    squaresW += w[at.w + k] ** 2;
  }
  const cut = Math.max(1, Math.sqrt(squaresU / (rows * cols)) / o.clip);
  const size = (o.rate * Math.max(o.eps2, Math.sqrt(squaresW / (rows * cols)))) / cut;
  for (let k = 0; k < rows * cols; k++) w[at.w + k] -= size * u[k] + o.rate * o.decay * w[at.w + k];
}

export const optimOthers: Record<string, RefKernel> = {
  lion({ p, i: [n], f: [lrmult, beta1, beta2, decay] }) {
    const [w, m, g, [lr, scale, , , finite]] = [p[0]!, p[1]!, p[2]!, p[3]!];
    if (finite === 0) return;
    for (let k = 0; k < n; k++) {
      const grad = g[k] * scale;
      w[k] -= lr * lrmult * (Math.sign(beta1 * m[k] + (1 - beta1) * grad) + decay * w[k]);
      m[k] = beta2 * m[k] + (1 - beta2) * grad;
    }
  },

  momentum({ p, i: [n] }) {
    const [u, m, g, scalars] = [p[0]!, p[1]!, p[2]!, p[3]!];
    const [scale, finite, mu] = [scalars[1], scalars[4], scalars[7]];
    for (let k = 0; k < n; k++) {
      if (finite !== 0) m[k] = mu * m[k] + (1 - mu) * g[k] * scale;
      u[k] = finite === 0 ? 0 : (1 - mu) * g[k] * scale + mu * m[k];
    }
  },

  apply_update({ p, i: [n], f: [lrmult, scale, decay] }) {
    const [w, u, [lr, , , , finite]] = [p[0]!, p[1]!, p[2]!];
    if (finite === 0) return;
    for (let k = 0; k < n; k++) w[k] -= lr * lrmult * (scale * u[k] + decay * w[k]);
  },

  adafactor({ p, i: [batch, rows, cols], f: [lrmult, eps1, eps2, clip, decay] }) {
    const [lr, scale, , gain, finite] = p[5]!;
    if (finite === 0 || rows * cols === 0) return;
    const o = { rate: lr * lrmult, beta: 1 - gain, eps1, eps2, clip, decay, scale };
    for (let b = 0; b < batch; b++) {
      const at = { w: b * rows * cols, r: b * rows, c: b * cols, rows, cols };
      adafactorMatrix(p[0]!, p[1], p[2], p[3], p[4]!, at, o);
    }
  },
};
