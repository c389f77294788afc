// Cases for routing, grouped rows and grouped products.
import type { DType } from '../../src/backend/dtype.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  type CaseInput,
  constant,
  distinct,
  FLOATS,
  float,
  get,
  nd,
  normals,
  type OpCase,
  opCase,
} from './op-cases-build.ts';

export function routeCases(rng: Rng): OpCase[] {
  return [routing, choosing, moving, products].flatMap((make) => make(rng));
}

/** Scores without ties, exact in every dtype. */
const scores = (rng: Rng, n: number, E: number): CaseInput => constant([n, E], 'f32', distinct(rng, n * E));

function routing(rng: Rng): OpCase[] {
  const list: [number, number, T.RouteOptions][] = [
    [4, 3, { k: 1, span: 4 }],
    [6, 4, { k: 2, span: 3 }],
    [6, 4, { k: 4, span: 2 }],
    [8, 4, { k: 2, span: 4, capacity: 2 }],
    [8, 4, { k: 2, span: 4, capacity: 3, order: 'choice' }],
    [8, 4, { k: 2, span: 4, capacity: 1, order: 'priority', bySequence: true }],
    [5, 8, { k: 2, span: 5, groups: 4, keepGroups: 2 }],
    [5, 1, { k: 1, span: 1 }],
  ];
  const cases = list.map(([n, E, options]) =>
    opCase(
      'route',
      [scores(rng, n, E)],
      ([s]) => {
        const r = T.route(s, options);
        return [r.index, r.slot, r.pick, r.offsets, r.counts];
      },
      { note: JSON.stringify(options) },
    ),
  );
  // By definition: two experts a token, all kept, in groups by expert and then by token.
  cases.push(
    opCase(
      'route',
      [constant([3, 3], 'f32', (k) => [1, 2, 0, 5, 5, 5, 0, 1, 3][k]), constant([3], 'f32', (k) => [0, 0, 4][k])],
      ([s, bias]) => {
        const r = T.route(s, { k: 2, span: 3, bias });
        return [r.index, r.slot, r.pick, r.offsets, r.counts];
      },
      {
        expect: () => [
          { shape: [3, 2], data: [2, 1, 2, 0, 2, 1] },
          { shape: [3, 2], data: [3, 1, 4, 0, 5, 2] },
          { shape: [6], data: [3, 1, 5, 0, 2, 4] },
          { shape: [4], data: [0, 1, 3, 6] },
          { shape: [1, 2, 3], data: [0, 0, 3, 1, 2, 0] },
        ],
        note: 'bias, ties',
      },
    ),
    opCase(
      'route',
      [
        constant([2, 2], 'f32', () => 0),
        constant([2, 1], 'i32', (k) => [1, 0][k]),
        constant([2, 1], 'f32', (k) => [1, 0][k]),
      ],
      ([s, chosen, use]) => {
        const r = T.route(s, { k: 1, span: 1, chosen, use });
        return [r.index, r.slot, r.pick, r.offsets, r.counts];
      },
      {
        expect: () => [
          { shape: [2, 1], data: [1, 0] },
          { shape: [2, 1], data: [0, -1] },
          { shape: [2], data: [0, -1] },
          { shape: [3], data: [0, 0, 1] },
          { shape: [2, 1, 2], data: [0, 1, 0, 0] },
        ],
        note: 'chosen elsewhere',
      },
    ),
  );
  return cases;
}

function choosing(rng: Rng): OpCase[] {
  return (
    [
      [6, 3, 2, 3],
      [6, 3, 2, 6],
      [4, 2, 4, 4],
      [5, 2, 0, 5],
    ] as const
  ).map(([n, E, take, size]) =>
    opCase(
      'route_choice',
      [scores(rng, n, E)],
      ([s]) => {
        const r = T.routeChoice(s, { take, size });
        return [r.slot, r.pick, r.offsets];
      },
      { note: `${take} of ${size}` },
    ),
  );
}

interface Sizes {
  readonly n: number;
  readonly E: number;
  readonly k: number;
  readonly d: number;
  readonly capacity?: number;
  readonly large?: boolean;
}

const sizes: Sizes[] = [
  { n: 4, E: 3, k: 1, d: 3 },
  { n: 5, E: 4, k: 2, d: 4 },
  { n: 6, E: 2, k: 2, d: 2, capacity: 3 },
  { n: 1, E: 5, k: 3, d: 1 },
  { n: 60, E: 4, k: 2, d: 67, large: true },
];

const routed = (s: T.Tensor, { n, k, capacity }: Sizes): T.Routing => T.route(s, { k, span: n, capacity });

function moving(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const size of sizes)
    for (const dtype of FLOATS)
      for (const out of FLOATS) {
        const { n, E, k, d, large } = size;
        const note = `k ${k} out ${out}`;
        cases.push(
          opCase(
            'gather_rows',
            [float([n, d], dtype, normals(rng)), scores(rng, n, E)],
            ([x, s]) => [T.groupRows(x, routed(s, size), out)],
            { large, note },
          ),
        );
        const rows = size.capacity ? Math.min(n * k, E * size.capacity) : n * k;
        for (const weighted of [true, false])
          for (const addend of [true, false])
            cases.push(
              opCase(
                'combine_rows',
                [
                  float([rows, d], dtype, normals(rng)),
                  scores(rng, n, E),
                  ...(weighted ? [float([n, k], 'f32', normals(rng))] : []),
                  ...(addend ? [float([n, d], 'f32', normals(rng))] : []),
                ],
                ([y, s, ...rest]) => [
                  T.combineGroups(y, weighted ? rest[0] : null, routed(s, size), {
                    addend: addend ? rest[rest.length - 1] : null,
                    alpha: 0.5,
                    out,
                  }),
                ],
                { large, note: `${note}${weighted ? ' weights' : ''}${addend ? ' addend' : ''}` },
              ),
            );
      }
  return cases;
}

function products(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [E, counts, N, K, large] of [
    [1, [3], 2, 3, false],
    [3, [2, 0, 3], 4, 2, false],
    [2, [1, 1], 3, 5, false],
    [2, [0, 0], 2, 2, false],
    [3, [40, 7, 90], 75, 131, true],
  ] as [number, number[], number, number, boolean][]) {
    const offsets = [0];
    for (const c of counts) offsets.push(offsets[offsets.length - 1] + c);
    const rows = offsets[E] + 1;
    const group = (r: number): number => offsets.findIndex((_, e) => r < offsets[e + 1]);
    for (const transB of [false, true])
      for (const [dx, dw, compute] of [
        ['f32', 'f32', 'f32'],
        ['bf16', 'f32', 'bf16'],
        ['bf16', 'bf16', 'f32'],
      ] as [DType, DType, T.Compute][])
        cases.push(
          opCase(
            'grouped_matmul',
            [
              float([rows, K], dx, normals(rng)),
              float(transB ? [E, N, K] : [E, K, N], dw, normals(rng)),
              constant([E + 1], 'i32', (e) => offsets[e]),
            ],
            ([x, w, at]) => [
              T.groupedMatmul(x, w, { offsets: at, most: rows }, { transB, compute, alpha: 2, out: 'f32' }),
            ],
            {
              expect: ([x, w]) => [
                nd([rows, N], ([r, n]) => {
                  if (r >= offsets[E]) return 0;
                  let sum = 0;
                  for (let k = 0; k < K; k++) sum += get(x, [r, k]) * get(w, [group(r), ...(transB ? [n, k] : [k, n])]);
                  return 2 * sum;
                }),
              ],
              large,
              bf16Products: compute === 'bf16',
              note: `${transB ? 'transB ' : ''}${compute}`,
            },
          ),
        );
  }
  return cases;
}
