// Looking inside a model: probabilities are those of decoding, experts and units those that computed, bytes a formula.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { openDevice } from '../../src/backend/index.ts';
import { openDecoding } from '../../src/infer/decoding.ts';
import { type Inspection, Inspector } from '../../src/infer/inside/index.ts';
import { Sampler } from '../../src/infer/sampling/index.ts';
import { buildModel, type Model } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { disposeTree, initialise, type ParamTree } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';
import { heldMemory } from '../support/tiny-data.ts';

const device = openDevice('cpu');
const text = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4];
const base: ModelSpecInput = {
  vocab: 23,
  context: 48,
  width: 32,
  depth: 2,
  attention: { kind: 'full', heads: 2 },
  ffn: { kind: 'glu', hidden: 96 },
};

async function look(
  changes: Partial<ModelSpecInput>,
  given: { decoder?: number[]; encoder?: number[] } = {},
): Promise<{ seen: Inspection; model: Model; params: ParamTree }> {
  const model = buildModel({ ...base, ...changes });
  const params = initialise(model, device, 5);
  const inspector = new Inspector(device, model, params, { compute: 'f32' });
  const seen = await inspector.inspect({ decoder: text, ...given });
  await inspector.dispose();
  return { seen, model, params };
}

describe('looking inside', () => {
  test('probabilities are those that decoding gives, at every place', async () => {
    const { seen, model, params } = await look({});
    const decoding = openDecoding(device, model, params, { compute: 'f32', sequences: 1 });
    const scored: number[] = [];
    const lse = (x: Float32Array): number => Math.log(x.reduce((s, v) => s + Math.exp(v), 0));
    await decoding.submit({
      prompt: text,
      maxTokens: 0,
      picker: new Sampler({ temperature: 0 }),
      onToken: () => true,
      scorePrompt: (token, place, logits) => {
        scored[place] = logits[token] - lse(logits);
        const best = logits.indexOf(Math.max(...logits));
        assert.equal(seen.top[place][0].token, best);
        assert.ok(Math.abs(seen.top[place][0].logprob - (logits[best] - lse(logits))) < 1e-4);
      },
    });
    await decoding.close();
    assert.equal(seen.logprobs[0], null);
    assert.equal(scored.length, text.length);
    for (let k = 1; k < text.length; k++) assert.ok(Math.abs(scored[k] - seen.logprobs[k]!) < 1e-4, `place ${k}`);
    assert.equal(seen.top.length, text.length + 1, 'and what would follow');
    disposeTree(params);
  });

  test('a dense layer: every unit works, every weight is read', async () => {
    const { seen, params } = await look({});
    assert.deepEqual(
      seen.layers.map((l) => [l.layer, l.kind, l.count, l.columns, l.block]),
      [0, 1].map((k) => [`blocks.${k}.ffn`, 'units', 96, 48, 2]),
    );
    for (const l of seen.layers) assert.ok(l.active.every((share) => share > 0.999));
    // Tied: the embedding matrix is read whole as the output matrix.
    assert.ok(seen.bytes.token.every((b) => b === seen.bytes.weights));
    // Keys and values of two layers, 2 x 32 values of 4 bytes for each token so far.
    assert.deepEqual(
      [...seen.bytes.cache],
      text.map((_, t) => (t + 1) * 2 * 2 * 32 * 4),
    );
    disposeTree(params);
  });

  test('of a table that is only looked up in, one row is read', async () => {
    const { seen, params } = await look({ tied: false });
    assert.ok(seen.bytes.token.every((b) => b === seen.bytes.weights - 22 * 32 * 4));
    disposeTree(params);
  });

  test('experts: as many cells as a token has experts, the best at full, and only their bytes', async () => {
    const ffn = { kind: 'moe', experts: 8, active: 2, expert: { kind: 'glu', hidden: 16 } } as const;
    const { seen, params } = await look({ ffn });
    const experts = seen.layers.filter((l) => l.kind === 'experts');
    assert.deepEqual(
      experts.map((l) => [l.layer, l.count, l.columns]),
      [0, 1].map((k) => [`blocks.${k}.ffn`, 8, 8]),
    );
    for (const l of experts)
      for (let t = 0; t < text.length; t++) {
        const row = l.cells.subarray(t * 8, (t + 1) * 8);
        assert.deepEqual([row.filter((v) => v > 0).length, Math.max(...row), l.active[t]], [2, 255, 2]);
      }
    assert.ok(new Set(experts.map((l) => l.cells.join())).size > 1, 'layers route differently');
    const one = 3 * 16 * 32 * 4;
    assert.ok(seen.bytes.token.every((b) => b === seen.bytes.weights - 2 * 6 * one));
    const plain = await look({});
    assert.deepEqual(seen.bytes.cache, plain.seen.bytes.cache);
    disposeTree(plain.params);
    const within = seen.layers.filter((l) => l.kind === 'units');
    assert.deepEqual(
      within.map((l) => [l.layer, l.count, Math.round(l.active[3])]),
      [0, 1].map((k) => [`blocks.${k}.ffn.experts`, 16, 1]),
    );
    disposeTree(params);
  });

  test('experts that choose tokens: a token may have none, or several', async () => {
    const encoderFfn = {
      kind: 'moe',
      experts: 4,
      routing: { kind: 'expert-choice', factor: 1 },
      expert: { kind: 'mlp', hidden: 16 },
    } as const;
    const encoder = [...text].reverse();
    const { seen, params } = await look({ layout: { kind: 'encoder-decoder', encoderFfn } }, { encoder });
    const [l] = seen.encoder!.layers;
    assert.deepEqual([l.layer, l.kind], ['encoder.blocks.0.ffn', 'experts']);
    for (let t = 0; t < text.length; t++)
      assert.equal(l.cells.subarray(t * 4, (t + 1) * 4).filter((v) => v > 0).length, l.active[t]);
    assert.ok(Math.max(...l.active) > Math.min(...l.active));
    disposeTree(params);
  });

  test('units chosen before they are computed: idle ones are not read', async () => {
    const { seen, params } = await look({ ffn: { kind: 'sparse-ffn', hidden: 96, block: 8 } });
    for (const l of seen.layers) {
      assert.deepEqual([l.kind, l.count], ['units', 96]);
      // One of 8 is chosen, and the ReLU may leave it at 0.
      assert.ok(l.active.every((share) => share > 0 && share <= 1 / 8 + 1e-6));
      const ofBlock = l.cells.reduce((a, b) => a + b, 0) / 255 / l.columns;
      assert.ok(Math.abs(ofBlock - l.active.reduce((a, b) => a + b, 0)) < 0.05);
    }
    const units = 2 * 96 * 32 * 4;
    seen.bytes.token.forEach((b, t) => {
      const fired = seen.layers.reduce((n, l) => n + l.active[t] * units, 0);
      assert.ok(Math.abs(b - (seen.bytes.weights - 2 * units + fired)) <= 1);
    });
    disposeTree(params);
  });

  test('units that a ReLU leaves at 0 have been computed: all are read', async () => {
    const { seen, params } = await look({ ffn: { kind: 'mlp', hidden: 70, activation: 'relu' } });
    assert.deepEqual([seen.layers[0].count, seen.layers[0].block, seen.layers[0].columns], [70, 2, 35]);
    for (const l of seen.layers) assert.ok(l.active.every((share) => share > 0.2 && share < 0.8));
    assert.ok(seen.bytes.token.every((b) => b === seen.bytes.weights));
    disposeTree(params);
  });

  test('sparse experts: the share of units within those that a token went to', async () => {
    const expert = { kind: 'sparse-ffn', hidden: 32, block: 4 } as const;
    const { seen, params } = await look({ ffn: { kind: 'moe', experts: 4, active: 2, expert } });
    const within = seen.layers.filter((l) => l.kind === 'units');
    assert.equal(within.length, 2);
    for (const l of within) assert.ok(l.active.every((share) => share > 0 && share <= 1 / 4 + 1e-6));
    disposeTree(params);
  });

  test('an encoder has layers of its own', async () => {
    const { seen, params } = await look({ layout: 'encoder-decoder' }, { encoder: [7, 7, 8, 9, 10] });
    assert.deepEqual(
      seen.layers.map((l) => l.layer),
      ['blocks.0.ffn', 'blocks.1.ffn'],
    );
    assert.deepEqual(
      seen.encoder?.layers.map((l) => [l.layer, l.active.length]),
      [0, 1].map((k) => [`encoder.blocks.${k}.ffn`, 5]),
    );
    disposeTree(params);
  });

  test('a long text loses its beginning, and says so; passes are kept and their memory is given back', async () => {
    const model = buildModel(base);
    const params = initialise(model, device, 5);
    model.prepare(device);
    const before = (await heldMemory(device)).allocations;
    const inspector = new Inspector(device, model, params, { compute: 'f32' });
    const long = Array.from({ length: 60 }, (_, k) => k % 23);
    const first = await inspector.inspect({ decoder: long });
    assert.deepEqual([first.cut, first.tokens.length], [12, 48]);
    const again = await inspector.inspect({ decoder: text });
    assert.deepEqual((await inspector.inspect({ decoder: text })).logprobs, again.logprobs);
    const other = await inspector.inspect({ decoder: [...text.slice(0, 10), 22] });
    assert.deepEqual(
      other.logprobs.slice(0, 10),
      again.logprobs.slice(0, 10),
      'padding and what follows do not matter',
    );
    assert.throws(() => inspector.inspect({ decoder: [] }), /no text/);
    await inspector.dispose();
    assert.equal((await heldMemory(device)).allocations, before);
    disposeTree(params);
  });
});

describe('what a token reads of those before it', () => {
  const n = text.length;
  const at = (seen: Inspection, k: number): number => seen.bytes.cache[k - 1];
  const kv = (width: number): number => 2 * width * 4;

  test('a window: so many keys and values, however long the text', async () => {
    const { seen, params } = await look({ attention: { kind: 'full', heads: 2, window: 6 } });
    for (let k = 1; k <= n; k++) assert.equal(at(seen, k), 2 * kv(32) * Math.min(k, 6), `token ${k}`);
    disposeTree(params);
  });

  test('convolutions: the inputs that they reach, and as many taps', async () => {
    const { seen, params } = await look({ attention: { kind: 'hyena', order: 2, shortKernel: 3 } as never });
    // Two layers: 3 parts of 32 channels three tokens back; one long filter over 32 channels.
    for (let k = 1; k <= n; k++)
      assert.equal(at(seen, k), 2 * 4 * (3 * 32 * Math.min(k, 3) + 2 * 32 * k), `token ${k}`);
    disposeTree(params);
  });

  test('convolutions over modules beside keys and values', async () => {
    const { seen, params } = await look({ attention: { kind: 'sparse-qkv', heads: 2, modules: 4, lengthKernel: 3 } });
    for (let k = 1; k <= n; k++) assert.equal(at(seen, k), 2 * (kv(32) * k + 4 * 32 * Math.min(k, 3)), `token ${k}`);
    disposeTree(params);
  });

  test('recurrent units: one state, none before the first token', async () => {
    const inner = { kind: 'glu', hidden: 96 } as const;
    const { seen, params } = await look({ ffn: { kind: 'sru-ffn', inner, units: 8 } });
    for (let k = 1; k <= n; k++) assert.equal(at(seen, k), 2 * (kv(32) * k + (k > 1 ? 8 * 4 : 0)), `token ${k}`);
    disposeTree(params);
  });

  test('an encoder: all that it has read, for every token', async () => {
    const encoder = text.slice(0, 7);
    const { seen, params } = await look({ layout: 'encoder-decoder' }, { encoder });
    for (let k = 1; k <= n; k++) assert.equal(at(seen, k), 2 * kv(32) * (k + 7), `token ${k}`);
    disposeTree(params);
  });
});
