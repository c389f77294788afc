// Cases for long and short causal convolutions and the decay of implicit filters.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  type CaseInput,
  constant,
  FLOATS,
  float,
  type Nd,
  nd,
  normals,
  type OpCase,
  opCase,
} from './op-cases-build.ts';

export const longConvCases = (rng: Rng): OpCase[] => [...long(rng), ...short(rng), ...windows(rng)];

/** Three documents in each row, at other places in each. */
const segments = (b: number, t: number): CaseInput =>
  constant([b, t], 'i32', (k) => +(k % t >= t / 3) + +(k % t >= t / 2 + Math.floor(k / t)));

function long(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [b, t, c, taps, large] of [
    [2, 5, 3, 5, false],
    [1, 7, 2, 4, false],
    [2, 4, 1, 6, false],
    [0, 4, 2, 4, false],
    [2, 130, 18, 130, true],
  ] as [number, number, number, number, boolean][])
    for (const dtype of FLOATS)
      for (const [skip, split, direct] of [
        [true, false, false],
        [false, true, false],
        [true, true, true],
      ]) {
        const expect = ([v, h, ...rest]: readonly Nd[]): Nd[] => {
          const beta = skip ? rest[0] : null;
          const seg = split ? rest[rest.length - 1] : null;
          return [
            nd([b, t, c], ([n, at, ch]) => {
              let sum = beta ? beta.data[ch] * v.data[(n * t + at) * c + ch] : 0;
              for (let j = 0; j < taps && j <= at; j++)
                if (!seg || seg.data[n * t + at - j] === seg.data[n * t + at])
                  sum += h.data[j * c + ch] * v.data[(n * t + at - j) * c + ch];
              return sum;
            }),
          ];
        };
        cases.push(
          opCase(
            'long_conv',
            [
              float([b, t, c], dtype, normals(rng)),
              float([taps, c], 'f32', normals(rng)),
              ...(skip ? [float([c], 'f32', normals(rng))] : []),
              ...(split ? [segments(b, t)] : []),
            ],
            ([v, h, ...rest]) => [
              T.longConv(v, h, {
                ...{ beta: skip ? rest[0] : null, segments: split ? rest[rest.length - 1] : null, direct },
              }),
            ],
            { expect, large, slack: 1e-5, note: direct ? 'direct' : '' },
          ),
        );
      }
  return cases;
}

function short(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [b, t, d, parts, convolved, k, large] of [
    [2, 5, 2, 1, 1, 3, false],
    [1, 6, 3, 2, 1, 4, false],
    [2, 4, 2, 3, 3, 3, false],
    [1, 5, 1, 4, 2, 2, false],
    [1, 0, 2, 2, 2, 3, false],
    [2, 90, 20, 3, 3, 3, true],
  ] as [number, number, number, number, number, number, boolean][])
    for (const dtype of FLOATS)
      for (const [biased, split] of [
        [true, false],
        [false, true],
      ]) {
        const width = parts * d;
        const expect = ([z, w, ...rest]: readonly Nd[]): Nd[] => {
          const value = (n: number, at: number, ch: number): number => {
            if (ch >= convolved * d) return z.data[(n * t + at) * width + ch];
            let sum = biased ? rest[0].data[ch] : 0;
            for (let lag = 0; lag < k && lag <= at; lag++)
              if (!split || rest[0].data[n * t + at - lag] === rest[0].data[n * t + at])
                sum += w.data[ch * k + k - 1 - lag] * z.data[(n * t + at - lag) * width + ch];
            return sum;
          };
          const out = nd(
            [b, t, d],
            ([n, at, ch]) => value(n, at, width - d + ch) * (parts > 1 ? value(n, at, width - 2 * d + ch) : 1),
          );
          return parts > 2 ? [out, nd([b, t, width - 2 * d], ([n, at, ch]) => value(n, at, ch))] : [out];
        };
        cases.push(
          opCase(
            'short_conv',
            [
              float([b, t, width], dtype, normals(rng)),
              float([convolved * d, k], 'f32', normals(rng)),
              biased ? float([convolved * d], 'f32', normals(rng)) : segments(b, t),
            ],
            ([z, w, last]) => {
              const { out, rest } = T.shortConv(z, w, {
                ...{ parts, convolved, bias: biased ? last : null, segments: split ? last : null },
              });
              return rest ? [out, rest] : [out];
            },
            { expect, large, slack: 1e-5, note: `${parts} parts, ${convolved} convolved` },
          ),
        );
      }
  return cases;
}

const windows = (rng: Rng): OpCase[] =>
  [
    [4, 3, 0],
    [5, 1, 0.1],
    [70, 20, 0.05],
  ].map(([taps, c, shift]) =>
    opCase('decay_window', [float([taps, c], 'f32', normals(rng))], ([x]) => [T.decayWindow(x, 0.1, 0.7, shift)], {
      expect: ([x]) => [
        nd(
          [taps, c],
          ([t, ch]) => x.data[t * c + ch] * (Math.exp(-t * (0.1 + (c > 1 ? (0.6 * ch) / (c - 1) : 0))) + shift),
        ),
      ],
      large: taps > 10,
    }),
  );
