// Cases for reading, adding, sorting and selecting by index.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  constant,
  distinct,
  FLOATS,
  float,
  get,
  integers,
  type Nd,
  nd,
  normals,
  type OpCase,
  opCase,
  sizeOf,
} from './op-cases-build.ts';

export function selectCases(rng: Rng): OpCase[] {
  return [tables, gathers, oneHots, orders].flatMap((make) => make(rng));
}

function tables(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [rows, d, ids, large] of [
    [5, 3, [4], false],
    [2, 4, [2, 5], false],
    [1, 1, [3], false],
    [4, 3, [], false],
    [4, 3, [0], false],
    [97, 40, [11, 20], true],
  ] as [number, number, number[], boolean][])
    for (const dtype of FLOATS)
      for (const out of FLOATS)
        cases.push(
          opCase(
            'embedding',
            [float([rows, d], dtype, normals(rng)), constant(ids, 'i32', integers(rng, 0, rows - 1))],
            ([table, id]) => [T.embedding(table, id, out)],
            {
              expect: ([table, id]) => [
                nd([...ids, d], (index) => get(table, [get(id, index.slice(0, -1)), index[index.length - 1]])),
              ],
              large,
              note: `out ${out}`,
            },
          ),
        );
  return cases;
}

function gathers(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, axis, m, large] of [
    [[5], 0, 3, false],
    [[3, 4], 1, 6, false],
    [[3, 4], 0, 2, false],
    [[2, 3, 2], -2, 4, false],
    [[2, 3], 1, 0, false],
    [[9, 50, 7], 1, 80, true],
  ] as [number[], number, number, boolean][])
    for (const dtype of FLOATS) {
      const a = axis < 0 ? axis + shape.length : axis;
      const n = shape[a];
      const picked = shape.toSpliced(a, 1, m);
      const idx = constant(picked, 'i32', integers(rng, 0, n - 1));
      cases.push(
        opCase('gather', [float(shape, dtype, normals(rng)), idx], ([x, i]) => [T.gather(x, axis, i)], {
          expect: ([x, i]) => [nd(picked, (index) => get(x, index.toSpliced(a, 1, get(i, index))))],
          large,
          note: `axis ${axis}`,
        }),
        opCase('scatter_add', [float(picked, dtype, normals(rng)), idx], ([x, i]) => [T.scatterAdd(x, axis, i, n)], {
          expect: ([x, i]) => [
            nd(shape, (index) => {
              let sum = 0;
              for (let j = 0; j < m; j++) {
                const from = index.toSpliced(a, 1, j);
                if (get(i, from) === index[a]) sum += get(x, from);
              }
              return sum;
            }),
          ],
          large,
          note: `axis ${axis}`,
        }),
      );
    }
  return cases;
}

function oneHots(rng: Rng): OpCase[] {
  return FLOATS.flatMap((dtype) =>
    ([[4], [2, 3], [], [0]] as number[][]).map((shape) =>
      opCase('one_hot', [constant(shape, 'i32', integers(rng, 0, 4))], ([ids]) => [T.oneHot(ids, 5, dtype)], {
        expect: ([ids]) => [nd([...shape, 5], (index) => +(get(ids, index.slice(0, -1)) === index[index.length - 1]))],
        note: dtype,
      }),
    ),
  );
}

/** The order of a row: stable, ascending or descending. */
const orderOf = (row: readonly number[], descending: boolean): number[] =>
  row.map((_, k) => k).sort((a, b) => (descending ? row[b] - row[a] : row[a] - row[b]) || a - b);

function rowwise(x: Nd, descending: boolean, k: number): Nd[] {
  const n = x.shape[x.shape.length - 1];
  const all = Array.from(x.data);
  const shape = [...x.shape.slice(0, -1), k];
  const [values, indices]: [number[], number[]] = [[], []];
  for (let at = 0; at < all.length; at += n) {
    const row = all.slice(at, at + n);
    const order = orderOf(row, descending).slice(0, k);
    indices.push(...order);
    values.push(...order.map((j) => row[j]));
  }
  return [
    { shape, data: values },
    { shape, data: indices },
  ];
}

function orders(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, k, large] of [
    [[6], 2, false],
    [[3, 7], 7, false],
    [[2, 2, 5], 1, false],
    [[4, 1], 1, false],
    [[3, 4], 0, false],
    [[0, 4], 2, false],
    [[13, 15], 6, true],
  ] as [number[], number, boolean][])
    for (const dtype of FLOATS) {
      const x = float(shape, dtype, distinct(rng, sizeOf(shape)));
      // Few values: ties keep their order (sort), or go to the lowest index (topk).
      const tied = constant(shape, dtype, integers(rng, -1, 1));
      for (const descending of [false, true])
        for (const input of [x, tied])
          cases.push(
            opCase(
              'sort',
              [input],
              ([t]) => {
                const { values, indices } = T.sort(t, { descending });
                return [values, indices];
              },
              { expect: ([t]) => rowwise(t, descending, shape[shape.length - 1]), large, note: `${descending}` },
            ),
          );
      cases.push(
        opCase('sort', [tied], ([t]) => [T.argsort(t)], {
          expect: ([t]) => [rowwise(t, false, shape[shape.length - 1])[1]],
        }),
      );
      for (const input of [x, tied])
        cases.push(
          opCase(
            'topk',
            [input],
            ([t]) => {
              const { values, indices } = T.topk(t, k);
              return [values, indices];
            },
            { expect: ([t]) => rowwise(t, true, k), large, note: `k ${k}` },
          ),
        );
    }
  return cases;
}
