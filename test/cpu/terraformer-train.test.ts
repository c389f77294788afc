// Training runs of a terraformer: stopped and resumed, and text from what they made.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { Generator } from '../../src/infer/generate.ts';
import { objectiveOf } from '../../src/train/objective.ts';
import { latestCheckpoint } from '../../src/train/run/checkpoint.ts';
import { loadModel } from '../../src/train/session.ts';
import {
  createRun,
  numbersOf,
  type TinyData,
  type Trained,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';
import { logitsOf } from '../support/two-stacks.ts';

const root = temporaryFolder('terraformer');
let data: TinyData;
const runs = new Map<string, Trained>();
before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
});

describe('a run continues as if it had not been stopped', () => {
  for (const objective of ['prefix-lm', 'ul2'])
    test(objective, async () => {
      const config = tinyConfig(data, {
        ...{ steps: 6, batch: 2, accumulate: 2, precision: 'bf16', checkpoint: { every: 3 }, objective },
        evaluate: { every: 3, tokens: 500 },
        model: {
          ...{ layout: { kind: 'terraformer', encoderDepth: 1 }, depth: 2, dropout: 0.1, vocab: 512 },
          ffn: { kind: 'sru-ffn', units: 8, inner: { kind: 'glu', hidden: 32, dropout: 0.1 } },
        },
      });
      const whole = await trainWhole(join(root, `${objective}-whole`), config);
      assert.equal(whole.summary.status, 'completed');
      runs.set(objective, whole);
      const run = await createRun(join(root, `${objective}-parts`), config);
      const first = await trainRun(run, { stopAfter: 2 });
      const second = await trainRun(run, { resume: true });
      assert.deepEqual(numbersOf([...first.events, ...second.events]), whole.numbers);
    });
});

test('text is what the likeliest tokens of full passes spell', async () => {
  const { run } = runs.get('prefix-lm')!;
  const { device, model, params, config } = await loadModel(run.config, (await latestCheckpoint(run))!);
  const { tokenizer } = data.prepared;
  const generator = new Generator(device, model, params, tokenizer, 'f32', objectiveOf(config));
  const text = await generator.complete('function add(', { maxTokens: 5, temperature: 0 });
  generator.dispose();
  const encoder = [...tokenizer.encode('function add(')];
  const decoder = [tokenizer.eot];
  for (let k = 0; k < 5; k++) {
    const last = logitsOf(device, model, params, { encoder, decoder }).at(-1)!;
    const id = last.indexOf(Math.max(...last));
    if (id === tokenizer.eot) break;
    decoder.push(id);
  }
  assert.equal(text, tokenizer.decode(decoder.slice(1)));
});
