// Decoding of blockwise attention by rows: a row's own block and the one before, under one softmax.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { openDecoding, whyNotRows } from '../../src/infer/decoding.ts';
import { buildModel } from '../../src/model/model.ts';
import { initialise } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import { argmax, checkRows, textOf, whole } from '../support/row-decoding.ts';

const device = new CpuDevice();
const vocab = 61;
const base = {
  ...{ vocab, context: 256, width: 32, depth: 2, embeddingStd: 0.5, tied: false },
  ffn: { kind: 'glu', hidden: 48 },
};
const texts = [2, 25, 97, 240].map((n, k) => ({ tokens: textOf(n, 2 * k + 3, vocab) }));

for (const [name, block, positions] of [
  ['rope', 24, 'rope'],
  ['biases by distance', 7, 'alibi'],
  // A scale base this short: heads can be turned for a few tokens at a time only.
  ['xpos, a context that cannot be turned at once', 24, { kind: 'xpos', scaleBase: 2, gamma: 0.4 }],
] as const)
  test(name, async () => {
    const attention = { kind: 'blockwise', heads: 4, kvHeads: 2, block, bias: true };
    const model = buildModel({ ...base, attention, positions });
    await checkRows(device, model, initialise(model, device, 3), texts);
  });

test('full attention in pieces is computed anew for every token, and says so', async () => {
  const positions = { kind: 'xpos', scaleBase: 2, gamma: 0.4 };
  const model = buildModel({ ...base, attention: { kind: 'full', heads: 4 }, positions });
  const params = initialise(model, device, 3);
  assert.match(whyNotRows(model)!, /in pieces/);
  const decoding = openDecoding(device, model, params, { compute: 'f32' });
  const got: number[] = [];
  await decoding.submit({
    ...{ prompt: texts[2].tokens, maxTokens: 3, onToken: (p) => void got.push(p.token) },
    picker: { pick: (logits) => ({ token: argmax(logits), logprob: 0 }) },
  });
  await decoding.close();
  const all = [...texts[2].tokens];
  for (let k = 0; k < 3; k++) all.push(argmax(whole(device, model, params, { tokens: all }).slice(-vocab)));
  assert.deepEqual(got, all.slice(texts[2].tokens.length));
});
