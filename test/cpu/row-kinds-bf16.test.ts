// Every way to look back over pages with bf16 products and pages in few bits: close to whole texts in f32.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { initialise } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import { byRows, textOf, whole } from '../support/row-decoding.ts';

const device = new CpuDevice();
const vocab = 61;
const base = {
  ...{ vocab, context: 160, width: 64, depth: 2, embeddingStd: 0.5, tied: false },
  ...{ attention: { kind: 'full', heads: 4, kvHeads: 2 }, ffn: { kind: 'glu', hidden: 96 } },
};
// Choices that a rounding could turn are left out: all blocks are read, rounds see all of a text.
const kinds: Record<string, object> = {
  hyena: { attention: { kind: 'hyena', order: 3 } },
  'block-sparse': {
    attention: { kind: 'block-sparse', heads: 4, kvHeads: 1, length: 8, stride: 4, size: 16, blocks: 10, window: 20 },
  },
  lsh: { attention: { kind: 'lsh', heads: 4, chunk: 16, rounds: 5, buckets: 1 } },
  blockwise: { attention: { kind: 'blockwise', heads: 4, block: 40 }, positions: 'xpos' },
  terraformer: { layout: { kind: 'terraformer', encoderDepth: 1 } },
  merged: { layout: { kind: 'encoder-decoder', encoderDepth: 1, merged: true } },
};

for (const [name, extra] of Object.entries(kinds))
  describe(name, () => {
    const model = buildModel({ ...base, ...extra });
    const params = initialise(model, device, 3);
    const text = { tokens: textOf(130, 7, vocab), ...(model.encoder ? { encoder: textOf(40, 3, vocab) } : {}) };
    const expected = whole(device, model, params, text);
    const offOf = (got: Float32Array): number => {
      const sums = got.reduce(([d, n], x, k) => [d + (x - expected[k]) ** 2, n + expected[k] ** 2], [0, 0]);
      return Math.sqrt(sums[0] / sums[1]);
    };
    for (const cache of ['bf16', 'int8'] as const)
      test(`pages in ${cache}`, async () => {
        const [got] = await byRows(device, model, params, [text], { compute: 'bf16', cache, rows: 50 });
        const off = offOf(got);
        assert.ok(off < 0.015, `off by ${off}`);
      });
  });
