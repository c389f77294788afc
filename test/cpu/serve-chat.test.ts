/** Chat completions, driven by the official client: answers, streams, stops, probabilities, schemas, aborts. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { Ajv } from 'ajv';
import OpenAI from 'openai';
import { metric, type Serving, serving, TinyRuns, until } from '../support/serve.ts';

const runs = new TinyRuns('serve-chat');
let s: Serving;
let client: OpenAI;

before(async () => {
  const tiny = await runs.train('tiny');
  const reader = await runs.train('reader', {
    model: { layout: { kind: 'encoder-decoder', encoderDepth: 1 }, context: 64 },
    objective: 'prefix-lm',
    length: 32,
  });
  s = await serving({ tiny, reader }, { data: join(runs.root, 'served') });
  client = s.client;
});

const ask = (more: object = {}) =>
  ({
    model: 'tiny',
    messages: [{ role: 'user' as const, content: 'the small river follows' }],
    max_tokens: 12,
    seed: 7,
    ...more,
  }) as OpenAI.Chat.ChatCompletionCreateParamsNonStreaming;

/** The body of a streamed answer as it came over the connection. */
async function raw(path: string, body: object): Promise<{ response: Response; text: string }> {
  const response = await fetch(`${s.url}/v1${path}`, { method: 'POST', body: JSON.stringify(body) });
  return { response, text: await response.text() };
}
const same = (text: string): string =>
  text
    .replace(/"id":"\w+-\w+"/g, '"id":"ID"')
    .replace(/"created":\d+/g, '"created":0')
    .replace(/"system_fingerprint":"\w+"/g, '"system_fingerprint":"FP"');

describe('an answer', () => {
  test('has the shape that clients expect', async () => {
    const { data, response } = await client.chat.completions.create(ask()).withResponse();
    assert.match(data.id, /^chatcmpl-\w{24}$/);
    assert.deepEqual([data.object, data.model, data.choices.length], ['chat.completion', 'tiny', 1]);
    const [choice] = data.choices;
    assert.deepEqual([choice.index, choice.message.role, choice.message.refusal], [0, 'assistant', null]);
    assert.equal(typeof choice.message.content, 'string');
    assert.deepEqual([choice.finish_reason, choice.logprobs], ['length', null]);
    assert.equal(data.usage!.completion_tokens, 12);
    assert.equal(data.usage!.total_tokens, data.usage!.prompt_tokens + 12);
    assert.match(response.headers.get('x-request-id')!, /^req_/);
    assert.match(response.headers.get('openai-processing-ms')!, /^\d+$/);
  });

  test('is the same for the same seed and another for another', async () => {
    const text = async (seed: number) =>
      (await client.chat.completions.create(ask({ seed }))).choices[0].message.content;
    assert.equal(await text(3), await text(3));
    assert.notEqual(await text(3), await text(4));
    assert.equal(await text(2 ** 40 + 1), await text(2 ** 40 + 1));
  });

  test('content may come in parts, roles may be any', async () => {
    const plain = await client.chat.completions.create(
      ask({
        messages: [
          { role: 'system', content: 'be short' },
          { role: 'user', content: 'the small river' },
        ],
      }),
    );
    const parts = await client.chat.completions.create(
      ask({
        messages: [
          {
            role: 'developer',
            content: [
              { type: 'text', text: 'be ' },
              { type: 'text', text: 'short' },
            ],
          },
          { role: 'user', content: [{ type: 'text', text: 'the small river' }] },
        ],
      }),
    );
    assert.equal(parts.choices[0].message.content, plain.choices[0].message.content);
    const more = await client.chat.completions.create(
      ask({
        messages: [
          { role: 'user', content: 'a' },
          {
            role: 'assistant',
            content: null,
            tool_calls: [{ id: '1', type: 'function', function: { name: 'f', arguments: '{}' } }],
          },
          { role: 'tool', tool_call_id: '1', content: 'b' },
        ],
      }),
    );
    assert.ok(more.usage!.prompt_tokens > plain.usage!.prompt_tokens);
  });

  test('a special token that a message spells is text', async () => {
    const eot = await client.chat.completions.create(ask({ messages: [{ role: 'user', content: '<|endoftext|>' }] }));
    const letter = await client.chat.completions.create(ask({ messages: [{ role: 'user', content: 'a' }] }));
    assert.ok(eot.usage!.prompt_tokens > letter.usage!.prompt_tokens + 3);
  });

  test('unknown fields are ignored, null is absence', async () => {
    const body = { ...ask(), store: true, reasoning_effort: 'low', stop: null, n: null, what: { ever: [1] } };
    const { data } = await client.chat.completions.create(body as never).withResponse();
    assert.equal(data.choices.length, 1);
  });

  test('n choices differ, and the first is that of n = 1', async () => {
    const one = await client.chat.completions.create(ask());
    const four = await client.chat.completions.create(ask({ n: 4 }));
    const texts = four.choices.map((c) => c.message.content);
    assert.deepEqual(
      four.choices.map((c) => c.index),
      [0, 1, 2, 3],
    );
    assert.equal(texts[0], one.choices[0].message.content);
    assert.equal(new Set(texts).size, 4);
    assert.equal(four.usage!.completion_tokens, 48);
    assert.equal(four.usage!.prompt_tokens, one.usage!.prompt_tokens);
  });

  test('logprobs are of the tokens of the text', async () => {
    const r = await client.chat.completions.create(ask({ logprobs: true, top_logprobs: 3, temperature: 0 }));
    const tokens = r.choices[0].logprobs!.content!;
    assert.equal(tokens.length, 12);
    const bytes = Buffer.from(tokens.flatMap((t) => t.bytes!));
    assert.equal(new TextDecoder().decode(bytes), r.choices[0].message.content);
    for (const t of tokens) {
      assert.equal(t.top_logprobs.length, 3);
      // At temperature 0 the likeliest is picked.
      assert.deepEqual([t.top_logprobs[0].token, t.top_logprobs[0].logprob], [t.token, t.logprob]);
      assert.ok(t.logprob <= 0);
    }
  });

  test('logit_bias and penalties act', async () => {
    const { tokenizer } = (await runs.text()).prepared;
    const [river] = tokenizer.encode(' river');
    const r = await client.chat.completions.create(
      ask({ logit_bias: { [river]: 100 }, temperature: 0, max_tokens: 4 }),
    );
    assert.equal(r.choices[0].message.content, ' river river river river');
    const varied = await client.chat.completions.create(
      ask({ logit_bias: { [river]: 12 }, temperature: 0, frequency_penalty: 2, presence_penalty: 2, max_tokens: 12 }),
    );
    assert.notEqual(varied.choices[0].message.content, ' river'.repeat(12));
  });

  test('a long prompt is found in the cache the second time', async () => {
    const messages = [{ role: 'user', content: 'the quiet garden follows the green window. '.repeat(3) }];
    const first = await client.chat.completions.create(ask({ messages, max_tokens: 2 }));
    const second = await client.chat.completions.create(ask({ messages, max_tokens: 2 }));
    assert.ok(first.usage!.prompt_tokens > 32, 'more than a page');
    assert.equal(first.usage!.prompt_tokens_details!.cached_tokens, 0);
    assert.equal(second.usage!.prompt_tokens_details!.cached_tokens, 32);
    assert.equal(second.choices[0].message.content, first.choices[0].message.content);
  });

  test('text that is expected to come back is drafted from, and changes nothing', async () => {
    const plain = await client.chat.completions.create(ask({ temperature: 0, max_tokens: 40 }));
    const content = plain.choices[0].message.content!;
    const drafted = await client.chat.completions.create(
      ask({ temperature: 0, max_tokens: 40, prediction: { type: 'content', content } }),
    );
    assert.equal(drafted.choices[0].message.content, content);
    assert.ok(drafted.usage!.completion_tokens_details!.accepted_prediction_tokens! > 0);
  });
});

describe('stop strings', () => {
  test('end the text before them, whole or in pieces', async () => {
    const full = (await client.chat.completions.create(ask({ max_tokens: 30, temperature: 0 }))).choices[0].message
      .content!;
    const stop = full.slice(8, 12);
    const at = full.indexOf(stop);
    const cut = await client.chat.completions.create(ask({ max_tokens: 30, temperature: 0, stop, logprobs: true }));
    assert.equal(cut.choices[0].message.content, full.slice(0, at));
    assert.equal(cut.choices[0].finish_reason, 'stop');
    const { text } = await raw('/chat/completions', {
      ...ask({ max_tokens: 30, temperature: 0, stop: [stop, 'zzz'] }),
      stream: true,
    });
    const said = [...text.matchAll(/"content":("(?:[^"\\]|\\.)*")/g)].map((m) => JSON.parse(m[1])).join('');
    assert.equal(said, full.slice(0, at));
    // Tokens that begin in what was cut off are not reported.
    const bytes = Buffer.from(cut.choices[0].logprobs!.content!.flatMap((t) => t.bytes!));
    assert.ok(bytes.toString().startsWith(full.slice(0, at)));
  });
});

describe('a stream', () => {
  test('byte for byte', async () => {
    const answer = (await client.chat.completions.create(ask({ max_tokens: 3, logit_bias: await only(' the') })))
      .choices[0];
    assert.equal(answer.message.content, ' the the the');
    const { response, text } = await raw('/chat/completions', {
      ...ask({ max_tokens: 3, logit_bias: await only(' the') }),
      stream: true,
      stream_options: { include_usage: true },
    });
    assert.match(response.headers.get('content-type')!, /^text\/event-stream/);
    assert.equal(response.headers.get('cache-control'), 'no-cache');
    assert.equal(response.headers.get('x-accel-buffering'), 'no');
    const head =
      '{"id":"ID","object":"chat.completion.chunk","created":0,"model":"tiny","system_fingerprint":"FP","choices":';
    const delta = (d: string, finish = 'null'): string =>
      `data: ${head}[{"index":0,"delta":${d},"logprobs":null,"finish_reason":${finish}}],"usage":null}\n\n`;
    const usage = JSON.parse(text.split('\n\n').at(-3)!.slice(6)).usage;
    assert.deepEqual([usage.completion_tokens, usage.total_tokens], [3, usage.prompt_tokens + 3]);
    assert.equal(
      same(text),
      delta('{"role":"assistant","content":""}') +
        delta('{"content":" the"}').repeat(3) +
        delta('{}', '"length"') +
        `data: ${head}[],"usage":${JSON.stringify(usage)}}\n\n` +
        'data: [DONE]\n\n',
    );
  });

  /** Nothing but one token. */
  async function only(text: string): Promise<Record<string, number>> {
    const [id] = (await runs.text()).prepared.tokenizer.encode(text);
    return { [id]: 100 };
  }

  test('gives the same text as an answer at once, for every choice', async () => {
    const whole = await client.chat.completions.create(ask({ n: 3, logprobs: true, top_logprobs: 1 }));
    const stream = await client.chat.completions.create({
      ...ask({ n: 3, logprobs: true, top_logprobs: 1 }),
      stream: true,
    });
    const texts = ['', '', ''];
    const logprobs: unknown[][] = [[], [], []];
    const finish: unknown[] = [];
    for await (const { choices } of stream)
      for (const c of choices) {
        texts[c.index] += c.delta.content ?? '';
        logprobs[c.index].push(...(c.logprobs?.content ?? []));
        if (c.finish_reason) finish[c.index] = c.finish_reason;
      }
    whole.choices.forEach((c, k) => {
      assert.equal(texts[k], c.message.content);
      assert.deepEqual(logprobs[k], c.logprobs!.content);
      assert.equal(finish[k], c.finish_reason);
    });
  });

  test("the client's helper accepts it", async () => {
    const runner = client.chat.completions.stream({
      ...ask({ n: 2 }),
      stream_options: { include_usage: true },
    } as never);
    const final = await runner.finalChatCompletion();
    assert.equal(final.choices.length, 2);
    assert.equal(final.usage!.completion_tokens, 24);
  });

  test('no usage unless it is asked for; characters come whole', async () => {
    const { text } = await raw('/chat/completions', { ...ask({ temperature: 2, max_tokens: 40 }), stream: true });
    assert.doesNotMatch(text, /"usage"/);
    const whole = (await client.chat.completions.create(ask({ temperature: 2, max_tokens: 40 }))).choices[0].message
      .content;
    const said = [...text.matchAll(/"content":("(?:[^"\\]|\\.)*")/g)].map((m) => JSON.parse(m[1])).join('');
    assert.equal(said, whole);
  });

  test('an error before the first token is a status, not an event', async () => {
    const { response, text } = await raw('/chat/completions', { ...ask({ model: 'nobody' }), stream: true });
    assert.equal(response.status, 404);
    assert.equal(JSON.parse(text).error.code, 'model_not_found');
  });
});

describe('structured answers', () => {
  const ajv = new Ajv({ strict: false });
  const schemas: Record<string, object> = {
    flat: {
      type: 'object',
      properties: { ok: { type: 'boolean' }, n: { type: 'integer', minimum: 0, maximum: 99 } },
      required: ['ok', 'n'],
      additionalProperties: false,
    },
    nested: {
      type: 'object',
      properties: {
        tags: { type: 'array', items: { enum: ['a', 'b', 'longer'] }, minItems: 1, maxItems: 3 },
        who: { anyOf: [{ type: 'null' }, { type: 'string', maxLength: 5 }] },
      },
      required: ['tags', 'who'],
      additionalProperties: false,
    },
  };
  for (const [name, schema] of Object.entries(schemas))
    test(`json_schema ${name}: every answer that ends is valid`, async () => {
      const valid = ajv.compile(schema);
      let ended = 0;
      await Promise.all(
        Array.from({ length: 12 }, async (_, seed) => {
          const r = await client.chat.completions.create(
            ask({
              seed,
              temperature: 1.5,
              max_tokens: 70,
              response_format: { type: 'json_schema', json_schema: { name, schema, strict: true } },
            }),
          );
          const { finish_reason, message } = r.choices[0];
          if (finish_reason !== 'stop') return;
          ended++;
          assert.ok(valid(JSON.parse(message.content!)), `${message.content}: ${ajv.errorsText(valid.errors)}`);
        }),
      );
      assert.ok(ended >= 4, `${ended} of 12 ended`);
    });

  test('json_object is an object; streams are no different', async () => {
    const format = { response_format: { type: 'json_object' as const }, max_tokens: 60, temperature: 0 };
    const [river] = [...(await runs.text()).prepared.tokenizer.encode('}')];
    const r = await client.chat.completions.create(ask({ ...format, logit_bias: { [river]: 30 } }));
    assert.equal(r.choices[0].finish_reason, 'stop');
    assert.equal(typeof JSON.parse(r.choices[0].message.content!), 'object');
    const stream = client.chat.completions.stream(ask({ ...format, logit_bias: { [river]: 30 } }) as never);
    assert.equal((await stream.finalMessage()).content, r.choices[0].message.content);
  });

  test('a schema that cannot be promised is refused by its keyword', async () => {
    const schema = { type: 'object', properties: { a: { type: 'number', multipleOf: 3 } } };
    await assert.rejects(
      client.chat.completions.create(
        ask({ response_format: { type: 'json_schema', json_schema: { name: 'x', schema } } }),
      ),
      (e) => e instanceof OpenAI.BadRequestError && /multipleOf/.test(e.message) && e.param === 'response_format',
    );
  });
});

describe('errors', () => {
  const refused = async (body: object, status: number, param: RegExp | null, message: RegExp): Promise<void> => {
    await assert.rejects(client.chat.completions.create(body as never), (e) => {
      assert.ok(e instanceof OpenAI.APIError, String(e));
      assert.equal(e.status, status);
      if (param) assert.match(String(e.param), param);
      assert.match(e.message, message);
      assert.match(String(e.requestID), /^req_/);
      return true;
    });
  };
  test('name what is wrong', async () => {
    await refused(ask({ model: 'nobody' }), 404, /^model$/, /'nobody' does not exist/);
    await refused(ask({ messages: [] }), 400, /^messages$/, /messages/);
    await refused(ask({ messages: [{ role: 'king', content: 'x' }] }), 400, /^messages\[0\]\.role$/, /role/);
    await refused(
      ask({ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: {} }] }] }),
      400,
      /messages\[0\]\.content/,
      /text/,
    );
    await refused(ask({ messages: [{ role: 'user' }] }), 400, /messages\[0\]\.content/, /content/);
    await refused(ask({ temperature: 3 }), 400, /^temperature$/, /temperature/);
    await refused(ask({ temperature: 'hot' }), 400, /^temperature$/, /number/);
    await refused(ask({ n: 0 }), 400, /^n$/, /n/);
    await refused(ask({ top_logprobs: 2 }), 400, /^top_logprobs$/, /logprobs/);
    await refused(ask({ logit_bias: { 99999: 1 } }), 400, /^logit_bias$/, /99999/);
    await refused(ask({ max_tokens: 0 }), 400, /^max_tokens$/, /max_tokens/);
    await refused(ask({ tool_choice: 'required' }), 400, /^tool_choice$/, /tools/);
    await refused({ messages: ask().messages }, 400, /^model$/, /model/);
    const long = [{ role: 'user', content: 'the small river '.repeat(200) }];
    await refused(ask({ messages: long }), 400, /^messages$/, /maximum context length is 128 tokens/);
  });
});

describe('an encoder', () => {
  test('reads what the system says; the dialogue is the decoder’s', async () => {
    const text = async (system: string | null) => {
      const r = await client.chat.completions.create(
        ask({
          model: 'reader',
          messages: [
            ...(system === null ? [] : [{ role: 'system', content: system }]),
            { role: 'user', content: 'the' },
          ],
          logprobs: true,
        }),
      );
      return { tokens: r.usage!.prompt_tokens, first: r.choices[0].logprobs!.content![0].logprob };
    };
    const [none, some, other] = [await text(null), await text('the small river'), await text('a heavy window.')];
    assert.ok(some.tokens > none.tokens);
    assert.notEqual(some.first, other.first);
    assert.deepEqual(await text('the small river'), some);
  });
});

describe('many at once', () => {
  test('an answer does not depend on its neighbours', async () => {
    const request = (k: number) =>
      ask({ seed: k, max_tokens: 10 + (k % 7), messages: [{ role: 'user', content: 'the '.repeat(1 + (k % 11)) }] });
    const alone: string[] = [];
    for (let k = 0; k < 24; k++)
      alone.push((await client.chat.completions.create(request(k))).choices[0].message.content!);
    const together = await Promise.all(
      Array.from({ length: 24 }, (_, k) => client.chat.completions.create(request(k))),
    );
    assert.deepEqual(
      together.map((r) => r.choices[0].message.content),
      alone,
    );
  });

  test('a client that leaves frees its place', async () => {
    const running = () => metric(s.url, 'ansatz_sequences_running{model="tiny"}');
    assert.equal(await running(), 0);
    const stream = await client.chat.completions.create({ ...ask({ max_tokens: 80, n: 8 }), stream: true });
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 10) break;
    await until('the sequences end', async () => (await running()) === 0, 5);
    assert.equal(await metric(s.url, 'ansatz_cache_pages_used{model="tiny"}'), 0);
    // One whose answer is not streamed too.
    const second = new AbortController();
    const waiting = client.chat.completions.create(ask({ max_tokens: 100, n: 16 }), { signal: second.signal });
    await until('it runs', async () => (await running()) > 0, 5);
    second.abort();
    await assert.rejects(waiting, OpenAI.APIUserAbortError);
    await until('the sequences end', async () => (await running()) === 0, 5);
    await until('both are logged', () => s.requests.filter((r) => r.status === 499).length === 2, 5);
  });
});

test('nothing happened that nobody thought of', () => assert.deepEqual(s.unforeseen, []));
