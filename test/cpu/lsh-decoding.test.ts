// Decoding of hashed attention by rows. A whole text is cut into chunks that depend on all of its tokens, a row knows its
// past alone: the same where chunks are stretches of the text or hold all of it, and close where a model has learned to
// point at what it needs.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel, type Model } from '../../src/model/model.ts';
import { initialise, type ParamTree } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { byRows, checkRows, continued, largest, sameInParts, textOf, whole } from '../support/row-decoding.ts';
import { learn } from '../support/toy-task.ts';

const device = new CpuDevice();
const vocab = 61;
const base = {
  ...{ vocab, context: 256, width: 32, depth: 2, embeddingStd: 0.5, tied: false },
  ffn: { kind: 'glu', hidden: 48 },
};
const texts = [2, 33, 97, 240].map((n, k) => ({ tokens: textOf(n, 2 * k + 3, vocab) }));
const lsh = { kind: 'lsh', heads: 4, chunk: 8, rounds: 3, buckets: 16, dedupe: true, bias: true };
const modelOf = (options: object, spec: object = {}): Model =>
  buildModel({ ...base, ...spec, attention: { ...lsh, ...options } });

describe('the same as a whole text', () => {
  for (const [name, options, spec] of [
    ['one bucket: chunks are stretches of the text', { buckets: 1, lookBack: 2 }, {}],
    ['one bucket, one chunk: full attention', { buckets: 1, chunk: 256, rounds: 1 }, { positions: 'none' }],
  ] as const)
    test(name, async () => {
      const model = modelOf(options, spec);
      await checkRows(device, model, initialise(model, device, 3), texts);
    });
});

test('rounds that can see a whole text make full attention', async () => {
  const full = modelOf({ buckets: 1, chunk: 256, rounds: 1 });
  const params = initialise(full, device, 3);
  const expected = whole(device, full, params, texts[3]);
  const scale = expected.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  const offOf = async (rounds: number): Promise<number> => {
    const [got] = await byRows(device, modelOf({ evalRounds: rounds }), params, [texts[3]]);
    return got.reduce((sum, x, k) => sum + (x - expected[k]) ** 2, 0) ** 0.5 / (scale * got.length ** 0.5);
  };
  const [one, four, sixteen] = [await offOf(1), await offOf(4), await offOf(16)];
  assert.ok(one > 0.02, `one round sees nearly all: ${one}`);
  assert.ok(four < one, `${one}, ${four}`);
  assert.ok(sixteen < 1e-6, `${sixteen}`);
});

describe('nothing but its own past counts', () => {
  for (const [name, options] of Object.entries({
    'many buckets, filled up': { buckets: 300 },
    'own buckets only, every round counts': { ownBucket: true, dedupe: false },
    'buckets by the context': { buckets: undefined, rounds: 1 },
  }))
    test(name, async () => {
      const model = modelOf(options);
      const params = initialise(model, device, 3);
      await sameInParts(device, model, params, texts);
      const argmaxes = async (text: readonly number[]): Promise<number[]> => {
        const all = [...text];
        for (let k = 0; k < 6; k++) {
          // A token more, so that the last one that counts has its log-odds.
          const [got] = await byRows(device, model, params, [{ tokens: [...all, 0] }]);
          const last = got.slice(-vocab);
          all.push(last.indexOf(Math.max(...last)));
        }
        return all.slice(text.length);
      };
      const expected = await Promise.all(texts.map(({ tokens }) => argmaxes(tokens)));
      assert.deepEqual(await continued(device, model, params, texts, expected), expected);
    });
});

test('a model that has learned to copy copies by rows as well', async () => {
  const [LETTERS, WORD] = [8, 31];
  const word = (rng: Rng) => {
    const letters = Array.from({ length: WORD }, () => rng.int(1, LETTERS));
    return { tokens: [0, ...letters, 0, ...letters], counts: (t: number) => t >= WORD + 1 };
  };
  const { model, params }: { model: Model; params: ParamTree } = await learn(device, {
    ...{ length: 2 * WORD + 1, row: word, steps: 200 },
    spec: {
      ...{ vocab: LETTERS + 1, width: 64, depth: 1, positions: 'learned', ffn: { kind: 'glu', hidden: 96 } },
      attention: { kind: 'lsh', heads: 4, chunk: 8, rounds: 2 },
    },
  });
  const rng = new Rng('words to copy');
  // All but the last letters: a prompt leaves room for a token.
  const rows = Array.from({ length: 24 }, () => ({ tokens: word(rng).tokens.slice(0, 2 * WORD) }));
  const lossOf = (logits: Float32Array, tokens: readonly number[]): number => {
    let nats = 0;
    for (let t = WORD + 1; t < tokens.length - 1; t++) {
      const x = logits.subarray(t * (LETTERS + 1), (t + 1) * (LETTERS + 1));
      nats += Math.log(x.reduce((sum, v) => sum + Math.exp(v), 0)) - x[tokens[t + 1]];
    }
    return nats / (tokens.length - 2 - WORD);
  };
  const decoded = await byRows(device, model, params, rows);
  const mean = (x: readonly number[]): number => x.reduce((a, b) => a + b, 0) / x.length;
  const loss = mean(rows.map(({ tokens }, k) => lossOf(decoded[k], tokens)));
  const windowed = mean(rows.map((row) => lossOf(whole(device, model, params, row), row.tokens)));
  assert.ok(windowed < 0.1 && loss < windowed + 0.02, `by rows ${loss}, whole ${windowed}`);
  const differs = rows.some((row, k) => largest(decoded[k], whole(device, model, params, row)) > 1e-3);
  assert.ok(differs, 'rows see other tokens than whole texts');
});
