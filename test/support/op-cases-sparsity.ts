// Cases for block gates, statistical top-k and their monitors.

import type { RandomState } from '../../src/tensor/index.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  awayFromZero,
  type CaseInput,
  constant,
  FLOATS,
  float,
  integers,
  type Nd,
  normals,
  type OpCase,
  opCase,
} from './op-cases-build.ts';
import { randomState } from './op-cases-random.ts';

export function sparsityCases(rng: Rng): OpCase[] {
  return [...gates(rng), ...grouped(rng), ...shares(rng), ...topks(rng), ...sums(rng)];
}

const scalar = (value: number): CaseInput => constant([1], 'f32', () => value);
const relu = (x: number): number => Math.max(x, 0);

interface Shape {
  readonly rows: number;
  readonly F: number;
  readonly N: number;
  readonly r: number;
}

/** The definition for one controller: probabilities, choices, activations. */
function gated([h, t, c2, cb]: readonly Nd[], { rows, F, N, r }: Shape, hard: boolean, multiply: boolean): Nd[] {
  const out = new Float64Array(rows * F);
  const choice = new Float64Array((rows * F) / N);
  for (let row = 0; row < rows; row++)
    for (let b = 0; b < F / N; b++) {
      const z = Array.from({ length: N }, (_, n) => {
        let sum = cb ? cb.data[b * N + n] : 0;
        for (let k = 0; k < r; k++) sum += t.data[row * r + k] * c2.data[(b * N + n) * r + k];
        return sum;
      });
      const total = z.reduce((s, x) => s + Math.exp(x), 0);
      const best = z.indexOf(Math.max(...z));
      choice[(row * F) / N + b] = best;
      for (let n = 0; n < N; n++) {
        const p = Math.exp(z[n]) / total;
        const mask = hard ? +(n === best) * (multiply ? p : 1) : p;
        out[row * F + b * N + n] = relu(h.data[row * F + b * N + n]) * mask;
      }
    }
  return [
    { shape: [rows, F], data: out },
    { shape: [rows, F / N], data: choice },
  ];
}

function gates(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [rows, F, N, r, large] of [
    [3, 6, 2, 2, false],
    [2, 8, 4, 3, false],
    [1, 5, 5, 1, false],
    [0, 4, 2, 2, false],
    [40, 96, 32, 6, true],
  ] as [number, number, number, number, boolean][])
    for (const dtype of FLOATS)
      for (const [hard, mask, multiply, biased] of [
        [false, 'after', false, true],
        [false, 'before', true, false],
        [true, 'after', false, true],
        [true, 'before', true, false],
      ] as [boolean, 'after' | 'before', boolean, boolean][]) {
        const s = { rows, F, N, r };
        // A hard mask is piecewise constant: differences see no gradient of the controller (its straight-through
        // gradient has tests of its own).
        const input = hard ? constant : float;
        cases.push(
          opCase(
            'block_gate',
            [
              float([rows, F], dtype, awayFromZero(rng)),
              input([rows, r], 'f32', normals(rng)),
              input([F, r], 'f32', normals(rng)),
              ...(biased ? [input([F], 'f32', normals(rng))] : []),
              scalar(+hard),
            ],
            ([h, t, c2, ...rest]) => {
              const bias = biased ? rest[0] : null;
              const o = T.blockGate(h, t, c2, { block: N, bias, hard: rest[rest.length - 1], mask, multiply });
              return [o.out, o.choice];
            },
            {
              expect: ([h, t, c2, cb]) => gated(biased ? [h, t, c2, cb] : [h, t, c2], s, hard, multiply),
              large,
              note: `${hard ? 'hard' : 'soft'} ${mask} ${multiply ? 'times p' : ''}`,
            },
          ),
        );
      }
  return cases;
}

function grouped(rng: Rng): OpCase[] {
  const offsets = constant([3], 'i32', (k) => [1, 3, 4][k]);
  const inputs = [
    float([5, 6], 'f32', awayFromZero(rng)),
    float([5, 2], 'f32', normals(rng)),
    float([2, 6, 2], 'f32', normals(rng)),
    float([2, 6], 'f32', normals(rng)),
    offsets,
    scalar(0),
  ];
  const noise: OpCase['run'] = ([h, t, c2, bias, at, hard], device) => {
    const random: RandomState = randomState(device);
    const { out, choice } = T.blockGate(h, t, c2, { block: 3, bias, offsets: at, hard, random, tau: 1, stream: 3 });
    return [out, choice];
  };
  const recall: OpCase['run'] = ([h, t, c2, picks]) => {
    const { out, choice } = T.blockGate(h, t, c2, { block: 2, recalled: picks });
    return [out, choice];
  };
  return [
    opCase('block_gate', inputs, noise, { note: 'two groups of rows, noise' }),
    opCase(
      'block_gate',
      [
        float([2, 4], 'f32', awayFromZero(rng)),
        constant([2, 2], 'f32', normals(rng)),
        constant([4, 2], 'f32', normals(rng)),
        constant([2, 2], 'i32', (k) => k % 2),
      ],
      recall,
      {
        expect: ([h, , , picks]) => [
          {
            shape: [2, 4],
            data: Array.from(h.data, (x, k) => (picks.data[Math.floor(k / 2)] === k % 2 ? relu(x) : 0)),
          },
          picks,
        ],
        note: 'recalled',
      },
    ),
  ];
}

function shares(rng: Rng): OpCase[] {
  const choice = constant([6, 2], 'i32', integers(rng, 0, 2));
  const expect = (x: Nd, from: number, to: number): number[] =>
    Array.from({ length: 6 }, (_, k) => {
      let n = 0;
      for (let r = from; r < to; r++) n += +(x.data[2 * r + Math.floor(k / 3)] === k % 3);
      return n / Math.max(1, to - from);
    });
  return [
    opCase('choice_share', [choice], ([x]) => [T.choiceShare(x, 3)], {
      expect: ([x]) => [{ shape: [6], data: expect(x, 0, 6) }],
    }),
    opCase(
      'choice_share',
      [choice, constant([3], 'i32', (k) => [0, 4, 4][k])],
      ([x, offsets]) => [T.choiceShare(x, 3, offsets)],
      { expect: ([x]) => [{ shape: [2, 6], data: [...expect(x, 0, 4), ...expect(x, 4, 4)] }], note: 'groups' },
    ),
    ...FLOATS.map((dtype) =>
      opCase('nonzero_share', [constant([2, 3, 5], dtype, integers(rng, -1, 1))], ([x]) => [T.nonzeroShare(x)], {
        expect: ([x]) => [
          {
            shape: [5],
            data: Array.from(
              { length: 5 },
              (_, k) => [0, 1, 2, 3, 4, 5].filter((r) => x.data[r * 5 + k] !== 0).length / 6,
            ),
          },
        ],
      }),
    ),
    opCase(
      'track',
      [constant([4], 'f32', normals(rng)), constant([4], 'f32', normals(rng))],
      ([state, x]) => {
        T.track(state, x, 0.9);
        return [state];
      },
      { expect: ([s, x]) => [{ shape: [4], data: Array.from(s.data, (v, k) => 0.9 * v + (1 - 0.9) * x.data[k]) }] },
    ),
  ];
}

function topks(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, large] of [
    [[7], false],
    [[3, 5], false],
    [[2, 2, 6], false],
    [[0, 4], false],
    [[30, 400], true],
  ] as [number[], boolean][])
    for (const dtype of FLOATS)
      for (const c of [0, 1.2]) {
        const n = shape[shape.length - 1];
        const expect = ([x]: readonly Nd[]): Nd[] => [
          {
            shape,
            data: Array.from(x.data, (v, k) => {
              const row = Array.from(x.data).slice(k - (k % n), k - (k % n) + n);
              const mean = row.reduce((a, b) => a + b, 0) / n;
              const std = Math.sqrt(row.reduce((a, b) => a + (b - mean) ** 2, 0) / n);
              return relu(v - mean - c * std);
            }),
          },
        ];
        cases.push(
          opCase('stat_topk', [float(shape, dtype, normals(rng))], ([x]) => [T.statTopk(x, c)], {
            expect,
            large,
            note: `c ${c}`,
          }),
        );
      }
  return cases;
}

function sums(rng: Rng): OpCase[] {
  return FLOATS.flatMap((dtype) => [
    opCase('abs_sum', [float([3, 4], dtype, awayFromZero(rng))], ([x]) => [T.absSum(x)], {
      expect: ([x]) => [{ shape: [], data: [Array.from(x.data).reduce((a, v) => a + Math.abs(v), 0)] }],
    }),
    // The other path's gradient is added on the way.
    opCase('abs_sum', [float([5], dtype, awayFromZero(rng))], ([x]) => [T.mul(T.absSum(x), T.sum(T.square(x)))], {
      note: 'and another path',
    }),
  ]);
}
