/**
 * muP's coordinate check for kinds of parts beyond the dense decoder's. Not here, because they leave the band (docs/LOG.md):
 * the factored head, hyena, gated-conv and sru-ffn.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseTrainConfig, type TrainConfig } from '../../src/train/config.ts';
import { coordinates, defaultBand, judge } from '../../src/train/coordinates.ts';
import { atWidth } from '../../src/train/resize.ts';

const BASE = 64;
const config = (model: object): TrainConfig =>
  parseTrainConfig({
    model: {
      ...{ vocab: 256, context: 48, width: BASE, depth: 2, tied: false, norm: { kind: 'rms', scale: false } },
      attention: { kind: 'full', heads: 2 },
      ffn: { kind: 'glu', hidden: 160 },
      parametrisation: { kind: 'mup', baseWidth: BASE, zeroOutput: true },
      ...model,
    },
    ...{ data: { folder: 'not read' }, batch: 4, steps: 8, precision: 'f32' },
    ...{ optimiser: { kind: 'adamw', lr: 3e-3, eps: 1e-12 }, schedule: { kind: 'constant' } },
  });

const kinds: Record<string, object> = {
  'sparse-ffn': { ffn: { kind: 'sparse-ffn', hidden: 256, block: 8 } },
  'sparse-qkv': { attention: { kind: 'sparse-qkv', heads: 2, modules: 4 } },
  'relu-l1': { ffn: { kind: 'relu-l1', hidden: 160 } },
  'topk-ffn': { ffn: { kind: 'topk-ffn', hidden: 160 } },
  'window-attention': { attention: { kind: 'window', heads: 2, window: 9, period: 2 } },
  'lsh-attention': { attention: { kind: 'lsh', heads: 2, chunk: 48 } },
  'block-sparse-attention': {
    attention: { kind: 'block-sparse', heads: 2, length: 4, stride: 2, size: 8, blocks: 6, window: 8 },
  },
  reversible: { layout: 'reversible' },
};

describe('activations stay the same size at any width', () => {
  for (const [name, model] of Object.entries(kinds))
    test(name, async () => {
      const sizes = [64, 128, 256].map((size) => ({ size, config: atWidth(config(model), size) }));
      const all = judge(await coordinates({ sizes, seeds: 3, steps: 4 }), defaultBand);
      assert.ok(all.some((v) => v.name.includes('residual')));
      assert.deepEqual(
        all.filter((v) => !v.ok).map((v) => `${v.name} ${v.level.toFixed(2)} ${v.change.toFixed(2)}`),
        [],
      );
    });
});
