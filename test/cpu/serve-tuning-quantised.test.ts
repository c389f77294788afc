/** Fine-tuning a quantised model through the API: a difference of low rank beside it, or a clear no. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import type OpenAI from 'openai';
import { toFile } from 'openai';
import { RunFolder } from '../../src/train/run/folder.ts';
import { quantisedRun } from '../support/quantised-runs.ts';
import { type Serving, serving, TinyRuns, until } from '../support/serve.ts';

const runs = new TinyRuns('serve-tuning-quantised');
let s: Serving;
let client: OpenAI;
let served: string;

before(async () => {
  const plain = await runs.train('plain', { steps: 60, model: { embeddingStd: 0.4, width: 64 } });
  const small = join(plain, '..', 'small');
  await quantisedRun(RunFolder.open(plain), small, 8);
  served = runs.folder('served');
  s = await serving({ small }, { data: served });
  client = s.client;
});

const answers = ['the green river', 'the quiet engine', 'the sudden forest'];
const questions = ['what follows?', 'what repairs?', 'what crosses?'];

async function job(adapter?: object): Promise<OpenAI.FineTuning.FineTuningJob> {
  const text = Array.from({ length: 30 }, (_, k) =>
    JSON.stringify({
      messages: [
        { role: 'user', content: questions[k % 3] },
        { role: 'assistant', content: answers[k % 3] },
      ],
    }),
  ).join('\n');
  const file = await client.files.create({ file: await toFile(Buffer.from(text), 'e.jsonl'), purpose: 'fine-tune' });
  const hyperparameters = { n_epochs: 40, batch_size: 8, learning_rate_multiplier: 4, ...(adapter && { adapter }) };
  const { id } = await client.fineTuning.jobs.create({
    ...{ model: 'small', seed: 1, training_file: file.id },
    method: { type: 'supervised', supervised: { hyperparameters } },
  } as OpenAI.FineTuning.JobCreateParams);
  let found = await client.fineTuning.jobs.retrieve(id);
  await until(
    `job ${id} ends`,
    async () => {
      found = await client.fineTuning.jobs.retrieve(id);
      return ['succeeded', 'failed', 'cancelled'].includes(found.status);
    },
    120,
  );
  return found;
}

test('a difference of low rank is learned, takes little space, and is served beside the model', async () => {
  const done = await job({ kind: 'lora', rank: 4 });
  assert.deepEqual([done.status, done.error?.message], ['succeeded', null]);
  for (const [k, content] of questions.entries()) {
    const r = await client.chat.completions.create({
      ...{ model: done.fine_tuned_model!, temperature: 0, max_tokens: 20 },
      messages: [{ role: 'user', content }],
    });
    assert.equal(r.choices[0].message.content, answers[k]);
  }
  const files = readdirSync(served, { recursive: true, encoding: 'utf8' }).filter((f) =>
    f.endsWith('model.safetensors'),
  );
  assert.ok(files.length > 0);
  for (const f of files) assert.ok(existsSync(join(served, f)) && statSync(join(served, f)).size < 60_000, f);
});

test('all weights: the job fails and says what to do', async () => {
  const done = await job();
  assert.equal(done.status, 'failed');
  assert.match(done.error!.message, /is quantised \(q8\), which can be used but not trained/);
});
