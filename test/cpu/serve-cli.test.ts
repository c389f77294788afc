/** `ansatz serve` as a process: what it prints, how it refuses, how it ends. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import OpenAI from 'openai';
import { ansatz, bin, failure, refusals, resultOf } from '../support/cli.ts';
import { clientOf, cliServer, TinyRuns, until } from '../support/serve.ts';
import { checkout } from '../support/tiny-data.ts';

const runs = new TinyRuns('serve-cli');
let tiny: string;
before(async () => {
  tiny = await runs.train('tiny');
});

describe('a server', () => {
  test('--json: a result line, a line for every request, nothing on stderr; SIGTERM lets requests end', async () => {
    const server = await cliServer([tiny, `again=${tiny}`, '--data', join(runs.root, 'data'), '--lookup']);
    const [first] = server.lines;
    assert.deepEqual([first.event, first.command, first.models], ['result', 'serve', ['tiny', 'again']]);
    assert.match(String(first.url), /^http:\/\/127\.0\.0\.1:\d+$/);
    await server.client.completions.create({ model: 'again', prompt: 'the', max_tokens: 3 });
    await until('it is logged', () => server.lines.length > 1, 10);
    const request = server.lines[1];
    assert.deepEqual(
      [request.event, request.method, request.path, request.status, request.model, request.completionTokens],
      ['request', 'POST', '/v1/completions', 200, 'again', 3],
    );
    const stream = await server.client.completions.create({
      model: 'tiny',
      prompt: 'the',
      max_tokens: 100,
      temperature: 0,
      stream: true,
    });
    let [chunks, ended] = [0, null as string | null];
    let over: Promise<number | null> | undefined;
    for await (const chunk of stream) {
      if (++chunks === 3) over = server.kill('SIGTERM');
      ended = chunk.choices[0].finish_reason ?? ended;
    }
    assert.equal(ended, 'length', 'the stream went on to its end');
    assert.equal(await over, 0);
    assert.equal(server.stderr(), '');
  });

  test('lines for people, without escape sequences in a pipe; SIGINT ends it', async () => {
    const child = spawn(process.execPath, [bin, 'serve', tiny, '--port', '0', '--data', join(runs.root, 'data')], {
      cwd: checkout,
      env: { ...process.env, NODE_OPTIONS: undefined, NODE_TEST_CONTEXT: undefined },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [out, errors] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (t: string) => (out += t));
    child.stderr.setEncoding('utf8').on('data', (t: string) => (errors += t));
    const over = new Promise((done) => child.on('close', done));
    await until('it serves', () => /Ctrl-C/.test(out), 30);
    const url = /at (http:\S+)/.exec(out)![1];
    await clientOf(url).chat.completions.create({
      model: 'tiny',
      messages: [{ role: 'user', content: 'a' }],
      max_tokens: 2,
    });
    await fetch(`${url}/v1/%1b%5b31m`);
    await until('both are logged', () => / 404 GET /.test(out), 10);
    child.kill('SIGINT');
    assert.equal(await over, 0);
    assert.equal(errors, '');
    assert.match(out, /^serving tiny at http/);
    assert.match(
      out,
      /\n\d\d:\d\d:\d\d 200 POST \/v1\/chat\/completions \d+ ms tiny, \d+ \+ 2 tokens, first after \d+ ms\n/,
    );
    assert.ok(!out.includes('\x1b'), 'no escape sequences');
  });

  test('keys are made, kept and asked for', async () => {
    const file = join(runs.root, 'keys.json');
    const made = resultOf(await ansatz(['serve', '--new-key', 'me', '--keys', file, '--json']), 'serve');
    const key = String(made.key);
    const server = await cliServer([tiny, '--host', '0.0.0.0', '--keys', file, '--data', join(runs.root, 'data')], key);
    const url = server.url.replace('0.0.0.0', '127.0.0.1');
    assert.deepEqual(
      (await clientOf(url, key).models.list()).data.map((m) => m.id),
      ['tiny'],
    );
    await assert.rejects(clientOf(url, `${key}x`).models.list(), OpenAI.AuthenticationError);
    assert.equal(await server.kill('SIGTERM'), 0);
    failure(await ansatz(['serve', '--new-key', 'me', '--keys', file]), 1, /has a key named me already/);
  });

  test('a draft model guesses, and greedy answers stay the same', async () => {
    const ask = async (args: string[]) => {
      const server = await cliServer([tiny, '--data', join(runs.root, 'data'), ...args]);
      const r = await server.client.completions.create({
        model: 'tiny',
        prompt: 'the small',
        max_tokens: 60,
        temperature: 0,
      });
      await server.kill('SIGTERM');
      return r;
    };
    const [plain, drafted] = [await ask([]), await ask(['--draft', tiny])];
    assert.equal(drafted.choices[0].text, plain.choices[0].text);
    assert.ok(
      drafted.usage!.completion_tokens_details!.accepted_prediction_tokens! > 0,
      'guesses of the model itself are right',
    );
  });
});

const blocker = createServer();
before(() => new Promise<void>((done) => blocker.listen(0, '127.0.0.1', done)).then(() => blocker.unref()));

refusals('what cannot be served', 1, [
  {
    name: 'no run, a run without a checkpoint, a public address without a key',
    error:
      /is not a run|refusing to serve on 0\.0\.0\.0 without a key|there is no such file of keys|two runs are called tiny/,
    make: () => ({
      commands: [
        ['serve', join(runs.root, 'nothing')],
        ['serve', tiny, '--host', '0.0.0.0'],
        ['serve', tiny, '--keys', join(runs.root, 'none.json')],
        ['serve', tiny, tiny],
      ],
      absent: ['ansatz-data'],
    }),
  },
  {
    name: 'a port that is taken',
    error: /the port is in use/,
    next: /--port/,
    make: () => ({
      commands: [
        ['serve', tiny, '--data', join(runs.root, 'data'), '--port', String((blocker.address() as AddressInfo).port)],
      ],
    }),
  },
]);
