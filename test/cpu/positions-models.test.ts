// Decoders with every encoding of positions: causal, exact in pieces and blocks, the same on the reference device,
// accounted for in closed form.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { parseSpec } from '../../src/model/spec.ts';
import { buildParametrisation, buildSlot, forwardContext } from '../../src/nn/index.ts';
import { slotSchema } from '../../src/nn/slots.ts';
import { scope, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { extendContext } from '../../src/tricks/position-interpolation/index.ts';
import { withBlocks } from '../../src/tricks/xpos/index.ts';
import { cpu, distance, drawTokens, logitsOf } from '../support/logits.ts';
import { configOf, decoderFacts, type SpecChanges, smallSpec, stepOn } from '../support/small-models.ts';

const T = 14;
const kinds: Record<string, SpecChanges> = {
  xpos: { positions: { kind: 'xpos', scaleBase: 8 } },
  'xpos, interleaved': { positions: { kind: 'xpos', interleaved: true } },
  // With a scale this small a context of 16 goes in pieces of 7.
  'xpos in pieces': { positions: { kind: 'xpos', scaleBase: 0.2 } },
  alibi: { positions: 'alibi' },
  'alibi on half of the heads': { positions: { kind: 'alibi', share: 0.5 } },
  't5-bias': { positions: { kind: 't5-bias', buckets: 8, maxDistance: 10 } },
  'rope-scaled': { positions: { kind: 'rope-scaled', factor: 2, trained: 8 } },
};
const attentions = [
  { kind: 'full', heads: 2 },
  { kind: 'full', heads: 6, kvHeads: 2 },
  { kind: 'full', heads: 2, kvHeads: 1, window: 4 },
  { kind: 'blockwise', heads: 2, block: 4 },
];

describe('causality', () => {
  for (const [name, changes] of Object.entries(kinds))
    test(`${name}: a token changes no logits before it`, () => {
      for (const attention of attentions)
        for (const compute of ['f32', 'bf16'] as const) {
          const spec = smallSpec({ ...changes, attention });
          const tokens = drawTokens('causal', T);
          const base = logitsOf(spec, tokens, { compute });
          for (const at of [0, 1, 6, T - 1]) {
            const other = logitsOf(spec, tokens.with(at, (tokens[at] + 5) % 11), { compute });
            assert.deepEqual(other.slice(0, at), base.slice(0, at), `token ${at}`);
            assert.notDeepEqual(other[at], base[at], `token ${at} has no effect`);
          }
        }
    });
});

describe('documents in one row', () => {
  const border = 5;
  const segments = Array.from({ length: T }, (_, t) => (t < border ? 1 : 2));
  const positions = Array.from({ length: T }, (_, t) => (t < border ? t : t - border));
  for (const [name, changes] of Object.entries(kinds))
    test(`${name}: do not see each other, and are what they are alone`, () => {
      // Blocks of a row are not blocks of a document: blockwise attention is another function there.
      for (const attention of attentions.filter((a) => a.kind === 'full')) {
        const spec = smallSpec({ ...changes, attention });
        const tokens = drawTokens('segments', T);
        const base = logitsOf(spec, tokens, { segments, positions });
        const alone = [...logitsOf(spec, tokens.slice(0, border)), ...logitsOf(spec, tokens.slice(border))];
        assert.ok(distance(base, alone) < 1e-5);
      }
    });
});

describe('the same function another way', () => {
  test('gradients on the CPU are those of the reference device', async () => {
    for (const [name, changes] of Object.entries(kinds))
      for (const attention of attentions) {
        const [a, b] = [cpu, new RefDevice()].map((device) => {
          const step = stepOn(device, smallSpec({ ...changes, attention }), { batch: 2, length: T, segmented: true });
          return step.run().grads.map((g) => Array.from(g.dataSync()));
        });
        a.forEach((grad, k) => {
          const most = Math.max(...b[k].map(Math.abs));
          const off = Math.max(...grad.map((x, j) => Math.abs(x - b[k][j])));
          assert.ok(off <= 2e-5 * most + 1e-9, `${name}, ${attention.kind}: gradient ${k} is off by ${off} of ${most}`);
        });
      }
  });

  test('xpos in pieces is xpos at once', () => {
    // Up to 63 tokens are turned at once, more in pieces of 31.
    const spec = (context: number) => smallSpec({ context, positions: { kind: 'xpos', scaleBase: 1 } });
    const tokens = drawTokens('pieces', 60);
    assert.ok(distance(logitsOf(spec(300), tokens), logitsOf(spec(60), tokens)) < 1e-5);
  });

  test('blockwise attention is full attention up to two blocks, whatever turns the heads', () => {
    for (const changes of [kinds.xpos, kinds.alibi, { positions: 'rope' }, kinds['t5-bias']]) {
      const full = parseSpec(smallSpec({ ...changes, attention: { kind: 'full', heads: 2 } }));
      for (const n of [3, 7, 8, 14])
        assert.ok(
          distance(logitsOf(withBlocks(full, 7), drawTokens('n', n)), logitsOf(full, drawTokens('n', n))) < 1e-5,
        );
    }
  });

  test('blockwise attention: a prefix has the logits it has in the whole, and blocks reach as far as they should', () => {
    const block = 4;
    for (const positions of ['rope', { kind: 'xpos', scaleBase: 8 }, 'alibi']) {
      const spec = smallSpec({ depth: 1, context: 32, positions, attention: { kind: 'blockwise', heads: 2, block } });
      const tokens = drawTokens('blocks', 27);
      const whole = logitsOf(spec, tokens);
      for (const n of [1, 4, 5, 8, 9, 13, 26])
        assert.ok(distance(logitsOf(spec, tokens.slice(0, n)), whole.slice(0, n)) < 1e-5, `${n} tokens`);
      for (const from of [0, 6, 11]) {
        const other = logitsOf(spec, tokens.with(from, (tokens[from] + 5) % 11));
        whole.forEach((row, t) => {
          const sees = t >= from && Math.floor(from / block) >= Math.floor(t / block) - 1;
          assert.equal(JSON.stringify(other[t]) !== JSON.stringify(row), sees, `token ${t} and ${from}`);
        });
      }
    }
  });

  test('at the trained length scaling changes nothing, past it everything', () => {
    const trained = parseSpec(smallSpec());
    for (const method of ['linear', 'ntk', 'yarn'] as const) {
      const tokens = drawTokens('scaled', 16);
      const same = extendContext(trained, 16, method);
      assert.ok(distance(logitsOf(same, tokens), logitsOf(trained, tokens)) < 1e-6, method);
      const longer = extendContext(trained, 32, method);
      assert.equal(longer.context, 32);
      assert.ok(distance(logitsOf(longer, tokens), logitsOf(trained, tokens)) > 1e-4, method);
    }
    assert.throws(
      () => extendContext(parseSpec(smallSpec({ positions: 'alibi' })), 32, 'yarn'),
      /only positions 'rope'/,
    );
  });
});

describe('encoders, and rows longer than the context', () => {
  const t5 = { kind: 't5-bias', buckets: 8, maxDistance: 10 };

  test('t5-bias tells past from future in an encoder, unless told otherwise', () => {
    const biasOf = (causal: boolean, bidirectional?: boolean): number[] => {
      const dims = { width: 8, depth: 1, vocab: 16, context: 16, tied: true };
      const { scales } = buildParametrisation({ kind: 'standard' }, { width: 8, depth: 1, headWidth: 8 });
      const config = slotSchema('positions').parse({
        ...t5,
        heads: 1,
        ...(bidirectional === undefined ? {} : { bidirectional }),
      });
      const slot = buildSlot('positions', config, {
        dims,
        positions: {},
        headWidth: 8,
        layer: 0,
        scales,
        zLoss: 0,
        causal,
      });
      const weight = Tensor.from(
        cpu,
        Array.from({ length: 8 }, (_, k) => k),
        [8, 1],
      );
      return scope(() => [
        ...slot.bias!({ weight }, 1, 3, 3, forwardContext({ device: cpu, compute: 'f32' })).dataSync(),
      ]);
    };
    // Distances 2, 1, 0, -1, -2.
    assert.deepEqual(biasOf(true), [2, 1, 0, 0, 0]);
    assert.deepEqual(biasOf(false), [2, 1, 0, 5, 6]);
    assert.deepEqual(biasOf(false, false), biasOf(true));
    assert.deepEqual(biasOf(true, true), biasOf(false));
  });

  test('t5-bias: the context does not matter, rows may be longer', async () => {
    const spec = (context: number) => smallSpec({ context, positions: t5 });
    const tokens = drawTokens('long', 40);
    assert.deepEqual(logitsOf(spec(8), tokens), logitsOf(spec(64), tokens));
    const grads = [8, 64].map((context) => {
      const step = stepOn(cpu, spec(context), { batch: 2, length: 40, segmented: true });
      return step.run().grads.map((g) => Array.from(g.dataSync()));
    });
    assert.deepEqual(grads[0], grads[1]);
  });

  test('xpos is refused in an encoder', () => {
    const spec = (encoderPositions?: string) =>
      parseSpec(
        smallSpec({
          positions: 'xpos',
          layout: { kind: 'encoder-decoder', ...(encoderPositions && { encoderPositions }) },
        }),
      );
    assert.throws(() => buildModel(spec()), {
      message: /fade towards the past only/,
      hint: /encoderPositions to 'rope'/,
    });
    buildModel(spec('rope'));
  });

  test('xpos is refused where a prefix sees ahead', () => {
    const config = (objective: object, positions: string): void =>
      void parseTrainConfig(configOf(smallSpec({ vocab: 200, positions }), { objective, length: 16 }));
    for (const kind of ['prefix-lm', 'ul2']) {
      assert.throws(() => config({ kind }, 'xpos'), {
        message: /grow with distance ahead/,
        hint: /bidirectional=false/,
      });
      config({ kind, bidirectional: false }, 'xpos');
      config({ kind }, 'rope');
    }
  });
});

describe('what they cost', () => {
  for (const [name, changes] of Object.entries(kinds))
    test(`${name}: no parameters but T5's table, no products but attention's`, () => {
      const config = parseTrainConfig(configOf(smallSpec(changes), { batch: 3, length: 12 }));
      const account = accountFor(config);
      const facts = decoderFacts(config.model, 12);
      assert.equal(account.parameters, facts.parameters + (name === 't5-bias' ? 8 * 2 : 0));
      const want = facts.matrixFlops + facts.attentionFlops + 2;
      assert.ok(Math.abs(account.forwardFlopsPerToken - want) <= 1e-9 * want);
    });

  test('refusals', () => {
    const refused = (changes: SpecChanges, message: RegExp) =>
      assert.throws(() => logitsOf(smallSpec(changes), [1, 2]), message);
    refused({ positions: { kind: 't5-bias', heads: 3 } }, /a table for 3 heads, a layer with 2/);
    refused({ positions: { kind: 't5-bias', maxDistance: 16 } }, /leaves nothing beyond exact buckets/);
    refused({ positions: { kind: 'xpos', theta: -1 } }, /theta/);
    refused({ attention: { kind: 'full', heads: 2, headWidth: 5 }, positions: 'xpos' }, /does not split into pairs/);
  });
});
