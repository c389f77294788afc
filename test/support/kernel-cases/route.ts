// Cases of routing, of moving rows to groups and back, and of products with one matrix a group.
import { EXACT, floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

const outOfRange = (value: number, limit: number): string => `index ${value} out of range: limit ${limit}`;

/** Scores that sum exactly in f32, with ties, now and then with infinities and NaN. */
const scoresOf = (rng: Rng, n: number, kind: string): TensorSpec =>
  input('f32', n, () => {
    if (kind === 'ties') return rng.int(-2, 2);
    if (kind === 'edges')
      return rng.pick([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0, 0, rng.int(-9, 9) / 4]);
    return rng.int(-4000, 4000) / 64;
  });

interface Route {
  readonly rows: number;
  readonly span: number;
  readonly E: number;
  readonly k: number;
  readonly capacity?: number;
  readonly order?: number;
  readonly groups?: number;
  readonly keep?: number;
}

function routeCase(rng: Rng, r: Route, kind: string, error = false): KernelCase {
  const { rows, span, E, k, capacity = 0, order = 0, groups = 1, keep = 1 } = r;
  const n = rows * span;
  const byRow = rng.int(0, 1);
  const bound = capacity ? Math.min(n * k, E * capacity * (byRow ? rows : 1)) : n * k;
  const chosen = error || rng.chance(0.15) ? input('i32', n * k, () => rng.int(0, E - 1)) : null;
  if (error) (chosen!.data as Int32Array)[n * k - 1] = E;
  return makeCase('route', {
    p: [
      ...[output('i32', n * k), output('i32', n * k), output('i32', bound), output('i32', E + 1)],
      output('f32', rows * k * E),
      scoresOf(rng, n * E, kind),
      rng.chance(0.3) ? scoresOf(rng, E, 'ties') : null,
      chosen,
      rng.chance(0.3) ? input('f32', n * k, () => +rng.chance(0.7)) : null,
    ],
    i: [n, E, k, bound, span, capacity, byRow, order, groups, keep],
    note: kind,
    error: error ? outOfRange(E, E) : undefined,
  });
}

const route: CaseGenerator = (_, rng) => {
  const list: Route[] = [];
  for (let t = 0; t < 60; t++) {
    const E = rng.int(1, 40);
    const [rows, span, k] = [rng.int(1, 4), rng.int(1, 30), rng.int(1, Math.min(E, 6))];
    const capacity = rng.chance(0.6) ? rng.int(1, Math.ceil((rows * span * k) / E) + 1) : 0;
    list.push({ rows, span, E, k, capacity, order: rng.int(0, 2) });
  }
  for (const [E, k, groups, keep] of [
    [8, 2, 4, 2],
    [16, 4, 4, 1],
    [24, 3, 8, 3],
    [6, 2, 6, 2],
    [64, 8, 8, 4],
  ])
    list.push({ rows: 2, span: 33, E, k, groups, keep });
  list.push(
    { rows: 2, span: 500, E: 64, k: 4 },
    { rows: 3, span: 300, E: 16, k: 2, capacity: 40, order: 2 },
    { rows: 1, span: 1000, E: 8, k: 1, capacity: 100 },
    { rows: 1, span: 1, E: 256, k: 8 },
    { rows: 4, span: 128, E: 1, k: 1 },
  );
  return [
    ...list.flatMap((r) => ['plain', 'ties', 'edges'].map((kind) => routeCase(rng, r, kind))),
    routeCase(rng, { rows: 1, span: 9, E: 4, k: 2 }, 'plain', true),
  ];
};

const routeChoice: CaseGenerator = (_, rng) => {
  const random = Array.from({ length: 40 }, () => [rng.int(1, 4), rng.int(1, 40), rng.int(1, 20)]);
  return [...random, [2, 700, 16], [1, 64, 64], [3, 1, 2]].flatMap(([scopes, size, E]) =>
    ['plain', 'ties', 'edges'].map((kind) => {
      const [n, take] = [scopes * size, rng.int(0, size)];
      return makeCase('route_choice', {
        p: [
          ...[output('i32', n * E), output('i32', E * take * scopes), output('i32', E + 1)],
          scoresOf(rng, n * E, kind),
          rng.chance(0.3) ? input('f32', n, () => +rng.chance(0.7)) : null,
        ],
        i: [n, E, take, size],
        note: kind,
      });
    }),
  );
};

interface Places {
  readonly slot: TensorSpec;
  readonly pick: TensorSpec;
  readonly R: number;
}

/** Some of n k choices in some of R rows. */
function places(rng: Rng, n: number, k: number): Places {
  const order = rng.shuffled(Array.from({ length: n * k }, (_, r) => r)).filter(() => rng.chance(0.8));
  const R = order.length + rng.int(0, 5);
  const slot = new Int32Array(n * k).fill(-1);
  order.forEach((r, at) => {
    slot[r] = at;
  });
  return { slot: input('i32', n * k, (r) => slot[r]), pick: input('i32', R, (at) => order[at] ?? -1), R };
}

const SIZES = [
  [1, 1, 1],
  [5, 2, 3],
  [0, 2, 8],
  [9, 1, 16],
  [7, 3, 17],
  [40, 2, 33],
  [33, 4, 64],
  [600, 4, 100],
];

const moving: CaseGenerator = (kernel, rng) => {
  const random = Array.from({ length: 40 }, (_, d) => [rng.int(1, 20), rng.int(1, 5), d + 1]);
  const spoil = (spec: TensorSpec, value: number): TensorSpec => ({
    ...spec,
    data: Int32Array.from(spec.data!, (x, k) => (k === 2 ? value : x)),
  });
  const build = ([n, k, d]: number[], bad = false): KernelCase => {
    const { slot, pick, R } = places(rng, n, k);
    const f = [rng.pick([1, 1, -0.5])];
    const w = () => gaussian(rng, 'f32', n * k);
    const tol = tolerance(2e-6, 2e-6 * Math.sqrt(k + 1), 3e-6);
    const error = bad
      ? outOfRange(kernel === 'gather_rows' ? n * k : R, kernel === 'gather_rows' ? n * k : R)
      : undefined;
    if (kernel === 'gather_rows')
      return makeCase(kernel, {
        p: [output(floatDtype(rng), R * d), gaussian(rng, floatDtype(rng), n * d), bad ? spoil(pick, n * k) : pick],
        i: [R, d, n * k, k],
        tolerance: EXACT,
        error,
      });
    const places_ = bad ? spoil(slot, R) : slot;
    const y = gaussian(rng, floatDtype(rng), R * d);
    if (kernel === 'combine_rows')
      return makeCase(kernel, {
        p: [
          ...[output(floatDtype(rng), n * d), y, places_, rng.chance(0.7) ? w() : null],
          rng.chance(0.6) ? gaussian(rng, floatDtype(rng), n * d) : null,
        ],
        i: [n, k, d, R],
        f,
        tolerance: tol,
        error,
      });
    return makeCase(kernel, {
      p: [
        ...[output(y.dtype, R * d), output('f32', n * k), y, places_, pick, w()],
        gaussian(rng, floatDtype(rng), n * d),
      ],
      i: [n, k, d, R],
      f,
      tolerance: tolerance(3e-6, 3e-6 * Math.sqrt(d + 1), 3e-6),
      error,
    });
  };
  return [...[...SIZES, ...SIZES, ...random].map((size) => build(size)), build([8, 3, 5], true)];
};

/** Offsets of E groups with a few empty ones, and the rows they leave unused. */
function groups(rng: Rng, E: number, largest: number): { offsets: number[]; R: number; most: number } {
  const sizes = Array.from({ length: E }, () => (rng.chance(0.25) ? 0 : rng.int(0, largest)));
  const offsets = [0];
  for (const s of sizes) offsets.push(offsets[offsets.length - 1] + s);
  return { offsets, R: offsets[E] + rng.int(0, 3), most: Math.max(...sizes, largest) };
}

const products: CaseGenerator = (kernel, rng) => {
  const weight = kernel === 'grouped_matmul_weight';
  const build = ([E, largest, N, K]: number[], mode: number, bad = false): KernelCase => {
    const { offsets, R, most } = groups(rng, E, largest);
    const table = input('i32', E + 1, (e) => (bad && e === E ? R + 1 : offsets[e]));
    const alpha = rng.pick([1, 1, -2]);
    const [transB, compute] = [mode & 1, mode >> 1];
    const error = bad ? outOfRange(R + 1, R + 1) : undefined;
    const scale = Math.sqrt((weight ? largest : K) + 1) * Math.abs(alpha);
    const parts = { f: [alpha], tolerance: tolerance(2e-6, 4e-6 * scale, 2e-6), error };
    const rows = (width: number) => gaussian(rng, floatDtype(rng), R * width);
    if (weight)
      return makeCase(kernel, {
        p: [output(E * K * N > 4e6 ? 'f32' : floatDtype(rng), E * K * N), rows(K), rows(N), table],
        i: [R, E, K, N, compute],
        ...parts,
      });
    return makeCase(kernel, {
      p: [output(floatDtype(rng), R * N), rows(K), gaussian(rng, floatDtype(rng), E * N * K), table],
      i: [R, E, N, K, transB, most, compute],
      ...parts,
    });
  };
  const random = Array.from({ length: 60 }, () => [rng.int(1, 9), rng.int(1, 30), rng.int(1, 70), rng.int(1, 70)]);
  const chosen = [
    [1, 40, 33, 20],
    [3, 600, 40, 30], // several pieces of rows
    [4, 20, 530, 40], // several pieces of columns
    [2, 30, 40, 1100], // several passes along K
    [8, 4, 64, 64], // no group has more than a few rows
    [5, 0, 8, 8],
    [3, 6, 0, 8],
    [3, 6, 8, 0],
    [2, 15, 300, 1040],
  ];
  return [
    ...[...random, ...chosen, ...chosen].flatMap((size, at) => [build(size, at & 3), build(size, (at + 2) & 3)]),
    ...(weight ? [0, 2].map((mode) => build([2, 5, 1056, 2000], mode)) : []), // results that go past the caches
    build([3, 6, 8, 8], 0, true),
  ];
};

export const routeCases: Record<string, CaseGenerator> = {
  route,
  route_choice: routeChoice,
  gather_rows: moving,
  combine_rows: moving,
  combine_rows_bwd: moving,
  grouped_matmul: products,
  grouped_matmul_weight: products,
};
