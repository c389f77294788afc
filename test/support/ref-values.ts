// Runs op cases on a device, reads and writes the reference's full float64 values, differentiates numerically.
import type { Device } from '../../src/backend/device.ts';
import { isFloat } from '../../src/backend/dtype.ts';
import type { RefMemory } from '../../src/backend/ref/device.ts';
import { type RefArray, refOptions } from '../../src/backend/ref/index.ts';
import { add, cast, gradients, mul, noGrad, scope, sum, Tensor } from '../../src/tensor/index.ts';
import { Rng } from './kernel-cases/build.ts';
import type { CaseInput, OpCase } from './op-cases-build.ts';

/** The values of a tensor on the reference, in place: what is written here is what kernels read. */
export function refValues(t: Tensor): RefArray {
  const { values } = t.storage.memory as RefMemory;
  return values.subarray(t.offset, t.offset + t.size);
}

/** A tensor's values in the best precision that its device has. */
export const valuesOf = (t: Tensor): ArrayLike<number> =>
  t.device.kind === 'ref' ? refValues(t).slice() : t.dataSync();

export interface Result {
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly values: ArrayLike<number>;
}

export const resultOf = (t: Tensor): Result => ({ shape: t.shape, dtype: t.dtype, values: valuesOf(t) });

export function inputsOn(device: Device, inputs: readonly CaseInput[]): Tensor[] {
  return inputs.map((x) => {
    const t = Tensor.from(device, x.data, x.shape, x.dtype);
    t.requiresGrad = x.grad;
    return t;
  });
}

/** Fixed weights of a case's output in the linear functional whose gradient is taken. */
function weightsFor(device: Device, test: OpCase, k: number, y: Tensor): Tensor {
  const rng = new Rng(`${test.label} ${k}`);
  return Tensor.from(
    device,
    Float64Array.from({ length: y.size }, () => rng.uniform(-1, 1)),
    y.shape,
    y.dtype,
  );
}

/** sum over outputs of sum(weights y): a scalar whose gradients say all about the outputs' gradients. */
function functional(device: Device, test: OpCase, outputs: readonly Tensor[]): Tensor {
  const terms = outputs
    .map((y, k) => ({ y, k }))
    .filter(({ y }) => isFloat(y.dtype))
    .map(({ y, k }) => sum(mul(cast(y, 'f32'), cast(weightsFor(device, test, k, y), 'f32'))));
  return terms.reduce((a, b) => add(a, b));
}

export interface CaseResult {
  readonly outputs: Result[];
  /** Gradients of the functional with respect to the inputs that want one, with the inputs' places. */
  readonly grads: { input: number; result: Result }[];
}

/** Runs a case with its gradients. One float output is differentiated through a seed, several through a sum. */
export function runOpCase(device: Device, test: OpCase): CaseResult {
  return scope(() => {
    const x = inputsOn(device, test.inputs);
    const outputs = test.run(x, device);
    const results = outputs.map(resultOf);
    const wanted = x.map((_, k) => k).filter((k) => test.inputs[k].grad);
    if (wanted.length === 0 || !outputs.some((y) => isFloat(y.dtype))) return { outputs: results, grads: [] };
    const wrt = wanted.map((k) => x[k]);
    const grads =
      outputs.length === 1
        ? gradients(outputs[0], wrt, weightsFor(device, test, 0, outputs[0]))
        : gradients(functional(device, test, outputs), wrt);
    return { outputs: results, grads: grads.map((g, k) => ({ input: wanted[k], result: resultOf(g) })) };
  });
}

/** Runs fn with products that do not round to bf16: smooth, as finite differences want. */
export function withoutRounding<R>(fn: () => R): R {
  refOptions.roundCompute = false;
  try {
    return fn();
  } finally {
    refOptions.roundCompute = true;
  }
}

const H = 1e-4;

/** Slope at 0 of f along a line, by central differences of fourth order. */
export const slope = (f: (t: number) => number, h = H): number =>
  (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h);

export interface Slopes {
  readonly input: number;
  /** Element moved, or 'all' for a random direction. */
  readonly element: number | 'all';
  readonly analytic: number;
  readonly numeric: number;
}

/**
 * Compares gradients() of a case on the reference with central differences: every element of small inputs (some of
 * larger ones), and a random direction through all of them.
 */
export function slopesOf(device: Device, test: OpCase, elements = 24): Slopes[] {
  return withoutRounding(() =>
    scope(() => {
      const x = inputsOn(device, test.inputs);
      const wanted = x.map((_, k) => k).filter((k) => test.inputs[k].grad);
      const value = (): number =>
        noGrad(() => scope(() => refValues(functional(device, test, test.run(x, device)))[0]));
      const grads = gradients(
        functional(device, test, test.run(x, device)),
        wanted.map((k) => x[k]),
      ).map((g) => refValues(g).slice());
      const rng = new Rng(test.label);
      const out: Slopes[] = [];
      wanted.forEach((k, g) => {
        const values = refValues(x[k]);
        const centre = values.slice();
        const along = (direction: (j: number) => number) => (t: number) => {
          for (let j = 0; j < values.length; j++) values[j] = centre[j] + t * direction(j);
          const result = value();
          values.set(centre);
          return result;
        };
        const chosen = rng.shuffled(Array.from(values, (_, j) => j)).slice(0, elements);
        for (const j of chosen) {
          const numeric = slope(along((i) => (i === j ? 1 : 0)));
          out.push({ input: k, element: j, analytic: grads[g][j], numeric });
        }
        if (values.length > elements) {
          const direction = Array.from(values, () => rng.uniform(-1, 1));
          const analytic = direction.reduce((s, d, j) => s + d * grads[g][j], 0);
          out.push({ input: k, element: 'all', analytic, numeric: slope(along((j) => direction[j])) });
        }
      });
      return out;
    }),
  );
}
