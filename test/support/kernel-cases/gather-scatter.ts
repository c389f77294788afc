// Cases of embedding, gather, scatter, one-hot and sorting.
import { EXACT, floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

const ids = (rng: Rng, n: number, limit: number): TensorSpec => input('i32', n, () => rng.int(0, limit - 1));

/** The same ids with one of them replaced by a bad one. */
function spoilt(spec: TensorSpec, at: number, value: number): TensorSpec {
  const data = Int32Array.from(spec.data!);
  data[at] = value;
  return { ...spec, data };
}

const outOfRange = (value: number, limit: number): string => `index ${value} out of range: limit ${limit}`;

/** [n, d, rows] of an embedding; few rows make repeated ids, which the backward pass adds up. */
const EMBEDDINGS = [
  [1, 1, 1],
  [5, 3, 4],
  [0, 8, 3],
  [17, 16, 9],
  [40, 17, 100],
  [33, 64, 5],
  [100, 31, 2],
  [700, 48, 300],
  [900, 130, 1],
];

const embedding: CaseGenerator = (kernel, rng) => {
  const backward = kernel === 'embedding_bwd';
  const build = ([n, d, rows]: number[], index: TensorSpec, error?: string): KernelCase =>
    makeCase(kernel, {
      p: backward
        ? [output('f32', rows * d), index, gaussian(rng, floatDtype(rng), n * d)]
        : [output(floatDtype(rng), n * d), gaussian(rng, floatDtype(rng), rows * d), index],
      i: [n, d, rows],
      // A row that many ids hit sums that many gradients.
      tolerance: backward ? tolerance(1e-6, 2e-6 * Math.sqrt(n + 1), 3e-6) : EXACT,
      error,
    });
  const random = Array.from({ length: 40 }, (_, k) => [rng.int(1, 30), k + 1, rng.int(1, 20)]);
  return [
    ...[...EMBEDDINGS, ...EMBEDDINGS, ...random].map((shape) => build(shape, ids(rng, shape[0], shape[2]))),
    build([6, 4, 5], spoilt(ids(rng, 6, 5), 3, 5), outOfRange(5, 5)),
    build([6, 4, 5], spoilt(ids(rng, 6, 5), 5, -1), outOfRange(-1, 5)),
    build([2000, 40, 5], spoilt(ids(rng, 2000, 5), 1999, 1_000_000), outOfRange(1_000_000, 5)),
  ];
};

const gather: CaseGenerator = (kernel, rng) => {
  const backward = kernel === 'scatter_add';
  const build = ([outer, n, m, inner]: number[], index: TensorSpec, error?: string): KernelCase =>
    makeCase(kernel, {
      p: backward
        ? [output(floatDtype(rng), outer * n * inner), index, gaussian(rng, floatDtype(rng), outer * m * inner)]
        : [output(floatDtype(rng), outer * m * inner), gaussian(rng, floatDtype(rng), outer * n * inner), index],
      i: [outer, n, m, inner],
      tolerance: backward ? tolerance(1e-6, 1e-6 * Math.sqrt(m + 1), 3e-6) : EXACT,
      error,
    });
  const random = Array.from({ length: 60 }, () => [
    rng.int(1, 5),
    rng.int(1, 40),
    rng.int(1, 40),
    rng.pick([1, 1, 2, 7, 16, 33]),
  ]);
  const chosen = [
    [1, 1, 1, 1],
    [0, 3, 2, 1],
    [2, 3, 0, 4],
    [3, 5, 2, 0],
    [4000, 11, 1, 1],
    [1, 5000, 3000, 1],
    [300, 30, 12, 1],
    [2, 90, 200, 300],
    [1, 1, 500, 3],
  ];
  return [
    ...[...random, ...chosen, ...chosen].map((shape) =>
      build(shape, ids(rng, shape[0] * shape[2] * shape[3], shape[1])),
    ),
    build([2, 4, 3, 2], spoilt(ids(rng, 12, 4), 7, 4), outOfRange(4, 4)),
    build([2, 4, 3, 2], spoilt(ids(rng, 12, 4), 11, -3), outOfRange(-3, 4)),
  ];
};

const oneHot: CaseGenerator = (kernel, rng) => {
  const shapes = [
    [0, 4],
    [1, 1],
    [5, 3],
    [40, 17],
    [33, 64],
    [100, 1000],
    ...Array.from({ length: 20 }, (_, k) => [rng.int(1, 9), k + 1]),
  ];
  return [
    ...shapes.map(([n, classes]) =>
      makeCase(kernel, { p: [output(floatDtype(rng), n * classes), ids(rng, n, classes)], i: [n, classes] }),
    ),
    makeCase(kernel, {
      p: [output('f32', 12), input('i32', 3, (k) => [0, 4, 1][k])],
      i: [3, 4],
      error: outOfRange(4, 4),
    }),
  ];
};

/** Values with ties, infinities and (where asked) NaN. */
function unordered(rng: Rng, n: number, kind: string): TensorSpec {
  return input(floatDtype(rng), n, () => {
    if (kind === 'ties') return rng.int(-3, 3);
    if (kind === 'edges')
      return rng.pick([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, rng.normal()]);
    return rng.normal();
  });
}

const sort: CaseGenerator = (kernel, rng) => {
  const random = Array.from({ length: 40 }, (_, k) => [rng.int(1, 4), k + 1]);
  const shapes = [...random, [0, 4], [3, 0], [2, 64], [1, 65], [5, 1000], [200, 33], [1, 20_000]];
  return shapes.flatMap(([rows, n]) =>
    ['ties', 'edges', 'normal'].map((kind) => {
      const p = [output(floatDtype(rng), rows * n), output('i32', rows * n), unordered(rng, rows * n, kind)];
      return makeCase(kernel, { p, i: [rows, n, rng.int(0, 1)], note: kind });
    }),
  );
};

const topk: CaseGenerator = (kernel, rng) => {
  const random = Array.from({ length: 60 }, (_, k) => [rng.int(1, 4), k + 1, rng.int(1, k + 1)]);
  const shapes = [
    ...random,
    [0, 4, 2],
    [3, 8, 8],
    [3, 9, 0],
    [500, 64, 2],
    [7, 4096, 40],
    [2, 1000, 1000],
    [1, 50_000, 50],
  ];
  return shapes.flatMap(([rows, n, k]) =>
    ['ties', 'normal'].map((kind) => {
      const p = [output(floatDtype(rng), rows * k), output('i32', rows * k), unordered(rng, rows * n, kind)];
      return makeCase(kernel, { p, i: [rows, n, k], note: kind });
    }),
  );
};

export const gatherCases: Record<string, CaseGenerator> = {
  embedding,
  embedding_bwd: embedding,
  gather,
  scatter_add: gather,
  one_hot: oneHot,
  sort,
  topk,
};
