// Text from a trained model: the right logits, the right token from them, and any prompt.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { openDevice } from '../../src/backend/index.ts';
import { createBatch, IGNORE } from '../../src/data/types.ts';
import { Generator } from '../../src/infer/generate.ts';
import { randomStream, sample } from '../../src/infer/sampling/index.ts';
import { Window } from '../../src/infer/window.ts';
import { disposeTree } from '../../src/nn/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { latestCheckpoint } from '../../src/train/run/checkpoint.ts';
import { type LoadedModel, loadModel } from '../../src/train/session.ts';
import { EvalStep } from '../../src/train/step.ts';
import {
  heldMemory,
  type TinyData,
  type Trained,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';

const root = temporaryFolder('generate');
let data: TinyData;
let trained: Trained;
let loaded: LoadedModel;
let generator: Generator;
let window: Window;

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text')));
  const config = tinyConfig(data, {
    steps: 150,
    optimiser: { kind: 'adamw', lr: 1e-2 },
    model: { positions: 'learned' },
  });
  trained = await trainWhole(join(root, 'run'), config);
  loaded = await loadModel(trained.run.config, (await latestCheckpoint(trained.run))!);
  generator = new Generator(loaded.device, loaded.model, loaded.params, data.prepared.tokenizer, 'f32');
  window = new Window(loaded.device, loaded.model, loaded.params, 'f32', false);
});
after(async () => {
  await generator.dispose();
  window.dispose();
});

const eot = (): number => data.prepared.tokenizer.eot;

/** -ln of the probability that logits give to an id. */
function nats(logits: Float32Array, id: number): number {
  const top = logits.reduce((a, b) => Math.max(a, b));
  return Math.log(logits.reduce((sum, x) => sum + Math.exp(x - top), 0)) + top - logits[id];
}

test('its logits are those that training and evaluation see', async () => {
  const config = parseTrainConfig(trained.run.config);
  const ids = [eot(), ...data.prepared.tokenizer.encode('export function run(options) {\n  return options.value;\n}')];
  assert.ok(ids.length > 8 && ids.length < 32);
  let sum = 0;
  for (let k = 1; k < ids.length; k++) sum += nats(await window.next(ids.slice(0, k)), ids[k]);

  const batch = createBatch(config.batch, 32);
  batch.targets.fill(IGNORE);
  batch.inputs.set(ids.slice(0, -1));
  batch.targets.set(ids.slice(1));
  batch.positions.set(Array.from({ length: 32 }, (_, k) => k));
  batch.targetCount = ids.length - 1;
  const step = new EvalStep(loaded.device, loaded.model, loaded.params, config, 32);
  const evaluated = await step.run(batch);
  step.dispose();
  assert.ok(Math.abs(sum - evaluated.nats) < 1e-3 * sum, `${sum} nats token by token, ${evaluated.nats} in one row`);
});

test('what comes before the context does not count, the context does', async () => {
  const ids = Array.from({ length: 50 }, (_, k) => 260 + ((k * 37) % 90));
  const logits = await window.next(ids);
  assert.deepEqual(await window.next(ids.slice(-32)), logits);
  assert.deepEqual(await window.next([1, 2, 3, ...ids]), logits);
  assert.notDeepEqual(await window.next(ids.slice(-31)), logits);
});

describe('text', () => {
  test('the same seed gives the same text, another one another', async () => {
    const write = (seed: number): Promise<string> =>
      generator.complete('function ', { maxTokens: 40, temperature: 1, seed });
    const first = await write(1);
    assert.equal(await write(1), first);
    assert.notEqual(await write(2), first);
    assert.ok(first.length > 20);
  });

  test('temperature 0 ignores the seed and takes the most likely token', async () => {
    const write = (seed: number): Promise<string> =>
      generator.complete('  /**\n', { maxTokens: 12, temperature: 0, seed });
    const a = await write(1);
    const b = await write(2);
    assert.equal(a, b);
    const logits = await window.next([eot(), ...data.prepared.tokenizer.encode('  /**\n')]);
    const best = logits.indexOf(logits.reduce((x, y) => Math.max(x, y)));
    assert.ok(a.startsWith(data.prepared.tokenizer.decode([best])));
  });

  test('streamed pieces make up the whole; maxTokens counts tokens', async () => {
    const options = { maxTokens: 25, temperature: 0.9, seed: 5 };
    const pieces: string[] = [];
    for await (const piece of generator.stream('const ', options)) pieces.push(piece);
    assert.ok(pieces.length > 1 && pieces.length <= 26);
    assert.equal(pieces.join(''), await generator.complete('const ', options));
    assert.ok((await generator.complete('const ', { ...options, maxTokens: 5 })).length < pieces.join('').length);
  });

  test('any prompt: empty, emoji, half characters, controls, spelled special tokens, much longer than the context', async () => {
    const prompts = [
      '',
      ' ',
      '👩‍👩‍👧 naïve 日本語',
      '\ud83d',
      '\u0000\u001b[2J',
      '<|endoftext|>',
      'x = 1;\n'.repeat(200),
    ];
    for (const prompt of prompts) {
      const text = await generator.complete(prompt, { maxTokens: 6, seed: 1 });
      assert.equal(typeof text, 'string', JSON.stringify(prompt));
    }
  });

  test('a spelled <|endoftext|> is text: it is not the token', async () => {
    const { tokenizer } = data.prepared;
    const ids = tokenizer.encode('<|endoftext|>', { special: 'text' });
    assert.ok(ids.length > 1 && !ids.includes(eot()));
    const spelled = await window.next([eot(), ...ids]);
    const token = await window.next([eot(), eot()]);
    assert.notDeepEqual(spelled, token);
    // What the command does with that prompt is what the spelled ids say.
    const piece = await generator.complete('<|endoftext|>', { maxTokens: 1, temperature: 0 });
    const best = spelled.indexOf(spelled.reduce((x, y) => Math.max(x, y)));
    assert.equal(piece, best === eot() ? '' : tokenizer.decode([best]));
  });

  test('stop strings and tokens end it, wherever a text outgrows the context', async () => {
    const options = { maxTokens: 60, temperature: 0.9, seed: 5 };
    const whole = await generator.complete('const ', options);
    const tail = whole.slice(-12);
    const cut = await generator.complete('const ', { ...options, stop: ['never comes', tail] });
    assert.equal(cut, whole.slice(0, whole.indexOf(tail)));
    assert.equal(
      await generator.complete('const ', { ...options, stop: [`${tail}?`] }),
      whole,
      'what only began is let out',
    );
    const { tokenizer } = data.prepared;
    const logits = await window.next([eot(), ...tokenizer.encode('  /**\n')]);
    const best = logits.indexOf(logits.reduce((x, y) => Math.max(x, y)));
    assert.equal(await generator.complete('  /**\n', { temperature: 0, ends: [best] }), '');
  });

  test('JSON under a schema, or an error', async () => {
    const schema = {
      ...{ type: 'object', required: ['a', 'b'], additionalProperties: false },
      properties: { a: { type: 'integer', minimum: 3, maximum: 12 }, b: { enum: ['x', null] } },
    };
    for (let seed = 0; seed < 5; seed++) {
      const made = JSON.parse(await generator.complete('const a = ', { maxTokens: 400, temperature: 1, seed, schema }));
      assert.ok(made.a >= 3 && made.a <= 12 && (made.b === 'x' || made.b === null), JSON.stringify(made));
    }
    await assert.rejects(
      generator.complete('const ', { maxTokens: 2, schema }),
      /JSON was not complete after 2 tokens/,
    );
    await assert.rejects(generator.complete('const ', { schema: { not: {} } }), /'not' is not supported/);
  });

  test('stops when it is asked to', async () => {
    const stop = new AbortController();
    let pieces = 0;
    for await (const _ of generator.stream('a', { maxTokens: 1000, temperature: 1.5, signal: stop.signal }))
      if (++pieces === 3) stop.abort();
    assert.equal(pieces >= 3 && pieces <= 4, true);
  });

  test('gives its memory back', async () => {
    const device = openDevice('cpu');
    const before = await heldMemory(device);
    const model = await loadModel(trained.run.config, (await latestCheckpoint(trained.run))!);
    const own = new Generator(device, model.model, model.params, data.prepared.tokenizer, 'bf16');
    await own.complete('import ', { maxTokens: 8 });
    await own.dispose();
    disposeTree(model.params);
    assert.deepEqual(await heldMemory(device), before);
  });
});

describe('choosing a token', () => {
  const logits = Float32Array.from([1, 3, 2, 3, -Infinity]);
  const draws = (options: object, logit = logits, n = 4000): number[] => {
    const uniform = randomStream(9);
    const counts = new Array(logit.length).fill(0);
    for (let k = 0; k < n; k++) counts[sample(logit, options, uniform())]++;
    return counts.map((c) => c / n);
  };

  test('temperature 0 takes the best, the first of equals', () => {
    for (const u of [0, 0.5, 0.999]) assert.equal(sample(logits, { temperature: 0 }, u), 1);
  });

  test('frequencies follow softmax(logits / temperature)', () => {
    for (const temperature of [0.5, 1, 2]) {
      const weights = [...logits].map((x) => Math.exp(x / temperature));
      const total = weights.reduce((a, b) => a + b);
      draws({ temperature }).forEach((share, id) => {
        assert.ok(Math.abs(share - weights[id] / total) < 0.03, `id ${id} at ${temperature}: ${share}`);
      });
    }
  });

  test('top-k keeps the k most likely, ties to the lower id', () => {
    assert.deepEqual(draws({ topK: 1 }), [0, 1, 0, 0, 0]);
    const [a, b, c, d, e] = draws({ topK: 3 });
    assert.ok(a === 0 && e === 0 && b > 0 && c > 0 && d > 0);
    assert.equal(draws({ topK: 100 }).filter((x) => x > 0).length, 4);
  });

  test('top-p keeps the smallest set that reaches p', () => {
    const flat = Float32Array.from([0, 0, 0, 0].map((_, k) => Math.log([0.5, 0.3, 0.15, 0.05][k])));
    const kept = (topP: number): number => draws({ topP }, flat).filter((x) => x > 0).length;
    assert.deepEqual([0.01, 0.49, 0.6, 0.85, 0.97, 1].map(kept), [1, 1, 2, 3, 4, 4]);
  });

  test('never a token without probability, whatever the number drawn', () => {
    for (const u of [0, 0.25, 0.9999999, 1 - 2 ** -32]) {
      assert.notEqual(sample(logits, { temperature: 1.5 }, u), 4);
      assert.notEqual(sample(logits, { temperature: 5, topP: 0.9999999 }, u), 4);
    }
  });

  test('numbers of a seed are uniform and fixed', () => {
    const [a, b] = [randomStream(7), randomStream(7)];
    const values = Array.from({ length: 5000 }, a);
    assert.deepEqual(Array.from({ length: 5000 }, b), values);
    assert.ok(values.every((v) => v >= 0 && v < 1));
    for (let tenth = 0; tenth < 10; tenth++) {
      const share = values.filter((v) => Math.floor(v * 10) === tenth).length / 5000;
      assert.ok(Math.abs(share - 0.1) < 0.02, `${tenth}: ${share}`);
    }
  });
});
