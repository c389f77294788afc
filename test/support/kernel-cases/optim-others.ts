// Cases of Lion, momentum, steps along a direction, and Adafactor.
import { floatDtype, gaussian, input, LENGTHS, makeCase, output, type Rng, tolerance, updated } from './build.ts';
import type { CaseGenerator, KernelCase } from './types.ts';

const scalars = (rng: Rng, finite: number) => {
  const values = [1e-2, rng.pick([1, 0.3]), 0.4, rng.int(1, 40) ** -0.8, finite, 3, 1, rng.pick([0.95, 0.85, 0])];
  return input('f32', 8, (k) => values[k]);
};
const gradient = (rng: Rng, n: number, finite: number) =>
  finite ? gaussian(rng, floatDtype(rng), n) : input('f32', n, () => rng.pick([Number.NaN, Number.POSITIVE_INFINITY]));
const lengths = [...LENGTHS, 33, 1000];
const finiteIn = (round: number): number => (round % 7 === 3 ? 0 : 1);

const lion: CaseGenerator = (kernel, rng) =>
  lengths.map((n, round) =>
    makeCase(kernel, {
      p: [
        updated(gaussian(rng, 'f32', n)),
        updated(gaussian(rng, 'f32', n, 0.1)),
        gradient(rng, n, finiteIn(round)),
        scalars(rng, finiteIn(round)),
      ],
      i: [n],
      f: [rng.pick([1, 0.5]), 0.9, 0.99, rng.pick([0, 0.5])],
      tolerance: tolerance(1e-6, 1e-7),
    }),
  );

const momentum: CaseGenerator = (kernel, rng) =>
  lengths.map((n, round) =>
    makeCase(kernel, {
      p: [
        output(floatDtype(rng), n),
        updated(gaussian(rng, 'f32', n)),
        gradient(rng, n, finiteIn(round)),
        scalars(rng, finiteIn(round)),
      ],
      i: [n],
      tolerance: tolerance(1e-6, 1e-7),
    }),
  );

const applyUpdate: CaseGenerator = (kernel, rng) =>
  lengths.map((n, round) =>
    makeCase(kernel, {
      p: [updated(gaussian(rng, 'f32', n)), gradient(rng, n, finiteIn(round)), scalars(rng, finiteIn(round))],
      i: [n],
      f: [rng.pick([1, 0.5]), rng.uniform(0.2, 2), rng.pick([0, 0.1])],
      tolerance: tolerance(1e-6, 1e-7),
    }),
  );

function adafactorCase(
  rng: Rng,
  [batch, rows, cols]: readonly number[],
  factored: boolean,
  finite: number,
): KernelCase {
  const n = batch * rows * cols;
  const state = (size: number) => updated(input('f32', size, () => rng.next()));
  // Rows and columns without gradient have second moments of about eps1.
  const g = rng.chance(0.2) ? input('f32', n, (k) => (k % cols === 0 ? 0 : rng.normal())) : gradient(rng, n, finite);
  return makeCase('adafactor', {
    p: [
      updated(gaussian(rng, 'f32', n, rng.pick([1, 1e-5]))),
      factored ? state(batch * rows) : null,
      factored ? state(batch * cols) : null,
      factored ? null : state(n),
      g,
      scalars(rng, finite),
    ],
    i: [batch, rows, cols],
    f: [rng.pick([1, 0.5]), 1e-30, 1e-3, rng.pick([1, 0.1]), rng.pick([0, 0.1])],
    tolerance: tolerance(1e-5, 1e-7, 1e-5),
    note: factored ? 'factored' : 'whole',
  });
}

const adafactor: CaseGenerator = (_, rng) => {
  const shapes = [
    ...[
      [1, 1, 1],
      [1, 1, 40],
      [1, 40, 1],
      [2, 3, 5],
      [3, 17, 33],
      [1, 65, 16],
      [0, 3, 4],
      [1, 0, 4],
    ],
    ...[
      [1, 1000, 37],
      [1, 37, 1000],
      [1, 300, 301],
      [2, 128, 130],
      [1, 2, 20_000],
      [1, 20_000, 2],
    ],
  ];
  return shapes.flatMap((shape, k) =>
    [true, false].map((factored) => adafactorCase(rng, shape, factored, finiteIn(k))),
  );
};

export const optimOtherCases: Record<string, CaseGenerator> = { lion, momentum, apply_update: applyUpdate, adafactor };
