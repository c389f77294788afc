// Logits of one row of tokens, for causality and for comparisons between specs with the same weights.
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import type { Device } from '../../src/backend/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { disposeTree, forwardContext } from '../../src/nn/index.ts';
import { type Compute, noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { Rng } from './kernel-cases/build.ts';
import { perturbedParams } from './small-models.ts';

export const cpu = new CpuDevice();

export interface LogitOptions {
  readonly segments?: readonly number[];
  readonly positions?: readonly number[];
  readonly compute?: Compute;
  readonly device?: Device;
}

/** Logits [T][V]. The weights depend on names and shapes only. */
export function logitsOf(spec: ModelSpecInput, tokens: readonly number[], options: LogitOptions = {}): number[][] {
  const { device = cpu, compute = 'f32' } = options;
  const model = buildModel(spec);
  const params = perturbedParams(model, device);
  model.prepare(device);
  const out = scope(() =>
    noGrad(() => {
      const ids = (values: readonly number[]): Tensor => Tensor.from(device, values, [1, values.length], 'i32');
      const c = forwardContext({ device, compute });
      const batch = {
        inputs: ids(tokens),
        segments: options.segments ? ids(options.segments) : null,
        positions: options.positions ? ids(options.positions) : null,
      };
      return model.logits(params, model.hidden(params, batch, c), c).dataSync();
    }),
  );
  disposeTree(params);
  const V = out.length / tokens.length;
  return tokens.map((_, t) => Array.from(out.slice(t * V, (t + 1) * V)));
}

export const drawTokens = (seed: string, n: number, vocab = 11): number[] => {
  const rng = new Rng(seed);
  return Array.from({ length: n }, () => rng.int(0, vocab - 1));
};

/** The largest difference relative to the largest logit. */
export function distance(a: readonly number[][], b: readonly number[][]): number {
  const [x, y] = [a.flat(), b.flat()];
  const most = Math.max(...y.map(Math.abs));
  return Math.max(...x.map((v, k) => Math.abs(v - y[k]))) / most;
}
