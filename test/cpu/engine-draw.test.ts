/** Tokens drawn where the logits lie: the same as pickers pick from the logits, alone, in a crowd, and with drafts. */
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { Engine, Passes, type Picker } from '../../src/infer/engine/index.ts';
import { Sampler, type SamplerOptions } from '../../src/infer/sampling/index.ts';
import { PromptLookup } from '../../src/infer/speculation/prompt-lookup.ts';
import { buildModel } from '../../src/model/model.ts';
import { disposeTree, initialise } from '../../src/nn/index.ts';

const VOCAB = 700;
const device = new CpuDevice();
const model = buildModel({
  ...{ vocab: VOCAB, context: 96, width: 32, depth: 1, embeddingStd: 0.5 },
  attention: { kind: 'full', heads: 2 },
  ffn: { kind: 'glu', hidden: 64 },
});
const params = initialise(model, device, 3);
after(() => disposeTree(params));

/** The same picker, which wants to see the logits. */
const looking = (s: Sampler): Picker => ({ pick: (logits) => s.pick(logits) });
const prompts = [[5], [1, 2, 3, 1, 2, 3, 1, 2], [40, 41], [600]];

async function texts(picker: (k: number) => Picker, lookup = false): Promise<number[][]> {
  const sizes = { page: 32, pages: 16, maxPages: 3, sequences: 4 };
  const passes = new Passes(device, model, params, { compute: 'f32', format: 'f32', ...sizes });
  const options = { ...sizes, vocab: VOCAB, context: 96, drafts: lookup ? 4 : 0 };
  const engine = new Engine({ passes, ...options });
  const made: number[][] = prompts.map(() => []);
  await Promise.all(
    prompts.map((prompt, k) =>
      engine.submit({
        ...{ prompt, maxTokens: 60, picker: picker(k), drafter: lookup ? new PromptLookup() : null },
        onToken: ({ token }) => {
          made[k].push(token);
          return undefined;
        },
      }),
    ),
  );
  await engine.close();
  passes.dispose();
  return made;
}

describe('drawn tokens are those that would be picked', () => {
  const cases: Record<string, SamplerOptions> = {
    greedy: { temperature: 0 },
    'temperature 1': { seed: 7 },
    'a low temperature': { seed: 8, temperature: 0.3 },
    'some are never drawn': { seed: 9, never: [0, 1, 2, 3, 250, 251, 699] },
    'greedy, the likeliest is never drawn': { temperature: 0, never: Array.from({ length: 350 }, (_, k) => k) },
  };
  for (const [name, options] of Object.entries(cases))
    test(name, async () => {
      const sampler = (k: number): Sampler => new Sampler({ ...options, seed: (options.seed ?? 0) + k });
      assert.ok(sampler(0).ask(0), 'asks for tokens to be drawn');
      const picked = await texts((k) => looking(sampler(k)));
      assert.deepEqual(await texts(sampler), picked);
      assert.deepEqual(await texts(sampler, true), picked, 'with drafts');
      for (const text of picked) for (const token of text) assert.ok(!options.never?.includes(token));
    });
  test('what needs the logits asks for them', () => {
    for (const o of [
      { topK: 5 },
      { topP: 0.9 },
      { logprobs: 2 },
      { presencePenalty: 1 },
      { logitBias: new Map([[1, 2]]) },
    ])
      assert.equal(new Sampler(o).ask(0), null);
    const scattered = Array.from({ length: 20 }, (_, k) => 2 * k);
    assert.equal(new Sampler({ never: scattered }).ask(0), null);
  });
});
