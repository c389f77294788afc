/** Keys, scopes, rates, web pages, metrics: who may do what, and what can be seen of it. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import OpenAI from 'openai';
import { addKey, type KeyRecord, Keys, readKeys, recordOf } from '../../src/serve/auth/keys.ts';
import { Bucket, duration } from '../../src/serve/auth/limits.ts';
import { Registry } from '../../src/serve/models/registry.ts';
import { startServer } from '../../src/serve/server.ts';
import { clientOf, metric, type Serving, serving, TinyRuns, until } from '../support/serve.ts';

const runs = new TinyRuns('serve-access');
const secret = (name: string): string => `sk-test-${name}-0123456789`;
const record = (name: string, more: Partial<KeyRecord> = {}): KeyRecord => ({
  ...recordOf(name, secret(name)),
  ...more,
});
let s: Serving;
let open: Serving;
const as = (name: string, options: object = {}): OpenAI => clientOf(s.url, secret(name), options);
const chat = (client: OpenAI, more: object = {}) =>
  client.chat.completions.create({
    model: 'tiny',
    messages: [{ role: 'user', content: 'the' }],
    max_tokens: 4,
    ...more,
  } as OpenAI.Chat.ChatCompletionCreateParamsNonStreaming);

before(async () => {
  const tiny = await runs.train('tiny');
  const keys = [
    record('all'),
    record('talker', { scopes: ['inference'], models: ['tiny'] }),
    record('librarian', { scopes: ['files'], models: ['other', 'ft:*'] }),
    record('few', { requestsPerMinute: 3 }),
    record('brief', { tokensPerMinute: 200 }),
    record('quick', { requestsPerMinute: 120 }),
  ];
  s = await serving({ tiny, other: tiny }, { data: join(runs.root, 'served'), keys });
  open = await serving({ tiny }, { data: join(runs.root, 'open'), queue: 2, sequences: 1 });
});

describe('keys', () => {
  test('are asked for', async () => {
    const none = await fetch(`${s.url}/v1/models`);
    assert.equal(none.status, 401);
    assert.equal(((await none.json()) as { error: { code: string } }).error.code, 'invalid_api_key');
    await assert.rejects(as('nobody').models.list(), OpenAI.AuthenticationError);
    assert.equal((await fetch(`${s.url}/metrics`)).status, 401);
    assert.equal((await fetch(`${s.url}/healthz`)).status, 200);
  });

  test('see and use their own models only', async () => {
    const names = async (name: string) => (await as(name).models.list()).data.map((m) => m.id);
    assert.deepEqual(await names('all'), ['tiny', 'other']);
    assert.deepEqual(await names('talker'), ['tiny']);
    assert.deepEqual(await names('librarian'), ['other']);
    await assert.rejects(as('talker').models.retrieve('other'), OpenAI.NotFoundError);
    await assert.rejects(chat(as('talker'), { model: 'other' }), OpenAI.NotFoundError);
    assert.equal((await chat(as('talker'))).choices.length, 1);
  });

  test('do what their scopes say', async () => {
    await assert.rejects(as('talker').files.list(), OpenAI.PermissionDeniedError);
    await assert.rejects(as('talker').fineTuning.jobs.list(), OpenAI.PermissionDeniedError);
    await assert.rejects(as('talker').models.delete('tiny'), OpenAI.PermissionDeniedError);
    await assert.rejects(chat(as('librarian'), { model: 'other' }), OpenAI.PermissionDeniedError);
    assert.equal((await as('librarian').files.list()).data.length, 0);
    await assert.rejects(as('all').models.delete('tiny'), OpenAI.PermissionDeniedError);
  });

  test('are kept as hashes, in a file that is the owner’s', () => {
    const file = join(runs.root, 'keys.json');
    const key = addKey(file, 'laptop');
    assert.match(key, /^sk-[\w-]{43}$/);
    assert.ok(!readFileSync(file, 'utf8').includes(key));
    assert.equal(statSync(file).mode & 0o777, 0o600);
    const other = addKey(file, 'phone');
    const keys = new Keys(readKeys(file));
    assert.deepEqual([keys.find(key)?.name, keys.find(other)?.name, keys.find(`${key}x`)], ['laptop', 'phone', null]);
    assert.throws(() => addKey(file, 'phone'), /has a key named phone/);
    writeFileSync(file, '{"keys":[{"name":"x","sha256":"abc"}]}');
    assert.throws(() => readKeys(file), /sha256/);
    assert.throws(() => readKeys(join(runs.root, 'none.json')), /there is no such file/);
  });

  test('have names of their own: rates go by them', () => {
    assert.throws(() => new Keys([record('one'), record('two'), record('one')]), /two keys are called one/);
  });

  test('a public address is not served without one', async () => {
    const options = { runs: [], port: 0, maxBody: 1000, cors: [], lookup: false, sequences: 1, queue: 1 };
    for (const host of ['0.0.0.0', '::', '192.0.2.1', 'example.org'])
      await assert.rejects(
        startServer({ ...options, host, keys: [], data: join(runs.root, 'never') }),
        /refusing to serve on .* without a key/,
      );
    assert.equal(existsSync(join(runs.root, 'never')), false);
    const server = await startServer({
      ...options,
      host: '0.0.0.0',
      keys: [record('all')],
      data: join(runs.root, 'public'),
    });
    await server.close();
  });
});

describe('rates', () => {
  test('requests: headers count down, then 429 says when to come back', async () => {
    const few = as('few');
    const { response } = await few.models.list().withResponse();
    assert.equal(response.headers.get('x-ratelimit-limit-requests'), '3');
    assert.equal(response.headers.get('x-ratelimit-remaining-requests'), '2');
    assert.match(response.headers.get('x-ratelimit-reset-requests')!, /^\d+(ms|s)$/);
    await few.models.list();
    await few.models.list();
    await assert.rejects(few.models.list(), (e) => {
      assert.ok(e instanceof OpenAI.RateLimitError);
      assert.equal(e.code, 'rate_limit_exceeded');
      assert.ok(Number(e.headers.get('retry-after-ms')) > 1000);
      assert.equal(e.headers.get('x-ratelimit-remaining-requests'), '0');
      assert.match(e.headers.get('x-ratelimit-reset-requests')!, /^(59s|1m0s)$/);
      return true;
    });
  });

  test('tokens: what a request may cost is taken, what it did not is given back', async () => {
    const brief = as('brief');
    const left = async (more: object = {}) => {
      const { data, response } = await brief.chat.completions
        .create({ model: 'tiny', messages: [{ role: 'user', content: 'the' }], max_tokens: 4, ...more } as never)
        .withResponse();
      return {
        used: (data as OpenAI.Chat.ChatCompletion).usage!.total_tokens,
        at: Number(response.headers.get('x-ratelimit-remaining-tokens')),
      };
    };
    const first = await left();
    const second = await left({ max_tokens: 60, stop: 'e', temperature: 0 });
    assert.ok(second.used < first.used + 60);
    const third = await left();
    assert.ok(third.at >= 200 - first.used - second.used - third.used - 1, 'only what was used is gone');
    await assert.rejects(left({ max_tokens: 100, n: 4 }), (e) => {
      assert.ok(e instanceof OpenAI.RateLimitError && /too large/.test(e.message));
      assert.equal(e.headers.get('x-should-retry'), 'false');
      return true;
    });
    await assert.rejects(async () => {
      for (let k = 0; k < 12; k++) await left({ max_tokens: 40 });
    }, OpenAI.RateLimitError);
  });

  test('the official client tries again after a 429, and gets through', async () => {
    const quick = as('quick', { maxRetries: 6 });
    const results = await Promise.all(Array.from({ length: 124 }, () => quick.models.list()));
    assert.equal(results.length, 124);
    const refused = s.requests.filter((r) => r.status === 429 && r.key === 'quick').length;
    assert.ok(refused > 0, 'some were refused at first');
  });

  test('a bucket fills up evenly', () => {
    let now = 0;
    const bucket = new Bucket(60, () => now);
    bucket.take(60);
    assert.equal(bucket.wait(1), 1000);
    now += 2500;
    assert.equal(bucket.remaining, 2.5);
    bucket.give(100);
    assert.equal(bucket.remaining, 60);
    assert.deepEqual(
      [duration(12), duration(999.2), duration(1500), duration(59_500), duration(61_000), duration(119_001)],
      ['12ms', '1s', '2s', '1m0s', '1m1s', '2m0s'],
    );
  });
});

describe('web pages', () => {
  /** fetch() does not let one say who is asking. */
  const get = (
    url: string,
    headers: Record<string, string>,
    method = 'GET',
  ): Promise<{ status: number; headers: Record<string, unknown> }> =>
    new Promise((done, fail) => {
      request(url, { headers, method }, (r) => {
        r.resume();
        r.on('end', () => done({ status: r.statusCode!, headers: r.headers }));
      })
        .on('error', fail)
        .end();
    });

  test('of others may not ask; names that point here by somebody’s DNS neither', async () => {
    const url = `${open.url}/v1/models`;
    assert.equal((await get(url, { origin: 'https://evil.example' })).status, 403);
    assert.equal((await get(url, { origin: 'null' })).status, 403);
    assert.equal((await get(url, { host: 'evil.example' })).status, 403);
    assert.equal((await get(url, { origin: open.url })).status, 200);
    assert.equal((await get(url, { host: 'localhost:8080' })).status, 200);
  });

  test('that are named may', async () => {
    const named = await serving({}, { data: join(runs.root, 'cors'), cors: ['https://app.example'] });
    const url = `${named.url}/v1/models`;
    const asked = {
      origin: 'https://app.example',
      'access-control-request-method': 'POST',
      'access-control-request-headers': 'authorization,x-stainless-lang',
    };
    const preflight = await get(url, asked, 'OPTIONS');
    assert.equal(preflight.status, 204);
    assert.equal(preflight.headers['access-control-allow-origin'], 'https://app.example');
    assert.match(String(preflight.headers['access-control-allow-headers']), /x-stainless-lang/);
    const answer = await get(url, { origin: 'https://app.example' });
    assert.equal(answer.headers['access-control-allow-origin'], 'https://app.example');
    assert.match(String(answer.headers['access-control-expose-headers']), /x-request-id/);
    assert.equal((await get(url, { origin: 'https://other.example' })).status, 403);
  });

  test('what is left of a rate is said to them as it is', async () => {
    const keys = [record('page', { tokensPerMinute: 400 })];
    const cors = ['https://app.example'];
    const named = await serving({ tiny: join(runs.root, 'tiny') }, { data: join(runs.root, 'cors-rates'), cors, keys });
    const left = async (stream: boolean): Promise<number> => {
      const answer = await fetch(`${named.url}/v1/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${secret('page')}` },
        body: JSON.stringify({ model: 'tiny', prompt: 'the', max_tokens: 98, stream, stop: 'e' }),
      });
      await answer.text();
      assert.equal(answer.status, 200);
      return Number(answer.headers.get('x-ratelimit-remaining-tokens'));
    };
    // A hundred may be used by the request that is answered.
    assert.ok((await left(false)) <= 301);
    assert.ok((await left(true)) <= 301);
  });

  test('the page at / is one, and no path leads out of its folder', async () => {
    const page = await fetch(`${open.url}/`);
    assert.equal(page.status, 200);
    assert.match(page.headers.get('content-type')!, /^text\/html/);
    for (const path of [
      '/../package.json',
      '/%2e%2e/package.json',
      '/..%2fpackage.json',
      '/assets/..%2f..%2fpackage.json',
      '/%00',
      '/%',
      '/a\\..\\b',
      '//etc/passwd',
    ]) {
      const { status } = await get(`${open.url}${path}`, {});
      assert.equal(status, 404, path);
    }
  });
});

describe('what can be seen', () => {
  test('metrics count requests, tokens and times', async () => {
    const before = await metric(open.url, 'ansatz_uptime_seconds');
    const client = open.client;
    await chat(client);
    const stream = await client.chat.completions.create({
      model: 'tiny',
      messages: [{ role: 'user', content: 'the' }],
      max_tokens: 4,
      stream: true,
    });
    for await (const _ of stream);
    await until('both are counted', () => open.requests.filter((r) => r.model === 'tiny').length === 2, 5);
    const route = 'route="/v1/chat/completions"';
    assert.equal(await metric(open.url, `ansatz_requests_total{${route},method="POST",status="200"}`), 2);
    assert.equal(await metric(open.url, 'ansatz_tokens_total{model="tiny",kind="completion"}'), 8);
    assert.equal(await metric(open.url, 'ansatz_time_to_first_token_seconds_count{model="tiny"}'), 2);
    assert.equal(await metric(open.url, 'ansatz_time_per_output_token_seconds_count{model="tiny"}'), 2);
    assert.equal(await metric(open.url, 'ansatz_sequences_running{model="tiny"}'), 0);
    assert.ok((await metric(open.url, 'ansatz_uptime_seconds')) > before);
    const text = await (await fetch(`${open.url}/metrics`)).text();
    for (const line of text.trimEnd().split('\n'))
      assert.match(line, /^(# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)*\})? -?[\d.e+-]+)$/, line);
  });

  test('a request is logged with who asked, for what, and how it went', async () => {
    await chat(as('all'));
    await until('it is logged', () => s.requests.at(-1)?.key === 'all', 5);
    const { id, ...r } = s.requests.at(-1)!;
    assert.match(id, /^req_/);
    assert.deepEqual(
      [r.method, r.path, r.status, r.model, r.stream, r.completionTokens],
      ['POST', '/v1/chat/completions', 200, 'tiny', false, 4],
    );
    assert.ok(r.ms > 0 && r.firstToken! > 0 && r.promptTokens! > 0);
    assert.ok(!JSON.stringify(s.requests).includes('sk-test'), 'no key is logged');
  });

  test('too many requests are turned away at once, and the others answered', async () => {
    const results = await Promise.allSettled(Array.from({ length: 24 }, () => chat(open.client, { max_tokens: 60 })));
    const answered = results.filter((r) => r.status === 'fulfilled').length;
    const shed = results.filter(
      (r) => r.status === 'rejected' && (r.reason as { status?: number }).status === 503,
    ).length;
    assert.equal(answered + shed, 24);
    assert.ok(answered >= 3 && shed > 0, `${answered} answered, ${shed} turned away`);
    assert.equal((await chat(open.client)).choices.length, 1);
  });
});

test('adapted models are opened when they are asked for, a few at a time; those in use stay', async () => {
  const registry = new Registry({ sequences: 2, queue: 8, lookup: false });
  const info = { created: 0, owner: 'user', tuned: true };
  const names = Array.from({ length: 8 }, (_, k) => `ft:tiny::${k}`);
  for (const name of names) registry.addTuned({ ...info, name }, join(runs.root, 'tiny'));
  assert.equal((await registry.open()).length, 0);
  const held = await registry.lease(names[0]);
  for (let round = 0; round < 2; round++)
    await Promise.all(
      names.map(async (name) => {
        const { model, release } = await registry.lease(name);
        assert.equal((await model.embed([1, 2, 3])).length, 32);
        release();
      }),
    );
  for (const name of names.slice(1)) (await registry.lease(name)).release();
  await until('those that are not needed are closed', async () => (await registry.open()).length === 4, 5);
  const open = await registry.open();
  assert.ok(open.includes(held.model), 'it is in use');
  assert.equal((await held.model.embed([1, 2, 3])).length, 32);
  held.release();
  assert.equal(await registry.remove(names[0]), true);
  await assert.rejects(registry.lease(names[0]), /does not exist/);
  await registry.close();
});

test('a server that closes tells the clients that it cuts off', async () => {
  const closing = await serving({ tiny: join(runs.root, 'tiny') }, { data: join(runs.root, 'closing'), sequences: 4 });
  const ask = { model: 'tiny', prompt: 'the', max_tokens: 120, n: 64 };
  const stream = await closing.client.completions.create({ ...ask, stream: true });
  const waiting = closing.client.completions.create(ask);
  const told = assert.rejects(waiting, (e) => e instanceof OpenAI.APIError && e.status === 503);
  let chunks = 0;
  await assert.rejects(
    async () => {
      for await (const _ of stream) if (++chunks === 3) closing.server.close();
    },
    (e) => e instanceof OpenAI.APIError && e.code === 'server_closing',
  );
  await told;
  await closing.server.close();
  await assert.rejects(closing.client.models.list(), OpenAI.APIConnectionError);
  assert.deepEqual(closing.unforeseen, []);
});

test('nothing happened that nobody thought of', () => assert.deepEqual([...s.unforeseen, ...open.unforeseen], []));
