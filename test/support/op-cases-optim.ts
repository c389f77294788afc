// Cases for optimiser updates.
import type { DType } from '../../src/backend/dtype.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  awayFromZero,
  type CaseInput,
  constant,
  FLOATS,
  type Nd,
  normals,
  type OpCase,
  opCase,
  sizeOf,
} from './op-cases-build.ts';

const filled = (values: readonly number[]): CaseInput => constant([values.length], 'f32', (k) => values[k]);

function clipped([scalars, sums]: readonly Nd[], maxNorm: number, extra: number): Nd[] {
  const out = Array.from(scalars.data);
  const norm = extra * Math.sqrt(Array.from(sums.data).reduce((a, b) => a + b, 0));
  out[5] = norm;
  out[1] = extra * (maxNorm > 0 ? Math.min(1, maxNorm / norm) : 1);
  out[4] = Number.isFinite(norm) ? 1 : 0;
  if (!Number.isFinite(norm)) out[6] += 1;
  return [{ shape: [8], data: out }];
}

/** Updates in place: their outputs are the inputs that they change. */
export function optimCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [sums, maxNorm, extra] of [
    [[4, 5], 1, 1],
    [[0.01], 1, 1],
    [[9, 16, 0], 0, 0.5],
    [[100, 44, 3], 2, 0.25],
    [[0], 1, 1],
  ] as [number[], number, number][])
    cases.push(
      opCase(
        'clip_scale',
        [filled([0.1, 9, 0.3, 0.4, 9, 9, 2, 0]), filled(sums)],
        ([s, t]) => {
          T.clipScale(s, t, maxNorm, extra);
          return [s];
        },
        { expect: (x) => clipped(x, maxNorm, extra), note: `max ${maxNorm} extra ${extra}` },
      ),
    );
  cases.push(
    opCase(
      'clip_scale',
      [filled([0.1, 1, 1, 1, 1, 0, 2, 0]), filled([1, Number.POSITIVE_INFINITY])],
      ([s, t]) => {
        T.clipScale(s, t, 0, 1);
        return [T.slice(s, 0, 4, 7)];
      },
      { expect: () => [{ shape: [3], data: [0, Number.POSITIVE_INFINITY, 3] }], note: 'not finite' },
    ),
  );
  for (const shape of [[5], [3, 4], [0], [40, 41]])
    for (const dtype of FLOATS)
      for (const [finite, shadowed] of [
        [1, false],
        [1, true],
        [0, true],
      ] as [number, boolean][])
        cases.push(adamCase(rng, shape, dtype, finite, shadowed));
  for (const shape of [[5], [3, 4], [0], [40, 41]])
    for (const dtype of FLOATS)
      for (const finite of [1, 0])
        cases.push(lionCase(rng, shape, dtype, finite), ...directionCases(rng, shape, dtype, finite));
  for (const shape of [[5], [3, 4], [2, 3, 5], [1, 1], [40, 41]])
    for (const dtype of FLOATS)
      for (const [finite, factored] of [
        [1, true],
        [1, false],
        [0, true],
      ] as [number, boolean][])
        cases.push(adafactorCase(rng, shape, dtype, finite, factored));
  for (const dtype of FLOATS)
    cases.push(
      opCase(
        'accumulate',
        [constant([3, 4], 'f32', normals(rng)), constant([3, 4], dtype, normals(rng))],
        ([acc, g]) => {
          T.accumulate(acc, g);
          return [acc];
        },
        {
          expect: ([acc, g]) => [{ shape: [3, 4], data: Float64Array.from(acc.data, (v, k) => v + g.data[k]) }],
        },
      ),
    );
  for (const dtype of ['f32', 'bf16', 'i32', 'u8'] as const)
    cases.push(
      opCase(
        'assign',
        [constant([2, 3], dtype, () => rng.int(0, 9))],
        ([t]) => {
          T.assign(t, 4);
          return [t];
        },
        { expect: () => [{ shape: [2, 3], data: new Float64Array(6).fill(4) }] },
      ),
    );
  return cases;
}

function adamCase(rng: Rng, shape: readonly number[], dtype: DType, finite: number, shadowed: boolean): OpCase {
  const options = { lrMult: 0.5, beta1: 0.9, beta2: 0.95, eps: 1e-3, decay: 0.1 };
  const inputs = [
    constant(shape, 'f32', normals(rng)),
    constant(shape, 'f32', normals(rng)),
    constant(shape, 'f32', () => rng.uniform(0, 1)),
    constant(shape, dtype, normals(rng)),
    filled([0.05, 0.7, 0.271, 0.142, finite, 0, 0, 0]),
    ...(shadowed ? [constant(shape, 'bf16', () => 0)] : []),
  ];
  const expect = ([p, m, v, g, scalars, shadow]: readonly Nd[]): Nd[] => {
    const [lr, gradScale, correction1, correction2] = Array.from(scalars.data);
    const [np, nm, nv] = [p, m, v].map((t) => Array.from(t.data));
    if (finite)
      for (let k = 0; k < np.length; k++) {
        const gk = g.data[k] * gradScale;
        nm[k] = options.beta1 * nm[k] + (1 - options.beta1) * gk;
        nv[k] = options.beta2 * nv[k] + (1 - options.beta2) * gk * gk;
        const step = nm[k] / correction1 / (Math.sqrt(nv[k] / correction2) + options.eps);
        np[k] -= lr * options.lrMult * (step + options.decay * np[k]);
      }
    const out = [np, nm, nv, ...(shadow ? [finite ? np : Array.from(shadow.data)] : [])];
    return out.map((data) => ({ shape, data }));
  };
  return opCase(
    'adamw',
    inputs,
    ([p, m, v, g, scalars, shadow]) => {
      T.adamw(p, m, v, g, scalars, shadow ?? null, options);
      return [p, m, v, ...(shadow ? [shadow] : [])];
    },
    { expect, note: finite ? '' : 'not finite' },
  );
}

function lionCase(rng: Rng, shape: readonly number[], dtype: DType, finite: number): OpCase {
  const options = { lrMult: 0.5, beta1: 0.9, beta2: 0.99, decay: 0.2 };
  const inputs = [
    constant(shape, 'f32', normals(rng)),
    constant(shape, 'f32', awayFromZero(rng)),
    constant(shape, dtype, awayFromZero(rng)),
    filled([0.05, 0.7, 1, 1, finite, 0, 0, 0]),
  ];
  const expect = ([p, m, g, scalars]: readonly Nd[]): Nd[] => {
    const [lr, gradScale] = Array.from(scalars.data);
    const [np, nm] = [p, m].map((t) => Array.from(t.data));
    if (finite)
      for (let k = 0; k < np.length; k++) {
        const gk = g.data[k] * gradScale;
        const sign = Math.sign(options.beta1 * nm[k] + (1 - options.beta1) * gk);
        np[k] -= lr * options.lrMult * (sign + options.decay * np[k]);
        nm[k] = options.beta2 * nm[k] + (1 - options.beta2) * gk;
      }
    return [np, nm].map((data) => ({ shape, data }));
  };
  const run: OpCase['run'] = ([p, m, g, scalars]) => {
    T.lion(p, m, g, scalars, options);
    return [p, m];
  };
  return opCase('lion', inputs, run, { expect, note: finite ? '' : 'not finite' });
}

function directionCases(rng: Rng, shape: readonly number[], dtype: DType, finite: number): OpCase[] {
  const scalars = filled([0.05, 0.7, 1, 1, finite, 0, 0, 0.9]);
  const note = finite ? '' : 'not finite';
  const state = constant(shape, 'f32', normals(rng));
  const moved = ([m, g, s]: readonly Nd[]): Nd[] => {
    const [gradScale, mu] = [s.data[1], s.data[7]];
    const grad = Array.from(g.data, (v) => v * gradScale);
    const next = Array.from(m.data, (v, k) => (finite ? mu * v + (1 - mu) * grad[k] : v));
    return [
      { shape, data: next.map((v, k) => (finite ? (1 - mu) * grad[k] + mu * v : 0)) },
      { shape, data: next },
    ];
  };
  const options = { lrMult: 0.5, scale: 1.5, decay: 0.2 };
  return [
    opCase(
      'momentum',
      [state, constant(shape, dtype, normals(rng)), scalars],
      ([m, g, s]) => [T.momentum(m, g, s, dtype), m],
      { expect: moved, note },
    ),
    opCase(
      'apply_update',
      [state, constant(shape, dtype, normals(rng)), scalars],
      ([p, u, s]) => {
        T.applyUpdate(p, u, s, options);
        return [p];
      },
      {
        expect: ([p, u, s]) => [
          {
            shape,
            data: Array.from(p.data, (v, k) =>
              finite ? v - s.data[0] * options.lrMult * (options.scale * u.data[k] + options.decay * v) : v,
            ),
          },
        ],
        note,
      },
    ),
  ];
}

/** Shazeer and Stern 2018, algorithm 4, for every matrix of a batch. */
function adafactorCase(rng: Rng, shape: readonly number[], dtype: DType, finite: number, factored: boolean): OpCase {
  const options = { lrMult: 0.5, eps1: 1e-4, eps2: 1e-3, clip: 0.8, decay: 0.1 };
  const [rows, cols] = [shape.at(-2) ?? 1, shape.at(-1)!];
  const batch = sizeOf(shape) / (rows * cols);
  const moment = (...dims: number[]): CaseInput => constant(dims, 'f32', () => rng.uniform(0.1, 1));
  const inputs = [
    constant(shape, 'f32', normals(rng)),
    constant(shape, dtype, normals(rng)),
    filled([0.05, 0.7, 1, 0.2, finite, 0, 0, 0]),
    ...(factored ? [moment(batch, rows), moment(batch, cols)] : [moment(...shape)]),
  ];
  const mean = (v: readonly number[]): number => v.reduce((a, b) => a + b, 0) / v.length;
  const rms = (v: readonly number[]): number => Math.sqrt(mean(v.map((x) => x * x)));
  const expect = ([p, g, scalars, ...state]: readonly Nd[]): Nd[] => {
    const [lr, gradScale, , gain] = Array.from(scalars.data);
    const out = [p, ...state].map((t) => ({ shape: t.shape, data: Array.from(t.data) }));
    for (let b = 0; finite && b < batch; b++) {
      const from = b * rows * cols;
      const grad = Array.from({ length: rows * cols }, (_, k) => g.data[from + k] * gradScale);
      const squares = grad.map((x) => x * x + options.eps1);
      const ema = (k: number, at: number, x: number): number =>
        (out[k].data[at] = (1 - gain) * out[k].data[at] + gain * x);
      const second = factored
        ? (() => {
            const r = Array.from({ length: rows }, (_, i) =>
              ema(1, b * rows + i, mean(squares.slice(i * cols, (i + 1) * cols))),
            );
            const c = Array.from({ length: cols }, (_, j) =>
              ema(2, b * cols + j, mean(squares.filter((_, k) => k % cols === j))),
            );
            return squares.map((_, k) => (r[Math.floor(k / cols)] * c[k % cols]) / mean(r));
          })()
        : squares.map((x, k) => ema(1, from + k, x));
      const u = grad.map((x, k) => x / Math.sqrt(second[k]));
      const size = Math.max(options.eps2, rms(out[0].data.slice(from, from + rows * cols)));
      const cut = Math.max(1, rms(u) / options.clip);
      u.forEach((x, k) => {
        out[0].data[from + k] -= lr * options.lrMult * ((size * x) / cut + options.decay * out[0].data[from + k]);
      });
    }
    return out;
  };
  const run: OpCase['run'] = ([p, g, scalars, ...state]) => {
    T.adafactor(p, factored ? { r: state[0], c: state[1] } : { v: state[0] }, g, scalars, options);
    return [p, ...state];
  };
  const note = `${factored ? 'factored' : 'whole'}${finite ? '' : ' not finite'}`;
  return opCase('adafactor', inputs, run, { expect, note });
}
