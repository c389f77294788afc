// Decoding of Terraformers by rows: what the encoder has read stands before a text, in the same pages.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { openDecoding } from '../../src/infer/decoding.ts';
import { buildModel } from '../../src/model/model.ts';
import { initialise } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import { argmax, checkRows, textOf, whole } from '../support/row-decoding.ts';

const device = new CpuDevice();
const vocab = 61;
const base = {
  ...{ vocab, context: 160, width: 32, depth: 2, embeddingStd: 0.5, tied: false },
  ...{ attention: { kind: 'full', heads: 4 }, ffn: { kind: 'glu', hidden: 48 } },
};
const layout = { kind: 'terraformer', encoderDepth: 1 };
const texts = [
  { tokens: textOf(3, 3, vocab), encoder: textOf(50, 9, vocab) },
  { tokens: textOf(90, 5, vocab), encoder: textOf(3, 4, vocab) },
  { tokens: textOf(40, 7, vocab), encoder: textOf(140, 11, vocab) },
  // Nothing was given.
  { tokens: textOf(40, 7, vocab) },
];

for (const [name, spec] of Object.entries({
  'two streams': { ...base, layout },
  'one bridge, forgetting': { ...base, layout: { ...layout, bridge: 'dense', forgetEvery: 1, encoderDepth: 3 } },
  'recurrent, biases by distance': {
    ...{ ...base, layout, positions: 't5-bias' },
    ffn: { kind: 'sru-ffn', units: 8, inner: { kind: 'glu', hidden: 32 } },
  },
  // Positions added to embeddings count the two texts apart.
  'learned positions': { ...base, layout, positions: { kind: 'learned', std: 0.5 } },
}))
  test(name, async () => {
    const model = buildModel(spec);
    await checkRows(device, model, initialise(model, device, 4), texts);
  });

test('one given text serves many prompts: its part of the decoder is computed once', async () => {
  const model = buildModel({ ...base, layout });
  const params = initialise(model, device, 4);
  const decoding = openDecoding(device, model, params, { compute: 'f32', sequences: 2 });
  const encoder = textOf(130, 9, vocab);
  const rows: number[] = [];
  for (const tokens of [textOf(5, 3, vocab), textOf(5, 8, vocab)]) {
    const before = decoding.stats().rows;
    const got: number[] = [];
    await decoding.submit({
      ...{ prompt: tokens, encoder, maxTokens: 4, onToken: (p) => void got.push(p.token) },
      picker: { pick: (logits) => ({ token: argmax(logits), logprob: 0 }) },
    });
    const all = [...tokens];
    for (let k = 0; k < 4; k++) all.push(argmax(whole(device, model, params, { tokens: all, encoder }).slice(-vocab)));
    assert.deepEqual(got, all.slice(tokens.length));
    rows.push(decoding.stats().rows - before);
  }
  assert.deepEqual(rows, [130 + 5 + 3, 2 + 5 + 3]);
  await decoding.close();
});
