// Windows with periodic global layers: what a token sees, what kernels leave out, and what is learned through them.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { attention, gradients, mul, scope, sum, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { cpu, distance, drawTokens, logitsOf } from '../support/logits.ts';
import { checkCausality } from '../support/slot-layer.ts';
import { smallSpec } from '../support/small-models.ts';
import { copying, learn } from '../support/toy-task.ts';

const windowed = (o: Record<string, unknown>) => ({ kind: 'window', heads: 2, ...o });
const spec = (o: Record<string, unknown>, depth: number, more = {}) =>
  smallSpec({ depth, context: 32, attention: windowed(o), ...more });

describe('what a token sees', () => {
  for (const [name, s] of Object.entries({
    'windows only': spec({ window: 3, period: 0 }, 2),
    'every second layer global': spec({ window: 2, period: 2, globalTheta: 1e6 }, 2),
    'grouped heads, t5 biases': spec({ heads: 4, kvHeads: 2, headWidth: 4, window: 3 }, 2, { positions: 't5-bias' }),
  }))
    test(`nothing ahead of it, nothing of another document: ${name}`, () => checkCausality(cpu, s));

  /** Distances at which a token moves logits. */
  function reach(s: ReturnType<typeof spec>): number[] {
    const length = 24;
    const tokens = drawTokens('reach', length);
    const moved = tokens.slice();
    moved[2] = (moved[2] + 1) % 11;
    const [a, b] = [logitsOf(s, tokens), logitsOf(s, moved)];
    return a.flatMap((row, t) => (row.some((x, v) => x !== b[t][v]) ? [t - 2] : []));
  }
  const upTo = (n: number): number[] => Array.from({ length: n }, (_, k) => k);

  test('exactly w tokens in one local layer, L (w - 1) + 1 in L', () => {
    assert.deepEqual(reach(spec({ window: 5, period: 0 }, 1)), upTo(5));
    assert.deepEqual(reach(spec({ window: 1, period: 0 }, 1)), [0]);
    assert.deepEqual(reach(spec({ window: 4, period: 0 }, 3)), upTo(3 * 3 + 1));
  });
  test('everything once a layer is global', () => {
    assert.deepEqual(reach(spec({ window: 2, period: 3 }, 3)), upTo(22));
    assert.deepEqual(reach(spec({ window: 2 }, 2)), upTo(22));
  });
});

describe('against full attention with the same weights', () => {
  const tokens = drawTokens('same', 20);
  const full = (more = {}) => smallSpec({ depth: 3, context: 32, ...more });
  test('a window as long as the sequence changes nothing', () => {
    for (const window of [20, 1024]) assert.deepEqual(logitsOf(spec({ window }, 3), tokens), logitsOf(full(), tokens));
    assert.ok(distance(logitsOf(spec({ window: 19, period: 0 }, 3), tokens), logitsOf(full(), tokens)) > 0);
  });
  test('global layers turn by their own base, local ones by the base of the model', () => {
    const slow = full({ positions: { kind: 'rope', theta: 1e6 } });
    assert.deepEqual(logitsOf(spec({ period: 1, globalTheta: 1e6 }, 3), tokens), logitsOf(slow, tokens));
    assert.deepEqual(logitsOf(spec({ period: 0, globalTheta: 1e6 }, 3), tokens), logitsOf(full(), tokens));
    const mixed = logitsOf(spec({ period: 3, globalTheta: 1e6 }, 3), tokens);
    for (const other of [full(), slow]) assert.ok(distance(mixed, logitsOf(other, tokens)) > 1e-4);
  });
  test('in an encoder the window opens to both sides', () => {
    const layout = { kind: 'encoder-decoder', encoderAttention: windowed({ window: 3 }) };
    assert.doesNotThrow(() => logitsOf(spec({ window: 3 }, 2, { layout }), tokens));
  });
});

test('kernels do not touch what lies outside of all windows, forward or backward', () => {
  const [t, w, d, block] = [704, 40, 16, 64];
  const rng = new Rng('poison');
  const from = t - block - w; // the last block of queries sees no key before this one
  const poisoned = Math.floor(from / block) * block;
  for (const dtype of ['f32', 'bf16'] as const)
    scope(() => {
      const make = () => {
        const values = Float64Array.from({ length: t * d }, (_, k) => (k < poisoned * d ? Number.NaN : rng.normal()));
        const x = Tensor.from(cpu, values, [1, t, 1, d], dtype);
        x.requiresGrad = true;
        return x;
      };
      const [q, k, v] = [make(), make(), make()];
      const out = attention(q, k, v, { causal: true, window: w });
      const last = (x: Tensor): number[] => Array.from(x.dataSync()).slice(-block * d);
      assert.ok(last(out).every(Number.isFinite), `${dtype}: out`);
      for (const g of gradients(sum(mul(out, out)), [q, k, v]))
        assert.ok(last(g).every(Number.isFinite), `${dtype}: a gradient`);
    });
});

describe('copying from further back than a window', () => {
  const losses = async (period: number): Promise<number> => {
    const attention = { kind: 'window', heads: 4, window: 6, period };
    const task = { ...copying(15), spec: { width: 64, vocab: 9, attention, ffn: { kind: 'mlp', hidden: 96 } } };
    return (await learn(cpu, { ...task, steps: 350, precision: 'bf16' })).last;
  };
  test('is learned through a global layer', async () => {
    const last = await losses(2);
    assert.ok(last < 0.1, `loss ${last}`);
  });
  test('is not learned with windows alone', async () => {
    const last = await losses(0);
    assert.ok(last > 1.8, `loss ${last}: guessing among 8 letters costs ${Math.log(8)}`);
  });
});
