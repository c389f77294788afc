// Cases for matrix products, convolutions, normalisation and gated halves.
import type { DType } from '../../src/backend/dtype.ts';
import type { MatmulOptions } from '../../src/tensor/index.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  awayFromZero,
  broadcast,
  FLOATS,
  float,
  get,
  type Nd,
  nd,
  normals,
  type OpCase,
  opCase,
} from './op-cases-build.ts';

export function linearCases(rng: Rng): OpCase[] {
  return [products, convolutions, norms, gates].flatMap((make) => make(rng));
}

type Flags = Pick<MatmulOptions, 'transA' | 'transB' | 'alpha' | 'compute' | 'out'>;

interface Product extends Flags {
  /** Shapes of op(A) and op(B): before transposition. */
  readonly a: readonly number[];
  readonly b: readonly number[];
  readonly bias?: boolean;
  readonly addend?: boolean;
  readonly dtypes?: readonly [DType, DType];
  readonly large?: boolean;
}

const flipped = (shape: readonly number[], flip = false): number[] =>
  flip ? [...shape.slice(0, -2), shape[shape.length - 1], shape[shape.length - 2]] : [...shape];

function product(rng: Rng, p: Product): OpCase {
  const [da, db] = p.dtypes ?? ['f32', 'f32'];
  const [n, k] = [p.b[p.b.length - 1], p.a[p.a.length - 1]];
  const out = [...broadcast(p.a.slice(0, -2), p.b.slice(0, -2)), p.a[p.a.length - 2], n];
  const inputs = [
    float(flipped(p.a, p.transA), da, normals(rng)),
    float(flipped(p.b, p.transB), db, normals(rng)),
    ...(p.bias ? [float([n], db, normals(rng))] : []),
    ...(p.addend ? [float(out, 'f32', normals(rng))] : []),
  ];
  const { transA, transB, alpha = 1 } = p;
  const expect = ([a, b, ...rest]: readonly Nd[]): Nd[] => [
    nd(out, (index) => {
      const lead = index.slice(0, -2);
      const [row, col] = index.slice(-2);
      let sum = 0;
      for (let j = 0; j < k; j++)
        sum +=
          get(a, [...lead, ...(transA ? [j, row] : [row, j])]) * get(b, [...lead, ...(transB ? [col, j] : [j, col])]);
      const bias = p.bias ? get(rest[0], [col]) : 0;
      return alpha * sum + bias + (p.addend ? get(rest[rest.length - 1], index) : 0);
    }),
  ];
  const { a: _a, b: _b, bias: _bias, addend: _addend, dtypes: _dtypes, large = false, ...flags } = p;
  return opCase(
    'matmul',
    inputs,
    ([a, b, ...rest]) => [
      T.matmul(a, b, {
        ...flags,
        bias: p.bias ? rest[0] : null,
        addend: p.addend ? rest[rest.length - 1] : null,
      }),
    ],
    {
      expect,
      large,
      note: `${JSON.stringify(flags)}${p.bias ? ' bias' : ''}${p.addend ? ' addend' : ''}`,
      bf16Products: p.compute === 'bf16',
    },
  );
}

function products(rng: Rng): OpCase[] {
  const list: Product[] = [];
  for (const transA of [false, true])
    for (const transB of [false, true]) {
      list.push(
        { a: [3, 4], b: [4, 5], transA, transB },
        { a: [2, 3, 4], b: [4, 5], transA, transB, alpha: 0.5, bias: true },
        { a: [3, 4], b: [2, 4, 5], transA, transB },
        { a: [2, 3, 2], b: [2, 2, 4], transA, transB, addend: true, bias: true },
        { a: [2, 2, 3, 2], b: [2, 1, 2, 2], transA, transB },
        { a: [3, 4], b: [4, 2], transA, transB, compute: 'bf16' },
        { a: [3, 4], b: [4, 2], transA, transB, dtypes: ['bf16', 'bf16'], bias: true, addend: true, out: 'f32' },
        { a: [67, 131], b: [131, 75], transA, transB, large: true },
        { a: [67, 131], b: [131, 75], transA, transB, compute: 'bf16', bias: true, large: true },
        { a: [3, 33, 70], b: [3, 70, 41], transA, transB, dtypes: ['bf16', 'bf16'], large: true },
      );
    }
  list.push(
    { a: [1, 1], b: [1, 1] },
    { a: [1, 7], b: [7, 1], bias: true },
    { a: [5, 1], b: [1, 3] },
    { a: [1, 3, 4], b: [2, 4, 5] },
    { a: [2, 3, 4], b: [1, 4, 5] },
    { a: [1, 3, 4], b: [1, 4, 2], addend: true },
    { a: [1, 3, 4], b: [1, 4, 2], transA: true, addend: true, bias: true },
    { a: [2, 1, 3, 4], b: [1, 3, 4, 2] },
    { a: [2, 2, 3, 4], b: [4, 2], addend: true, bias: true, alpha: -2 },
    { a: [2, 2, 3, 2], b: [2, 2, 2, 2], addend: true },
    { a: [2, 0], b: [0, 3], bias: true, addend: true },
    { a: [0, 3], b: [3, 2], bias: true },
    { a: [2, 3], b: [3, 0] },
    { a: [0, 2, 3], b: [0, 3, 2] },
    { a: [3, 4], b: [4, 5], dtypes: ['bf16', 'f32'] },
    { a: [3, 4], b: [4, 5], dtypes: ['f32', 'bf16'], compute: 'f32', bias: true },
    { a: [3, 4], b: [4, 5], dtypes: ['bf16', 'bf16'], out: 'bf16', compute: 'f32' },
    { a: [3, 4], b: [4, 5], out: 'bf16', addend: true },
    { a: [1, 300], b: [300, 200], transB: true, large: true },
    { a: [4, 300], b: [300, 200], transB: true, compute: 'bf16', dtypes: ['f32', 'bf16'], large: true },
  );
  return list.map((p) => product(rng, p));
}

function convolutions(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [{ b, t, cin, cout, k }, options, large] of [
    [{ b: 2, t: 6, cin: 3, cout: 2, k: 3 }, {}, false],
    [{ b: 1, t: 5, cin: 2, cout: 4, k: 3 }, { padLeft: 2 }, false],
    [{ b: 2, t: 7, cin: 4, cout: 4, k: 2 }, { groups: 4, padLeft: 1 }, false],
    [{ b: 1, t: 9, cin: 4, cout: 6, k: 3 }, { stride: 2, dilation: 2, groups: 2, padLeft: 1, padRight: 2 }, false],
    [{ b: 1, t: 1, cin: 1, cout: 1, k: 1 }, {}, false],
    [{ b: 2, t: 2, cin: 1, cout: 2, k: 3 }, { padLeft: 1, padRight: 1 }, false],
    [{ b: 0, t: 4, cin: 2, cout: 2, k: 2 }, {}, false],
    [{ b: 2, t: 65, cin: 32, cout: 32, k: 4 }, { groups: 32, padLeft: 3 }, true],
    [{ b: 2, t: 40, cin: 19, cout: 23, k: 3 }, { padLeft: 2 }, true],
  ] as [{ b: number; t: number; cin: number; cout: number; k: number }, T.ConvOptions, boolean][])
    for (const dtype of FLOATS)
      for (const withBias of [false, true]) {
        const { stride = 1, dilation = 1, groups = 1, padLeft = 0, padRight = 0 } = options;
        const time = Math.floor((t + padLeft + padRight - dilation * (k - 1) - 1) / stride) + 1;
        const [perGroup, outPerGroup] = [cin / groups, cout / groups];
        const expect = ([x, w, bias]: readonly Nd[]): Nd[] => [
          nd([b, time, cout], ([batch, at, o]) => {
            let sum = bias ? get(bias, [o]) : 0;
            for (let c = 0; c < perGroup; c++)
              for (let j = 0; j < k; j++) {
                const from = at * stride + j * dilation - padLeft;
                if (from < 0 || from >= t) continue;
                sum += get(x, [batch, from, Math.floor(o / outPerGroup) * perGroup + c]) * get(w, [o, c, j]);
              }
            return sum;
          }),
        ];
        const inputs = [
          float([b, t, cin], dtype, normals(rng)),
          float([cout, perGroup, k], dtype, normals(rng)),
          ...(withBias ? [float([cout], dtype, normals(rng))] : []),
        ];
        cases.push(
          opCase('conv1d', inputs, ([x, w, bias]) => [T.conv1d(x, w, bias ?? null, options)], {
            expect,
            large,
            note: JSON.stringify(options),
          }),
        );
      }
  return cases;
}

function norms(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  const rowwise = (x: Nd, f: (row: number[], at: number) => number): Nd => {
    const d = x.shape[x.shape.length - 1];
    const all = Array.from(x.data);
    return { shape: x.shape, data: all.map((_, k) => f(all.slice(k - (k % d), k - (k % d) + d), k % d)) };
  };
  const mean = (v: readonly number[]): number => v.reduce((a, b) => a + b, 0) / v.length;
  for (const [shape, large] of [
    [[5], false],
    [[3, 6], false],
    [[2, 2, 3], false],
    [[4, 1], false],
    [[0, 4], false],
    [[50, 130], true],
  ] as [number[], boolean][])
    for (const [dtype, out] of [
      ['f32', undefined],
      ['f32', 'bf16'],
      ['bf16', undefined],
      ['bf16', 'f32'],
    ] as [DType, DType | undefined][]) {
      const d = shape[shape.length - 1];
      const x = float(shape, dtype, normals(rng));
      const w = float([d], 'f32', normals(rng));
      const b = float([d], 'f32', normals(rng));
      const eps = rng.pick([1e-5, 0.1]);
      // A row of one element hardly depends on it: its gradient is a difference of terms of size 1/sqrt(eps).
      const slack = d === 1 ? 1e-4 : 0;
      for (const scaled of [false, true])
        cases.push(
          opCase('rms_norm', scaled ? [x, w] : [x], ([t, u]) => [T.rmsNorm(t, u ?? null, { eps, out })], {
            expect: ([t, u]) => [
              rowwise(t, (row, k) => (row[k] / Math.sqrt(mean(row.map((v) => v * v)) + eps)) * (u ? u.data[k] : 1)),
            ],
            large,
            slack,
            note: `eps ${eps} out ${out ?? 'same'}`,
          }),
        );
      const centred = (row: number[], k: number): number => {
        const m = mean(row);
        return (row[k] - m) / Math.sqrt(mean(row.map((v) => (v - m) ** 2)) + eps);
      };
      for (const [scaled, shifted] of [
        [true, true],
        [true, false],
        [false, true],
        [false, false],
      ])
        cases.push(
          opCase(
            'layer_norm',
            [x, ...(scaled ? [w] : []), ...(shifted ? [b] : [])],
            ([t, ...rest]) => [
              T.layerNorm(t, scaled ? rest[0] : null, shifted ? rest[rest.length - 1] : null, { eps, out }),
            ],
            {
              expect: ([t, ...rest]) => [
                rowwise(
                  t,
                  (row, k) =>
                    centred(row, k) * (scaled ? rest[0].data[k] : 1) + (shifted ? rest[rest.length - 1].data[k] : 0),
                ),
              ],
              large,
              slack,
              note: `${scaled ? 'w ' : ''}${shifted ? 'b ' : ''}eps ${eps} out ${out ?? 'same'}`,
            },
          ),
        );
    }
  return cases;
}

const sigma = (x: number): number => 1 / (1 + Math.exp(-x));
const gateFunctions: Record<T.GateActivation, ((x: number) => number) | null> = {
  silu: (x) => x * sigma(x),
  gelu: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(x, 0),
  sigmoid: sigma,
  identity: (x) => x,
  gelu_erf: null, // JavaScript has no erf: only compared between devices
};

function gates(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [act, is] of Object.entries(gateFunctions) as [T.GateActivation, (typeof gateFunctions)['relu']][])
    for (const [shape, large] of [
      [[6], false],
      [[3, 4], false],
      [[2, 1, 10], false],
      [[0, 4], false],
      [[3, 0], false],
      [[41, 66], true],
    ] as [number[], boolean][])
      for (const dtype of FLOATS) {
        const h = shape[shape.length - 1] / 2;
        const out = [...shape.slice(0, -1), h];
        const expect = ([x]: readonly Nd[]): Nd[] => [
          nd(out, (index) => {
            const col = index[index.length - 1];
            return is!(get(x, index)) * get(x, [...index.slice(0, -1), col + h]);
          }),
        ];
        cases.push(
          opCase('glu', [float(shape, dtype, awayFromZero(rng))], ([x]) => [T.glu(x, act)], {
            expect: is ? expect : undefined,
            large,
            note: act,
          }),
        );
      }
  return cases;
}
