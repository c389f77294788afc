// GET /ansatz/models and POST /ansatz/inspect, as a program sees them; and answers that go on where they were left.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { recordOf } from '../../src/serve/auth/keys.ts';
import { type RunningServer, startServer } from '../../src/serve/server.ts';
import { createRun, temporaryFolder, tinyConfig, tinyData, trainRun, writeText } from '../support/tiny-data.ts';

interface Seen {
  tokens: { text: string; logprob: number | null; given: boolean; top: { text: string; logprob: number }[] }[];
  next: unknown[];
  layers: { layer: string; kind: string; count: number; columns: number; cells: string; active: number[] }[];
  bytes: { weights: number; token: number[]; cache: number[] };
}

describe('looking inside over HTTP', () => {
  const folder = temporaryFolder('inspect');
  const keys = ['sk-of-everything-1', 'sk-of-metrics-only', 'sk-of-other-models'];
  let server: RunningServer;

  before(async () => {
    const data = await tinyData(join(folder, 'data'), writeText(join(folder, 'text'), 'small'));
    const vocab = data.prepared.tokenizer.vocabSize;
    const ffn = { kind: 'moe', experts: 4, active: 1, expert: { kind: 'mlp', hidden: 32 } } as const;
    const model = { vocab, context: 192, ffn };
    const how = { steps: 40, batch: 8, length: 64, evaluate: { every: 20 } };
    const path = join(folder, 'river');
    await trainRun(await createRun(path, tinyConfig(data, { ...how, model })));
    server = await startServer({
      runs: [{ name: 'river', path }],
      ...{ host: '127.0.0.1', port: 0, data: join(folder, 'server'), cors: [], maxBody: 1 << 20 },
      ...{ sequences: 2, queue: 4, lookup: false },
      keys: [
        recordOf('all', keys[0]),
        { ...recordOf('metrics', keys[1]), scopes: ['metrics'] },
        { ...recordOf('others', keys[2]), models: ['else-*'] },
      ],
    });
  });
  after(() => server?.close());

  const call = (path: string, body?: unknown, key: string | null = keys[0]): Promise<Response> =>
    fetch(server.url + path, {
      method: body === undefined ? 'GET' : 'POST',
      headers: { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  const inspect = async (body: object): Promise<Seen> => {
    const response = await call('/ansatz/inspect', { model: 'river', ...body });
    assert.equal(response.status, 200, await response.clone().text());
    return (await response.json()) as Seen;
  };

  test('cards say what a model is', async () => {
    const { data } = (await (await call('/ansatz/models')).json()) as { data: Record<string, unknown>[] };
    assert.equal(data.length, 1);
    const { bitsPerByte, parameters, weightBytes, ...card } = data[0];
    assert.deepEqual(card, {
      ...{ id: 'river', object: 'model_card', layout: 'decoder', depth: 2, width: 32, context: 192, vocab: card.vocab },
      kinds: { attention: ['full, 2 heads'], ffn: ['moe, 4 experts, 1 active'], positions: ['rope'], norm: ['rms'] },
      ...{
        objective: 'causal',
        precision: 'f32',
        step: 40,
        infill: false,
        encoder: false,
        recomputes: null,
        base: null,
      },
    });
    assert.ok((bitsPerByte as number) > 0.5 && (bitsPerByte as number) < 8);
    assert.ok((weightBytes as number) >= 4 * (parameters as number));
  });

  test('a text: what was given, what was written, what was expected, what was used', async () => {
    const seen = await inspect({ prompt: 'the small river', completion: ' follows the garden.', top: 3 });
    assert.equal(seen.tokens.map((t) => t.text).join(''), '<|endoftext|>the small river follows the garden.');
    const given = seen.tokens.filter((t) => t.given);
    assert.equal(given.map((t) => t.text).join(''), '<|endoftext|>the small river');
    assert.equal(seen.tokens[0].logprob, null);
    for (const t of seen.tokens.slice(1)) {
      assert.equal(t.top.length, 3);
      assert.ok(t.logprob! <= t.top[0].logprob + 1e-6 && t.top[0].logprob <= 0);
    }
    assert.equal(seen.next.length, 3);
    const T = seen.tokens.length;
    const experts = seen.layers.filter((l) => l.kind === 'experts');
    assert.equal(experts.length, 2);
    for (const l of experts) {
      const cells = Buffer.from(l.cells, 'base64');
      assert.equal(cells.length, T * 4);
      assert.equal(cells.filter((v) => v > 0).length, T, 'one expert a token');
    }
    const expert = 2 * 32 * 32 * 4;
    assert.ok(seen.bytes.token.every((b) => b === seen.bytes.weights - 2 * 3 * expert));
    assert.equal(seen.bytes.cache.length, T);
  });

  test('probabilities are those of the completion API', async () => {
    const prompt = 'the small river follows the garden.';
    const scored = await call('/v1/completions', { model: 'river', prompt, echo: true, max_tokens: 0, logprobs: 1 });
    const { choices } = (await scored.json()) as { choices: { logprobs: { token_logprobs: (number | null)[] } }[] };
    const seen = await inspect({ prompt });
    const own = seen.tokens.slice(1).map((t) => t.logprob!);
    const theirs = choices[0].logprobs.token_logprobs.slice(-own.length);
    own.forEach((p, k) => {
      if (theirs[k] !== null) assert.ok(Math.abs(p - theirs[k]!) < 1e-3, `token ${k}: ${p}, ${theirs[k]}`);
    });
  });

  test('a last message of the assistant is an answer that has begun', async () => {
    const messages = [
      { role: 'user', content: 'Options?' },
      { role: 'assistant', content: 'All of them' },
    ];
    const seen = await inspect({ messages, completion: ' are' });
    const given = seen.tokens.filter((t) => t.given);
    const text = '<|endoftext|>### User\nOptions?\n\n### Assistant\nAll of them';
    assert.equal(given.map((t) => t.text).join(''), text);
    const body = { model: 'river', messages, max_tokens: 4, temperature: 0, logprobs: true };
    const answer = (await (await call('/v1/chat/completions', body)).json()) as {
      choices: { logprobs: { content: { token: string; logprob: number }[] } }[];
      usage: { prompt_tokens: number };
    };
    assert.equal(answer.usage.prompt_tokens, given.length);
    // What the model goes on with is what it holds likeliest after those tokens.
    const { next } = await inspect({ messages });
    const [first] = answer.choices[0].logprobs.content;
    const best = next[0] as { text: string; logprob: number };
    assert.equal(first.token, best.text);
    assert.ok(Math.abs(first.logprob - best.logprob) < 1e-3);
  });

  test('refusals have the form of all others', async () => {
    const refused = async (status: number, code: string | null, response: Response): Promise<string> => {
      const { error } = (await response.json()) as { error: { code: string | null; message: string } };
      assert.deepEqual([response.status, error.code], [status, code], error.message);
      return error.message;
    };
    const text = { model: 'river', prompt: 'a' };
    await refused(401, 'invalid_api_key', await call('/ansatz/inspect', text, null));
    await refused(401, 'invalid_api_key', await call('/ansatz/models', undefined, 'sk-wrong'));
    await refused(403, 'insufficient_permissions', await call('/ansatz/inspect', text, keys[1]));
    await refused(404, 'model_not_found', await call('/ansatz/inspect', text, keys[2]));
    await refused(404, 'model_not_found', await call('/ansatz/inspect', { ...text, model: 'sea' }));
    await refused(400, null, await call('/ansatz/inspect', { ...text, top: 21 }));
    await refused(400, null, await call('/ansatz/inspect', { ...text, suffix: 'b' }));
    await refused(400, null, await call('/ansatz/inspect', { model: 'river', messages: [] }));
    assert.match(
      await refused(
        400,
        'context_length_exceeded',
        await call('/ansatz/inspect', { ...text, prompt: 'the river '.repeat(300) }),
      ),
      /maximum context length is 192/,
    );
    const others = (await (await call('/ansatz/models', undefined, keys[2])).json()) as { data: unknown[] };
    assert.deepEqual(others.data, [], 'a key sees its own models');
  });
});
