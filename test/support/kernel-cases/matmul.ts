// Cases of matmul: every transpose, dtype and compute mode over odd shapes, batches, gaps and in-place sums.
import { floatDtype, gapped, gaussian, makeCase, output, outputIn, type Rng, tolerance, updated } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

interface Problem {
  readonly batch: number;
  readonly M: number;
  readonly N: number;
  readonly K: number;
  /** Batch strides of A and B: none (shared), dense, or with a gap. */
  readonly shareA?: boolean;
  readonly shareB?: boolean;
  readonly gap?: number;
}

function problem(rng: Rng, { batch, M, N, K, shareA, shareB, gap = 0 }: Problem, mode: number): KernelCase {
  const [transA, transB, compute] = [mode & 1, (mode >> 1) & 1, (mode >> 2) & 1];
  const strideA = shareA ? 0 : M * K + gap;
  const strideB = shareB ? 0 : K * N + gap;
  const strideC = M * N + gap;
  const span = (stride: number, size: number) => (batch === 0 ? 0 : (batch - 1) * stride + size);
  const A = gapped(rng, floatDtype(rng), span(strideA, M * K), strideA, M * K);
  const B = gapped(rng, floatDtype(rng), span(strideB, K * N), strideB, K * N);
  const nC = span(strideC, M * N);
  const bias = rng.chance(0.4) ? gaussian(rng, floatDtype(rng), N) : null;
  let addend: TensorSpec | null = rng.chance(0.4) ? gaussian(rng, floatDtype(rng), nC) : null;
  let C = output(floatDtype(rng), nC);
  if (addend && rng.chance(0.5)) {
    C = outputIn(4, addend.dtype, nC);
    addend = updated(addend);
  } else if (gap > 0) {
    C = updated(gaussian(rng, C.dtype, nC)); // what lies between the batches must stay
  }
  const alpha = rng.pick([1, 1, 0.125, -2]);
  return makeCase('matmul', {
    p: [C, A, B, bias, addend],
    i: [batch, M, N, K, transA, transB, strideA, strideB, strideC, compute],
    f: [alpha],
    tolerance: tolerance(2e-6, 3e-6 * Math.sqrt(K + 1) * Math.max(1, Math.abs(alpha)), 2e-6),
  });
}

const matmul: CaseGenerator = (_, rng) => {
  const sizes = [1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65, 96, 100, 129];
  const random = Array.from({ length: 240 }, (_, k) =>
    problem(rng, { batch: 1, M: rng.pick(sizes), N: rng.pick(sizes), K: rng.pick(sizes) }, k),
  );
  const allModes = (p: Problem) => [0, 1, 2, 3, 4, 5, 6, 7].map((mode) => problem(rng, p, mode));
  return [
    ...random,
    ...allModes({ batch: 1, M: 257, N: 131, K: 300 }),
    ...allModes({ batch: 1, M: 70, N: 520, K: 130 }),
    ...allModes({ batch: 1, M: 33, N: 40, K: 1300 }), // several blocks along K
    ...allModes({ batch: 1, M: 1, N: 1000, K: 257 }), // one row, as in decoding
    ...allModes({ batch: 1, M: 1000, N: 1, K: 65 }),
    ...allModes({ batch: 1, M: 7, N: 5, K: 1 }),
    ...allModes({ batch: 1, M: 20, N: 17, K: 0 }),
    ...allModes({ batch: 1, M: 0, N: 17, K: 5 }),
    ...allModes({ batch: 1, M: 4, N: 0, K: 5 }),
    ...allModes({ batch: 0, M: 3, N: 4, K: 5 }),
    ...allModes({ batch: 3, M: 17, N: 33, K: 20 }),
    ...allModes({ batch: 5, M: 9, N: 20, K: 40, gap: 3 }),
    ...allModes({ batch: 4, M: 31, N: 16, K: 8, shareA: true }),
    ...allModes({ batch: 4, M: 6, N: 50, K: 33, shareB: true, gap: 1 }),
    ...allModes({ batch: 2, M: 5, N: 5, K: 5, shareA: true, shareB: true }),
    ...allModes({ batch: 37, M: 4, N: 3, K: 64 }),
    problem(rng, { batch: 1, M: 384, N: 400, K: 380 }, rng.int(0, 3)),
    problem(rng, { batch: 1, M: 384, N: 400, K: 380 }, rng.int(4, 7)),
  ];
};

export const matmulCases: Record<string, CaseGenerator> = { matmul };
