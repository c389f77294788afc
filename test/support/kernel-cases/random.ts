// Cases of the counter-based random kernels: the same words as the reference, for any seed, step and stream.
import { EXACT, floatDtype, gaussian, input, LENGTHS, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, TensorSpec } from './types.ts';

/** seed lo, seed hi, step lo, step hi: any 32 bits, the sign bit among them. */
const state = (rng: Rng): TensorSpec => input('i32', 4, () => rng.pick([0, 1, -1, rng.int(-(2 ** 31), 2 ** 31 - 1)]));
const stream = (rng: Rng) => rng.pick([0, 1, 77, 2 ** 31 - 1]);

const uniform: CaseGenerator = (kernel, rng) =>
  LENGTHS.map((n) =>
    makeCase(kernel, {
      p: [output(floatDtype(rng), n), state(rng)],
      i: [n, stream(rng)],
      f: rng.pick([
        [0, 1],
        [-1, 1],
        [-0.02, 0.02],
        [3, 3.5],
      ]),
      tolerance: tolerance(1e-6, 1e-6),
    }),
  );

const normal: CaseGenerator = (kernel, rng) =>
  LENGTHS.map((n) =>
    makeCase(kernel, {
      p: [output(floatDtype(rng), n), state(rng)],
      i: [n, stream(rng)],
      f: rng.pick([
        [0, 1],
        [0, 0.02],
        [2, 3],
      ]),
      tolerance: tolerance(1e-5, 1e-5),
    }),
  );

const dropout: CaseGenerator = (kernel, rng) =>
  LENGTHS.map((n) => {
    const rate = rng.pick([0, 0.1, 0.5, 0.9]);
    return makeCase(kernel, {
      p: [output(floatDtype(rng), n), gaussian(rng, floatDtype(rng), n), state(rng)],
      i: [n, stream(rng)],
      f: [rate],
      tolerance: rate === 0 ? EXACT : tolerance(1e-6, 0),
    });
  });

export const randomCases: Record<string, CaseGenerator> = { uniform, normal, dropout };
