// Cases for arithmetic of two tensors, selection, conversion.
import type { DType } from '../../src/backend/dtype.ts';
import type { Tensor } from '../../src/tensor/index.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  awayFromZero,
  broadcast,
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
  positive,
} from './op-cases-build.ts';

type Draw = (rng: Rng) => (k: number) => number;
interface Row {
  readonly f: (a: Tensor, b: Tensor) => Tensor;
  readonly is: (a: number, b: number) => number;
  readonly a: Draw;
  readonly b: Draw;
  /** Whether it takes integers too. */
  readonly ints?: boolean;
}

// Halves against odd quarters: never equal, exact in bf16.
const halves: Draw = (rng) => () => rng.int(-6, 6) / 2;
const quarters: Draw = (rng) => () => rng.int(-6, 6) / 2 + 0.25;
const small: Draw = (rng) => integers(rng, -2, 2);

const rows: Record<string, Row> = {
  add: { f: T.add, is: (a, b) => a + b, a: normals, b: normals, ints: true },
  sub: { f: T.sub, is: (a, b) => a - b, a: normals, b: normals, ints: true },
  mul: { f: T.mul, is: (a, b) => a * b, a: normals, b: normals, ints: true },
  div: { f: T.div, is: (a, b) => a / b, a: normals, b: awayFromZero },
  maximum: { f: T.maximum, is: Math.max, a: halves, b: quarters, ints: true },
  minimum: { f: T.minimum, is: Math.min, a: halves, b: quarters, ints: true },
  pow: { f: T.pow, is: (a, b) => a ** b, a: positive, b: normals },
  eq: { f: T.eq, is: (a, b) => +(a === b), a: small, b: small, ints: true },
  ne: { f: T.ne, is: (a, b) => +(a !== b), a: small, b: small, ints: true },
  lt: { f: T.lt, is: (a, b) => +(a < b), a: small, b: small, ints: true },
  le: { f: T.le, is: (a, b) => +(a <= b), a: small, b: small, ints: true },
  gt: { f: T.gt, is: (a, b) => +(a > b), a: small, b: small, ints: true },
  ge: { f: T.ge, is: (a, b) => +(a >= b), a: small, b: small, ints: true },
};

/** Shapes of two operands that broadcast. */
export const pairs: readonly [readonly number[], readonly number[]][] = [
  [
    [3, 4],
    [3, 4],
  ],
  [[], []],
  [[5], []],
  [[1], [3, 1]],
  [[2, 3, 4], [4]],
  [
    [2, 1, 4],
    [3, 1],
  ],
  [
    [2, 3, 1, 2],
    [1, 3, 2, 1],
  ],
  [[0], [1]],
  [
    [2, 0],
    [1, 1],
  ],
  [
    [7, 1],
    [1, 5],
  ],
];
const wide: [readonly number[], readonly number[]] = [
  [33, 1, 17],
  [1, 9, 17],
];
const mixes: readonly [DType, DType][] = [
  ['bf16', 'bf16'],
  ['f32', 'bf16'],
  ['bf16', 'f32'],
];

const elementwise =
  (f: (...v: number[]) => number) =>
  (x: readonly Nd[]): Nd[] => [nd(broadcast(...x.map((t) => t.shape)), (index) => f(...x.map((t) => get(t, index))))];

export function binaryCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [op, { f, is, a, b, ints }] of Object.entries(rows)) {
    const expect = elementwise(is);
    const add = (sa: readonly number[], sb: readonly number[], da: DType, db: DType, large = false): void => {
      cases.push(opCase(op, [float(sa, da, a(rng)), float(sb, db, b(rng))], ([x, y]) => [f(x, y)], { expect, large }));
    };
    for (const [sa, sb] of pairs) add(sa, sb, 'f32', 'f32');
    for (const [da, db] of mixes) {
      const [sa, sb] = rng.pick(pairs.slice(0, 7));
      add(sa, sb, da, db);
    }
    add(...wide, 'f32', 'f32', true);
    add(...wide, 'bf16', 'f32', true);
    if (!ints) continue;
    const whole = (shape: readonly number[]) => constant(shape, 'i32', integers(rng, -9, 9));
    for (const [sa, sb] of pairs.slice(3, 7))
      cases.push(opCase(op, [whole(sa), whole(sb)], ([x, y]) => [f(x, y)], { expect }));
  }
  return [...cases, ...whereCases(rng), ...castCases(rng), ...scaledCases(rng)];
}

function whereCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  const expect = elementwise((c, a, b) => (c !== 0 ? a : b));
  const shapes = [
    [
      [3, 4],
      [3, 4],
      [3, 4],
    ],
    [[4], [3, 1], []],
    [
      [2, 1, 1],
      [3, 1],
      [1, 4],
    ],
    [[], [2], [1]],
    [[0], [1], [0]],
  ];
  for (const [c, a, b] of shapes)
    for (const [cond, da, db] of [
      ['f32', 'f32', 'f32'],
      ['i32', 'bf16', 'f32'],
      ['u8', 'bf16', 'bf16'],
    ] as const)
      cases.push(
        opCase(
          'where',
          [constant(c, cond, integers(rng, 0, 1)), float(a, da, normals(rng)), float(b, db, normals(rng))],
          ([t, x, y]) => [T.where(t, x, y)],
          { expect },
        ),
      );
  return cases;
}

function castCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  const draw: Record<'f32' | 'bf16' | 'i32' | 'u8', (k: number) => number> = {
    f32: () => rng.uniform(0, 200),
    bf16: () => rng.uniform(0, 200),
    i32: integers(rng, 0, 250),
    u8: integers(rng, 0, 255),
  };
  for (const from of ['f32', 'bf16', 'i32', 'u8'] as const)
    for (const to of ['f32', 'bf16', 'i32', 'u8'] as const) {
      const whole = to === 'i32' || to === 'u8';
      const differentiable = FLOATS.includes(from) && !whole;
      const x = (differentiable ? float : constant)([3, 5], from, draw[from]);
      const expect = ([v]: readonly Nd[]): Nd[] => [
        { shape: v.shape, data: Float64Array.from(v.data, (t) => (whole ? Math.trunc(t) : t)) },
      ];
      cases.push(opCase('cast', [x], ([t]) => [T.cast(t, to)], { expect, note: `to ${to}` }));
    }
  cases.push(
    opCase('cast', [constant([6], 'f32', () => rng.uniform(-90, 90))], ([t]) => [T.cast(t, 'i32')], {
      expect: ([v]) => [{ shape: v.shape, data: Float64Array.from(v.data, Math.trunc) }],
      note: 'negative to i32',
    }),
  );
  return cases;
}

function scaledCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [da, db] of [['f32', 'f32'], ...mixes] as [DType, DType][])
    for (const shape of [[3, 5], [], [0, 2]])
      cases.push(
        opCase(
          'add_scaled',
          [float(shape, da, normals(rng)), float(shape, db, normals(rng))],
          ([a, b]) => [T.addScaled(a, b, 0.75, -2)],
          { expect: elementwise((a, b) => 0.75 * a - 2 * b) },
        ),
      );
  for (const dtype of FLOATS)
    for (const s of [[], [1], [1, 1]])
      cases.push(
        opCase(
          'scale_by',
          [float([4, 3], dtype, normals(rng)), float(s, 'f32', normals(rng))],
          ([x, t]) => [T.scaleBy(x, t, 1.5)],
          { expect: elementwise((x, t) => 1.5 * x * t) },
        ),
      );
  return cases;
}
