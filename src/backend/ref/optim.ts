// Gradient clipping and AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019).
import type { RefKernel } from './types.ts';

export const optim: Record<string, RefKernel> = {
  clip_scale({ p, i: [n], f: [maxnorm, extra] }) {
    const [scalars, sumsqs] = [p[0]!, p[1]!];
    let sum = 0;
    for (let k = 0; k < n; k++) sum += sumsqs[k];
    const norm = extra * Math.sqrt(sum);
    scalars[5] = norm;
    scalars[1] = maxnorm === 0 ? extra : extra * Math.min(1, maxnorm / norm);
    scalars[4] = Number(Number.isFinite(norm));
    if (!Number.isFinite(norm)) scalars[6] += 1;
  },

  adamw({ p, i: [n], f: [lrmult, beta1, beta2, eps, decay] }) {
    const [w, m, v, g, scalars] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]!];
    const shadow = p[5];
    const [lr, scale, correction1, correction2, finite] = scalars;
    if (finite === 0) return;
    for (let k = 0; k < n; k++) {
      const grad = g[k] * scale;
      m[k] = beta1 * m[k] + (1 - beta1) * grad;
      v[k] = beta2 * v[k] + (1 - beta2) * grad * grad;
      const update = m[k] / correction1 / (Math.sqrt(v[k] / correction2) + eps) + decay * w[k];
      w[k] -= lr * lrmult * update;
      if (shadow) shadow[k] = w[k];
    }
  },
};
