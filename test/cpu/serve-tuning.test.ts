/** Fine-tuning through the API: examples in, an adapted model out; wrong files, kills, restarts, cancellation. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import OpenAI, { toFile } from 'openai';
import { lockOwner } from '../../src/train/run/lock.ts';
import { type CliServer, cliServer, metric, type Serving, serving, TinyRuns, until } from '../support/serve.ts';

const runs = new TinyRuns('serve-tuning');
let tiny: string;
let reader: string;
let s: Serving;
let client: OpenAI;

before(async () => {
  // Tables that stay as they are must tell tokens apart from the start.
  tiny = await runs.train('tiny', { steps: 60, model: { embeddingStd: 0.4 } });
  reader = await runs.train('reader', {
    model: { layout: { kind: 'encoder-decoder', encoderDepth: 1 }, context: 64 },
    objective: 'prefix-lm',
    length: 48,
  });
  s = await serving({ tiny, reader }, { data: runs.folder('served') });
  client = s.client;
});

const answers = ['the green river', 'the quiet engine', 'the sudden forest'];
const questions = ['what follows?', 'what repairs?', 'what crosses?'];
const dialogues = (count: number): string =>
  Array.from({ length: count }, (_, k) =>
    JSON.stringify({
      messages: [
        { role: 'user', content: questions[k % 3] },
        { role: 'assistant', content: answers[k % 3] },
      ],
    }),
  ).join('\n');

const upload = async (text: string, by = client): Promise<string> =>
  (await by.files.create({ file: await toFile(Buffer.from(text), 'examples.jsonl'), purpose: 'fine-tune' })).id;

async function done(id: string, by = client): Promise<OpenAI.FineTuning.FineTuningJob> {
  let job = await by.fineTuning.jobs.retrieve(id);
  await until(
    `job ${id} ends (${job.status})`,
    async () => {
      job = await by.fineTuning.jobs.retrieve(id);
      return ['succeeded', 'failed', 'cancelled'].includes(job.status);
    },
    120,
  );
  return job;
}

async function all<T>(pages: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const one of pages) list.push(one);
  return list;
}

const create = (body: object, by = client) =>
  by.fineTuning.jobs.create({ model: 'tiny', seed: 1, ...body } as OpenAI.FineTuning.JobCreateParams);

const hyperparameters = { n_epochs: 40, batch_size: 8, learning_rate_multiplier: 4 };

describe('a job', () => {
  for (const [name, adapter] of [
    ['all weights', undefined],
    ['a difference of low rank', { kind: 'lora', rank: 4 }],
  ] as const)
    test(`${name}: the model learns to answer, and is served at once`, async () => {
      const training_file = await upload(dialogues(30));
      const validation_file = await upload(dialogues(6));
      const created = await create({
        training_file,
        validation_file,
        suffix: 'mine',
        metadata: { who: 'me' },
        method: {
          type: 'supervised',
          supervised: { hyperparameters: { ...hyperparameters, ...(adapter && { adapter }) } },
        },
      });
      assert.match(created.id, /^ftjob-\w{24}$/);
      assert.deepEqual([created.object, created.model, created.fine_tuned_model], ['fine_tuning.job', 'tiny', null]);
      assert.ok(['validating_files', 'queued', 'running'].includes(created.status));
      // Serving goes on meanwhile.
      assert.equal(
        (await client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 2 })).choices.length,
        1,
      );
      const job = await done(created.id);
      assert.deepEqual([job.status, job.error?.message], ['succeeded', null]);
      assert.match(job.fine_tuned_model!, /^ft:tiny:mine:\w{8}$/);
      assert.ok(job.trained_tokens! > 40 * 30 * 5 && job.finished_at! >= job.created_at);
      assert.deepEqual([job.hyperparameters.n_epochs, job.metadata], [40, { who: 'me' }]);

      const models = (await client.models.list()).data.map((m) => m.id);
      assert.ok(models.includes(job.fine_tuned_model!));
      for (const [k, content] of questions.entries()) {
        const r = await client.chat.completions.create({
          model: job.fine_tuned_model!,
          messages: [{ role: 'user', content }],
          temperature: 0,
          max_tokens: 20,
        });
        assert.equal(r.choices[0].message.content, answers[k]);
        assert.equal(r.choices[0].finish_reason, 'stop');
      }
      // Its weights are all its own, or those of its base with a few beside them.
      const base = adapter ? ',base="tiny"' : '';
      await metric(s.url, `ansatz_weight_bytes{model="${job.fine_tuned_model}"${base}}`);
      const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 7 }));
      assert.equal(new Set(events.map((e) => e.id)).size, events.length, 'pages do not overlap');
      const messages = events.map((e) => e.message);
      assert.match(messages[0], /successfully completed/);
      assert.match(messages.at(-1)!, /^Created fine-tuning job/);
      const steps = events.filter((e) => e.type === 'metrics').map((e) => e.data as Record<string, number>);
      assert.ok(steps.length > 5 && steps[0].train_loss < 0.5 * steps.at(-1)!.train_loss, 'newest first, and falling');
      assert.ok(
        steps.some((m) => m.valid_loss > 0),
        'with the loss on the validation file',
      );

      const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
      assert.ok(checkpoints.length > 0 && checkpoints.length <= 3);
      const r = await client.completions.create({
        model: checkpoints[0].fine_tuned_model_checkpoint,
        prompt: 'the',
        max_tokens: 2,
      });
      assert.equal(r.choices.length, 1);

      const table = await (await client.files.content(job.result_files[0])).text();
      assert.match(table, /^step,train_loss,valid_loss\n\d+,\d/);

      assert.equal((await client.models.delete(job.fine_tuned_model!)).deleted, true);
      await assert.rejects(client.models.retrieve(job.fine_tuned_model!), OpenAI.NotFoundError);
      await assert.rejects(
        client.completions.create({ model: checkpoints[0].fine_tuned_model_checkpoint, prompt: 'a' }),
        OpenAI.NotFoundError,
      );
      assert.equal(existsSync(join(runs.root, 'served', 'jobs', job.id, 'run')), false, 'its place is free');
    });

  test('prompts with completions; a model that was adapted can be adapted again', async () => {
    const pairs = (more: string) =>
      Array.from({ length: 12 }, (_, k) =>
        JSON.stringify({ prompt: `${questions[k % 3]}\n`, completion: `${answers[k % 3]}${more}` }),
      ).join('\n');
    const first = await done(
      (
        await create({
          training_file: await upload(pairs('')),
          hyperparameters: { ...hyperparameters, adapter: { kind: 'lora' } },
        })
      ).id,
    );
    assert.equal(first.status, 'succeeded', JSON.stringify(first.error));
    const ask = async (model: string) =>
      (await client.completions.create({ model, prompt: `${questions[1]}\n`, temperature: 0, max_tokens: 20 }))
        .choices[0].text;
    assert.equal(await ask(first.fine_tuned_model!), answers[1]);
    // What it starts from holds a difference of its own.
    const second = await done(
      (
        await create({
          model: first.fine_tuned_model!,
          training_file: await upload(pairs(' too')),
          hyperparameters: { ...hyperparameters, n_epochs: 20 },
        })
      ).id,
    );
    assert.match(second.fine_tuned_model!, /^ft:tiny::\w{8}$/);
    assert.equal(await ask(second.fine_tuned_model!), `${answers[1]} too`);
    assert.equal(await ask(first.fine_tuned_model!), answers[1]);
  });

  test('checkpoints can be adapted, and deleted one by one', async () => {
    const training_file = await upload(dialogues(30));
    const tuned = await done((await create({ training_file, hyperparameters })).id);
    const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(tuned.id));
    assert.ok(checkpoints.length >= 2, 'newest first');
    const [last, earliest] = [checkpoints[0], checkpoints.at(-1)!];
    const named = earliest.fine_tuned_model_checkpoint;
    const scores = async (model: string): Promise<number[]> => {
      const r = await client.completions.create({
        ...{ model, prompt: `the small river ${questions[0]}`, max_tokens: 0, echo: true, logprobs: 0 },
      });
      return r.choices[0].logprobs!.token_logprobs as number[];
    };
    const distance = (a: number[], b: number[]): number => Math.max(...a.map((x, k) => Math.abs(x - b[k])));
    const [whole, early] = [await scores(tuned.fine_tuned_model!), await scores(named)];
    assert.ok(distance(whole, early) > 1e-2, 'they differ');
    // Next to nothing is learned: what is made is what it was made from.
    const again = await done(
      (
        await create({
          ...{ model: named, training_file },
          hyperparameters: { n_epochs: 1, batch_size: 64, learning_rate_multiplier: 1e-6 },
        })
      ).id,
    );
    assert.equal(again.status, 'succeeded', JSON.stringify(again.error));
    assert.match(again.fine_tuned_model!, /^ft:tiny::\w{8}$/);
    assert.ok(distance(await scores(again.fine_tuned_model!), early) < 1e-3);

    assert.equal((await client.models.delete(named)).deleted, true);
    await assert.rejects(scores(named), OpenAI.NotFoundError);
    await client.models.delete(last.fine_tuned_model_checkpoint);
    assert.deepEqual(await scores(tuned.fine_tuned_model!), whole, 'the model stays');
    const left = (await all(client.fineTuning.jobs.checkpoints.list(tuned.id))).map((c) => c.id);
    assert.deepEqual(
      left,
      checkpoints.slice(1, -1).map((c) => c.id),
    );
    assert.ok(distance(await scores(again.fine_tuned_model!), early) < 1e-3, 'what was made from it too');
  });

  test('an encoder reads what the system says', async () => {
    const lines = Array.from({ length: 30 }, (_, k) =>
      JSON.stringify({
        messages: [
          { role: 'system', content: questions[k % 3] },
          { role: 'user', content: 'well?' },
          { role: 'assistant', content: answers[k % 3] },
        ],
      }),
    );
    const job = await done(
      (
        await create({
          model: 'reader',
          training_file: await upload(lines.join('\n')),
          hyperparameters: { ...hyperparameters, n_epochs: 50 },
        })
      ).id,
    );
    assert.equal(job.status, 'succeeded', JSON.stringify(job.error));
    for (const [k, content] of questions.entries()) {
      const r = await client.chat.completions.create({
        model: job.fine_tuned_model!,
        messages: [
          { role: 'system', content },
          { role: 'user', content: 'well?' },
        ],
        temperature: 0,
        max_tokens: 20,
      });
      assert.equal(r.choices[0].message.content, answers[k]);
    }
  });
});

describe('files that are wrong', () => {
  const fails = async (lines: string[], message: RegExp, param = 'training_file'): Promise<void> => {
    const job = await done((await create({ training_file: await upload(lines.join('\n')) })).id);
    assert.deepEqual([job.status, job.error!.param], ['failed', param]);
    assert.match(job.error!.message, message);
    const [event] = (await client.fineTuning.jobs.listEvents(job.id)).data;
    assert.deepEqual([event.level, event.message], ['error', job.error!.message]);
  };
  const good = dialogues(1);
  test('are refused line by line', async () => {
    await fails(
      [
        good,
        '{"messages":[]}',
        '{',
        '[]',
        '{"text":"x"}',
        '{"messages":[{"role":"user","content":"x"}]}',
        '{"messages":[{"role":"user","content":5}]}',
      ],
      /line 2: messages: .*; line 3: is not valid JSON.*; line 4: is not a JSON object; line 5: has neither 'messages'.*; line 6: has no message of role 'assistant'.*; and 1 more$/,
    );
    await fails(['{"prompt":"x"}'], /line 1: completion/);
    await fails(['', '  ', ''], /has no examples/);
    await fails([JSON.stringify({ prompt: 'the '.repeat(500), completion: 'x' })], /leaves no room in 128 tokens/);
  });

  test('or not accepted at all', async () => {
    const other = await client.files.create({ file: await toFile(Buffer.from(good), 'a'), purpose: 'user_data' });
    const ok = await upload(good);
    for (const body of [
      { training_file: 'file-nothing' },
      { training_file: other.id },
      { training_file: ok, model: 'nobody' },
      { training_file: ok, suffix: 'no spaces' },
      { training_file: ok, validation_file: 'file-nothing' },
      { training_file: ok, hyperparameters: { n_epochs: 0 } },
      { training_file: ok, method: { type: 'dpo' } },
    ])
      await assert.rejects(create(body), OpenAI.BadRequestError, JSON.stringify(body));
  });
});

describe('interruptions', () => {
  const long = { n_epochs: 16, batch_size: 1, learning_rate_multiplier: 1 };
  const many = dialogues(400);
  const runOf = (data: string, id: string): string => join(runs.root, data, 'jobs', id, 'run');
  const hasCheckpoint = (path: string): boolean =>
    existsSync(join(path, 'checkpoints')) && readdirSync(join(path, 'checkpoints')).some((n) => /^\d+$/.test(n));

  test('a training process that is killed is started again and goes on', async () => {
    const { id } = await create({ training_file: await upload(many), hyperparameters: long });
    const path = runOf('served', id);
    await until('it has a checkpoint', () => hasCheckpoint(path));
    process.kill(lockOwner(path)!.pid, 'SIGKILL');
    const job = await done(id);
    assert.equal(job.status, 'succeeded', JSON.stringify(job.error));
    const messages = (await all(client.fineTuning.jobs.listEvents(id))).map((e) => e.message);
    assert.ok(messages.some((m) => /ended \(SIGKILL\); going on from its last checkpoint/.test(m)));
    assert.ok(messages.some((m) => /^Going on from step [1-9]/.test(m)));
  });

  test('jobs are paused, resumed and cancelled', async () => {
    const { id } = await create({ training_file: await upload(many), hyperparameters: long });
    const path = runOf('served', id);
    await until('it has a checkpoint', () => hasCheckpoint(path));
    assert.equal((await client.fineTuning.jobs.pause(id)).status, 'paused' as never);
    assert.equal(lockOwner(path), undefined, 'nobody trains');
    await assert.rejects(client.fineTuning.jobs.pause(id), OpenAI.BadRequestError);
    assert.ok(['queued', 'running'].includes((await client.fineTuning.jobs.resume(id)).status));
    await until('it trains', () => lockOwner(path) !== undefined);
    assert.equal((await client.fineTuning.jobs.cancel(id)).status, 'cancelled');
    assert.equal(lockOwner(path), undefined, 'nobody trains');
    await assert.rejects(client.fineTuning.jobs.cancel(id), OpenAI.BadRequestError);
    assert.equal((await client.fineTuning.jobs.retrieve(id)).fine_tuned_model, null);
    const listed = await all(client.fineTuning.jobs.list({ limit: 2 }));
    assert.ok(listed.some((j) => j.id === id) && listed.length > 5, 'all jobs, over several pages');
  });

  test('a server that is killed in the middle takes its jobs up again', async () => {
    const args = [`tiny=${tiny}`, '--data', runs.folder('killed')];
    let server: CliServer = await cliServer(args);
    after(() => server.kill('SIGKILL'));
    const training_file = await upload(many, server.client);
    const { id } = await create({ training_file, hyperparameters: long, suffix: 'kept' }, server.client);
    const waiting = await create({ training_file: await upload(dialogues(9), server.client) }, server.client);
    const path = runOf('killed', id);
    await until('it has a checkpoint', () => hasCheckpoint(path));
    await server.kill('SIGKILL');
    // What a kill may leave behind: half a line, half an upload.
    writeFileSync(
      join(runs.root, 'killed', 'jobs', id, 'events.jsonl'),
      `${readFileSync(join(runs.root, 'killed', 'jobs', id, 'events.jsonl'))}\n{"id":"ftev`,
    );
    server = await cliServer(args);
    const job = await done(id, server.client);
    assert.equal(job.status, 'succeeded', JSON.stringify(job.error));
    const messages = (await all(server.client.fineTuning.jobs.listEvents(id))).map((e) => e.message);
    assert.ok(messages.includes('The server was started again; the job goes on.'));
    assert.ok(
      messages.some((m) => /^Going on from step [1-9]/.test(m)),
      messages.join('\n'),
    );
    assert.equal((await done(waiting.id, server.client)).status, 'succeeded');
    await server.kill('SIGTERM');
    // And what it made is there the next time.
    server = await cliServer(args);
    const names = (await server.client.models.list()).data.map((m) => m.id);
    assert.ok(names.includes(job.fine_tuned_model!), names.join());
    assert.equal(
      (await server.client.completions.create({ model: job.fine_tuned_model!, prompt: 'the', max_tokens: 2 })).choices
        .length,
      1,
    );
    assert.equal(await server.kill('SIGTERM'), 0);
    assert.equal(server.stderr(), '');
  });
});

test('nothing happened that nobody thought of', () => assert.deepEqual(s.unforeseen, []));
