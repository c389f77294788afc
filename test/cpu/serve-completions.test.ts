/** Completions: prompts of every form, scores that are the model's own, infilling, streams. And embeddings. */
import assert from 'node:assert/strict';
import { cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import OpenAI from 'openai';
import type { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { type OpenRun, openRun } from '../../src/infer/load.ts';
import { forwardContext } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { type Serving, serving, TinyRuns } from '../support/serve.ts';

const runs = new TinyRuns('serve-completions');
let s: Serving;
let client: OpenAI;
let opened: OpenRun;
let tokenizer: Tokenizer;

before(async () => {
  const paths = {
    tiny: await runs.train('tiny'),
    filler: await runs.train('filler', { objective: 'fim', model: { vocab: 400 } }),
    denoiser: await runs.train('denoiser', { objective: { kind: 'ul2', mixture: 'ul2r' }, model: { vocab: 600 } }),
    reader: await runs.train('reader', {
      model: { layout: { kind: 'encoder-decoder', encoderDepth: 1 }, context: 64 },
      objective: 'prefix-lm',
      length: 32,
    }),
    // Half precision, and a part that does not decode by rows or does: embeddings must not care.
    half: await runs.train('half', { precision: 'bf16' }),
  };
  s = await serving(paths, { data: join(runs.root, 'served') });
  client = s.client;
  opened = await openRun(paths.tiny);
  tokenizer = opened.tokenizer;
});

/** Log-probabilities of every token after the first, by one whole forward pass. */
function logprobs(tokens: readonly number[]): Float64Array[] {
  const { device, model, params } = opened;
  const vocab = model.spec.vocab;
  const logits = scope(() =>
    noGrad(() => {
      model.prepare(device);
      const c = forwardContext({ device, compute: 'f32' });
      const inputs = Tensor.from(device, tokens, [1, tokens.length], 'i32');
      const h = model.hidden(params, { inputs, segments: null, positions: null }, c);
      return (model.logits(params, h, c).dataSync() as Float32Array).slice();
    }),
  );
  return tokens.map((_, k) => {
    const row = Float64Array.from(logits.subarray(k * vocab, (k + 1) * vocab));
    const top = Math.max(...row);
    const lse = top + Math.log(row.reduce((n, x) => n + Math.exp(x - top), 0));
    return row.map((x) => x - lse);
  });
}

const near = (a: number | null, b: number, what: string): void =>
  assert.ok(a !== null && Math.abs(a - b) < 2e-4, `${what}: ${a} and ${b}`);

describe('scores', () => {
  const text = 'the small river follows the heavy window.\nthe naïve 日本 ';

  test('of tokens, nothing generated: what an evaluation harness sums up', async () => {
    const ids = [tokenizer.eot, ...tokenizer.encode(text)];
    const r = await client.completions.create({
      model: 'tiny',
      prompt: [ids, ids.slice(0, 9)] as never,
      max_tokens: 0,
      echo: true,
      logprobs: 2,
    });
    const expected = logprobs(ids);
    for (const [n, choice] of r.choices.entries()) {
      const { tokens, token_logprobs: scores, top_logprobs: tops, text_offset: offsets } = choice.logprobs!;
      const count = n === 0 ? ids.length : 9;
      assert.deepEqual([tokens!.length, scores!.length, tops!.length, offsets!.length], [count, count, count, count]);
      assert.deepEqual([scores![0], tops![0]], [null, null], 'nothing comes before the first');
      for (let k = 1; k < count; k++) {
        near(scores![k], expected[k - 1][ids[k]], `token ${k}`);
        const best = Math.max(...expected[k - 1]);
        near(Math.max(...Object.values(tops![k])), best, `best of ${k}`);
        assert.ok(Object.keys(tops![k]).length >= 2 && tokens![k] in tops![k]);
      }
      assert.equal(choice.finish_reason, 'length');
      assert.equal(choice.text, tokenizer.decode(ids.slice(0, count)));
    }
    assert.equal(r.usage!.completion_tokens, 0);
    assert.equal(r.usage!.prompt_tokens, ids.length + 9);
  });

  test('of text: predicted from the beginning of a document; offsets are places in the text', async () => {
    const r = await client.completions.create({
      model: 'tiny',
      prompt: text,
      max_tokens: 3,
      echo: true,
      logprobs: 1,
      temperature: 0,
    });
    const { tokens, token_logprobs: scores, text_offset: offsets } = r.choices[0].logprobs!;
    const own = [...tokenizer.encode(text)];
    assert.ok(r.choices[0].text.startsWith(text));
    assert.equal(tokens!.length, own.length + 3);
    const all = [tokenizer.eot, ...own];
    const expected = logprobs(all);
    for (const [k, id] of own.entries()) near(scores![k], expected[k][id], `token ${k}`);
    const characters = [...r.choices[0].text];
    tokens!.forEach((t, k) => {
      if (t.startsWith('bytes:')) return;
      assert.equal(characters.slice(offsets![k], offsets![k] + [...t].length).join(''), t, `token ${k}`);
    });
    assert.equal(offsets![own.length], [...text].length);
  });

  test('long prompts are scored in parts', async () => {
    const ids = [...tokenizer.encode('the quiet garden describes the bright captain. '.repeat(12))].slice(0, 120);
    const r = await client.completions.create({ model: 'tiny', prompt: ids, max_tokens: 0, echo: true, logprobs: 0 });
    const expected = logprobs(ids);
    const scores = r.choices[0].logprobs!.token_logprobs!;
    for (let k = 1; k < ids.length; k++) near(scores[k], expected[k - 1][ids[k]], `token ${k}`);
  });

  test('the token that ends a text has an entry: whoever leaves out the last one leaves out what was made', async () => {
    const ids = [tokenizer.eot, ...tokenizer.encode('the small river')];
    const expected = logprobs(ids);
    const ask = (more: object) =>
      client.completions.create({
        ...{ model: 'tiny', prompt: ids, max_tokens: 1, echo: true, logprobs: 1, temperature: 0, ...more },
      } as OpenAI.CompletionCreateParamsNonStreaming);
    for (const [bias, reason] of [
      [100, 'stop'],
      [-100, 'length'],
    ] as const) {
      const { choices, usage } = await ask({ logit_bias: { [tokenizer.eot]: bias } });
      const { token_logprobs: scores, top_logprobs: tops, tokens, text_offset: offsets } = choices[0].logprobs!;
      assert.equal(choices[0].finish_reason, reason);
      assert.equal(usage!.completion_tokens, 1);
      assert.deepEqual([scores!.length, tops!.length, tokens!.length, offsets!.length], Array(4).fill(ids.length + 1));
      const own = scores!.slice(1, -1);
      for (const [k, score] of own.entries()) near(score, expected[k][ids[k + 1]], `token ${k + 1}`);
      if (reason === 'stop') near(scores!.at(-1)!, expected.at(-1)![tokenizer.eot], 'the end');
      assert.equal(offsets!.at(-1), tokenizer.decode(ids).length);
    }
    // Streams have as many.
    let count = 0;
    const stream = (await ask({ logit_bias: { [tokenizer.eot]: 100 }, stream: true })) as unknown as AsyncIterable<{
      choices: { logprobs: { tokens: string[] } | null }[];
    }>;
    for await (const chunk of stream) count += chunk.choices[0].logprobs!.tokens.length;
    assert.equal(count, ids.length + 1);
  });

  test('a prompt that fills the context is scored; nothing can follow it', async () => {
    const ids = [...tokenizer.encode('the quiet garden describes the bright captain. '.repeat(20))].slice(0, 128);
    const ask = (prompt: number[], max_tokens: number) =>
      client.completions.create({ model: 'tiny', prompt, max_tokens, echo: true, logprobs: 0 });
    const expected = logprobs(ids);
    const scores = (await ask(ids, 0)).choices[0].logprobs!.token_logprobs!;
    near(scores.at(-1)!, expected[126][ids[127]], 'the last');
    for (const [prompt, most] of [
      [ids, 1],
      [[...ids, 5], 0],
    ] as const)
      await assert.rejects(
        ask([...prompt], most),
        (e) => e instanceof OpenAI.BadRequestError && e.code === 'context_length_exceeded',
      );
  });

  test('an encoder’s text has none', async () => {
    await assert.rejects(
      client.completions.create({ model: 'reader', prompt: 'the', max_tokens: 0, echo: true, logprobs: 1 }),
      (e) => e instanceof OpenAI.BadRequestError && e.param === 'echo',
    );
  });
});

describe('prompts', () => {
  test('text, tokens, several of each: choices in order', async () => {
    const prompt = 'the small river';
    const ids = [tokenizer.eot, ...tokenizer.encode(prompt)];
    const common = { model: 'tiny', max_tokens: 6, seed: 5 };
    const one = await client.completions.create({ ...common, prompt });
    assert.deepEqual([one.object, one.choices.length, one.choices[0].index], ['text_completion', 1, 0]);
    for (const same of [ids, [prompt], [ids]]) {
      const r = await client.completions.create({ ...common, prompt: same as never });
      assert.equal(r.choices[0].text, one.choices[0].text);
    }
    const many = await client.completions.create({ ...common, prompt: [prompt, 'the', prompt], n: 2 });
    assert.deepEqual(
      many.choices.map((c) => c.index),
      [0, 1, 2, 3, 4, 5],
    );
    assert.equal(many.choices[0].text, one.choices[0].text);
    assert.equal(many.choices[4].text, one.choices[0].text);
    assert.equal(many.choices[5].text, many.choices[1].text);
  });

  test('16 tokens unless it is said otherwise; a prompt may be missing', async () => {
    const r = await client.completions.create({ model: 'tiny' } as never);
    assert.ok(r.usage!.completion_tokens <= 17);
  });

  test('the best of several is the likeliest', async () => {
    const common = { model: 'tiny', prompt: 'the', max_tokens: 5, seed: 2, logprobs: 0, temperature: 1.5 };
    const all = await client.completions.create({ ...common, n: 6 });
    const best = await client.completions.create({ ...common, best_of: 6 });
    const mean = (c: OpenAI.CompletionChoice): number => {
      const p = c.logprobs!.token_logprobs!;
      return p.reduce((n, x) => n + x, 0) / p.length;
    };
    const top = all.choices.reduce((a, b) => (mean(b) > mean(a) ? b : a));
    assert.deepEqual([best.choices.length, best.choices[0].text], [1, top.text]);
    assert.equal(best.usage!.completion_tokens, all.usage!.completion_tokens);
  });

  test('a stream gives the same, echo first', async () => {
    const body = { model: 'tiny', prompt: ['the small', 'the'], max_tokens: 5, seed: 3, echo: true, logprobs: 1 };
    const whole = await client.completions.create(body);
    const texts = ['', ''];
    const tokens: string[][] = [[], []];
    const finish: string[] = [];
    const stream = await client.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
    let usage: OpenAI.CompletionUsage | undefined;
    for await (const chunk of stream) {
      if (chunk.usage) usage = chunk.usage;
      for (const c of chunk.choices) {
        texts[c.index] += c.text;
        tokens[c.index].push(...(c.logprobs?.tokens ?? []));
        if (c.finish_reason) finish[c.index] = c.finish_reason;
      }
    }
    whole.choices.forEach((c, k) => {
      assert.equal(texts[k], c.text);
      assert.deepEqual(tokens[k], c.logprobs!.tokens);
      assert.equal(finish[k], c.finish_reason);
    });
    assert.deepEqual(usage, whole.usage);
  });

  test('errors name the field', async () => {
    const refused = (body: object, param: string) =>
      assert.rejects(
        client.completions.create({ model: 'tiny', prompt: 'a', ...body } as never),
        (e) => e instanceof OpenAI.BadRequestError && e.param === param,
        JSON.stringify(body),
      );
    await refused({ logprobs: 6 }, 'logprobs');
    await refused({ prompt: [] }, 'prompt');
    await refused({ prompt: [999999] }, 'prompt');
    await refused({ prompt: [-1] }, 'prompt[0]');
    await refused({ prompt: { a: 1 } }, 'prompt');
    await refused({ n: 3, best_of: 2 }, 'best_of');
    await refused({ best_of: 2, stream: true }, 'best_of');
    await refused({ suffix: 'b' }, 'suffix');
    await refused({ suffix: 'b', echo: true }, 'suffix');
    await refused({ prompt: 'the '.repeat(200) }, 'prompt');
  });
});

describe('infilling', () => {
  for (const model of ['filler', 'denoiser'])
    test(`${model}: what comes after counts`, async () => {
      const fill = (suffix: string) =>
        client.completions.create({ model, prompt: 'the small ', suffix, max_tokens: 4, temperature: 0, logprobs: 0 });
      const [a, b] = [await fill('.\n'), await fill(' follows the heavy window')];
      const score = (r: OpenAI.Completion): number | undefined => r.choices[0].logprobs!.token_logprobs![0];
      assert.notEqual(score(a), score(b));
      assert.doesNotMatch(a.choices[0].text + b.choices[0].text, /<\|/, 'no control tokens');
    });
});

describe('embeddings', () => {
  test('have length 1, are the same as floats and as base64, and do not depend on their neighbours', async () => {
    const texts = ['the small river', 'the heavy window follows the captain', 'a'];
    // The client asks for base64 unless it is told otherwise.
    const coded = await client.embeddings.create({ model: 'tiny', input: texts });
    const plain = await client.embeddings.create({ model: 'tiny', input: texts, encoding_format: 'float' });
    const alone = await client.embeddings.create({ model: 'tiny', input: texts[1] });
    texts.forEach((_, k) => {
      assert.equal(coded.data[k].index, k);
      assert.deepEqual(coded.data[k].embedding, plain.data[k].embedding);
      const square = coded.data[k].embedding.reduce((n, x) => n + x * x, 0);
      assert.ok(Math.abs(square - 1) < 1e-5, `${square}`);
    });
    assert.deepEqual(alone.data[0].embedding, coded.data[1].embedding);
    assert.notDeepEqual(coded.data[0].embedding, coded.data[2].embedding);
    const tokens = texts.reduce((n, t) => n + tokenizer.encode(t).length, 0);
    assert.deepEqual(coded.usage, { prompt_tokens: tokens, total_tokens: tokens });
    const ids = await client.embeddings.create({ model: 'tiny', input: [...tokenizer.encode(texts[0])] });
    assert.deepEqual(ids.data[0].embedding, coded.data[0].embedding);
  });

  test('are the mean of the final hidden states', async () => {
    const ids = [...tokenizer.encode('the small river follows the heavy window.')];
    const { device, model, params } = opened;
    const { width } = model.spec;
    const h = scope(() =>
      noGrad(() => {
        const c = forwardContext({ device, compute: 'f32' });
        const inputs = Tensor.from(device, ids, [1, ids.length], 'i32');
        return (
          model.hidden(params, { inputs, segments: null, positions: null }, c).dataSync() as Float32Array
        ).slice();
      }),
    );
    const mean = Array.from({ length: width }, (_, k) => ids.reduce((n, _t, t) => n + h[t * width + k], 0));
    const size = Math.hypot(...mean);
    const { data } = await client.embeddings.create({ model: 'tiny', input: ids });
    for (const [k, x] of data[0].embedding.entries()) assert.ok(Math.abs(x - mean[k] / size) < 1e-5);
  });

  test('shorter ones are cut and have length 1 again; encoders and half precision have them too', async () => {
    const whole = (await client.embeddings.create({ model: 'tiny', input: 'the river' })).data[0].embedding;
    const cut = (await client.embeddings.create({ model: 'tiny', input: 'the river', dimensions: 8 })).data[0]
      .embedding;
    const size = Math.hypot(...whole.slice(0, 8));
    assert.equal(cut.length, 8);
    for (const [k, x] of cut.entries()) assert.ok(Math.abs(x - whole[k] / size) < 1e-5);
    for (const model of ['reader', 'half', 'denoiser']) {
      const { data } = await client.embeddings.create({ model, input: 'the river' });
      assert.ok(Math.abs(Math.hypot(...data[0].embedding) - 1) < 1e-5, model);
    }
  });

  test('refuse what cannot be read', async () => {
    const refused = (body: object) =>
      assert.rejects(client.embeddings.create({ model: 'tiny', ...body } as never), OpenAI.BadRequestError);
    for (const input of ['', [], [''], ['a', ''], [1e9], 'the '.repeat(300), {}, [[]], null]) await refused({ input });
    await refused({ input: 'a', dimensions: 33 });
    await refused({ input: 'a', encoding_format: 'hex' });
  });
});

test('nothing happened that nobody thought of', () => assert.deepEqual(s.unforeseen, []));

test('what ends a text is also what came with the model says', async () => {
  const ask = { prompt: 'The cat', max_tokens: 12, temperature: 0, logprobs: 1 } as const;
  const free = (await client.completions.create({ model: 'tiny', ...ask })).choices[0];
  const tokens = free.logprobs!.tokens!;
  const at = tokens.findIndex((t, k) => k > 0 && !tokens.slice(0, k).includes(t));
  assert.ok(at > 0, `${tokens}`);
  const [end] = tokenizer.encode(tokens[at], { special: 'text' });
  assert.equal(tokenizer.decode([end]), tokens[at]);
  const run = join(runs.root, 'ended');
  cpSync(opened.run.path, run, { recursive: true });
  writeFileSync(join(run, 'generation_config.json'), JSON.stringify({ eos_token_id: [end] }));
  const other = await serving({ ended: run }, { data: join(runs.root, 'served-ended') });
  const { choices } = await other.client.completions.create({ model: 'ended', ...ask });
  assert.equal(choices[0].finish_reason, 'stop');
  assert.equal(choices[0].text, tokens.slice(0, at).join(''));
});
