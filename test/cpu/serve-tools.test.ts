/** Calls of functions, driven by the official client: forced, free, several, streamed, told, and refused. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { Ajv } from 'ajv';
import OpenAI from 'openai';
import type { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { CHATML, CHATML_TOKENS, chatModel, HEADER_TOKENS, HEADERS, markedTokenizer } from '../support/chat-models.ts';
import { type Serving, serving, TinyRuns } from '../support/serve.ts';

type Body = OpenAI.Chat.ChatCompletionCreateParamsNonStreaming;

const runs = new TinyRuns('serve-tools');
const ajv = new Ajv({ strict: false });
const chatml = markedTokenizer(CHATML_TOKENS, ['<tool_call>', '</tool_call>']);
const headers = markedTokenizer(HEADER_TOKENS);
let s: Serving;
let client: OpenAI;

before(async () => {
  const tiny = await runs.train('tiny', { model: { context: 2048 }, length: 128 });
  const reader = await runs.train('reader', {
    model: { layout: { kind: 'encoder-decoder', encoderDepth: 1 }, context: 1024 },
    objective: 'prefix-lm',
    length: 32,
  });
  const qwen = await chatModel(join(runs.root, 'qwen'), { tokenizer: chatml, template: CHATML, context: 1024 });
  const llama = await chatModel(join(runs.root, 'llama'), {
    ...{ tokenizer: headers, template: HEADERS, tokens: { bos_token: '<|begin_of_text|>' }, context: 1024 },
  });
  s = await serving({ tiny, reader, qwen: qwen.run, llama: llama.run }, { data: join(runs.root, 'served') });
  client = s.client;
});

const schema = {
  ...{ type: 'object', required: ['city', 'days'], additionalProperties: false },
  properties: { city: { enum: ['Rome', 'Oslo'] }, days: { type: 'integer', minimum: 1, maximum: 9 } },
};
const weather = {
  type: 'function' as const,
  function: { name: 'weather', description: 'what it will be like', parameters: schema },
};
const now = { type: 'function' as const, function: { name: 'now' } };
const tools = [weather, now];
const valid = ajv.compile(schema);

const ask = (more: object = {}): Body =>
  ({
    ...{ model: 'tiny', messages: [{ role: 'user', content: 'will it rain?' }], max_tokens: 300, seed: 5, tools },
    ...more,
  }) as Body;

/** Checks calls as they must be, and gives them. */
function checked({ message, finish_reason }: OpenAI.Chat.ChatCompletion.Choice): [string, unknown][] {
  assert.equal(finish_reason, 'tool_calls');
  assert.equal(new Set(message.tool_calls!.map((c) => c.id)).size, message.tool_calls!.length);
  return message.tool_calls!.map((c) => {
    assert.match(c.id, /^call_\w{24}$/);
    assert.ok(c.type === 'function');
    const args: unknown = JSON.parse(c.function.arguments);
    if (c.function.name === 'weather') assert.ok(valid(args), c.function.arguments);
    else assert.deepEqual([c.function.name, args], ['now', {}]);
    return [c.function.name, args];
  });
}

describe('a forced call', () => {
  for (const model of ['tiny', 'reader', 'qwen', 'llama'])
    test(`${model}: is one of the functions, with arguments of its schema`, async () => {
      const names = new Set<string>();
      for (let seed = 0; seed < 6; seed++) {
        const r = await client.chat.completions.create(
          ask({ model, seed, temperature: 1.5, tool_choice: 'required', parallel_tool_calls: false }),
        );
        assert.equal(r.choices[0].message.content, null);
        const calls = checked(r.choices[0]);
        assert.equal(calls.length, 1);
        names.add(calls[0][0]);
      }
      assert.equal(names.size, 2, 'both are chosen sometimes');
    });

  test('is the one that was named, and one alone', async () => {
    for (const name of ['weather', 'now']) {
      const r = await client.chat.completions.create(ask({ tool_choice: { type: 'function', function: { name } } }));
      assert.deepEqual(
        checked(r.choices[0]).map(([n]) => n),
        [name],
      );
    }
  });

  test('may be several at once, unless that is not wanted', async () => {
    // Whoever may not end goes on calling; the end of texts is made unlikely.
    const { tokenizer } = (await runs.text()).prepared;
    const more = { tool_choice: 'required', logit_bias: { [tokenizer.eot]: -100 }, max_tokens: 200 };
    const r = await client.chat.completions.create(ask(more));
    const { message, finish_reason } = r.choices[0];
    assert.equal(finish_reason, 'length');
    assert.ok(message.tool_calls!.length > 1);
    for (const c of message.tool_calls!.slice(0, -1))
      JSON.parse((c as { function: { arguments: string } }).function.arguments);
    const one = await client.chat.completions.create(ask({ ...more, parallel_tool_calls: false }));
    assert.equal(checked(one.choices[0]).length, 1);
  });

  test('one that runs out of tokens says so', async () => {
    const r = await client.chat.completions.create(
      ask({ tool_choice: { type: 'function', function: { name: 'weather' } }, max_tokens: 30 }),
    );
    assert.equal(r.choices[0].finish_reason, 'length');
  });

  test('no stop string cuts it', async () => {
    const r = await client.chat.completions.create(ask({ tool_choice: 'required', stop: ['"', '{'] }));
    checked(r.choices[0]);
  });
});

describe('a free answer', () => {
  const call = chatml.specialIds.get('<tool_call>') ?? chatml.tokenToId('<tool_call>')!;
  const free = (more: object = {}): Body => ask({ model: 'qwen', temperature: 0.7, max_tokens: 200, ...more });

  test('is text while it does not call', async () => {
    const plain = await client.chat.completions.create(free({ logit_bias: { [call]: -100 }, max_tokens: 20 }));
    assert.equal(typeof plain.choices[0].message.content, 'string');
    assert.equal(plain.choices[0].message.tool_calls, undefined);
    assert.notEqual(plain.choices[0].finish_reason, 'tool_calls');
  });

  test('is held to the schema once it begins to call', async () => {
    for (let seed = 0; seed < 8; seed++) {
      const r = await client.chat.completions.create(free({ seed, logit_bias: { [call]: 100 } }));
      checked(r.choices[0]);
      // Words before it are kept: few, so the call has room.
      const later = await client.chat.completions.create(
        free({ seed, logit_bias: { [call]: 4 }, max_tokens: 900, logprobs: true }),
      );
      const { message, finish_reason, logprobs } = later.choices[0];
      if (finish_reason === 'tool_calls') checked(later.choices[0]);
      const written = Buffer.from(logprobs!.content!.flatMap((t) => t.bytes!)).toString();
      assert.ok(written.startsWith(message.content ?? ''), 'scores are of what is said');
    }
  });

  test('stop strings are for what is said, not for calls', async () => {
    const r = await client.chat.completions.create(free({ logit_bias: { [call]: 100 }, stop: ['"', 'name'] }));
    checked(r.choices[0]);
  });

  test('tool_choice none: no call, and no word of tools', async () => {
    const none = await client.chat.completions.create(free({ tool_choice: 'none', max_tokens: 5 }));
    const without = await client.chat.completions.create(free({ tools: undefined, max_tokens: 5 }));
    const offered = await client.chat.completions.create(free({ max_tokens: 5 }));
    assert.equal(none.usage!.prompt_tokens, without.usage!.prompt_tokens);
    assert.ok(offered.usage!.prompt_tokens > without.usage!.prompt_tokens + 40);
  });

  test('with a format: either a call, or an answer of that format', async () => {
    const format = {
      response_format: {
        type: 'json_schema',
        json_schema: {
          name: 'x',
          schema: {
            type: 'object',
            properties: { ok: { type: 'boolean' } },
            required: ['ok'],
            additionalProperties: false,
          },
        },
      },
    };
    const kinds = new Set<string>();
    for (let seed = 0; seed < 12; seed++) {
      const { choices } = await client.chat.completions.create(
        free({ ...format, seed, temperature: 2, logit_bias: { [call]: seed % 2 ? 8 : -100 } }),
      );
      if (choices[0].finish_reason === 'tool_calls') checked(choices[0]);
      else assert.equal(typeof JSON.parse(choices[0].message.content!).ok, 'boolean');
      kinds.add(choices[0].finish_reason);
    }
    assert.deepEqual([...kinds].sort(), ['stop', 'tool_calls']);
  });
});

describe('a stream', () => {
  test('fragments as clients expect them', async () => {
    const body = ask({ tool_choice: 'required', n: 2, stream: true });
    const r = await fetch(`${s.url}/v1/chat/completions`, { method: 'POST', body: JSON.stringify(body) });
    const events = (await r.text())
      .split('\n\n')
      .filter((e) => e.startsWith('data: {'))
      .map((e) => JSON.parse(e.slice(6)));
    for (const index of [0, 1]) {
      const own = events.map((e) => e.choices[0]).filter((c) => c.index === index);
      assert.deepEqual(own[0].delta, { role: 'assistant', content: '' });
      assert.deepEqual([own.at(-1).delta, own.at(-1).finish_reason], [{}, 'tool_calls']);
      const deltas = own.slice(1, -1).map((c) => {
        assert.deepEqual(Object.keys(c.delta), ['tool_calls']);
        assert.equal(c.delta.tool_calls.length, 1);
        return c.delta.tool_calls[0];
      });
      let calls = 0;
      for (const d of deltas) {
        if (d.id) {
          assert.deepEqual(d, {
            index: calls++,
            id: d.id,
            type: 'function',
            function: { name: d.function.name, arguments: '' },
          });
        } else assert.deepEqual(d, { index: calls - 1, function: { arguments: d.function.arguments } });
      }
      assert.ok(calls > 0 && deltas.length > 2 * calls, 'arguments come in pieces');
    }
  });

  test('is what comes at once, and the helper of the client says the same', async () => {
    const body = ask({ tool_choice: 'required', parallel_tool_calls: false, temperature: 1.2 });
    for (const seed of [1, 2, 3]) {
      const whole = await client.chat.completions.create({ ...body, seed });
      const done: string[] = [];
      let pieces = '';
      const runner = client.chat.completions
        .stream({ ...body, seed } as never)
        .on('tool_calls.function.arguments.delta', ({ arguments_delta: text }) => (pieces += text))
        .on('tool_calls.function.arguments.done', ({ name, arguments: json }) => done.push(`${name} ${json}`));
      const final = await runner.finalChatCompletion();
      const [name, args] = checked(final.choices[0] as never)[0];
      assert.deepEqual(checked(whole.choices[0]), [[name, args]]);
      assert.deepEqual([done.length, JSON.parse(pieces)], [1, args]);
    }
  });
});

test('runTools: functions are run and their results told', async () => {
  const asked: unknown[] = [];
  const runner = client.chat.completions.runTools(
    {
      ...ask({ tool_choice: { type: 'function', function: { name: 'weather' } } }),
      tools: [
        {
          type: 'function',
          function: {
            ...weather.function,
            parse: JSON.parse,
            function: (args: unknown) => {
              asked.push(args);
              return { sky: 'clear' };
            },
          },
        },
      ],
    } as never,
    { maxChatCompletions: 3 },
  );
  await runner.done();
  assert.ok(asked.length >= 1 && valid(asked[0]));
  const roles = runner.messages.map((m) => m.role);
  assert.deepEqual(roles.slice(0, 3), ['user', 'assistant', 'tool']);
});

test('calls and results in a dialogue are part of what the model reads', async () => {
  const dialogue = (result: string, id = 'call_1'): object[] => [
    { role: 'user', content: 'rain?' },
    {
      role: 'assistant',
      content: null,
      tool_calls: [{ id, type: 'function', function: { name: 'weather', arguments: '{"city":"Rome","days":2}' } }],
    },
    { role: 'tool', tool_call_id: id, content: result },
  ];
  const tokens = async (model: string, messages: object[]): Promise<number> =>
    (await client.chat.completions.create(ask({ model, messages, max_tokens: 1, tools: undefined }))).usage!
      .prompt_tokens;
  const spelled: [string, Tokenizer, string][] = [
    [
      'qwen',
      chatml,
      '<|im_start|>user\nrain?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\ndry\n</tool_response><|im_end|>\n<|im_start|>assistant\n',
    ],
    [
      'tiny',
      (await runs.text()).prepared.tokenizer,
      '<|endoftext|>### User\nrain?\n\n### Assistant\n<tool_call>\n{"name": "weather", "arguments": {"city":"Rome","days":2}}\n</tool_call><|endoftext|>\n\n### Tool\ndry\n\n### Assistant\n',
    ],
  ];
  for (const [model, tokenizer, text] of spelled) {
    const near = tokenizer.encode(text).length;
    // Pieces are encoded on their own in our own form: a token or two more.
    const got = await tokens(model, dialogue('dry'));
    assert.ok(Math.abs(got - near) <= (model === 'qwen' ? 0 : 4), `${model}: ${got} tokens, not ${near}`);
  }
});

describe('errors', () => {
  const refused = (body: object, param: RegExp, message: RegExp): Promise<void> =>
    assert.rejects(client.chat.completions.create(ask(body)), (e) => {
      assert.ok(e instanceof OpenAI.BadRequestError, String(e));
      assert.match(String(e.param), param);
      assert.match(e.message, message);
      return true;
    });
  test('name what is wrong', async () => {
    await refused({ tools: [{}] }, /^tools\[0\]/, /function|type/);
    await refused({ tools: [{ type: 'function', function: { name: 'a b' } }] }, /name$/, /letters/);
    await refused({ tools: [weather, weather] }, /^tools\[1\]/, /two functions 'weather'/);
    await refused({ tool_choice: 'always' }, /^tool_choice$/, /required/);
    await refused(
      { tool_choice: { type: 'function', function: { name: 'rain' } } },
      /^tool_choice$/,
      /no function 'rain'/,
    );
    await refused({ tools: undefined, tool_choice: 'required' }, /^tool_choice$/, /needs 'tools'/);
    await refused({ tools: undefined, parallel_tool_calls: true }, /^parallel_tool_calls$/, /needs 'tools'/);
    const odd = (parameters: object, strict?: boolean): object => ({
      tools: [{ type: 'function', function: { name: 'odd', parameters, strict } }],
    });
    const three = { type: 'object', properties: { x: { type: 'number', multipleOf: 3 } } };
    await refused(odd(three), /^tools$/, /tools\.odd\.parameters.*multipleOf.*strict/);
    await refused(odd({ type: 'string' }), /^tools$/, /must be an object/);
    const r = await client.chat.completions.create(
      ask({
        ...odd(three, false),
        tool_choice: 'required',
        parallel_tool_calls: false,
        temperature: 0,
        logit_bias: await brace(),
      }),
    );
    if (r.choices[0].finish_reason === 'tool_calls')
      assert.equal(
        typeof JSON.parse(
          (r.choices[0].message.tool_calls![0] as never as { function: { arguments: string } }).function.arguments,
        ),
        'object',
      );
  });
  async function brace(): Promise<Record<string, number>> {
    const [id] = (await runs.text()).prepared.tokenizer.encode('}');
    return { [id]: 30 };
  }
});

test('nothing happened that nobody thought of', () => assert.deepEqual(s.unforeseen, []));
