// Decoding of block-sparse attention by rows: compressed blocks are made as their last token comes, and chosen as in the
// whole pass.
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { initialise } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import { checkRows, textOf } from '../support/row-decoding.ts';

const device = new CpuDevice();
const vocab = 61;
const base = {
  ...{ vocab, context: 384, width: 32, depth: 2, embeddingStd: 0.5, tied: false },
  ffn: { kind: 'glu', hidden: 48 },
};
const texts = [2, 31, 97, 330].map((n, k) => ({ tokens: textOf(n, 2 * k + 3, vocab) }));
// The same few tokens again and again: many blocks are equally important.
const repeating = [{ tokens: Array.from({ length: 200 }, (_, k) => [3, 1, 4, 1][k % 4]) }];
const small = { kind: 'block-sparse', heads: 4, kvHeads: 2, length: 8, stride: 4, size: 16, blocks: 4, window: 20 };

for (const [name, attention, positions] of [
  ['small blocks', small, 'rope'],
  ['blocks longer than a page', { ...small, length: 48, stride: 24, size: 48, blocks: 3 }, 'none'],
  ['shared keys, an odd stride', { ...small, share: true, length: 9, stride: 3, size: 12, kvHeads: 1 }, 'rope'],
] as const)
  test(name, async () => {
    const model = buildModel({ ...base, attention, positions });
    await checkRows(device, model, initialise(model, device, 3), texts);
  });

test('ties go to the first block, as in the whole pass', async () => {
  const model = buildModel({ ...base, depth: 1, positions: 'none', attention: { ...small, local: 1, initial: 0 } });
  await checkRows(device, model, initialise(model, device, 3), repeating);
});
