/**
 * A server under mixed load for a while: every request is answered, places and pages come back, memory stays bounded.
 * ANSATZ_SOAK_SECONDS says for how long (20; the proof for a release is 600).
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import OpenAI, { toFile } from 'openai';
import { type CliServer, cliServer, metric, TinyRuns, until } from '../support/serve.ts';

const SECONDS = Number(process.env.ANSATZ_SOAK_SECONDS ?? 20);
const CLIENTS = 24;
/** Megabytes that memory may grow by after the warm-up: heaps breathe. */
const GROWTH = 96;
const runs = new TinyRuns('serve-soak');

const schema = {
  type: 'object',
  properties: {
    ok: { type: 'boolean' },
    list: { type: 'array', items: { type: 'integer', minimum: 0, maximum: 9 }, maxItems: 4 },
  },
  required: ['ok', 'list'],
  additionalProperties: false,
};

interface Counts {
  answered: number;
  aborted: number;
  refused: number;
}

/** Kinds of requests; k varies what they ask. */
const kinds: ((server: CliServer, k: number, counts: Counts) => Promise<void>)[] = [
  async ({ client }, k) => {
    const content = `the ${'small river follows '.repeat(k % 5)}`;
    await client.chat.completions.create({
      model: 'tiny',
      messages: [{ role: 'user', content }],
      max_tokens: 20,
      n: 1 + (k % 3),
      seed: k,
    });
  },
  async ({ client }, k) => {
    const stream = await client.chat.completions.create({
      model: 'tiny',
      messages: [{ role: 'user', content: `${k}` }],
      max_tokens: 30,
      stream: true,
      seed: k,
    });
    let finish: string | null = null;
    for await (const c of stream) finish = c.choices[0]?.finish_reason ?? finish;
    assert.ok(finish === 'stop' || finish === 'length', String(finish));
  },
  async ({ client }, k, counts) => {
    const stream = await client.completions.create({
      ...{ model: 'tiny', prompt: 'the', max_tokens: 110, n: 2, stream: true },
    });
    let chunks = 0;
    // Leaving the loop closes the connection. (An AbortController that fires while a finished answer is still being read
    // can leave Node's own fetch waiting for ever, whatever the server does.)
    for await (const _ of stream) if (++chunks > k % 9) break;
    counts.aborted++;
  },
  async ({ client }, k) => {
    await client.completions.create({
      model: 'tiny',
      prompt: [`the ${k}`, 'a'],
      max_tokens: 0,
      echo: true,
      logprobs: 2,
    });
  },
  async ({ client }, k) => {
    const { data } = await client.embeddings.create({
      model: 'tiny',
      input: Array.from({ length: 1 + (k % 4) }, (_, n) => `text ${n} ${k}`),
    });
    assert.equal(data.length, 1 + (k % 4));
  },
  async ({ client }, k) => {
    // Every so often a schema that was not there before.
    const named = { ...schema, title: `s${k % 60}` };
    await client.chat.completions.create({
      ...{ model: 'tiny', messages: [{ role: 'user', content: 'x' }], max_tokens: 40, seed: k },
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema: named } },
    });
  },
  async ({ client }, k) => {
    const file = await client.files.create({
      file: await toFile(Buffer.alloc(20_000, 65 + (k % 26)), 'a.txt'),
      purpose: 'user_data',
    });
    await client.files.delete(file.id);
  },
  async ({ client }, k, counts) => {
    const bad = [{ model: 'nobody' }, { temperature: 9 }, { messages: [] }, { n: 'x' }][k % 4];
    await assert.rejects(
      client.chat.completions.create({ model: 'tiny', messages: [{ role: 'user', content: 'x' }], ...bad } as never),
      OpenAI.APIError,
    );
    counts.refused++;
  },
];

/** A request that is never answered is one that was lost. */
function within<T>(seconds: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout;
  const late = new Promise<never>((_, fail) => {
    timer = setTimeout(() => fail(new Error(`${what} has had no answer for ${seconds} s`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

test(`${CLIENTS} clients for ${SECONDS} s`, { timeout: (SECONDS + 300) * 1000 }, async (t) => {
  const server = await cliServer([
    await runs.train('tiny'),
    '--data',
    join(runs.root, 'data'),
    '--sequences',
    '16',
    '--lookup',
  ]);
  const counts: Counts = { answered: 0, aborted: 0, refused: 0 };
  const start = Date.now();
  const end = start + SECONDS * 1000;
  const memory: { at: number; mb: number }[] = [];
  let stopped = false;
  const watch = (async () => {
    while (!stopped) {
      memory.push({ at: Date.now(), mb: (await metric(server.url, 'ansatz_resident_bytes')) / 2 ** 20 });
      await new Promise((done) => setTimeout(done, Math.max(100, SECONDS * 10)));
    }
  })();
  let next = 0;
  await Promise.all(
    Array.from({ length: CLIENTS }, async () => {
      while (Date.now() < end) {
        const k = next++;
        await within(60, `request ${k}, of kind ${k % kinds.length}`, kinds[k % kinds.length](server, k, counts));
        counts.answered++;
      }
    }),
  );
  stopped = true;
  await watch;
  await until('everything is quiet', async () => (await metric(server.url, 'ansatz_sequences_running')) === 0, 10);
  assert.equal(await metric(server.url, 'ansatz_sequences_waiting'), 0);
  assert.equal(await metric(server.url, 'ansatz_cache_pages_used'), 0);
  assert.equal(await metric(server.url, 'ansatz_requests_active'), 1, 'the one that asks');
  const half = memory.filter((m) => m.at > start + SECONDS * 500).map((m) => m.mb);
  const warm = memory.filter((m) => m.at > start + SECONDS * 300 && m.at <= start + SECONDS * 500).map((m) => m.mb);
  const [before, after] = [Math.max(...warm), Math.min(...half.slice(-5))];
  t.diagnostic(
    `${counts.answered} requests, ${counts.aborted} left early, ${counts.refused} refused; ${Math.round(before)} MB half-way, ${Math.round(after)} MB at the end`,
  );
  assert.ok(counts.answered > SECONDS * 5 && counts.aborted > 0 && counts.refused > 0, JSON.stringify(counts));
  assert.ok(after < before + GROWTH, `memory grew from ${before} to ${after} MB`);
  assert.equal(await server.kill('SIGTERM'), 0);
  assert.equal(server.stderr(), '');
  assert.ok(!server.lines.some((l) => l.event === 'warning'), 'nothing happened that nobody thought of');
});
