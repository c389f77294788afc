// Cases for ops with state: random numbers, and optimiser updates in place (their outputs are the updated inputs).
import type { Device } from '../../src/backend/device.ts';
import type { DType } from '../../src/backend/dtype.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { type CaseInput, constant, FLOATS, float, type Nd, normals, type OpCase, opCase } from './op-cases-build.ts';

export function stateCases(rng: Rng): OpCase[] {
  return [...draws(rng), ...updates(rng)];
}

const states = new WeakMap<Device, T.RandomState>();
/** The random state of a device: made once, since captured steps may not write from the host. */
export function randomState(device: Device): T.RandomState {
  let state = states.get(device);
  if (!state) {
    state = new T.RandomState(device, 0x1234567890abn);
    state.setStep(5);
    states.set(device, state);
  }
  return state;
}

function draws(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, large] of [
    [[7], false],
    [[2, 3], false],
    [[], false],
    [[0], false],
    [[41, 133], true],
  ] as [number[], boolean][])
    for (const dtype of FLOATS) {
      const stream = rng.int(0, 2 ** 31 - 1);
      const note = `${dtype}[${shape}] stream ${stream}`;
      cases.push(
        opCase('uniform', [], (_, d) => [T.uniform(randomState(d), shape, stream, -2, 3, dtype)], { note, large }),
        opCase('normal', [], (_, d) => [T.normal(randomState(d), shape, stream, 0.5, 2, dtype)], { note, large }),
      );
      for (const p of [0.1, 0.7, 0])
        cases.push(
          opCase(
            'dropout',
            [float(shape, dtype, normals(rng))],
            ([x], d) => [T.dropout(x, randomState(d), p, stream)],
            {
              note: `p ${p}`,
              large,
            },
          ),
        );
    }
  return cases;
}

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

function updates(rng: Rng): OpCase[] {
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
