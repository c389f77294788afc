// No token's output depends on later ones, to the bit; what would is refused in decoders, and shown to leak here.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { forwardContext, initialise } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { moeLayer, normals, outputOf } from '../support/moe-layer.ts';
import { largest, sameInParts, textOf, whole } from '../support/row-decoding.ts';
import { perturbedParams, smallSpec } from '../support/small-models.ts';

const device = new CpuDevice();
const d = 24;
const glu = { kind: 'glu', hidden: 20 };
const dropless = { kind: 'moe', experts: 8, active: 2, expert: glu };
const capacity = (o: object) => ({ kind: 'capacity', convention: 'tokens', minimum: 1, ...o });

/** Whether a change of the last token's input changes what earlier tokens get. */
function leaks(ffn: Record<string, unknown>, causal: boolean, compute: 'f32' | 'bf16' = 'f32'): boolean {
  const T = 24;
  for (let trial = 0; trial < 12; trial++) {
    const layer = moeLayer(device, ffn, { width: d, causal, seed: `leak ${trial}` });
    const x = normals(`x ${trial}`, T * d);
    const other = Float64Array.from(x, (v, k) => (k >= (T - 1) * d ? -2 * v : v));
    const changes = { compute, activation: compute };
    const [a, b] = [x, other].map((v) => outputOf(layer, device, v, [1, T], changes).slice(0, T - 1));
    if (JSON.stringify(a) !== JSON.stringify(b)) return true;
  }
  return false;
}

describe('causality of the layer, to the bit', () => {
  const tight = { evalFactor: 1, allowLeaks: true };
  const causal: [string, Record<string, unknown>][] = [
    ['dropless, 2 of 8', dropless],
    ['dropless, 1 of 8', { ...dropless, active: 1 }],
    ['dropless, sigmoid gates and groups', { ...dropless, gate: 'sigmoid', groups: 4, keepGroups: 2 }],
    ['Switch', { ...dropless, active: 1, routing: capacity(tight) }],
    [
      'Switch in sequences',
      { ...dropless, active: 1, routing: capacity({ ...tight, scope: 'sequence', order: 'choice' }) },
    ],
    ['two choices, filled token by token', { ...dropless, routing: capacity({ ...tight, convention: 'assignments' }) }],
  ];
  for (const [name, ffn] of causal)
    test(name, () => {
      for (const compute of ['f32', 'bf16'] as const) assert.equal(leaks(ffn, true, compute), false);
    });

  // What is refused in decoders is refused for a reason.
  const leaky: [string, Record<string, unknown>, boolean][] = [
    [
      'second choices last',
      { ...dropless, routing: capacity({ ...tight, order: 'choice', convention: 'assignments' }) },
      true,
    ],
    ['priority', { ...dropless, active: 1, routing: capacity({ ...tight, order: 'priority' }) }, true],
    ['expert choice', { kind: 'moe', experts: 8, expert: glu, routing: 'expert-choice' }, false],
  ];
  for (const [name, ffn, inDecoder] of leaky) test(`leaks: ${name}`, () => assert.equal(leaks(ffn, inDecoder), true));

  test('Switch: earlier rows of a batch take places from later ones, never the other way; sequences do not meet', () => {
    const T = 24;
    const x = normals('rows', 2 * T * d);
    const changed = (row: number) => Float64Array.from(x, (v, k) => (Math.floor(k / (T * d)) === row ? -v : v));
    const rowsAfter = (scope: string, row: number) => {
      const routing = capacity({ ...tight, scope, evalFactor: 0.5 });
      const layer = moeLayer(device, { ...dropless, active: 1, routing }, { width: d });
      const [a, b] = [x, changed(row)].map((v) => outputOf(layer, device, v, [2, T]));
      const other = 1 - row;
      return (
        JSON.stringify(a.slice(other * T, (other + 1) * T)) === JSON.stringify(b.slice(other * T, (other + 1) * T))
      );
    };
    assert.deepEqual([rowsAfter('batch', 1), rowsAfter('batch', 0)], [true, false]);
    assert.deepEqual([rowsAfter('sequence', 1), rowsAfter('sequence', 0)], [true, true]);
  });
});

test('decoding by rows drops nothing: an answer does not depend on who else is being served', async () => {
  const vocab = 61;
  const decoder = (routing: object | string) => {
    const ffn = { kind: 'moe', experts: 8, active: 2, expert: glu, routing, routerStd: 2 };
    const attention = { kind: 'full', heads: 4, kvHeads: 2 };
    const model = buildModel({
      ...{ vocab, context: 128, width: 32, depth: 2, embeddingStd: 0.5, tied: false, attention, ffn },
    } as ModelSpecInput);
    return { model, params: initialise(model, device, 3) };
  };
  const texts = [90, 100].map((n, k) => ({ tokens: textOf(n, 3 + 4 * k, vocab) }));
  for (const scope of ['batch', 'sequence']) {
    const { model, params } = decoder(capacity({ evalFactor: 1, scope }));
    const rows = await sameInParts(device, model, params, texts);
    // What a dropless mixture of the same weights gives, and what evaluation with its drops does not.
    const free = decoder('dropless');
    assert.ok(largest(rows[1], whole(device, free.model, free.params, texts[1])) < 1e-4);
    assert.ok(largest(rows[1], whole(device, model, params, texts[1])) > 0.1);
  }
});

describe('causality of decoders, to the bit', () => {
  const logitsOf = (spec: ModelSpecInput, tokens: readonly number[], compute: 'f32' | 'bf16'): number[][] =>
    scope(() =>
      noGrad(() => {
        const model = buildModel(spec);
        const params = perturbedParams(model, device);
        const c = forwardContext({ device, compute });
        const inputs = Tensor.from(device, tokens, [1, tokens.length], 'i32');
        const flat = model.logits(params, model.hidden(params, { inputs, segments: null, positions: null }, c), c);
        const values = Array.from(flat.dataSync());
        return tokens.map((_, t) =>
          values.slice((t * values.length) / tokens.length, ((t + 1) * values.length) / tokens.length),
        );
      }),
    );

  for (const [name, ffn] of Object.entries({
    dropless: { kind: 'moe', experts: 6, active: 2, expert: { kind: 'glu', hidden: 8 } },
    'bias, sigmoid, shared': {
      ...{ kind: 'moe', experts: 6, active: 3, gate: 'sigmoid', biasRate: 0.01, shared: 1 },
      expert: { kind: 'mlp', hidden: 8 },
    },
    Switch: { kind: 'moe', experts: 4, routing: capacity({ evalFactor: 1 }), expert: { kind: 'mlp', hidden: 8 } },
  }))
    test(name, () => {
      const tokens = Array.from({ length: 14 }, (_, t) => (5 * t + 3) % 11);
      for (const compute of ['f32', 'bf16'] as const) {
        const base = logitsOf(smallSpec({ ffn }), tokens, compute);
        for (const at of [0, 5, 13]) {
          const other = logitsOf(smallSpec({ ffn }), tokens.with(at, (tokens[at] + 4) % 11), compute);
          assert.deepEqual(other.slice(0, at), base.slice(0, at));
          assert.notDeepEqual(other[at], base[at]);
        }
      }
    });
});
