// Gradients of whole encoder-decoders and of prefix-LM decoders against finite differences, in float64.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { type Batch, buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { flatten, forwardContext } from '../../src/nn/index.ts';
import { gradients, noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues, valuesOf } from '../support/ref-values.ts';
import { perturbedParams, smallSpec } from '../support/small-models.ts';
import { rowOn, stackVariants, tokens } from '../support/two-stacks.ts';

const device = new RefDevice();

/** Every parameter tensor along one random direction: (loss(p + h u) - loss(p - h u)) / 2h against u . gradient. */
function check(spec: ModelSpecInput, batch: Batch): void {
  const model = buildModel(spec);
  const params = perturbedParams(model, device);
  model.prepare(device);
  const all = flatten(params);
  const loss = (): Tensor => model.loss(params, batch, forwardContext({ device, compute: 'f32' })).total;
  const grads = scope(() =>
    gradients(
      loss(),
      all.map((t) => t.tensor),
    ).map((g) => Array.from(valuesOf(g))),
  );
  const value = (): number => scope(() => noGrad(() => refValues(loss())[0]));
  all.forEach(({ path, tensor }, k) => {
    const rng = new Rng(path);
    const at = Float64Array.from(valuesOf(tensor));
    const direction = at.map(() => rng.normal());
    const moved = (h: number): number => {
      refValues(tensor).set(at.map((x, j) => x + h * direction[j]));
      return value();
    };
    const h = 1e-5;
    const difference = (moved(h) - moved(-h)) / (2 * h);
    refValues(tensor).set(at);
    const exact = direction.reduce((n, u, j) => n + u * grads[k][j], 0);
    assert.ok(
      Math.abs(difference - exact) <= 1e-6 * Math.max(1, Math.abs(exact)),
      `${path}: ${exact}, not ${difference}`,
    );
    assert.ok(
      grads[k].some((g) => g !== 0),
      `${path} has no gradient at all`,
    );
  });
}

describe('gradients', () => {
  for (const [name, spec] of Object.entries(stackVariants))
    test(`encoder-decoder, ${name}`, () => {
      const rows = {
        ...{ encoder: tokens('encoder', 7), encoderSegments: [1, 1, 1, 2, 2, 2, 2] },
        ...{ decoder: tokens('decoder', 6), decoderSegments: [1, 1, 2, 2, 2, 2] },
        targets: [3, 1, -1, 4, 9, 2],
      };
      check(spec, rowOn(device, rows));
    });

  test('a decoder whose prefix sees itself, with hidden tokens', () => {
    const { inputs, targets, segments, positions, weights } = rowOn(device, {
      ...{ encoder: [1], decoder: tokens('decoder', 8), decoderSegments: [1, 1, 1, 1, 2, 2, 2, 2] },
      targets: [-1, -1, 5, 6, -1, 2, 3, 7],
    });
    const ids = (x: number[]): Tensor => Tensor.from(device, x, [1, 8], 'i32');
    const [visible, keep] = [ids([2, 2, 2, -1, 5, 5, -1, -1]), ids([1, 0, 1, 1, 1, 1, 0, 1])];
    check(smallSpec(), { inputs, targets, segments, positions, weights, visible, keep });
  });
});
