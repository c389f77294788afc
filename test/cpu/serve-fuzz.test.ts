/** Whatever is sent, the answer is a 4xx in OpenAI's form (or a sound 200), and the server goes on. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { toFile } from 'openai';
import { type Serving, serving, TinyRuns, until } from '../support/serve.ts';

const runs = new TinyRuns('serve-fuzz');
const MAX_BODY = 1 << 20;
let s: Serving;

before(async () => {
  s = await serving({ tiny: await runs.train('tiny') }, { data: runs.folder('served'), maxBody: MAX_BODY });
});

const POSTS = ['/chat/completions', '/completions', '/embeddings', '/files', '/fine_tuning/jobs'];

async function send(
  path: string,
  body: string | Uint8Array,
  headers: Record<string, string> = {},
  method = 'POST',
): Promise<Response> {
  return fetch(`${s.url}/v1${path}`, { method, body, headers: { 'content-type': 'application/json', ...headers } });
}

/** A refusal in the form that clients read. */
async function refused(response: Response, what: string, status?: number): Promise<void> {
  const text = await response.text();
  assert.ok(response.status >= 400 && response.status < 500, `${what}: ${response.status} ${text.slice(0, 200)}`);
  if (status) assert.equal(response.status, status, `${what}: ${text.slice(0, 200)}`);
  const { error } = JSON.parse(text) as { error: Record<string, unknown> };
  assert.deepEqual(Object.keys(error), ['message', 'type', 'param', 'code'], what);
  assert.equal(typeof error.message, 'string', what);
  assert.match(response.headers.get('x-request-id') ?? '', /^req_/, what);
}

describe('bodies', () => {
  test('that are no JSON, or no object', async () => {
    const bodies = [
      '',
      ' ',
      '{',
      '}',
      '[]',
      '[1]',
      'null',
      '1',
      '"x"',
      'true',
      '{"a":}',
      '{"model":"tiny",}',
      '\u0000',
      'NaN',
      "{'model':'tiny'}",
      '{"model":"tiny"} x',
      new Uint8Array([0xff, 0xfe, 0x80]),
      new Uint8Array([123, 34, 0xc3, 34, 58, 49, 125]),
    ];
    for (const path of POSTS) for (const body of bodies) await refused(await send(path, body), `${path} ${body}`, 400);
  });

  test('that are compressed', async () => {
    const body = gzipSync(JSON.stringify({ model: 'tiny', prompt: 'the', max_tokens: 1 }));
    for (const path of POSTS.filter((p) => p !== '/files'))
      await refused(await send(path, body, { 'content-encoding': 'gzip' }), path, 415);
    assert.equal(
      (await send('/completions', '{"model":"tiny","max_tokens":1}', { 'content-encoding': 'identity' })).status,
      200,
    );
  });

  test('that are nested too deep', async () => {
    const deep = (n: number, open: string, close: string): string => open.repeat(n) + close.repeat(n);
    for (const [open, close] of [
      ['[', ']'],
      ['{"a":', '}'],
      ['[{"a":', '}]'],
    ])
      for (const n of [200, 20_000, 100_000]) {
        const inner = open.startsWith('{')
          ? `${open.repeat(n)}1${close.repeat(n)}`
          : deep(n, open, close).replace(':}', ':1}');
        await refused(
          await send('/chat/completions', `{"model":"tiny","messages":${inner}}`),
          `${open} ${n}`,
          n > 100_000 ? 413 : undefined,
        );
      }
    const schema = (n: number): object => (n === 0 ? { type: 'null' } : { type: 'array', items: schema(n - 1) });
    await refused(
      await send(
        '/chat/completions',
        JSON.stringify({
          model: 'tiny',
          messages: [{ role: 'user', content: 'a' }],
          response_format: { type: 'json_schema', json_schema: { name: 'x', schema: schema(200) } },
        }),
      ),
      'a deep schema',
      400,
    );
  });

  test('that are too large, announced or not', async () => {
    const huge = `{"model":"tiny","prompt":"${'a'.repeat(MAX_BODY)}"}`;
    for (const path of POSTS) {
      const type: Record<string, string> =
        path === '/files' ? { 'content-type': 'multipart/form-data; boundary=x' } : {};
      await refused(await send(path, huge, type), `${path} announced`, 413);
      const stream = new ReadableStream({
        start(c) {
          for (let k = 0; k < 20; k++) c.enqueue(new TextEncoder().encode('a'.repeat(1 << 17)));
          c.close();
        },
      });
      const response = await fetch(`${s.url}/v1${path}`, {
        method: 'POST',
        body: stream,
        duplex: 'half',
        headers: type,
      } as RequestInit);
      await refused(response, `${path} in chunks`, 413);
    }
  });
});

describe('fields', () => {
  const good: Record<string, Record<string, unknown>> = {
    '/chat/completions': { model: 'tiny', messages: [{ role: 'user', content: 'a' }], max_tokens: 2 },
    '/completions': { model: 'tiny', prompt: 'a', max_tokens: 2 },
    '/embeddings': { model: 'tiny', input: 'a' },
    '/fine_tuning/jobs': { model: 'tiny', training_file: 'file-x' },
  };
  const names: Record<string, string[]> = {
    '/chat/completions': [
      'model',
      'messages',
      'max_tokens',
      'max_completion_tokens',
      'n',
      'stop',
      'temperature',
      'top_p',
      'logprobs',
      'top_logprobs',
      'seed',
      'logit_bias',
      'response_format',
      'stream',
      'stream_options',
      'presence_penalty',
      'frequency_penalty',
      'prediction',
      'tools',
      'tool_choice',
      'parallel_tool_calls',
      'top_k',
      'min_p',
      'repetition_penalty',
    ],
    '/completions': [
      'model',
      'prompt',
      'max_tokens',
      'n',
      'best_of',
      'echo',
      'logprobs',
      'suffix',
      'stop',
      'seed',
      'logit_bias',
      'stream',
    ],
    '/embeddings': ['model', 'input', 'encoding_format', 'dimensions'],
    '/fine_tuning/jobs': [
      'model',
      'training_file',
      'validation_file',
      'suffix',
      'seed',
      'hyperparameters',
      'method',
      'metadata',
    ],
  };
  const values: unknown[] = [
    null,
    true,
    -1,
    0,
    1.5,
    1e308,
    2 ** 53,
    '',
    'x',
    '../../etc/passwd',
    '\u0000',
    '\ud800',
    '🙂'.repeat(50),
    [],
    [null],
    [[]],
    [{}],
    {},
    { a: { b: [] } },
    { type: 'json_schema' },
    { type: 'json_schema', json_schema: { name: 'x', schema: { $ref: '#' } } },
    { type: 'content', content: 5 },
    { __proto__: { polluted: 1 } },
    Array(2000).fill('a'),
    { constructor: { prototype: { x: 1 } } },
  ];
  for (const [path, fields] of Object.entries(names))
    test(`${path}: of any type`, async () => {
      for (const field of fields)
        for (const value of values) {
          const response = await send(path, JSON.stringify({ ...good[path], [field]: value }));
          const what = `${path} ${field} = ${JSON.stringify(value)?.slice(0, 60)}`;
          if (response.status === 200) await response.text();
          else await refused(response, what);
        }
    });

  test('random bytes in a good request', async () => {
    let state = 1;
    const next = (n: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * n);
    };
    for (const path of Object.keys(good))
      for (let k = 0; k < 150; k++) {
        const bytes = Buffer.from(JSON.stringify({ ...good[path], seed: 3, temperature: 0.5, stream: false }));
        for (let m = 0; m <= next(4); m++) bytes[next(bytes.length)] = next(256);
        const response = await send(path, bytes);
        if (response.status === 200) await response.text();
        else await refused(response, `${path} ${bytes.toString()}`);
      }
  });
});

describe('paths', () => {
  test('that lead nowhere', async () => {
    const ids = [
      'file-../../etc/passwd',
      '..%2f..%2fetc%2fpasswd',
      '%2e%2e',
      'file-%00',
      '%F0%9F%99%82',
      'a'.repeat(4000),
      '__proto__',
      'constructor',
      ' ',
    ];
    for (const id of ids) {
      for (const path of [
        `/files/${id}`,
        `/files/${id}/content`,
        `/models/${id}`,
        `/fine_tuning/jobs/${id}`,
        `/fine_tuning/jobs/${id}/events`,
      ])
        await refused(await fetch(`${s.url}/v1${path}`), path, 404);
      for (const path of [`/files/${id}`, `/models/${id}`])
        await refused(await fetch(`${s.url}/v1${path}`, { method: 'DELETE' }), path, 404);
      await refused(await send(`/fine_tuning/jobs/${id}/cancel`, ''), `cancel ${id}`, 404);
    }
    for (const path of ['/', '/nothing', '/chat', '/chat/completions/x', '/models/x/y/z'])
      await refused(await fetch(`${s.url}/v1${path}`), path, 404);
    await refused(await send('/chat/completions', '{}', {}, 'PUT'), 'PUT', 404);
  });

  test('queries of lists', async () => {
    for (const query of ['limit=0', 'limit=-1', 'limit=x', 'limit=1e9', 'after=nobody', 'order=up'])
      for (const path of ['/files', '/fine_tuning/jobs'])
        await refused(await fetch(`${s.url}/v1${path}?${query}`), `${path}?${query}`, 400);
  });
});

describe('uploads', () => {
  const client = () => s.client;
  test('names of files are text, never paths', async () => {
    const names = [
      '../../../etc/passwd',
      '..\\..\\windows\\system32',
      '/etc/cron.d/x',
      '.',
      '..',
      'a\u0000b.jsonl',
      '\u202egnp.exe',
      `${'x'.repeat(5000)}.jsonl`,
      '日本 🙂.jsonl',
      'con',
      '"quoted"; filename="other"',
      '\ud800',
    ];
    for (const name of names) {
      const file = await client().files.create({ file: await toFile(Buffer.from('{}'), name), purpose: 'user_data' });
      assert.match(file.id, /^file-[A-Za-z0-9]{24}$/);
      assert.doesNotMatch(file.filename, /[/\\]|^\.{1,2}$|^$/, name);
      assert.ok(file.filename.length <= 255, 'a short name');
      const content = await client().files.content(file.id);
      assert.equal(await content.text(), '{}');
      assert.match(content.headers.get('content-disposition')!, /^attachment/);
      assert.deepEqual((await client().files.retrieve(file.id)).filename, file.filename);
      assert.deepEqual(await client().files.delete(file.id), { id: file.id, object: 'file', deleted: true });
    }
    assert.deepEqual(readdirSync(join(runs.root, 'served', 'files')), []);
    assert.deepEqual(readdirSync(join(runs.root, 'served')).sort(), ['files', 'jobs']);
  });

  test('broken forms', async () => {
    const type = { 'content-type': 'multipart/form-data; boundary=B' };
    const part = (name: string, more = '', body = 'x'): string =>
      `--B\r\ncontent-disposition: form-data; name="${name}"${more}\r\n\r\n${body}\r\n`;
    const file = part('file', '; filename="a.jsonl"', '{}');
    const bodies = [
      '',
      '--B',
      '--B--',
      file,
      `${file}--B--`,
      `${part('purpose')}--B--`,
      `${part('purpose', '', 'nonsense')}${file}--B--`,
      `${part('purpose', '', 'fine-tune')}${part('file', '', 'text')}--B--`,
      `${part('purpose', '', 'fine-tune')}${part('file', '; filename="a"', '')}--B--`,
      '\u0000\u0001',
      part('purpose', '', 'fine-tune').replace('form-data', 'x'),
    ];
    for (const body of bodies) await refused(await send('/files', body, type), JSON.stringify(body), 400);
    await refused(await send('/files', 'x', { 'content-type': 'multipart/form-data' }), 'no boundary', 400);
    await refused(await send('/files', '{"file":"x"}'), 'JSON', 400);
  });
});

describe('connections', () => {
  const raw = (text: string, linger = 200): Promise<string> =>
    new Promise((done) => {
      const { port } = new URL(s.url);
      const socket = createConnection({ port: Number(port), host: '127.0.0.1' });
      let answer = '';
      socket.setEncoding('latin1').on('data', (t) => {
        answer += t;
      });
      socket.on('error', () => done(answer));
      socket.on('close', () => done(answer));
      socket.write(text, 'latin1');
      setTimeout(() => socket.destroy(), linger);
    });

  test('that speak no HTTP, stop half-way, or vanish', async () => {
    assert.match(await raw('nonsense\r\n\r\n'), /^HTTP\/1\.1 400/);
    assert.match(await raw('GET /v1/models HTTP/1.1\r\n\r\n'), /^HTTP\/1\.1 400/);
    await raw('POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"model"');
    await raw('POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n');
    await raw('POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n');
    const body = '{"model":"tiny","prompt":"a","max_tokens":100,"stream":true}';
    for (let k = 0; k < 20; k++)
      await raw(`POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: ${body.length}\r\n\r\n${body}`, k);
    assert.match(
      await raw(`GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-big: ${'a'.repeat(40_000)}\r\n\r\n`),
      /^HTTP\/1\.1 431/,
    );
  });

  test('of HTTP/1.0, which names no host, and several requests at once', async () => {
    assert.match(await raw('GET /healthz HTTP/1.0\r\n\r\n'), /^HTTP\/1\.1 200 [\s\S]*\{"status":"ok"\}$/);
    const body = (stream: boolean) => `{"model":"tiny","prompt":"the","max_tokens":2,"stream":${stream}}`;
    const ask = (text: string, version = '1.1') =>
      `POST /v1/completions HTTP/${version}\r\n${version === '1.1' ? 'host: localhost\r\n' : ''}content-length: ${text.length}\r\n\r\n${text}`;
    const old = await raw(ask(body(true), '1.0'), 2000);
    assert.ok(!/transfer-encoding/i.test(old), 'no chunks');
    assert.match(old, /\r\n\r\ndata: \{[\s\S]*\n\ndata: \[DONE\]\n\n$/);
    const many = await raw(
      `${ask(body(true))}${ask(body(false))}GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n`,
      2000,
    );
    const kinds = [...many.matchAll(/data: \[DONE\]|"object":"text_completion".*"usage"|"status":"ok"/g)].map(
      (m) => m[0][0],
    );
    assert.equal(kinds.join(''), 'd""', 'answers come in the order of the requests');
  });
});

test('afterwards everything works, every place is free, and nobody was surprised', async () => {
  const r = await s.client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 3 });
  assert.equal(r.choices.length, 1);
  await until(
    'all is quiet',
    async () => {
      const text = await (await fetch(`${s.url}/metrics`)).text();
      return (
        /ansatz_sequences_running\{model="tiny"\} 0/.test(text) &&
        /ansatz_cache_pages_used\{model="tiny"\} 0/.test(text)
      );
    },
    10,
  );
  assert.deepEqual(s.unforeseen, []);
  assert.equal(({} as { polluted?: number }).polluted, undefined);
});
