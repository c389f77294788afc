// Cases for functions of one tensor.
import type { Tensor } from '../../src/tensor/index.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  awayFromZero,
  constant,
  distinct,
  FLOATS,
  float,
  integers,
  type Nd,
  normals,
  type OpCase,
  opCase,
  positive,
} from './op-cases-build.ts';

type Draw = (rng: Rng) => (k: number) => number;
interface Row {
  readonly f: (x: Tensor) => Tensor;
  readonly draw: Draw;
  readonly is?: (x: number) => number;
}

const sigma = (x: number): number => 1 / (1 + Math.exp(-x));

const rows: Record<string, Row> = {
  neg: { f: T.neg, draw: normals, is: (x) => -x },
  abs: { f: T.abs, draw: awayFromZero, is: Math.abs },
  sign: { f: T.sign, draw: awayFromZero, is: Math.sign },
  step: { f: (x) => T.step(x), draw: (rng) => integers(rng, -2, 2), is: (x) => +(x > 0) },
  square: { f: T.square, draw: normals, is: (x) => x * x },
  sqrt: { f: T.sqrt, draw: positive, is: Math.sqrt },
  rsqrt: { f: T.rsqrt, draw: positive, is: (x) => 1 / Math.sqrt(x) },
  recip: { f: T.recip, draw: awayFromZero, is: (x) => 1 / x },
  exp: { f: T.exp, draw: normals, is: Math.exp },
  log: { f: T.log, draw: positive, is: Math.log },
  sin: { f: T.sin, draw: normals, is: Math.sin },
  cos: { f: T.cos, draw: normals, is: Math.cos },
  tanh: { f: T.tanh, draw: normals, is: Math.tanh },
  sigmoid: { f: T.sigmoid, draw: normals, is: sigma },
  relu: { f: T.relu, draw: awayFromZero, is: (x) => Math.max(x, 0) },
  relu2: { f: T.relu2, draw: awayFromZero, is: (x) => Math.max(x, 0) ** 2 },
  gelu: {
    f: T.gelu,
    draw: normals,
    is: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  },
  gelu_erf: { f: T.geluErf, draw: normals },
  silu: { f: T.silu, draw: normals, is: (x) => x * sigma(x) },
  softplus: { f: T.softplus, draw: normals, is: (x) => Math.log1p(Math.exp(x)) },
};

const map =
  (f: (x: number) => number) =>
  ([x]: readonly Nd[]): Nd[] => [{ shape: x.shape, data: Float64Array.from(x.data, f) }];

const shapes = [[], [1], [7], [3, 1, 4], [2, 3, 5], [0], [2, 0, 3]];

export function unaryCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [op, { f, draw, is }] of Object.entries(rows)) {
    const add = (shape: readonly number[], dtype: 'f32' | 'bf16', large = false): void => {
      const x = float(shape, dtype, draw(rng));
      cases.push(opCase(op, [x], ([t]) => [f(t)], { expect: is && map(is), large }));
    };
    for (const shape of shapes) add(shape, 'f32');
    for (const shape of [[5], [3, 3]]) add(shape, 'bf16');
    for (const dtype of ['f32', 'bf16'] as const) add([1000], dtype, true);
  }
  const closed = constant([9], 'f32', integers(rng, -2, 2));
  cases.push(opCase('step', [closed], ([x]) => [T.step(x, true)], { expect: map((x) => +(x >= 0)), note: 'closed' }));

  for (const dtype of FLOATS) {
    for (const [a, b] of [
      [2.5, -1],
      [0, 3],
      [-1, 0],
    ])
      cases.push(
        opCase('affine', [float([2, 5], dtype, normals(rng))], ([x]) => [T.affine(x, a, b)], {
          expect: map((x) => a * x + b),
          note: `${a} ${b}`,
        }),
      );
    for (const e of [2, 3, -1, 0.5, 1.7, 0])
      cases.push(
        opCase('powc', [float([3, 4], dtype, positive(rng))], ([x]) => [T.powc(x, e)], {
          expect: map((x) => x ** e),
          note: `${e}`,
        }),
      );
    // The limits lie between the values' grid points of 1/8, so no value is near a kink.
    cases.push(
      opCase('clamp', [float([4, 6], dtype, distinct(rng, 24))], ([x]) => [T.clamp(x, -0.8125, 0.6875)], {
        expect: map((x) => Math.min(Math.max(x, -0.8125), 0.6875)),
      }),
    );
  }
  cases.push(
    opCase('affine', [float([0], 'f32', normals(rng))], ([x]) => [T.scale(x, 2)]),
    opCase('powc', [float([4], 'f32', awayFromZero(rng))], ([x]) => [T.powc(x, 3)], { expect: map((x) => x ** 3) }),
  );
  return cases;
}
