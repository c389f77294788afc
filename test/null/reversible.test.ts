// Reversible stacks in float64: their gradients by finite differences, what is kept for the second pass, tape nodes with
// gradients of their own.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { Choices, choose, forwardContext } from '../../src/nn/index.ts';
import { add, custom, gradients, mul, noGrad, pullBack, scope, sum, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';
import { onGrid } from '../../src/tricks/reversible/index.ts';
import { groupsOf } from '../../src/tricks/terraformer/index.ts';
import { checkDirections } from '../support/direction.ts';
import { refValues } from '../support/ref-values.ts';
import { batchOn, hostBatch, type SpecChanges, smallSpec } from '../support/small-models.ts';
import { rowOn, tokens, twoStacks } from '../support/two-stacks.ts';

const device = new RefDevice();
const reversible = (options: Record<string, unknown> = {}, changes: SpecChanges = {}): ModelSpecInput =>
  smallSpec({ layout: { kind: 'reversible', ...options }, ...changes });
const terraformer = (options: Record<string, unknown> = {}, changes: SpecChanges = {}): ModelSpecInput =>
  smallSpec({ layout: { kind: 'terraformer', encoderDepth: 1, ...options }, ...changes });

describe('gradients', () => {
  const specs: Record<string, ModelSpecInput> = {
    rebuilt: reversible({ grid: 0 }),
    'fixed point': reversible(),
    stored: reversible({ store: true, grid: 0 }),
    'both streams to the head, layer norm with biases, learned positions': reversible(
      { merge: 'concat' },
      { tied: false, norm: { kind: 'layer', bias: true }, positions: 'learned', zLoss: 0.01 },
    ),
    'biases shared by all layers': reversible({}, { positions: 't5-bias', depth: 3 }),
    'other parts in one block': reversible(
      {},
      {
        overrides: [
          { layers: [1], ffn: { kind: 'mlp', hidden: 9, bias: true }, attention: { kind: 'full', heads: 3 } },
        ],
      },
    ),
  };
  for (const [name, spec] of Object.entries(specs))
    test(name, () => checkDirections(device, spec, batchOn(device, hostBatch('b', 11, 2, 7, true), 2, 7)));

  test('with loss terms of the layers', () => {
    // The choice of experts is constant under small changes.
    const moe = {
      kind: 'moe',
      experts: 3,
      active: 2,
      expert: { kind: 'mlp', hidden: 6 },
      balanceLoss: 0,
      routerZLoss: 0.3,
    };
    const l1 = { kind: 'relu-l1', hidden: 8, l1: 0.5, activeDecay: 0 };
    const spec = reversible({ grid: 0 }, { ffn: moe, overrides: [{ layers: [0], ffn: l1 }] });
    const batch = batchOn(device, hostBatch('b', 11, 2, 7, true), 2, 7);
    checkDirections(device, spec, batch, { context: { training: true } });
  });

  const rows = {
    ...{ encoder: tokens('encoder', 7), encoderSegments: [1, 1, 1, 2, 2, 2, 0] },
    ...{ decoder: tokens('decoder', 6), decoderSegments: [1, 1, 2, 2, 2, 2] },
    targets: [3, 1, -1, 4, 9, 2],
  };
  const sru = { kind: 'sru-ffn', units: 3, inner: { kind: 'glu', hidden: 10 } };
  const joined: Record<string, ModelSpecInput> = {
    'terraformer, recurrent': terraformer({}, { ffn: sru }),
    'terraformer, dense bridge, forgetting, one attention a block': terraformer(
      { bridge: 'dense', forgetEvery: 1, attentionLayers: 1 },
      { depth: 3, positions: 'learned', norm: { kind: 'layer', bias: true } },
    ),
    'terraformer, stored': terraformer({ store: true }, { ffn: sru, positions: 't5-bias' }),
  };
  for (const [name, spec] of Object.entries(joined))
    test(name, () => checkDirections(device, spec, rowOn(device, rows)));
});

describe('choices', () => {
  test('are repeated in order, with the random streams between them', () => {
    const choices = new Choices();
    const c = forwardContext({ device, compute: 'f32', choices });
    let n = 0;
    const pass = (): number[] => [choose(c, () => ++n), choose(c, () => ++n), choose(c, () => ++n)];
    const first = pass();
    choices.rewind();
    assert.deepEqual(pass(), first);
    choices.end();
    assert.equal(n, 3);
  });
  test('a choice made in the course of another belongs to it', () => {
    const choices = new Choices();
    let n = 0;
    const pass = (): unknown[] => [
      choices.take(() => [choices.take(() => ++n), choices.take(() => ++n)]),
      choices.take(() => ++n),
    ];
    const first = pass();
    choices.rewind();
    assert.deepEqual(pass(), first);
    choices.end();
  });
  test('a second pass that differs is an error', () => {
    const choices = new Choices();
    choices.take(() => 1);
    choices.rewind();
    assert.throws(() => choices.end(), /chooses less in its second pass/);
    choices.take(() => 1);
    assert.throws(() => choices.take(() => 1), /chooses more in its second pass/);
  });
});

describe('the tape', () => {
  const of = (...x: number[]): Tensor => {
    const t = Tensor.from(device, x, [x.length]);
    t.requiresGrad = true;
    return t;
  };
  test('a node with a gradient of its own', () =>
    scope(() => {
      const [x, y] = [of(1, 2), of(3, 5)];
      // The stated gradient, not that of the product, and only for what is asked for.
      const [z, unused] = custom(
        'mine',
        [x, y],
        () => [mul(x, y), x],
        ({ grads: [g, none], needs }) => {
          assert.equal(none, null);
          return [needs(0) ? add(g!, g!) : null, null];
        },
      );
      assert.deepEqual([...refValues(z)], [3, 10]);
      assert.ok(unused.requiresGrad && unused !== x);
      const [dx, dy] = gradients(sum(mul(z, y)), [x, y]);
      assert.deepEqual([...refValues(dx)], [6, 10]);
      assert.deepEqual([...refValues(dy)], [3, 10]);
      noGrad(() =>
        assert.equal(
          custom(
            'mine',
            [x],
            () => [x],
            () => [null],
          )[0].requiresGrad,
          false,
        ),
      );
    }));
  test('several outputs at once, added to what there is', () =>
    scope(() => {
      const [x, y, w] = [of(1, 2), of(3, 5), of(7, 7)];
      const sums = [of(100, 200), null, null];
      const [dx, dy, dw] = pullBack(
        [mul(x, y), sum(x), y],
        [of(1, 10), Tensor.from(device, [2], []), of(4, 4)],
        [x, y, w],
        sums,
      );
      assert.deepEqual([...refValues(dx!)], [100 + 3 + 2, 200 + 50 + 2]);
      assert.deepEqual([...refValues(dy!)], [1 + 4, 20 + 4]);
      assert.equal(dw, null);
    }));
});

test('groups between forgetting layers, as published', () => {
  assert.deepEqual(groupsOf(6, 0), [0]);
  assert.deepEqual(groupsOf(6, 2), [0, 2, 4]);
  assert.deepEqual(groupsOf(5, 2), [0, 2]);
  assert.deepEqual(groupsOf(3, 2), [0]);
});

test('a grid of 0 changes nothing', () => {
  const x = Tensor.from(device, [0.1, -3], [2]);
  assert.equal(onGrid(x, 0), x);
});

test('refusals say why', () => {
  const cases: [ModelSpecInput, RegExp][] = [
    [reversible({ merge: 'concat' }), /both streams, 2 x width, and cannot be the embeddings/],
    [reversible({ merge: 'sum' }), /layout reversible: merge/],
    [terraformer({}, { attention: { kind: 'sparse-qkv', heads: 2 } }), /causal by construction/],
    [twoStacks({ bridge: 'dense' }), /bridge/],
  ];
  for (const [spec, message] of cases) assert.throws(() => buildModel(spec), message);
});
