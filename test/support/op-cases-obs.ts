// Cases of one-shot rounding and removal. What it comes to on correlated inputs is checked by the kernels' own cases;
// here, what must hold whatever the method: uncorrelated inputs give plain rounding, and plain removal.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { constant, get, nd, normals, type OpCase, opCase } from './op-cases-build.ts';

export function obsCases(rng: Rng): OpCase[] {
  const diagonal = (k: number) => constant([k, k], 'f32', (at) => (at % (k + 1) === 0 ? 1 + (at % 5) : 0));
  // A single large entry off the diagonal: inv([[a, b], [b, c]]) has the factor [[1/sqrt(a'), ..], ..] in closed form.
  const pair = constant([2, 2], 'f32', (at) => [2, 1, 1, 3][at]);
  const cases: OpCase[] = [
    opCase('inverse_factor', [diagonal(70)], ([h]) => [T.inverseFactor(h, 0)], {
      expect: ([h]) => [nd([70, 70], ([i, j]) => (i === j ? 1 / Math.sqrt(get(h, [i, i])) : 0))],
    }),
    opCase('inverse_factor', [pair], ([h]) => [T.inverseFactor(h, 0)], {
      // inv = [[3, -1], [-1, 2]] / 5 = U^T U.
      expect: () => {
        const a = Math.sqrt(3 / 5);
        const b = -1 / 5 / a;
        return [{ shape: [2, 2], data: [a, b, b, Math.sqrt(2 / 5 - b * b)] }];
      },
    }),
    opCase(
      'inverse_factor',
      [pair, constant([2], 'i32', (k) => 1 - k)],
      ([h, order]) => [T.inverseFactor(h, 0, order)],
      {
        expect: () => {
          const a = Math.sqrt(2 / 5);
          const b = -1 / 5 / a;
          return [{ shape: [2, 2], data: [a, b, b, Math.sqrt(3 / 5 - b * b)] }];
        },
      },
    ),
  ];
  const w = constant([3, 40], 'f32', normals(rng));
  const identity = constant([40, 40], 'f32', (at) => +(at % 41 === 0));
  for (const to of ['q8', 'q4'] as const)
    cases.push(
      opCase(
        'obs_round',
        [w, identity],
        ([v, u]) => {
          const rounded = T.obsRound(v, u, { to });
          const plain = T.dequantise(T.quantise(v, to));
          const packed = T.dequantise(T.quantise(rounded.w, to, rounded.scales));
          return [T.sub(rounded.w, plain), T.sub(packed, plain)];
        },
        { expect: () => [nd([3, 40], () => 0), nd([3, 40], () => 0)], note: to, slack: 1e-6 },
      ),
    );
  cases.push(
    opCase('obs_round', [w, identity], ([v, u]) => [T.obsRound(v, u, { pattern: { least: 2, among: 4 } }).w], {
      expect: ([v]) => [
        nd([3, 40], ([r, k]) => {
          const first = k - (k % 4);
          const sizes = [0, 1, 2, 3].map((j) => Math.abs(get(v, [r, first + j])));
          const rank = sizes.filter((x) => x < Math.abs(get(v, [r, k]))).length;
          return rank < 2 ? 0 : get(v, [r, k]);
        }),
      ],
    }),
  );
  return cases;
}
