// Decoding of reversible models and of recurrent feed-forward layers: by rows as by computing everything anew.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { openDecoding } from '../../src/infer/decoding.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { forwardContext, initialise } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';
import { smallSpec } from '../support/small-models.ts';

const device = new CpuDevice();
const vocab = 61;
const sru = { kind: 'sru-ffn', units: 8, inner: { kind: 'glu', hidden: 32 } };
const base = {
  ...{ vocab, context: 128, width: 32, attention: { kind: 'full', heads: 4, kvHeads: 2 }, embeddingStd: 0.5 },
  ...{ tied: false, ffn: { kind: 'glu', hidden: 64 } },
};
const specs: Record<string, ModelSpecInput> = {
  reversible: smallSpec({ ...base, layout: 'reversible' }),
  'both streams, biases by distance': smallSpec({
    ...base,
    ...{ layout: { kind: 'reversible', merge: 'concat' }, positions: 't5-bias' },
  }),
  'reversible and recurrent': smallSpec({ ...base, layout: 'reversible', ffn: sru }),
  'recurrent, hardly any attention': smallSpec({
    ...base,
    ...{ ffn: sru, attention: { kind: 'full', heads: 4, window: 1 }, positions: 'none' },
  }),
};

const argmax = (x: Float32Array): number => x.reduce((best, v, k) => (v > x[best] ? k : best), 0);
const greedy = { pick: (logits: Float32Array) => ({ token: argmax(logits), logprob: 0 }) };
const text = (n: number, seed: number): number[] =>
  Array.from({ length: n }, (_, k) => (k * k * seed + 5 * k + seed) % vocab);

for (const [name, spec] of Object.entries(specs))
  describe(name, () => {
    const model = buildModel(spec);
    const params = initialise(model, device, 3);
    model.prepare(device);
    const whole = (tokens: readonly number[]): number =>
      scope(() =>
        noGrad(() => {
          const c = forwardContext({ device, compute: 'f32' });
          const inputs = Tensor.from(device, [...tokens], [1, tokens.length], 'i32');
          const h = model.hidden(params, { inputs, segments: null, positions: null }, c);
          return argmax((model.logits(params, h, c).dataSync() as Float32Array).slice(-vocab));
        }),
      );
    const prompts = [text(1, 3), text(40, 7), text(75, 2)];
    const expected = prompts.map((prompt) => {
      const tokens = [...prompt];
      for (let k = 0; k < 10; k++) tokens.push(whole(tokens));
      return tokens.slice(prompt.length);
    });

    for (const recompute of [false, true])
      test(recompute ? 'anew for every token' : 'by rows, several texts at a time', async () => {
        // Few rows a pass: prompts are read in parts.
        const decoding = openDecoding(device, model, params, { compute: 'f32', sequences: 3, rows: 32, recompute });
        assert.equal(decoding.recomputes === null, !recompute, `${decoding.recomputes}`);
        const got = prompts.map((): number[] => []);
        await Promise.all(
          prompts.map((prompt, k) =>
            decoding.submit({ prompt, maxTokens: 10, picker: greedy, onToken: (p) => void got[k].push(p.token) }),
          ),
        );
        await decoding.close();
        assert.deepEqual(got, expected);
      });
  });
