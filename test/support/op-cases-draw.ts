// Drawing tokens: a greedy row, one drawn by a number, one whose likeliest token is forbidden.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { constant, nd, type OpCase, opCase } from './op-cases-build.ts';

export function drawOpCases(_: Rng): OpCase[] {
  const weights = [1, 2, 5, 2, 1, 5, 3, 1, 1, 1, 7, 3];
  return [
    opCase(
      'draw_rows',
      [
        constant([3, 4], 'f32', (k) => Math.log(weights[k])),
        constant([3], 'f32', (k) => [0, 1, 1][k]),
        // Half way into the second token's share of the second row, of [1, 5, 3, 1]; all the way in the third.
        constant([3], 'i32', (k) => [0, Math.floor(0.35 * 2 ** 32) | 0, -1][k]),
        constant([3, 2], 'i32', (k) => [0, 0, 0, 0, 2, 4][k]),
      ],
      ([x, temperature, number, never]) => [T.drawRows(x, temperature, number, never)],
      { expect: () => [nd([3], ([r]) => [2, 1, 1][r])] },
    ),
  ];
}
