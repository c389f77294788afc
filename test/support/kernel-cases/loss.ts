// Cases of cross-entropy, on logits and fused with the output projection.

import { logSumExp } from '../../../src/backend/ref/common.ts';
import { floatDtype, gaussian, input, makeCase, output, outputIn, type Rng, tolerance, updated } from './build.ts';
import type { CaseGenerator, TensorSpec } from './types.ts';

const SHAPES = [
  [0, 5],
  [1, 1],
  [4, 1],
  [33, 64],
  [7, 65],
  [3, 5003],
  [130, 257],
  [40, 4096],
];

function shapes(rng: Rng): number[][] {
  return [...SHAPES, ...SHAPES, ...Array.from({ length: 40 }, (_, k) => [rng.int(1, 7), k + 1])];
}

/** Targets of which some, or all, or none are ignored. */
function targets(rng: Rng, rows: number, V: number, ignore: number): TensorSpec {
  const share = rng.pick([0, 0.3, 0.3, 1]);
  return input('i32', rows, () => (rng.chance(share) ? ignore : rng.int(0, V - 1)));
}

/** Ids that are ignored may also be ordinary ones: padding is often token 0. */
const ignoreId = (rng: Rng) => rng.pick([-100, -1, 0]);
const smoothings = [0, 0, 0.1];
const zcoefs = [0, 0, 1e-3];

function badTarget(rng: Rng, rows: number, V: number, value: number): { target: TensorSpec; error: string } {
  const at = rng.int(0, rows - 1);
  return {
    target: input('i32', rows, (r) => (r === at ? value : rng.int(0, V - 1))),
    error: `index ${value} out of range: limit ${V}`,
  };
}

const crossEntropy: CaseGenerator = (kernel, rng) => {
  const random = shapes(rng).map(([rows, V]) => {
    const ignore = ignoreId(rng);
    const logits = gaussian(rng, floatDtype(rng), rows * V, rng.pick([1, 8]));
    const target = targets(rng, rows, V, ignore);
    // Nobody reads the lse of an ignored row, and a device need not compute it.
    const lse = { ...output('f32', rows), open: Array.from(target.data!, (t, r) => (t === ignore ? r : -1)) };
    return makeCase(kernel, {
      p: [output('f32', rows), lse, logits, target],
      i: [rows, V, ignore],
      f: [rng.pick(smoothings), rng.pick(zcoefs)],
      tolerance: tolerance(2e-6, 1e-5, 3e-6),
    });
  });
  const bad = [5, -2].map((value) => {
    const { target, error } = badTarget(rng, 6, 5, value);
    return makeCase(kernel, {
      p: [output('f32', 6), output('f32', 6), gaussian(rng, 'f32', 30), target],
      i: [6, 5, -1],
      f: [0, 0],
      error,
    });
  });
  return [...random, ...bad];
};

const crossEntropyBackward: CaseGenerator = (kernel, rng) =>
  shapes(rng).map(([rows, V]) => {
    const ignore = ignoreId(rng);
    const logits = gaussian(rng, floatDtype(rng), rows * V, rng.pick([1, 8]));
    const lse = input('f32', rows, (r) => logSumExp(logits.data!, r * V, V));
    const inPlace = rng.chance(0.4) && rows > 0;
    const dlogits = inPlace ? outputIn(1, logits.dtype, rows * V) : output(floatDtype(rng), rows * V);
    return makeCase(kernel, {
      p: [dlogits, inPlace ? updated(logits) : logits, lse, targets(rng, rows, V, ignore), gaussian(rng, 'f32', rows)],
      i: [rows, V, ignore],
      f: [rng.pick(smoothings), rng.pick(zcoefs)],
      tolerance: tolerance(1e-5, 1e-6, 1e-5),
    });
  });

const LINEAR_SHAPES = [
  [1, 1, 1],
  [3, 4, 5],
  [0, 8, 9],
  [7, 16, 33],
  [17, 20, 100],
  [33, 31, 65],
  [64, 32, 257],
  [130, 48, 129],
  [5, 64, 2051],
  [40, 17, 1],
  [300, 24, 500],
];

const linearCrossEntropy: CaseGenerator = (kernel, rng) => {
  const random = [...LINEAR_SHAPES, ...LINEAR_SHAPES, ...LINEAR_SHAPES, ...LINEAR_SHAPES].map(([rows, d, V]) => {
    const ignore = ignoreId(rng);
    const compute = rng.int(0, 1);
    const [dh, dw] = rng.pick([
      [true, true],
      [true, true],
      [false, false],
      [true, false],
      [false, true],
    ]);
    const rowscale = rng.chance(0.7) ? input('f32', rows, () => rng.next()) : null;
    return makeCase(kernel, {
      p: [
        output('f32', rows),
        dh ? output(floatDtype(rng), rows * d) : null,
        dw ? output('f32', V * d) : null,
        gaussian(rng, floatDtype(rng), rows * d),
        gaussian(rng, floatDtype(rng), V * d),
        targets(rng, rows, V, ignore),
        rowscale,
      ],
      i: [rows, d, V, ignore, compute],
      f: [rng.pick(zcoefs), rng.pick([1, 1 / Math.sqrt(d)])],
      // With compute = 1 the logits' gradient is rounded to bf16 before it meets w and h.
      tolerance:
        compute === 1
          ? tolerance(1e-2, 5e-3 * (1 + Math.sqrt(d)), 5e-3)
          : tolerance(1e-5, 1e-5 * (1 + Math.sqrt(d)), 1e-5),
    });
  });
  const { target, error } = badTarget(rng, 6, 5, 9);
  const p = [output('f32', 6), null, null, gaussian(rng, 'f32', 24), gaussian(rng, 'f32', 20), target, null];
  return [...random, makeCase(kernel, { p, i: [6, 4, 5, -1, 0], f: [0, 1], error })];
};

export const lossCases: Record<string, CaseGenerator> = {
  cross_entropy: crossEntropy,
  cross_entropy_bwd: crossEntropyBackward,
  linear_cross_entropy: linearCrossEntropy,
};
