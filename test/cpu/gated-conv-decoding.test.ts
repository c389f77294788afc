// Decoding by rows gives what computing the whole text gives, for gated convolutions with and without attention.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { Engine, Passes } from '../../src/infer/engine/index.ts';
import { buildModel } from '../../src/model/model.ts';
import { forwardContext, initialise } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';

const [VOCAB, CONTEXT, COUNT] = [61, 128, 12];
const device = new CpuDevice();
const argmax = (x: Float32Array): number => x.reduce((best, v, k) => (v > x[best] ? k : best), 0);

for (const [name, attention] of [
  ['convolutions only', { kind: 'gated-conv', period: 0, kernel: 3, bias: true }],
  ['attention in every second layer', { kind: 'gated-conv', period: 2, heads: 4, hidden: 24 }],
] as const)
  test(name, async () => {
    const spec = { vocab: VOCAB, context: CONTEXT, width: 32, depth: 3, embeddingStd: 0.5, tied: false, attention };
    const model = buildModel({ ...spec, ffn: { kind: 'glu', hidden: 48 } });
    const params = initialise(model, device, 3);
    model.prepare(device);
    const next = (tokens: readonly number[]): number =>
      argmax(
        scope(() =>
          noGrad(() => {
            const c = forwardContext({ device, compute: 'f32' });
            const inputs = Tensor.from(device, tokens, [1, tokens.length], 'i32');
            const h = model.hidden(params, { inputs, segments: null, positions: null }, c);
            return (model.logits(params, h, c).dataSync() as Float32Array).slice(-VOCAB) as never;
          }),
        ) as unknown as Float32Array,
      );
    const sizes = { page: 32, pages: 32, sequences: 8 };
    const passes = new Passes(device, model, params, {
      compute: 'f32',
      format: 'f32',
      maxPages: CONTEXT / 32,
      ...sizes,
    });
    const engine = new Engine({ passes, vocab: VOCAB, context: CONTEXT, ...sizes });
    // One token, fewer than the taps, and more than a page: all of them served together.
    const prompts = [1, 2, 40].map((n) => Array.from({ length: n }, (_, k) => (k * k * 7 + 5 * k + n) % VOCAB));
    await Promise.all(
      prompts.map(async (prompt) => {
        const got: number[] = [];
        await engine.submit({
          ...{ prompt, maxTokens: COUNT, picker: { pick: (x) => ({ token: argmax(x), logprob: 0 }) } },
          onToken: (p) => void got.push(p.token),
        });
        const tokens = [...prompt];
        for (let k = 0; k < COUNT; k++) tokens.push(next(tokens));
        assert.deepEqual(got, tokens.slice(prompt.length), `a prompt of ${prompt.length}`);
      }),
    );
    await engine.close();
    passes.dispose();
  });
