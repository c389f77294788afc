// Decoding of Hyena models by rows: their filters reach over all pages of a text.
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { initialise } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import { checkRows, textOf } from '../support/row-decoding.ts';

const device = new CpuDevice();
const vocab = 61;
const base = {
  ...{ vocab, context: 384, width: 24, depth: 2, embeddingStd: 0.5, tied: false, positions: 'none' },
  ffn: { kind: 'glu', hidden: 48 },
};
const texts = [2, 33, 97, 300].map((n, k) => ({ tokens: textOf(n, 2 * k + 3, vocab) }));

for (const [name, attention] of Object.entries({
  'order 2': { kind: 'hyena', filterWidth: 16, bands: 8 },
  'order 4, a short reach': { kind: 'hyena', order: 4, reach: 50, shortKernel: 4, bias: false },
  'no fading': { kind: 'hyena', shift: 0.3, filterRate: 2, shortKernel: 1 },
}))
  test(name, async () => {
    const model = buildModel({ ...base, attention });
    await checkRows(device, model, initialise(model, device, 3), texts);
  });
