// Cases for reductions and functions of rows.
import type { DType } from '../../src/backend/dtype.ts';
import type { Tensor } from '../../src/tensor/index.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  awayFromZero,
  constant,
  distinct,
  FLOATS,
  float,
  get,
  type Nd,
  nd,
  normals,
  type OpCase,
  opCase,
  sizeOf,
} from './op-cases-build.ts';

type Reduce = (x: Tensor, axes?: readonly number[], keep?: boolean) => Tensor;
type Draw = (rng: Rng, n: number) => (k: number) => number;

const rows: Record<string, { f: Reduce; of: (v: number[]) => number; draw: Draw }> = {
  sum: { f: T.sum, of: (v) => v.reduce((a, b) => a + b, 0), draw: normals },
  mean: { f: T.mean, of: (v) => v.reduce((a, b) => a + b, 0) / v.length, draw: normals },
  max: { f: T.max, of: (v) => Math.max(...v), draw: distinct },
  min: { f: T.min, of: (v) => Math.min(...v), draw: distinct },
  prod: { f: T.prod, of: (v) => v.reduce((a, b) => a * b, 1), draw: awayFromZero },
};

/** Reduces any axes: collects the elements that share what is left of their index. */
export function reduceNd(x: Nd, axes: readonly number[] | undefined, keep: boolean, of: (v: number[]) => number): Nd {
  const gone = new Set((axes ?? x.shape.map((_, k) => k)).map((a) => (a < 0 ? a + x.shape.length : a)));
  const kept = x.shape.map((d, k) => (gone.has(k) ? 1 : d));
  const dense = nd(kept, (at) => {
    const found: number[] = [];
    nd(
      x.shape.map((d, k) => (gone.has(k) ? d : 1)),
      (offset) =>
        found.push(
          get(
            x,
            at.map((i, k) => i + offset[k]),
          ),
        ),
    );
    return of(found);
  });
  return keep ? dense : { shape: x.shape.filter((_, k) => !gone.has(k)), data: dense.data };
}

const reductions: readonly [readonly number[], readonly number[] | undefined, boolean][] = [
  [[7], undefined, false],
  [[], undefined, false],
  [[3, 4], [0], false],
  [[3, 4], [-1], true],
  [[2, 3, 4], [0, 2], false],
  [[2, 3, 4], [0, 2], true],
  [[2, 3, 4], [1], false],
  [[2, 3, 4], undefined, true],
  [[2, 1, 3], [1, 2], false],
  [[3, 2, 2, 2], [1, 3], false],
  [[3, 4], [], false],
];

export function reduceCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [op, { f, of, draw }] of Object.entries(rows)) {
    for (const [shape, axes, keep] of reductions)
      for (const dtype of FLOATS) {
        const x = float(shape, dtype, draw(rng, sizeOf(shape)));
        cases.push(
          opCase(op, [x], ([t]) => [f(t, axes, keep)], {
            expect: ([t]) => [reduceNd(t, axes, keep, of)],
            note: `axes ${axes ? `[${axes}]` : 'all'}${keep ? ' keep' : ''}`,
          }),
        );
      }
    // Nothing to reduce gives the identity; nothing that is left gives nothing.
    if (op !== 'mean')
      cases.push(
        opCase(op, [constant([2, 0], 'f32', () => 0)], ([t]) => [f(t, [1])], {
          expect: () => [nd([2], () => of([]))],
          note: 'of nothing',
        }),
      );
    cases.push(
      opCase(op, [float([0, 3], 'f32', () => 0)], ([t]) => [f(t, [1])], { expect: () => [nd([0], () => 0)] }),
      opCase(op, [float([61, 130], 'f32', draw(rng, 200))], ([t]) => [f(t, [0])], { large: true }),
      opCase(op, [float([61, 130], 'bf16', draw(rng, 200))], ([t]) => [f(t, [1])], { large: true }),
    );
  }
  // One zero in a row, two, none: a product is smooth there, though its gradient is no quotient.
  const zeros = [0, 2, 3, 0, 0, 1, 2, -1, 1];
  for (const dtype of FLOATS)
    cases.push(
      opCase('prod', [float([3, 3], dtype, (k) => zeros[k])], ([t]) => [T.prod(t, [1])], {
        expect: ([t]) => [reduceNd(t, [1], false, rows.prod.of)],
        note: 'with zeros',
      }),
    );
  return [...cases, ...extremes(rng), ...sumsOfSquares(rng), ...cumulative(rng), ...rowFunctions(rng)];
}

function extremes(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  const first = (better: (a: number, b: number) => boolean) => (v: number[]) =>
    v.reduce((best, x, k) => (better(x, v[best]) ? k : best), 0);
  for (const [op, f, of] of [
    ['argmax', T.argmax, first((a, b) => a > b)],
    ['argmin', T.argmin, first((a, b) => a < b)],
  ] as const)
    for (const [shape, axis] of [
      [[6], 0],
      [[3, 5], -1],
      [[3, 5], 0],
      [[2, 3, 4], 1],
      [[4, 1], 1],
    ] as [number[], number][])
      for (const dtype of FLOATS) {
        // Few values, so that ties are common: the first index wins.
        const x = constant(shape, dtype, () => rng.int(-2, 2));
        cases.push(
          opCase(op, [x], ([t]) => [f(t, axis)], {
            expect: ([t]) => [reduceNd(t, [axis], false, of)],
            note: `axis ${axis}`,
          }),
        );
      }
  return cases;
}

function sumsOfSquares(rng: Rng): OpCase[] {
  const expect = ([x]: readonly Nd[]): Nd[] => [
    { shape: [1], data: [Array.from(x.data).reduce((s, v) => s + v * v, 0)] },
  ];
  return ([[], [7], [3, 5], [0]] as number[][]).flatMap((shape) =>
    FLOATS.map((dtype) => opCase('sumsq', [float(shape, dtype, normals(rng))], ([x]) => [T.sumsq(x)], { expect })),
  );
}

function cumulative(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const reverse of [false, true])
    for (const exclusive of [false, true])
      for (const [shape, axis] of [
        [[6], -1],
        [[3, 4], 0],
        [[2, 3, 2], 1],
        [[0, 2], 1],
      ] as [number[], number][])
        for (const dtype of FLOATS) {
          const a = axis < 0 ? axis + shape.length : axis;
          const expect = ([x]: readonly Nd[]): Nd[] => [
            nd(shape, (index) => {
              let sum = 0;
              for (let j = 0; j < shape[a]; j++) {
                const seen = reverse ? j > index[a] : j < index[a];
                if (seen || (j === index[a] && !exclusive)) sum += get(x, index.toSpliced(a, 1, j));
              }
              return sum;
            }),
          ];
          const note = `axis ${axis}${reverse ? ' reverse' : ''}${exclusive ? ' exclusive' : ''}`;
          cases.push(
            opCase(
              'cumsum',
              [float(shape, dtype, normals(rng))],
              ([x]) => [T.cumsum(x, axis, { reverse, exclusive })],
              {
                expect,
                note,
              },
            ),
          );
        }
  return cases;
}

function rowFunctions(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  const lse = (row: number[]): number => Math.log(row.reduce((s, v) => s + Math.exp(v), 0));
  const rowsOf = (x: Nd, f: (row: number[]) => number[]): Nd => {
    const cols = x.shape[x.shape.length - 1];
    const all = Array.from(x.data);
    const data: number[] = [];
    for (let at = 0; at < all.length; at += cols) data.push(...f(all.slice(at, at + cols)));
    return { shape: x.shape, data };
  };
  const add = (shape: readonly number[], dtype: DType, large = false): void => {
    const x = (): ReturnType<typeof float> => float(shape, dtype, normals(rng, 2));
    cases.push(
      opCase('softmax', [x()], ([t]) => [T.softmax(t)], {
        expect: ([t]) => [rowsOf(t, (row) => row.map((v) => Math.exp(v - lse(row))))],
        large,
      }),
      opCase('log_softmax', [x()], ([t]) => [T.logSoftmax(t)], {
        expect: ([t]) => [rowsOf(t, (row) => row.map((v) => v - lse(row)))],
        large,
      }),
      opCase('logsumexp', [x()], ([t]) => [T.logsumexp(t)], {
        expect: ([t]) => [reduceNd(t, [-1], false, lse)],
        large,
      }),
    );
  };
  for (const shape of [[5], [3, 7], [2, 1, 4], [3, 1], [0, 4]]) for (const dtype of FLOATS) add(shape, dtype);
  for (const dtype of FLOATS) add([37, 301], dtype, true);
  return cases;
}
