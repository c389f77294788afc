/** The decoding engine: the same tokens as computing everything anew, whatever else is being served. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { Engine, Passes, type Picker, type Request } from '../../src/infer/engine/index.ts';
import { Sampler } from '../../src/infer/sampling/index.ts';
import { DraftModel } from '../../src/infer/speculation/draft-model.ts';
import { buildModel, type Model } from '../../src/model/model.ts';
import { forwardContext, initialise, type ParamTree } from '../../src/nn/index.ts';
import { type CacheFormat, noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';

const VOCAB = 61;
const CONTEXT = 256;
const device = new CpuDevice();

const base = {
  vocab: VOCAB,
  context: CONTEXT,
  width: 32,
  depth: 2,
  attention: { kind: 'full', heads: 4, kvHeads: 2 },
  ffn: { kind: 'glu', hidden: 64 },
  tied: false,
  embeddingStd: 0.5,
};
const specs: Record<string, object> = {
  rope: {},
  'rope, bf16 pages': {},
  alibi: { positions: 'alibi' },
  't5-bias': { positions: 't5-bias' },
  xpos: { positions: 'xpos' },
  learned: { positions: 'learned' },
  none: { positions: 'none' },
  window: { attention: { kind: 'full', heads: 4, window: 7, bias: true } },
  moe: { ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 32 } } },
  'sparse-qkv': { attention: { kind: 'sparse-qkv', heads: 4, modules: 4 } },
  factored: { head: { kind: 'factored', modules: 2 } },
  hyena: { attention: { kind: 'hyena', order: 3, filterWidth: 16, bands: 4 }, positions: 'none' },
  'gated-conv': { attention: { kind: 'gated-conv', period: 2, heads: 4 } },
  'block-sparse': {
    attention: { kind: 'block-sparse', heads: 4, kvHeads: 2, length: 8, stride: 4, size: 16, blocks: 3, window: 9 },
  },
  'block-sparse, bf16 pages': {
    attention: { kind: 'block-sparse', heads: 4, size: 32, blocks: 4, length: 32, stride: 32 },
  },
  // Without hashing, or with rounds that see all of a text, a row sees what a whole text sees.
  'blockwise, xpos': { attention: { kind: 'blockwise', heads: 4, block: 20 }, positions: 'xpos' },
  lsh: { attention: { kind: 'lsh', heads: 4, chunk: 8, rounds: 2, buckets: 1 } },
  reversible: { layout: 'reversible', ffn: { kind: 'sru-ffn', units: 8, inner: { kind: 'glu', hidden: 32 } } },
  terraformer: { layout: { kind: 'terraformer', encoderDepth: 1 } },
  merged: { layout: { kind: 'encoder-decoder', encoderDepth: 1, merged: true } },
};

/** Log-odds of everything by computing the whole text at once. */
function whole(model: Model, params: ParamTree, tokens: readonly number[]): Float32Array {
  return scope(() =>
    noGrad(() => {
      model.prepare(device);
      const c = forwardContext({ device, compute: 'f32' });
      const inputs = Tensor.from(device, tokens, [1, tokens.length], 'i32');
      const h = model.hidden(params, { inputs, segments: null, positions: null }, c);
      return model.logits(params, h, c).dataSync() as Float32Array;
    }),
  );
}

const argmax = (x: Float32Array): number => x.reduce((best, v, k) => (v > x[best] ? k : best), 0);
const greedy: Picker = { pick: (logits) => ({ token: argmax(logits), logprob: 0 }) };
const text = (n: number, seed: number): number[] =>
  Array.from({ length: n }, (_, k) => (k * k * seed + 5 * k + seed) % VOCAB);

/** Greedy continuation by computing everything anew for every token. */
function expected(model: Model, params: ParamTree, prompt: readonly number[], count: number): number[] {
  const tokens = [...prompt];
  for (let k = 0; k < count; k++) tokens.push(argmax(whole(model, params, tokens).slice(-VOCAB)));
  return tokens.slice(prompt.length);
}

interface Made {
  readonly engine: Engine;
  readonly passes: Passes;
}
function open(model: Model, params: ParamTree, format: CacheFormat = 'f32', pages = 64, extra: object = {}): Made {
  const sizes = { page: 32, pages, sequences: 8 };
  const passes = new Passes(device, model, params, { compute: 'f32', format, maxPages: CONTEXT / 32, ...sizes });
  return { passes, engine: new Engine({ passes, vocab: VOCAB, context: CONTEXT, ...sizes, ...extra }) };
}
async function close({ engine, passes }: Made): Promise<void> {
  await engine.close();
  passes.dispose();
}

async function complete(engine: Engine, request: Partial<Request> & Pick<Request, 'prompt' | 'maxTokens'>) {
  const tokens: number[] = [];
  const finished = await engine.submit({
    picker: greedy,
    ...request,
    onToken: (p) => {
      tokens.push(p.token);
      return request.onToken?.(p);
    },
  });
  return { tokens, finished };
}

describe('decoding gives what the whole forward pass gives', () => {
  for (const [name, extra] of Object.entries(specs))
    test(name, async () => {
      const model = buildModel({ ...base, ...extra });
      const params = initialise(model, device, 3);
      const format = name.includes('bf16') ? 'bf16' : 'f32';
      const made = open(model, params, format);
      const prompts = [text(1, 3), text(40, 7), text(33, 11), text(70, 2)];
      const results = await Promise.all(prompts.map((prompt) => complete(made.engine, { prompt, maxTokens: 12 })));
      for (const [k, { tokens, finished }] of results.entries()) {
        if (format === 'f32') assert.deepEqual(tokens, expected(model, params, prompts[k], 12), `prompt ${k}`);
        assert.equal(finished.reason, 'length');
        assert.equal(tokens.length, 12);
      }
      await close(made);
    });
});

describe('an encoder', () => {
  test('is read once a text, and looked at by many', async () => {
    const model = buildModel({ ...base, layout: { kind: 'encoder-decoder', encoderDepth: 1 } });
    const params = initialise(model, device, 4);
    const made = open(model, params);
    const texts = [text(50, 9), text(20, 4)];
    const expectedOf = (encoder: readonly number[], prompt: readonly number[], count: number): number[] => {
      const tokens = [...prompt];
      for (let k = 0; k < count; k++) {
        const logits = scope(() =>
          noGrad(() => {
            const c = forwardContext({ device, compute: 'f32' });
            const ids = (values: readonly number[]): Tensor => Tensor.from(device, values, [1, values.length], 'i32');
            const places = ids(encoder.map((_, n) => n));
            const one = ids(encoder.map(() => 1));
            const read = { inputs: ids(encoder), segments: one, positions: places };
            const batch = { inputs: ids(tokens), segments: ids(tokens.map(() => 1)), positions: null, encoder: read };
            return model.logits(params, model.hidden(params, batch, c), c).dataSync() as Float32Array;
          }),
        );
        tokens.push(argmax(logits.slice(-VOCAB)));
      }
      return tokens.slice(prompt.length);
    };
    model.prepare(device);
    const prompts = [text(5, 3), text(40, 8)];
    for (let round = 0; round < 2; round++)
      await Promise.all(
        texts.flatMap((encoder) =>
          prompts.map(async (prompt) => {
            const { tokens, finished } = await complete(made.engine, { prompt, encoder, maxTokens: 8 });
            assert.deepEqual(tokens, expectedOf(encoder, prompt, 8));
            assert.equal(finished.cachedTokens, round === 1 && prompt.length > 32 ? 32 : 0);
          }),
        ),
      );
    await close(made);
  });
});

describe('the scheduler', () => {
  let model: Model;
  let params: ParamTree;
  const prompts = [text(90, 3), text(61, 7), text(100, 11), text(33, 2), text(95, 13)];
  let alone: number[][];

  before(async () => {
    model = buildModel({ ...base });
    params = initialise(model, device, 5);
    const made = open(model, params);
    alone = [];
    for (const prompt of prompts) alone.push((await complete(made.engine, { prompt, maxTokens: 40 })).tokens);
    await close(made);
  });
  after(() => device.sync());

  test('neighbours change nothing', async () => {
    const made = open(model, params);
    const results = await Promise.all(prompts.map((prompt) => complete(made.engine, { prompt, maxTokens: 40 })));
    assert.deepEqual(
      results.map((r) => r.tokens),
      alone,
    );
    assert.ok(made.engine.stats().steps < 60, 'they were served together');
    await close(made);
  });

  test('a beginning that was computed is not computed again', async () => {
    const made = open(model, params);
    await complete(made.engine, { prompt: prompts[2], maxTokens: 1 });
    const again = await complete(made.engine, { prompt: prompts[2], maxTokens: 40 });
    assert.deepEqual(again.tokens, alone[2]);
    assert.equal(again.finished.cachedTokens, 96);
    const shared = [...prompts[2].slice(0, 64), ...text(20, 17)];
    const other = await complete(made.engine, { prompt: shared, maxTokens: 10 });
    assert.equal(other.finished.cachedTokens, 64);
    assert.deepEqual(other.tokens, expected(model, params, shared, 10));
    await close(made);
  });

  test('too few pages: sequences start over, and say the same', async () => {
    const made = open(model, params, 'f32', 10);
    const results = await Promise.all(prompts.map((prompt) => complete(made.engine, { prompt, maxTokens: 40 })));
    assert.deepEqual(
      results.map((r) => r.tokens),
      alone,
    );
    assert.ok(made.engine.stats().preemptions > 0);
    assert.equal(made.engine.stats().pages.used, 0);
    await close(made);
  });

  test('small steps: prompts come in chunks', async () => {
    const made = open(model, params, 'f32', 64, { rows: 16 });
    const results = await Promise.all(prompts.map((prompt) => complete(made.engine, { prompt, maxTokens: 40 })));
    assert.deepEqual(
      results.map((r) => r.tokens),
      alone,
    );
    await close(made);
  });

  test('drafts, right or wrong, change nothing', async () => {
    const made = open(model, params, 'f32', 64, { drafts: 4 });
    let asked = 0;
    const results = await Promise.all(
      prompts.map((prompt, k) =>
        complete(made.engine, {
          prompt,
          maxTokens: 40,
          drafter: {
            // Right for three tokens out of four.
            draft: (tokens, most) => {
              const right = alone[k].slice(tokens.length - prompt.length, tokens.length - prompt.length + most);
              return right.map((t) => (asked++ % 4 === 3 ? (t + 1) % VOCAB : t));
            },
          },
        }),
      ),
    );
    assert.deepEqual(
      results.map((r) => r.tokens),
      alone,
    );
    const { accepted, drafted, steps } = made.engine.stats();
    assert.ok(accepted > drafted / 2 && accepted < drafted, `${accepted} of ${drafted}`);
    assert.ok(steps < 30, `${steps} steps for 40 tokens`);
    await close(made);
  });

  test('a draft model, good or bad, changes nothing of what is most likely', async () => {
    for (const seed of [5, 6]) {
      const small = initialise(model, device, seed); // 5: the model itself, always right
      const sizes = { page: 32, sequences: 3, pages: 3 * (CONTEXT / 32) };
      const options = { compute: 'f32', format: 'f32', maxPages: CONTEXT / 32, ...sizes } as const;
      const passes = new Passes(device, model, small, options);
      const draftModel = new DraftModel({ passes, vocab: VOCAB, context: CONTEXT, ...sizes, rows: 24 });
      const made = open(model, params, 'f32', 64, { drafts: 4, draftModel });
      const results = await Promise.all(
        prompts.map((prompt) =>
          complete(made.engine, { prompt, maxTokens: 40, picker: new Sampler({ temperature: 0 }) }),
        ),
      );
      assert.deepEqual(
        results.map((r) => r.tokens),
        alone,
      );
      const { accepted, drafted } = made.engine.stats();
      assert.ok(drafted > 20);
      if (seed === 5) assert.ok(accepted > 0.9 * drafted, `${accepted} of ${drafted}`);
      else assert.ok(accepted < drafted / 2, `${accepted} of ${drafted}`);
      await close(made);
      passes.dispose();
    }
  });

  test('stop tokens, cancelled requests, errors of one request', async () => {
    const made = open(model, params);
    const stopped = await complete(made.engine, { prompt: prompts[0], maxTokens: 40, stop: [alone[0][5]] });
    const first = alone[0].indexOf(alone[0][5]);
    assert.deepEqual(stopped.tokens, alone[0].slice(0, first));
    assert.equal(stopped.finished.reason, 'stop');

    const control = new AbortController();
    const cancelled = complete(made.engine, {
      prompt: prompts[1],
      maxTokens: 40,
      signal: control.signal,
      onToken: () => void control.abort(),
    });
    const failing = complete(made.engine, {
      prompt: prompts[3],
      maxTokens: 40,
      onToken: () => {
        throw new Error('mine');
      },
    });
    const fine = complete(made.engine, { prompt: prompts[4], maxTokens: 40 });
    assert.equal((await cancelled).finished.reason, 'cancelled');
    await assert.rejects(failing, /mine/);
    assert.deepEqual((await fine).tokens, alone[4]);
    assert.equal(made.engine.stats().pages.used, 0);
    assert.throws(
      () => made.engine.submit({ prompt: [], maxTokens: 1, picker: greedy, onToken: () => true }),
      /at least one/,
    );
    assert.throws(
      () => made.engine.submit({ prompt: text(256, 3), maxTokens: 2, picker: greedy, onToken: () => true }),
      /room/,
    );
    // What comes after a full context can be told, if nothing is to come after that.
    const last = await complete(made.engine, { prompt: text(256, 3), maxTokens: 1 });
    assert.deepEqual(last.tokens, [argmax(whole(model, params, text(256, 3)).slice(-VOCAB))]);
    await close(made);
  });

  test("a prompt's own probabilities", async () => {
    const made = open(model, params);
    const rows: Float32Array[] = [];
    const prompt = prompts[2];
    await complete(made.engine, { prompt, maxTokens: 0, scorePrompt: (_, place, logits) => (rows[place] = logits) });
    const full = whole(model, params, prompt);
    for (let t = 1; t < prompt.length; t++)
      for (let v = 0; v < VOCAB; v++)
        assert.ok(Math.abs(rows[t][v] - full[(t - 1) * VOCAB + v]) < 1e-4, `place ${t}, token ${v}`);
    await close(made);
  });
});
