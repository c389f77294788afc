// C[b] = alpha op(A[b]) op(B[b]) + bias + addend[b].
import { operand } from './common.ts';
import type { RefKernel } from './types.ts';

export const matmul: Record<string, RefKernel> = {
  matmul({ p, i: [batch, M, N, K, transA, transB, strideA, strideB, strideC, compute], f: [alpha] }) {
    const [C, A, B] = [p[0]!, p[1]!, p[2]!];
    const [bias, addend] = [p[3], p[4]];
    for (let batchIndex = 0; batchIndex < batch; batchIndex++) {
      const a = operand(A, batchIndex * strideA, M, K, transA === 1, compute);
      const b = operand(B, batchIndex * strideB, K, N, transB === 1, compute);
      for (let m = 0; m < M; m++) {
        for (let n = 0; n < N; n++) {
          let sum = 0;
          for (let k = 0; k < K; k++) sum += a[m * K + k] * b[k * N + n];
          const at = batchIndex * strideC + m * N + n;
          // C may be the addend itself: it is read before it is written.
          C[at] = alpha * sum + (bias ? bias[n] : 0) + (addend ? addend[at] : 0);
        }
      }
    }
  },
};
