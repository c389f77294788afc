/** Weights in blocks: a request's text and probabilities are the same to the bit alone, in a crowd, and in pieces. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { openDecoding } from '../../src/infer/decoding.ts';
import type { Pick } from '../../src/infer/engine/index.ts';
import { Sampler } from '../../src/infer/sampling/index.ts';
import { buildModel } from '../../src/model/model.ts';
import { disposeTree, initialise } from '../../src/nn/index.ts';
import { type BlockType, blockTypes } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';

const VOCAB = 61;
const device = new CpuDevice();
const base = {
  vocab: VOCAB,
  context: 192,
  width: 40,
  depth: 2,
  attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 10 },
  ffn: { kind: 'glu', hidden: 72 },
  embeddingStd: 0.5,
};
const specs = {
  dense: base,
  'normalised queries and keys': {
    ...base,
    attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 10, qkNorm: 1e-6 },
  },
  moe: { ...base, ffn: { kind: 'moe', experts: 8, active: 2, expert: { kind: 'glu', hidden: 32 } } },
  'sparse-ffn': { ...base, ffn: { kind: 'sparse-ffn', hidden: 64, block: 8, bias: true } },
  'sparse-ffn, units times their probability': {
    ...base,
    ffn: { kind: 'sparse-ffn', hidden: 160, block: 10, rank: 20, multiply: true },
  },
  'sparse experts': {
    ...base,
    ffn: { kind: 'moe', experts: 8, active: 2, expert: { kind: 'sparse-ffn', hidden: 32, block: 8 } },
  },
  'sparse-qkv, factored head': {
    ...base,
    attention: { kind: 'sparse-qkv', heads: 4, modules: 4 },
    tied: false,
    head: { kind: 'factored', modules: 4 },
  },
};
const text = (n: number, seed: number): number[] =>
  Array.from({ length: n }, (_, k) => (k * k * seed + 5 * k + seed) % VOCAB);

for (const [name, spec] of Object.entries(specs))
  describe(name, () => {
    for (const weights of blockTypes)
      test(weights, async () => {
        const model = buildModel(spec);
        const params = initialise(model, device, 2);
        const compute = weights === 'f32x16' ? 'f32' : 'bf16';
        const open = (rows: number) => openDecoding(device, model, params, { compute, weights, rows, sequences: 8 });
        const ask = async (d: ReturnType<typeof open>, prompt: number[], seed: number): Promise<Pick[]> => {
          const picks: Pick[] = [];
          const picker = new Sampler({ seed, temperature: 1, logprobs: 3 });
          await d.submit({ prompt, maxTokens: 20, picker, onToken: (p) => void picks.push(p) });
          return picks;
        };
        const prompts = [text(50, 3), text(7, 5), text(91, 7), text(33, 11), text(64, 2), text(1, 9)];
        const quiet = open(512);
        const alone: Pick[][] = [];
        for (const [k, p] of prompts.entries()) alone.push(await ask(quiet, p, k));
        await quiet.close();
        for (const rows of [512, 24]) {
          const crowd = open(rows);
          const together = await Promise.all(prompts.map((p, k) => ask(crowd, p, k)));
          assert.deepEqual(together, alone, `steps of up to ${rows} rows`);
          await crowd.close();
        }
        assert.ok(alone.every((picks) => picks.length === 20));
        disposeTree(params);
      });

    test('the same logits as with plain weights, within what the bits allow', async () => {
      const model = buildModel(spec);
      const params = initialise(model, device, 2);
      const prompt = text(40, 3);
      const logits = async (weights: BlockType | 'plain'): Promise<Float32Array[]> => {
        const d = openDecoding(device, model, params, { compute: 'f32', weights });
        const rows: Float32Array[] = [];
        const request = { prompt, maxTokens: 0, picker: new Sampler(), onToken: () => true };
        await d.submit({ ...request, scorePrompt: (_, place, x) => void (rows[place] = x) });
        await d.close();
        return rows.slice(1);
      };
      const exact = await logits('plain');
      const top = Math.max(...exact.flatMap((r) => [...r].map(Math.abs)));
      // A choice among units or experts may fall the other way: then a row differs as a whole.
      const chooses = /sparse|moe/.test(name) && !/qkv/.test(name);
      for (const [weights, allowed] of [
        ['f32x16', 1e-5],
        ['q8', 0.04],
        ['q4', 0.4],
      ] as const) {
        const errors = (await logits(weights)).map(
          (r, t) => Math.max(...r.map((x, v) => Math.abs(x - exact[t][v]))) / top,
        );
        const sorted = errors.sort((a, b) => a - b);
        const worst = sorted[chooses && weights !== 'f32x16' ? sorted.length >> 1 : sorted.length - 1];
        assert.ok(worst < allowed, `${weights}: ${worst} of the largest logit`);
      }
      disposeTree(params);
    });
  });
