// Cases of rows that are made as they are multiplied by weights in blocks; values are kept exactly, as in op-cases-quant.ts.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { constant, get, nd, normals, type OpCase, opCase } from './op-cases-build.ts';
import { exact } from './op-cases-quant.ts';

function factoredCase(rng: Rng, type: T.BlockType): OpCase {
  const [R, S, M, d] = [3, 4, 17, 64];
  // A row of D is one power of two: scaled rows are as exact as x.
  const D = constant([S, d], 'f32', (k) => 2 ** (Math.floor(k / d) % 3) * (k < d ? -1 : 1));
  return opCase(
    'quant_factored',
    [exact(rng, [R, d], 'q8'), D, exact(rng, [M, d], type), constant([S * M], 'f32', normals(rng))],
    ([x, D, E, bias]) => [T.factoredLinear(x, D, T.quantise(E, type), { bias })],
    {
      expect: ([x, D, E, bias]) => [
        nd([R, S * M], ([r, n]) => {
          const [s, m] = [Math.floor(n / M), n % M];
          let sum = get(bias, [n]);
          for (let k = 0; k < d; k++) sum += get(x, [r, k]) * get(D, [s, k]) * get(E, [m, k]);
          return sum;
        }),
      ],
      note: type,
    },
  );
}

function convCase(rng: Rng, type: T.BlockType): OpCase {
  const [R, reach, S, M] = [2, 3, 4, 32];
  const taps = [3, 1];
  return opCase(
    'quant_module_conv',
    [
      exact(rng, [R, reach, S, M], 'q8'),
      ...taps.map((J) => exact(rng, [M, reach * J * M], type)),
      constant([M], 'f32', normals(rng)),
    ],
    ([x, a, b, bias]) => {
      const parts = [
        { w: T.quantise(a, type), bias },
        { w: T.quantise(b, type), bias: null },
      ];
      return [T.moduleConvRows(x, parts)];
    },
    {
      expect: ([x, a, b, bias]) => [
        nd([R, 2, S, M], ([r, q, s, o]) => {
          let sum = q === 0 ? get(bias, [o]) : 0;
          for (let t = 0; t < reach; t++)
            for (let j = 0; j < taps[q]; j++)
              for (let m = 0; m < M; m++) {
                const from = s + j - (taps[q] - 1) / 2;
                const w = get(q === 0 ? a : b, [o, (t * taps[q] + j) * M + m]);
                if (from >= 0 && from < S) sum += w * get(x, [r, t, from, m]);
              }
          return sum;
        }),
      ],
      note: type,
    },
  );
}

export const quantRowCases = (rng: Rng): OpCase[] =>
  T.blockTypes.flatMap((type) => [factoredCase(rng, type), convCase(rng, type)]);
