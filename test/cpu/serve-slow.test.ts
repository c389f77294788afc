/** A client that stops reading its stream: it pauses, others go on, and it gets the rest when it reads again. */
import assert from 'node:assert/strict';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { metric, type Serving, serving, TinyRuns, until } from '../support/serve.ts';

const runs = new TinyRuns('serve-slow');
const CHOICES = 8;
const TOKENS = 900;
let s: Serving;
let impatient: Serving;
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
  impatient = await serving({ tiny }, { data: join(runs.root, 'again'), sequences: CHOICES, stallTimeout: 0.5 });
});

/** Asks `times` times in one go, and reads nothing yet. */
function request({ url }: Serving = s, { times = 1, stream = true } = {}): Socket {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  socket.on('error', () => {});
  const text = JSON.stringify({ ...body, stream });
  const head = `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n`;
  for (let k = 1; k <= times; k++) socket.write(`${head}${k === times ? 'connection: close\r\n' : ''}\r\n${text}`);
  return socket.pause();
}

const gauge = (name: string, { url }: Serving = s): Promise<number> => metric(url, `ansatz_${name}{model="tiny"}`);

test('a stream that nobody reads waits, and loses nothing', async () => {
  const whole = await s.client.chat.completions.create(body as never);
  const socket = request();
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
  await until('it waits', async () => (await gauge('sequences_paused')) === CHOICES, 60);
  assert.ok((await gauge('cache_pages_used')) > 0);
  socket.destroy();
  await until('it has gone', async () => (await gauge('sequences_paused')) === 0, 10);
  assert.equal(await gauge('cache_pages_used'), 0);
  assert.deepEqual(s.unforeseen, []);
});

test('so does one that has asked twice before it was answered', async () => {
  const socket = request(s, { times: 2 });
  await until('both wait', async () => (await gauge('sequences_paused')) === 2 * CHOICES, 60);
  const seen = s.requests.length;
  socket.destroy();
  await until('both have gone', async () => (await gauge('sequences_paused')) === 0, 10);
  assert.equal(await gauge('cache_pages_used'), 0);
  const logged = s.requests.slice(seen).filter((r) => r.path === '/v1/chat/completions');
  assert.deepEqual(
    logged.map((r) => r.status),
    [499, 499],
  );
  assert.equal(await metric(s.url, 'ansatz_requests_active'), 1, 'this one');
});

describe('with --stall-timeout', () => {
  for (const [name, options] of [
    ['a stream', {}],
    ['streams behind one another', { times: 2 }],
  ] as const)
    test(`${name} that nobody reads is let go`, async () => {
      const seen = impatient.requests.length;
      const socket = request(impatient, options);
      const closed = new Promise((done) => socket.once('close', done));
      await until('it waits', async () => (await gauge('sequences_paused', impatient)) >= CHOICES, 60);
      const chats = () => impatient.requests.slice(seen).filter((r) => r.path === '/v1/chat/completions');
      await until('it is let go', () => chats().length === ('times' in options ? 2 : 1), 20);
      assert.ok(chats().every((r) => r.status === 499));
      await until('its places are free', async () => (await gauge('sequences_paused', impatient)) === 0, 10);
      assert.equal(await gauge('cache_pages_used', impatient), 0);
      socket.resume();
      await closed;
    });

  test('one that reads slowly is not, nor one that waits for its answer', async () => {
    const seen = impatient.requests.length;
    const slow = request(impatient);
    let text = '';
    const ended = new Promise((done) => slow.once('close', done));
    slow.on('data', (part) => {
      text += part;
      slow.pause();
      // Longer than it may stall in all, never at a time.
      setTimeout(() => slow.resume(), 20);
    });
    slow.resume();
    const whole = request(impatient, { stream: false });
    let answer = '';
    whole.on('data', (part) => (answer += part)).resume();
    await new Promise((done) => whole.once('close', done));
    await ended;
    assert.match(text, /data: \[DONE\]/);
    assert.match(answer, /^HTTP\/1\.1 200/);
    assert.ok(impatient.requests.slice(seen).every((r) => r.status === 200));
    assert.deepEqual(impatient.unforeseen, []);
  });
});
