// Cases of a student's loss against targets and a teacher.
import { gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase } from './types.ts';

const distilLoss: CaseGenerator = (_, rng) => {
  const one = (rows: number, V: number, Vt: number, shared: number, f: number[], ignore = -1): KernelCase =>
    makeCase('distil_loss', {
      p: [
        ...[output('f32', rows), output('f32', rows), output('f32', rows * V)],
        ...[gaussian(rng, 'f32', rows * V, 3), gaussian(rng, 'f32', rows * Vt, 3)],
        input('i32', rows, () => (rng.chance(0.25) ? ignore : rng.int(0, V - 1))),
        input('f32', rows, () => rng.uniform(0.1, 1)),
      ],
      i: [rows, V, Vt, shared, ignore],
      f,
      tolerance: tolerance(2e-5, 2e-6, 2e-5),
    });
  const sizes = (rng: Rng): [number, number, number] => {
    const [V, Vt] = [rng.int(1, 70), rng.int(1, 70)];
    return [V, Vt, rng.int(1, Math.min(V, Vt))];
  };
  const cases = Array.from({ length: 40 }, () =>
    one(rng.int(1, 9), ...sizes(rng), [rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.5, 4), rng.pick([0, 1e-3])]),
  );
  cases.push(one(0, 5, 5, 5, [0.5, 0.5, 2, 0]), one(20, 1000, 1003, 999, [0.5, 0.5, 2, 1e-4]));
  const bad = one(2, 4, 4, 4, [1, 1, 1, 0]);
  const error = 'index 4 out of range: limit 4';
  cases.push({ ...bad, p: [...bad.p.slice(0, 5), input('i32', 2, () => 4), bad.p[6]], error });
  return cases;
};

export const distilCases: Record<string, CaseGenerator> = { distil_loss: distilLoss };
