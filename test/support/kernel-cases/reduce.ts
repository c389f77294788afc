// Cases of the reductions over [outer, R, inner] and of the softmax family.
import { EXACT, floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, TensorSpec, Tolerance } from './types.ts';

const { NEGATIVE_INFINITY, NaN: NAN } = Number;

/** [outer, R, inner]: rows (inner 1) and columns, every R up to 40, long ones, and empty outer or inner axes. */
function reductionShapes(rng: Rng): number[][] {
  const rows = Array.from({ length: 40 }, (_, k) => [rng.int(1, 5), k + 1, 1]);
  const columns = Array.from({ length: 40 }, (_, k) => [rng.int(1, 4), rng.int(1, 9), k + 1]);
  const long = [
    [1, 5000, 1],
    [1, 100_003, 1],
    [3, 1000, 1],
    [500, 37, 1],
    [1, 5000, 3],
    [7, 33, 100],
    [1, 300, 401],
    [2000, 3, 21],
  ];
  return [...rows, ...columns, ...long, [0, 3, 2], [2, 3, 0], [0, 5, 1]];
}

interface Reduction {
  readonly draw: (rng: Rng) => number;
  readonly tolerance: (R: number) => Tolerance;
  /** What nothing reduces to is defined. */
  readonly empty: boolean;
}

const normals = (rng: Rng) => rng.normal();
const few = (rng: Rng) => rng.int(-5, 5); // ties
const reductions: Record<string, Reduction> = {
  sum: { draw: normals, tolerance: (R) => tolerance(1e-6, 1e-6 * Math.sqrt(R), 3e-6), empty: true },
  mean: { draw: normals, tolerance: (R) => tolerance(1e-6, 1e-6 / Math.sqrt(R), 3e-6), empty: false },
  prod: {
    draw: (rng) => rng.pick([-1, 1]) * rng.uniform(0.7, 1.4),
    tolerance: (R) => tolerance(2e-7 * (R + 2), 0),
    empty: true,
  },
  max: { draw: normals, tolerance: () => EXACT, empty: true },
  min: { draw: normals, tolerance: () => EXACT, empty: true },
  argmax: { draw: few, tolerance: () => EXACT, empty: false },
  argmin: { draw: few, tolerance: () => EXACT, empty: false },
};

const reduction: CaseGenerator = (kernel, rng) => {
  const { draw, tolerance: tol, empty } = reductions[kernel];
  const index = kernel.startsWith('arg');
  const out = (n: number) => output(index ? 'i32' : floatDtype(rng), n);
  const shapes = [
    ...reductionShapes(rng),
    ...(empty
      ? [
          [3, 0, 2],
          [4, 0, 1],
        ]
      : []),
  ];
  const cases = shapes.map(([outer, R, inner]) => {
    const x = input(floatDtype(rng), outer * R * inner, () => draw(rng));
    return makeCase(kernel, { p: [out(outer * inner), x], i: [outer, R, inner], tolerance: tol(R) });
  });
  if (!index) {
    // One NaN, wherever it stands, makes its own result NaN and no other.
    for (const [outer, R, inner] of [
      [4, 37, 1],
      [2, 64, 1],
      [3, 19, 21],
    ]) {
      const at = rng.int(0, outer * R * inner - 1);
      const x = input('f32', outer * R * inner, (k) => (k === at ? NAN : draw(rng)));
      cases.push(
        makeCase(kernel, { p: [out(outer * inner), x], i: [outer, R, inner], tolerance: tol(R), note: `NaN at ${at}` }),
      );
    }
  }
  return cases;
};

const sumsq: CaseGenerator = (kernel, rng) =>
  [0, ...Array.from({ length: 40 }, (_, k) => k + 1), 1000, 5000, 65_537, 400_001].map((n) =>
    makeCase(kernel, {
      p: [output('f32', 1), gaussian(rng, floatDtype(rng), n)],
      i: [n],
      tolerance: tolerance(1e-6, 0),
    }),
  );

const cumsum: CaseGenerator = (kernel, rng) =>
  reductionShapes(rng).map(([outer, R, inner]) => {
    const n = outer * R * inner;
    // A running sum of R normals drifts to sqrt(R), and each step may add half an ulp of that.
    return makeCase(kernel, {
      p: [output(floatDtype(rng), n), gaussian(rng, floatDtype(rng), n)],
      i: [outer, R, inner, rng.int(0, 1), rng.int(0, 1)],
      tolerance: tolerance(1e-6, 1e-6 + 2e-7 * R, 1e-5),
    });
  });

function softmaxShapes(rng: Rng): number[][] {
  const narrow = Array.from({ length: 40 }, (_, k) => [rng.int(1, 5), k + 1]);
  return [...narrow, [0, 7], [3, 64], [5, 65], [70, 100], [9, 1000], [3, 5003], [400, 257]];
}

/** Rows of scores: small, spread wide, partly or wholly -inf. */
function scores(rng: Rng, rows: number, cols: number, masked: boolean): TensorSpec {
  const kinds = Array.from({ length: rows }, () =>
    rng.pick(masked ? ['small', 'wide', 'partly', 'nothing'] : ['small', 'wide']),
  );
  return input(floatDtype(rng), rows * cols, (k) => {
    const kind = kinds[Math.floor(k / cols)];
    if (kind === 'nothing' || (kind === 'partly' && rng.chance(0.5))) return NEGATIVE_INFINITY;
    return (kind === 'wide' ? 20 : 1) * rng.normal();
  });
}

const softmax: CaseGenerator = (kernel, rng) =>
  softmaxShapes(rng).map(([rows, cols]) => {
    // log_softmax of a row of all -inf has no meaning: -inf - (-inf).
    const x = scores(rng, rows, cols, kernel !== 'log_softmax');
    const log = kernel !== 'softmax';
    const out = kernel === 'logsumexp' ? output('f32', rows) : output(floatDtype(rng), rows * cols);
    return makeCase(kernel, {
      p: [out, x],
      i: [rows, cols],
      tolerance: log ? tolerance(1e-6, 2e-5, 1e-6) : tolerance(1e-5, 1e-9),
    });
  });

const softmaxBackward: CaseGenerator = (kernel, rng) =>
  softmaxShapes(rng).map(([rows, cols]) => {
    const log = kernel === 'log_softmax_bwd';
    const y = input(floatDtype(rng), rows * cols, () =>
      log ? Math.log(cols + 1) * -rng.next() - 1 : rng.next() / (cols + 1),
    );
    const dy = gaussian(rng, floatDtype(rng), rows * cols);
    const p = [output(floatDtype(rng), rows * cols), y, dy];
    return makeCase(kernel, { p, i: [rows, cols], tolerance: tolerance(2e-6, log ? 2e-5 : 2e-6, 3e-6) });
  });

export const reduceCases: Record<string, CaseGenerator> = {
  ...Object.fromEntries(Object.keys(reductions).map((name) => [name, reduction])),
  sumsq,
  cumsum,
  softmax,
  log_softmax: softmax,
  logsumexp: softmax,
  softmax_bwd: softmaxBackward,
  log_softmax_bwd: softmaxBackward,
};
