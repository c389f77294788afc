// A student's loss against targets and a teacher: the definition, row by row (Hinton et al. 2015).
import { checkIndex, logSumExp } from './common.ts';
import type { RefArray, RefKernel } from './types.ts';

/** ln softmax(z / T) of n logits. */
function logProbabilities(z: RefArray, offset: number, n: number, T: number): Float64Array {
  const x = Float64Array.from({ length: n }, (_, j) => z[offset + j] / T);
  const lse = logSumExp(x, 0, n);
  return x.map((v) => v - lse);
}

export const distil: Record<string, RefKernel> = {
  distil_loss({ p, i: [rows, V, Vt, shared, ignore], f: [hard, soft, T, zcoef] }) {
    const [ce, kl, ds, s, t, target, rowscale] = p.map((x) => x!);
    for (let r = 0; r < rows; r++) {
      ds.fill(0, r * V, (r + 1) * V);
      ce[r] = kl[r] = 0;
      if (target[r] === ignore) continue;
      const at = checkIndex(target[r], V);
      const lse = logSumExp(s, r * V, V);
      ce[r] = lse - s[r * V + at] + zcoef * lse * lse;
      const [own, other] = [logProbabilities(s, r * V, shared, T), logProbabilities(t, r * Vt, shared, T)];
      for (let j = 0; j < V; j++) {
        const given = (1 + 2 * zcoef * lse) * Math.exp(s[r * V + j] - lse) - Number(j === at);
        let taught = 0;
        if (j < shared) {
          kl[r] += Math.exp(other[j]) * (other[j] - own[j]);
          taught = T * (Math.exp(own[j]) - Math.exp(other[j]));
        }
        ds[r * V + j] = rowscale[r] * (hard * given + soft * taught);
      }
    }
  },
};
