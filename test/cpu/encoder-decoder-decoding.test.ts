// Decoding by rows where memory and past stand under one softmax.
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { initialise } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import { checkRows, textOf } from '../support/row-decoding.ts';

const device = new CpuDevice();
const vocab = 61;
const base = {
  ...{ vocab, context: 256, width: 32, depth: 2, embeddingStd: 0.5, tied: false },
  ...{ attention: { kind: 'full', heads: 4, kvHeads: 2 }, ffn: { kind: 'glu', hidden: 48 } },
};
const texts = [
  { tokens: textOf(3, 3, vocab), encoder: textOf(50, 9, vocab) },
  { tokens: textOf(90, 5, vocab), encoder: textOf(3, 4, vocab) },
  { tokens: textOf(40, 7, vocab), encoder: textOf(140, 11, vocab) },
  // Nothing to look at.
  { tokens: textOf(40, 7, vocab) },
];

for (const merged of [true, false])
  test(merged ? 'merged attention' : 'cross-attention', async () => {
    const model = buildModel({ ...base, layout: { kind: 'encoder-decoder', encoderDepth: 1, merged } });
    await checkRows(device, model, initialise(model, device, 4), texts);
  });
