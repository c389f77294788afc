// Cases for hashed chunks and attention over them.
import type { DType } from '../../src/backend/dtype.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  type CaseInput,
  constant,
  FLOATS,
  float,
  get,
  integers,
  type Nd,
  nd,
  normals,
  type OpCase,
  opCase,
} from './op-cases-build.ts';

export function lshCases(rng: Rng): OpCase[] {
  return [hashing, chunking, attending].flatMap((make) => make(rng));
}

function hashing(rng: Rng): OpCase[] {
  const eighths = (shape: number[], dtype: DType) => constant(shape, dtype, () => rng.int(-9, 9) / 8);
  const list: [number[], number, number, number[]][] = [
    [[1, 5, 2, 4], 2, 2, [4]],
    [[2, 3, 4, 3], 2, 3, [2, 6]],
    [[1, 70, 2, 16], 1, 2, [8, 4]],
  ];
  return list.flatMap(([shape, heads, rounds, factors]) =>
    FLOATS.map((dtype) => {
      const axes = factors.reduce((n, f) => n + f / 2, 0);
      const inputs = [eighths(shape, dtype), eighths([heads, rounds, axes, shape[3]], 'f32')];
      const expect = ([x, rot]: readonly Nd[]): Nd[] => [
        nd([shape[0], heads, rounds, shape[1]], ([b, h, r, t]) => {
          const y = Array.from({ length: axes }, (_, k) =>
            Array.from({ length: shape[3] }, (_, d) => get(x, [b, t, h, d]) * get(rot, [h, r, k, d])).reduce(
              (a, c) => a + c,
            ),
          );
          const nearest = (values: number[]): number => {
            const both = [...values, ...values.map((v) => -v)];
            return both.indexOf(Math.max(...both));
          };
          const first = factors[0] / 2;
          return nearest(y.slice(0, first)) + (factors.length > 1 ? factors[0] * nearest(y.slice(first)) : 0);
        }),
      ];
      const run = ([x, rot]: readonly T.Tensor[]) => [T.lshHash(x, heads, rot, factors)];
      return opCase('lsh_hash', inputs, run, { expect, note: `${rounds} rounds of [${factors}]` });
    }),
  );
}

/** Non-decreasing document numbers. */
const documents = (b: number, t: number): CaseInput => constant([b, t], 'i32', (k) => Math.floor(((k % t) * 3) / t));

function chunking(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [b, t, heads, rounds, chunk, count, segmented] of [
    [1, 7, 2, 2, 3, 4, false],
    [2, 12, 1, 2, 4, 2, true],
    [1, 5, 1, 1, 8, 6, false],
    [1, 130, 2, 3, 16, 10, true],
  ] as const) {
    const buckets = constant([b, heads, rounds, t], 'i32', integers(rng, 0, count - 1));
    const inputs = [constant([b, t, 1], 'f32', () => 0), buckets, ...(segmented ? [documents(b, t)] : [])];
    const sorted = ([, bucket, segments]: readonly Nd[], at: number[]): number[] => {
      const key = (p: number): number =>
        (segments ? get(segments, [at[0], p]) : 0) * 1000 + get(bucket, [...at.slice(0, 3), p]);
      return Array.from({ length: t }, (_, p) => p).sort((x, y) => key(x) - key(y) || x - y);
    };
    const expect = (x: readonly Nd[]): Nd[] => [
      nd([b, heads, rounds, t], (at) => {
        const begin = Math.floor(at[3] / chunk) * chunk;
        return sorted(x, at)
          .slice(begin, begin + chunk)
          .sort((m, n) => m - n)[at[3] - begin];
      }),
      nd([b, heads, rounds, t], (at) => Math.floor(sorted(x, at).indexOf(at[3]) / chunk)),
    ];
    const run = ([like, x, segments]: readonly T.Tensor[]) => {
      const { order, place } = T.lshSort(like, { heads, rounds, chunk, buckets: x, count, segments });
      return [order, place];
    };
    cases.push(opCase('lsh_sort', inputs, run, { expect, note: `chunks of ${chunk}` }));
  }
  return cases;
}

interface Setup {
  readonly b: number;
  readonly t: number;
  readonly h: number;
  readonly d: number;
  readonly rounds: number;
  readonly chunk: number;
  readonly lookBack: number;
  readonly dedupe: boolean;
  readonly masked: boolean;
  readonly segments: boolean;
  readonly dtype: DType;
  readonly large: boolean;
}

/** The union of what rounds see with exact softmax over it (or, without `dedupe`, over every sighting). */
function naive(s: Setup, scale: number, [x, buckets, segments]: readonly Nd[], places: Nd): Nd {
  const chunks = Math.ceil(s.t / s.chunk);
  return nd([s.b, s.t, s.h, s.d], ([b, i, h, c]) => {
    let [sum, total] = [0, 0];
    for (let j = 0; j < i; j++) {
      let times = 0;
      for (let r = 0; r < s.rounds; r++) {
        const near = (get(places, [b, h, r, i]) - get(places, [b, h, r, j]) + chunks) % chunks <= s.lookBack;
        const alike = !s.masked || get(buckets, [b, h, r, i]) === get(buckets, [b, h, r, j]);
        times += +(near && alike);
      }
      if (times === 0 || (segments && get(segments, [b, i]) !== get(segments, [b, j]))) continue;
      let [dot, square] = [0, 0];
      for (let d = 0; d < s.d; d++) {
        dot += get(x, [b, i, h, d]) * get(x, [b, j, h, d]);
        square += get(x, [b, j, h, d]) ** 2;
      }
      const weight = Math.exp((scale * dot) / Math.sqrt(square)) * (s.dedupe ? 1 : times);
      sum += weight * get(x, [b, j, s.h + h, c]);
      total += weight;
    }
    return total === 0 ? get(x, [b, i, s.h + h, c]) : sum / total;
  });
}

function attending(rng: Rng): OpCase[] {
  const plain: Setup = {
    ...{ b: 1, t: 9, h: 2, d: 4, rounds: 2, chunk: 3, lookBack: 1, dedupe: true },
    ...{ masked: false, segments: false, dtype: 'f32', large: false },
  };
  const list: Setup[] = [
    plain,
    { ...plain, dedupe: false },
    { ...plain, b: 2, t: 7, segments: true },
    { ...plain, masked: true },
    { ...plain, rounds: 3, t: 11, chunk: 2, lookBack: 2 },
    { ...plain, rounds: 3, chunk: 2, lookBack: 0, dedupe: false },
    { ...plain, rounds: 1, t: 5, chunk: 8, h: 1 },
    { ...plain, t: 1, h: 1 },
    { ...plain, b: 0 },
    { ...plain, dtype: 'bf16' },
    ...FLOATS.flatMap((dtype): Setup[] => [
      { ...plain, b: 2, t: 150, d: 16, chunk: 32, dtype, large: true },
      { ...plain, t: 130, d: 24, rounds: 4, chunk: 16, dtype, segments: true, masked: true, large: true },
    ]),
  ];
  return list.map((s) => {
    const { b, t, h, d, rounds, chunk, lookBack, dedupe } = s;
    const scale = rng.pick([1, 0.7]);
    // Vectors not too short: their directions are what counts.
    const x = float([b, t, 2 * h, d], s.dtype, normals(rng, 1.2));
    const ids = constant([b, h, rounds, t], 'i32', integers(rng, 0, 3));
    const inputs = [x, ids, ...(s.segments ? [documents(b, t)] : [])];
    const run = ([qv, bucket, segments]: readonly T.Tensor[]) => {
      const chunks = T.lshSort(qv, { heads: h, rounds, chunk, buckets: bucket, count: 4, segments });
      return [T.lshAttention(qv, chunks, { scale, lookBack, dedupe, buckets: s.masked ? bucket : null, segments })];
    };
    const expect = (v: readonly Nd[]): Nd[] => {
      const [, buckets, segments] = v;
      const places = nd([b, h, rounds, t], (at) => {
        const key = (p: number): number =>
          (segments ? get(segments, [at[0], p]) : 0) * 1000 + get(buckets, [...at.slice(0, 3), p]);
        const before = (p: number): boolean => key(p) < key(at[3]) || (key(p) === key(at[3]) && p < at[3]);
        return Math.floor(Array.from({ length: t }, (_, p) => +before(p)).reduce((m, n) => m + n) / chunk);
      });
      return [naive(s, scale, v, places)];
    };
    const note = `${rounds} rounds, chunks of ${chunk} back ${lookBack}${dedupe ? '' : ' repeated'}${s.masked ? ' masked' : ''}`;
    const slack = s.dtype === 'bf16' ? 2e-2 : 2e-6;
    return opCase('lsh_attention', inputs, run, { expect, large: s.large, slack, note });
  });
}
