// muP's coordinate check for kinds of parts beyond the dense decoder's, and what it says when one of them has a wrong role.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { z } from 'zod';
import { registerParametrisation } from '../../src/nn/index.ts';
import { parseTrainConfig, type TrainConfig } from '../../src/train/config.ts';
import { coordinates, defaultBand, judge, sharedSize } from '../../src/train/coordinates.ts';
import { atWidth } from '../../src/train/resize.ts';
import { mup } from '../../src/tricks/mup/index.ts';

const BASE = 64;
const rules = { baseWidth: BASE, alpha: 1, embedding: 1, output: 1, attention: 1, zeroOutput: true };
const config = (model: object): TrainConfig =>
  parseTrainConfig({
    model: {
      ...{ vocab: 256, context: 48, width: BASE, depth: 2, tied: false, norm: { kind: 'rms', scale: false } },
      attention: { kind: 'full', heads: 2 },
      ffn: { kind: 'glu', hidden: 160 },
      parametrisation: { kind: 'mup', baseWidth: BASE, zeroOutput: true },
      ...model,
    },
    ...{ data: { folder: 'not read' }, batch: 4, steps: 8, precision: 'f32' },
    ...{ optimiser: { kind: 'adamw', lr: 3e-3, eps: 1e-12 }, schedule: { kind: 'constant' } },
  });

async function failures(model: object, widths: readonly number[]): Promise<string[]> {
  const sizes = widths.map((size) => ({ size, config: atWidth(config(model), size) }));
  const all = judge(await coordinates({ sizes, seeds: 3, steps: 4 }), defaultBand);
  assert.ok(all.some((v) => v.name.includes('residual')));
  const slopes = (v: (typeof all)[number]) => [v.level, v.change, ...(v.shared === undefined ? [] : [v.shared])];
  return all.filter((v) => !v.ok).map((v) => `${v.name} ${slopes(v).map((x) => x.toFixed(2))}`);
}

const kinds: Record<string, object> = {
  'sparse-ffn': { ffn: { kind: 'sparse-ffn', hidden: 256, block: 8 } },
  'sparse-qkv': { attention: { kind: 'sparse-qkv', heads: 2, modules: 4 } },
  'relu-l1': { ffn: { kind: 'relu-l1', hidden: 160 } },
  'topk-ffn': { ffn: { kind: 'topk-ffn', hidden: 160 } },
  'window-attention': { attention: { kind: 'window', heads: 2, window: 9, period: 2 } },
  'lsh-attention': { attention: { kind: 'lsh', heads: 2, chunk: 48 } },
  'block-sparse-attention': {
    attention: { kind: 'block-sparse', heads: 2, length: 4, stride: 2, size: 8, blocks: 6, window: 8 },
  },
  reversible: { layout: 'reversible' },
};

/**
 * Wider, and with every token among the targets. Convolutions and the modules of a factored head put more of a random part
 * beside what is learned, and rows of the head that no target asks for all move along the mean of the batch, which a width
 * below the number of tokens overstates: at 256 tokens of vocabulary both fade between widths 256 and 2048 only.
 */
const WIDE = [128, 256, 512];
const wideKinds: Record<string, object> = {
  'factored head': { head: { kind: 'factored', modules: 4 } },
  'gated-conv': { attention: { kind: 'gated-conv', period: 0 } },
  'gated-conv and attention': { attention: { kind: 'gated-conv', heads: 2, period: 2 } },
  // With gains drawn from N(0, 1), as published, products have such tails that after two steps one channel of 4096 has 95% of
  // a token's sum of squares, and no mean over channels settles (see the kind's README).
  hyena: { attention: { kind: 'hyena', skip: 1 }, positions: 'none' },
  'sru-ffn': { ffn: { kind: 'sru-ffn', inner: { kind: 'glu', hidden: 160 }, units: 16 } },
};

describe('activations stay the same size at any width', () => {
  for (const [name, model] of Object.entries(kinds))
    test(name, async () => assert.deepEqual(await failures(model, [64, 128, 256]), []));
  for (const [name, model] of Object.entries(wideKinds))
    test(name, async () => assert.deepEqual(await failures({ vocab: 64, ...model }, WIDE), []));
});

describe('a wrong role is noticed', () => {
  registerParametrisation({
    kind: 'wrong-role',
    summary: 'muP with one parameter in another role',
    options: z.strictObject({ name: z.string(), role: z.string(), still: z.string().optional() }),
    build: ({ name, role, still }, sizes) => {
      const right = mup(rules, sizes);
      return {
        ...right,
        param: ({ path, spec }) => {
          if (still && new RegExp(still).test(path)) return { ...right.param({ path, spec }), lrMult: 0 };
          const changed = path.endsWith(name) ? { ...spec, role, logits: false, fans: undefined } : spec;
          return right.param({ path, spec: changed });
        },
      };
    },
  });
  // Kind, parameter, its wrong role, the activation that tells; parameters that stand still, for their steps would cover it.
  const cases: [string, string, string, string, string?][] = [
    ['factored head', 'head.kernel', 'hidden', 'logits'],
    ['gated-conv', 'attention.in', 'embedding', 'residual'],
    ['hyena', 'attention.filterOut', 'hidden', 'attention.filter', '\\.(filter\\d|filterBias\\d|frequency)$'],
    ['hyena', 'attention.out', 'vector', 'residual'],
    ['sru-ffn', 'ffn.down', 'hidden', 'residual'],
  ];
  for (const [kind, name, role, where, still] of cases)
    test(`${kind}: ${name} as ${role}`, async () => {
      const model = { vocab: 64, ...wideKinds[kind], parametrisation: { kind: 'wrong-role', name, role, still } };
      const bad = await failures(model, WIDE);
      assert.ok(
        bad.some((b) => b.includes(where)),
        `only ${bad.join('; ') || 'nothing'}`,
      );
    });
});

test('what seeds share', () => {
  const seeds = [
    [1, 2, 2],
    [1, 2, -1],
  ].map((x) => Float32Array.from(x));
  assert.equal(sharedSize(seeds), 1);
  assert.equal(sharedSize([...seeds, new Float32Array(3)]), Math.sqrt(1 / 3));
  assert.equal(sharedSize([Float32Array.of(1), Float32Array.of(-1)]), 0);
  assert.ok(Number.isNaN(sharedSize(seeds.slice(1))));
});
