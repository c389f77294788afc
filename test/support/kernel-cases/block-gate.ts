// Cases of block gates: one unit of each block by a low-rank controller, with groups, noise, both masks.
import { EXACT, floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, TensorSpec } from './types.ts';

/** rows, units, units a block, rank, groups */
const SHAPES = [
  [0, 8, 4, 2, 1],
  [1, 4, 4, 1, 1],
  [5, 12, 2, 3, 1],
  [3, 21, 7, 2, 3],
  [9, 64, 16, 5, 1],
  [17, 96, 32, 4, 4],
  [6, 200, 40, 6, 2],
  [33, 128, 64, 8, 1],
  [11, 30, 1, 2, 1],
  [13, 72, 8, 5, 2],
  [700, 64, 8, 4, 1],
  [650, 48, 16, 3, 5],
];

interface Shape {
  readonly rows: number;
  readonly F: number;
  readonly N: number;
  readonly r: number;
  readonly groups: number;
}
const shapes = (): Shape[] =>
  [...SHAPES, ...SHAPES, ...SHAPES, ...SHAPES].map(([rows, F, N, r, groups]) => ({ rows, F, N, r, groups }));

/** Borders of groups: some empty; rows before the first and after the last belong to none. */
function offsets(rng: Rng, { rows, groups }: Shape): TensorSpec | null {
  if (groups === 1 && rng.chance(0.5)) return null;
  const cuts = Array.from({ length: groups + 1 }, () => rng.int(0, rows)).sort((a, b) => a - b);
  if (rng.chance(0.5)) [cuts[0], cuts[groups]] = [0, rows];
  return input('i32', groups + 1, (k) => cuts[k]);
}

const flag = (value: number): TensorSpec => input('f32', 1, () => value);
const state = (rng: Rng): TensorSpec => input('i32', 4, () => rng.int(-(2 ** 31), 2 ** 31 - 1));
const picks = (rng: Rng, { rows, F, N }: Shape): TensorSpec => input('i32', (rows * F) / N, () => rng.int(0, N - 1));

const gate: CaseGenerator = (kernel, rng) => [
  ...shapes().map((s) => {
    const tau = rng.pick([0, 0.1, 1]);
    return makeCase(kernel, {
      p: [
        output(floatDtype(rng), s.rows * s.F),
        output('i32', (s.rows * s.F) / s.N),
        gaussian(rng, floatDtype(rng), s.rows * s.F),
        gaussian(rng, 'f32', s.rows * s.r),
        gaussian(rng, 'f32', s.groups * s.F * s.r),
        rng.chance(0.5) ? gaussian(rng, 'f32', s.groups * s.F) : null,
        offsets(rng, s),
        rng.pick([flag(0), flag(1), null]),
        tau > 0 ? state(rng) : null,
        rng.chance(0.2) ? picks(rng, s) : null,
      ],
      i: [s.rows, s.F, s.N, s.r, s.groups, rng.int(0, 2 ** 31 - 1), rng.int(0, 1)],
      f: [tau],
      tolerance: tolerance(1e-5, 1e-6, 1e-5),
    });
  }),
  makeCase(kernel, {
    p: [
      output('f32', 12),
      output('i32', 6),
      gaussian(rng, 'f32', 12),
      gaussian(rng, 'f32', 3),
      gaussian(rng, 'f32', 8),
      null,
      input('i32', 3, (k) => [0, 2, 4][k]),
      ...[null, null, null],
    ],
    i: [3, 4, 2, 1, 2, 0, 0],
    f: [0],
    error: 'index 4 out of range: limit 4',
  }),
];

const gateBackward: CaseGenerator = (kernel, rng) =>
  shapes().map((s) => {
    const bias = rng.chance(0.5);
    return makeCase(kernel, {
      p: [
        output(floatDtype(rng), s.rows * s.F),
        output('f32', s.rows * s.r),
        output('f32', s.groups * s.F * s.r),
        bias ? output('f32', s.groups * s.F) : null,
        gaussian(rng, floatDtype(rng), s.rows * s.F),
        gaussian(rng, floatDtype(rng), s.rows * s.F),
        picks(rng, s),
        gaussian(rng, 'f32', s.rows * s.r),
        gaussian(rng, 'f32', s.groups * s.F * s.r),
        bias ? gaussian(rng, 'f32', s.groups * s.F) : null,
        offsets(rng, s),
        rng.pick([flag(0), flag(1), null]),
      ],
      i: [s.rows, s.F, s.N, s.r, s.groups, rng.int(0, 1), rng.int(0, 1)],
      tolerance: tolerance(1e-5, 3e-5, 1e-5),
    });
  });

const share: CaseGenerator = (kernel, rng) =>
  shapes().map((s) =>
    makeCase(kernel, {
      p: [output('f32', s.groups * s.F), picks(rng, s), offsets(rng, s)],
      i: [s.rows, s.F / s.N, s.N, s.groups],
      tolerance: tolerance(1e-6, 0),
    }),
  );

export const blockGateCases: Record<string, CaseGenerator> = {
  block_gate: gate,
  block_gate_bwd: gateBackward,
  choice_share: share,
};

const ROWS = [
  [0, 4],
  [1, 1],
  [3, 5],
  [7, 16],
  [20, 33],
  [50, 300],
  [3, 5003],
];

const topk: CaseGenerator = (kernel, rng) =>
  [...ROWS, ...ROWS, ...ROWS].map(([rows, n]) =>
    makeCase(kernel, {
      p: [
        output(floatDtype(rng), rows * n),
        output('f32', rows),
        output('f32', rows),
        gaussian(rng, floatDtype(rng), rows * n, 2),
      ],
      i: [rows, n],
      f: [rng.pick([-0.5, 0, 1.4])],
      tolerance: tolerance(1e-5, 3e-6, 1e-5),
    }),
  );

const topkBackward: CaseGenerator = (kernel, rng) =>
  [...ROWS, ...ROWS, ...ROWS].map(([rows, n]) =>
    makeCase(kernel, {
      p: [
        output(floatDtype(rng), rows * n),
        gaussian(rng, floatDtype(rng), rows * n),
        input(floatDtype(rng), rows * n, () => Math.max(0, rng.normal())),
        gaussian(rng, 'f32', rows),
        input('f32', rows, () => rng.pick([0, rng.uniform(0.5, 2)])),
        gaussian(rng, floatDtype(rng), rows * n),
      ],
      i: [rows, n],
      f: [rng.pick([0, 1.4])],
      tolerance: tolerance(1e-5, 3e-6, 1e-5),
    }),
  );

const LENGTHS = [0, 1, 5, 17, 1000, 40_000];
const sum: CaseGenerator = (kernel, rng) =>
  [...LENGTHS, ...LENGTHS].map((n) =>
    makeCase(kernel, {
      p: [output('f32', 1), gaussian(rng, floatDtype(rng), n)],
      i: [n],
      tolerance: tolerance(2e-6, 0),
    }),
  );
const sumBackward: CaseGenerator = (kernel, rng) =>
  [...LENGTHS, ...LENGTHS].map((n) =>
    makeCase(kernel, {
      p: [
        output(floatDtype(rng), n),
        input(floatDtype(rng), n, () => rng.pick([0, rng.normal()])),
        gaussian(rng, 'f32', 1),
        rng.chance(0.5) ? gaussian(rng, floatDtype(rng), n) : null,
      ],
      i: [n],
      tolerance: tolerance(1e-6, 1e-6),
    }),
  );
const nonzero: CaseGenerator = (kernel, rng) =>
  [...ROWS, ...ROWS].map(([rows, n]) =>
    makeCase(kernel, {
      p: [output('f32', n), input(floatDtype(rng), rows * n, () => rng.pick([0, 0, -0, rng.normal()]))],
      i: [rows, n],
      tolerance: rows > 0 ? tolerance(1e-6, 0) : EXACT,
    }),
  );

export const unitSparsityCases: Record<string, CaseGenerator> = {
  stat_topk: topk,
  stat_topk_bwd: topkBackward,
  abs_sum: sum,
  abs_sum_bwd: sumBackward,
  nonzero_share: nonzero,
};
