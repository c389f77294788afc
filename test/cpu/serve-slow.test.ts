/** A client that stops reading its stream: it pauses, others go on, and it gets the rest when it reads again. */
import assert from 'node:assert/strict';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { metric, type Serving, serving, TinyRuns, until } from '../support/serve.ts';

const runs = new TinyRuns('serve-slow');
const CHOICES = 8;
const TOKENS = 900;
let s: Serving;
let body: object;

before(async () => {
  const tiny = await runs.train('tiny', { model: { context: 1024 }, length: 128 });
  // Fewer places than the slow client has choices.
  const { eot } = (await runs.text()).prepared.tokenizer;
  // Large events, and no end: the buffers of the connection are full long before the texts are.
  body = {
    ...{ model: 'tiny', messages: [{ role: 'user', content: 'the small river' }], max_tokens: TOKENS, seed: 3 },
    ...{ n: CHOICES, logprobs: true, top_logprobs: 20, logit_bias: { [eot]: -100 } },
  };
  s = await serving({ tiny }, { data: join(runs.root, 'served'), sequences: CHOICES });
});

function request(): Socket {
  const { hostname, port } = new URL(s.url);
  const socket = connect(Number(port), hostname);
  const text = JSON.stringify({ ...body, stream: true });
  socket.write(
    `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
  return socket;
}

const gauge = (name: string): Promise<number> => metric(s.url, `ansatz_${name}{model="tiny"}`);

test('a stream that nobody reads waits, and loses nothing', async () => {
  const whole = await s.client.chat.completions.create(body as never);
  const socket = request();
  socket.pause();
  await until('all of its choices wait', async () => (await gauge('sequences_paused')) === CHOICES, 60);
  const rows = await gauge('rows_total');
  // Others find places as if it were not there.
  const other = await s.client.chat.completions.create({
    ...body,
    n: 2,
    max_tokens: 30,
    logprobs: false,
    top_logprobs: undefined,
  } as never);
  assert.equal(other.usage!.completion_tokens, 60);
  assert.equal(await gauge('sequences_paused'), CHOICES);
  assert.ok((await gauge('rows_total')) - rows < 200, 'nothing was computed for the one that does not read');
  const parts: Buffer[] = [];
  for await (const part of socket) parts.push(part as Buffer);
  const answer = Buffer.concat(parts).toString();
  const texts = Array.from({ length: CHOICES }, () => '');
  // Chunks of the transfer encoding are whole events here.
  for (const [, json] of answer.matchAll(/^data: (\{.*\})$/gm)) {
    const { choices } = JSON.parse(json);
    for (const c of choices) texts[c.index] += c.delta.content ?? '';
  }
  assert.match(answer, /data: \[DONE\]/);
  whole.choices.forEach((c, k) => {
    assert.equal(texts[k], c.message.content, `choice ${k}`);
  });
  assert.equal(await gauge('sequences_paused'), 0);
});

test('one that goes while it waits frees its pages', async () => {
  const socket = request();
  socket.pause();
  await until('it waits', async () => (await gauge('sequences_paused')) === CHOICES, 60);
  assert.ok((await gauge('cache_pages_used')) > 0);
  socket.destroy();
  await until('it has gone', async () => (await gauge('sequences_paused')) === 0, 10);
  assert.equal(await gauge('cache_pages_used'), 0);
  assert.deepEqual(s.unforeseen, []);
});
