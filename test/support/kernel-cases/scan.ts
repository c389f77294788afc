// Cases of the simple recurrent unit, and of rows joined by segment.
import { floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, TensorSpec } from './types.ts';

/** B, T, n */
const SHAPES = [
  [1, 1, 1],
  [2, 5, 3],
  [3, 7, 16],
  [1, 40, 33],
  [2, 64, 32],
  [0, 4, 8],
  [2, 0, 5],
  [4, 100, 70],
];
const all = [...SHAPES, ...SHAPES, ...SHAPES, ...SHAPES];
const near = tolerance(2e-5, 2e-5, 1e-5);

const segments = (rng: Rng, B: number, T: number): TensorSpec | null =>
  rng.chance(0.6) ? input('i32', B * T, (k) => Math.floor((k % T) / 4)) : null;

const forward: CaseGenerator = (kernel, rng) =>
  all.map(([B, T, n]) => {
    const dtype = floatDtype(rng);
    const each = rng.int(0, 1);
    const start = rng.chance(0.6) ? gaussian(rng, 'f32', B * (each ? T : 1) * n) : null;
    return makeCase(kernel, {
      p: [
        output(dtype, B * T * n),
        output('f32', B * T * n),
        gaussian(rng, dtype, B * T * n),
        gaussian(rng, dtype, B * T * 3 * n, 1.5),
        start,
        segments(rng, B, T),
      ],
      i: [B, T, n, each],
      tolerance: near,
    });
  });

const backward: CaseGenerator = (kernel, rng) =>
  all.map(([B, T, n]) => {
    const dtype = floatDtype(rng);
    const each = rng.int(0, 1);
    const states = rng.chance(0.6) ? B * (each ? T : 1) * n : null;
    const both = rng.int(0, 2);
    return makeCase(kernel, {
      p: [
        output(dtype, B * T * n),
        output(dtype, B * T * 3 * n),
        states === null ? null : output('f32', states),
        both !== 1 ? gaussian(rng, dtype, B * T * n) : null,
        both !== 0 ? gaussian(rng, 'f32', B * T * n) : null,
        gaussian(rng, dtype, B * T * n),
        gaussian(rng, dtype, B * T * 3 * n, 1.5),
        gaussian(rng, 'f32', B * T * n),
        states === null ? null : gaussian(rng, 'f32', states),
        segments(rng, B, T),
      ],
      i: [B, T, n, each],
      tolerance: near,
    });
  });

const join: CaseGenerator = (kernel, rng) =>
  [
    [1, 3, 4],
    [2, 0, 5],
    [2, 6, 0],
    [3, 17, 9],
    [0, 2, 2],
    [5, 40, 70],
  ].flatMap(([B, Ta, Tb]) =>
    [1, 3, 20].map((most) =>
      makeCase(kernel, {
        p: [
          ...[1, 2, 3].map(() => output('i32', B * (Ta + Tb))),
          output('i32', B * Tb),
          // In any order, with padding, and some that only one of the rows has.
          input('i32', B * Ta, () => rng.int(0, most)),
          input('i32', B * Tb, () => rng.int(rng.chance(0.1) ? -2 : 0, most)),
        ],
        i: [B, Ta, Tb],
      }),
    ),
  );

export const scanCases: Record<string, CaseGenerator> = { sru: forward, sru_bwd: backward, join_segments: join };
