// Gradients of whole encoder-decoders and of prefix-LM decoders against finite differences, in float64.
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import type { Batch } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { Tensor } from '../../src/tensor/index.ts';
import { checkDirections } from '../support/direction.ts';
import { smallSpec } from '../support/small-models.ts';
import { rowOn, stackVariants, tokens } from '../support/two-stacks.ts';

const device = new RefDevice();

const check = (spec: ModelSpecInput, batch: Batch): void => checkDirections(device, spec, batch, { tolerance: 1e-6 });

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
