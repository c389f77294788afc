// Which layers are global, what decoding keeps, what is counted.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { buildModel } from '../../src/model/model.ts';
import { countParams } from '../../src/nn/index.ts';
import { visiblePairs } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { applyPatch, trick } from '../../src/tricks/index.ts';
import { isGlobal, kvBytes, windowPairs } from '../../src/tricks/window-attention/index.ts';
import { configOf, decoderFacts, smallSpec } from '../support/small-models.ts';

describe('the pattern', () => {
  const globals = (depth: number, period: number): number[] =>
    Array.from({ length: depth }, (_, k) => k).filter((k) => isGlobal(k, depth, period));

  test('five local layers, then a global one', () => {
    assert.deepEqual(globals(13, 6), [5, 11]);
    assert.deepEqual(globals(4, 2), [1, 3]);
    assert.deepEqual(globals(3, 1), [0, 1, 2]);
    assert.deepEqual(globals(4, 0), []);
  });
  test('a model of fewer layers than a period has its last one global', () => {
    assert.deepEqual(globals(4, 6), [3]);
  });
});

describe('keys and values', () => {
  test('[a min(L,w) + g L] / [(a + g) L] of full attention', () => {
    // Gemma 3 27B: 62 layers of 16 key heads of 128, of which 10 are global.
    const gemma = { depth: 62, period: 6, window: 1024, kvHeads: 16, headWidth: 128 };
    const at = kvBytes({ ...gemma, tokens: 32768 });
    assert.equal(at.full, 62 * 32768 * 2 * 16 * 128 * 2);
    assert.equal(at.bytes, (52 * 1024 + 10 * 32768) * 2 * 16 * 128 * 2);
    assert.equal(kvBytes({ ...gemma, depth: 6, tokens: 32768 }).share, (5 * 1024 + 32768) / (6 * 32768));
    assert.equal(kvBytes({ ...gemma, tokens: 1024 }).share, 1);
    assert.equal(kvBytes({ ...gemma, tokens: 10, bytes: 1 }).bytes, ((at.full / 32768) * 10) / 2);
  });
});

describe('costs', () => {
  test('pairs are those of the mask', () => {
    for (const [t, w] of [
      [1, 1],
      [9, 4],
      [9, 9],
      [9, 30],
      [200, 17],
    ])
      assert.equal(windowPairs(t, w), visiblePairs(t, t, true, w));
  });

  test('attention FLOPs: windows in local layers, everything in global ones; weights as full attention', () => {
    const length = 14;
    const attention = { kind: 'window', heads: 4, kvHeads: 2, headWidth: 4, window: 5, period: 3 };
    const spec = smallSpec({ depth: 7, attention });
    const full = smallSpec({ depth: 7, attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 4 } });
    const facts = decoderFacts(parseTrainConfig(configOf(full)).model, length);
    const of = (model: typeof spec) => accountFor(parseTrainConfig(configOf(model, { length, batch: 3 })));
    const [windowed, whole] = [of(spec), of(full)];
    assert.equal(windowed.parameters, facts.parameters);
    const pairs = 5 * windowPairs(length, 5) + 2 * windowPairs(length, length);
    const perToken = (n: number): number => (4 * 16 * n) / length;
    const saved = whole.forwardFlopsPerToken - windowed.forwardFlopsPerToken;
    assert.ok(Math.abs(saved - (facts.attentionFlops - perToken(pairs))) < 1e-9 * whole.forwardFlopsPerToken);
  });

  test('as a patch', () => {
    const base = configOf(smallSpec({ context: 64 }));
    const patch = trick('window-attention').patch!({ width: 12, depth: 2, context: 64, heads: 2, hidden: 10 });
    const config = parseTrainConfig(applyPatch(base, patch));
    assert.deepEqual(config.model.attention, {
      ...{ kind: 'window', heads: 2, window: 16, period: 6, bias: false, dropout: 0 },
    });
    assert.equal(countParams(buildModel(config.model)), countParams(buildModel(smallSpec())));
  });
});

test('another base wants rotary positions', () => {
  const attention = { kind: 'window', heads: 2, globalTheta: 1e6 };
  assert.throws(() => buildModel(smallSpec({ attention, positions: 'alibi' })), /globalTheta wants rotary positions/);
  assert.throws(() => buildModel(smallSpec({ attention: { kind: 'window', heads: 2, window: 0 } })), /window/);
  buildModel(smallSpec({ attention, positions: { kind: 'rope-scaled', factor: 2, trained: 8 } }));
});
