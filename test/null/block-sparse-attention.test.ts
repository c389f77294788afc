// Block-sparse attention in float64: against loops over its definition, gradients against differences, costs.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { countParams, flatten, forwardContext } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor, trace } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { blockSparseCosts, decodeLoad, keptKeys, sizesFor } from '../../src/tricks/block-sparse-attention/index.ts';
import { applyPatch, trick } from '../../src/tricks/index.ts';
import { blockSparse, openGates } from '../support/block-sparse.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues, slope, valuesOf } from '../support/ref-values.ts';
import { slotLayer } from '../support/slot-layer.ts';
import { configOf, decoderFacts, perturbedParams, smallSpec, stepOn } from '../support/small-models.ts';

const ref = new RefDevice();
const sizes = { heads: 4, kvHeads: 2, length: 4, stride: 2, size: 6, blocks: 4, window: 5 };
const kind = (o: Record<string, unknown> = {}) => ({ kind: 'block-sparse', ...sizes, ...o });

describe('the layer is what its definition says', () => {
  const [width, tokens] = [6, 41]; // neither a whole number of blocks nor of strides
  const segmentsOf = (border: number): number[] => Array.from({ length: tokens }, (_, t) => +(t >= border));
  for (const [name, o, open, segments] of [
    ['all branches, gates of its own', {}, null, null],
    ['compressed blocks only', {}, [true, false, false], null],
    ['chosen blocks only', {}, [false, true, false], null],
    ['a window only', {}, [false, false, true], null],
    ['two documents in a row', {}, null, segmentsOf(15)],
    ['compressed blocks of two documents', {}, [true, false, false], segmentsOf(20)],
    ['blocks without overlap, one key head', { length: 3, stride: 3, kvHeads: 1 }, null, null],
    ['every head with keys of its own', { kvHeads: 4, blocks: 3 }, null, null],
    ['compressed blocks longer than those chosen', { length: 12, size: 4, blocks: 5 }, null, null],
  ] as [string, Record<string, unknown>, [boolean, boolean, boolean] | null, number[] | null][])
    test(name, () =>
      scope(() => {
        const config = { ...sizes, ...o };
        const { mixer, params } = slotLayer(ref, 'attention', kind(o), { width });
        const rng = new Rng(name);
        for (const { tensor } of flatten(params))
          if (tensor.rank === 1) tensor.write(Float64Array.from({ length: tensor.size }, () => 0.3 * rng.normal()));
        if (open) openGates(params, '', open);
        const x = Array.from({ length: tokens }, () => Array.from({ length: width }, () => rng.normal()));
        const c = forwardContext({
          ...{ device: ref, compute: 'f32' },
          segments: segments && Tensor.from(ref, segments, [1, tokens], 'i32'),
        });
        const input = Tensor.from(ref, x.flat(), [1, tokens, width]);
        const residual = Tensor.from(ref, new Float64Array(tokens * width), [1, tokens, width]);
        // The reference keeps float64, but inputs are rounded to f32 when they are written.
        const rows = Array.from({ length: tokens }, (_, t) =>
          Array.from(refValues(input).subarray(t * width, (t + 1) * width)),
        );
        const got = valuesOf(noGrad(() => mixer.forward(params, input, residual, c)));
        const want = blockSparse(rows, params, config, segments ?? undefined).flat();
        const most = Math.max(...want.map(Math.abs));
        want.forEach((v, k) => {
          assert.ok(Math.abs(got[k] - v) < 1e-9 * most, `element ${k} is ${got[k]}, not ${v}`);
        });
      }),
    );
});

describe('gradients of the loss against finite differences', () => {
  for (const [name, attention, segmented] of [
    ['separate projections', kind({ headWidth: 4 }), false],
    ['two documents', kind({ headWidth: 4, blocks: 3, length: 2 }), true],
    ['shared projections', kind({ headWidth: 4, share: true }), false],
  ] as const)
    test(name, () => {
      const step = stepOn(ref, smallSpec({ depth: 1, context: 32, attention }), { batch: 1, length: 30, segmented });
      const grads = scope(() => step.run().grads.map((g) => Float64Array.from(refValues(g))));
      const c = forwardContext({ device: ref, compute: 'f32' });
      const loss = (): number =>
        scope(() => noGrad(() => refValues(step.model.loss(step.params, step.batch, c).total)[0]));
      flatten(step.params).forEach(({ path, tensor }, k) => {
        const rng = new Rng(path);
        const values = refValues(tensor);
        const centre = values.slice();
        const direction = Float64Array.from(values, () => rng.uniform(-1, 1));
        const numeric = slope((h) => {
          values.forEach((_, j) => {
            values[j] = centre[j] + h * direction[j];
          });
          const result = loss();
          values.set(centre);
          return result;
        }, 1e-5);
        const analytic = direction.reduce((s, d, j) => s + d * grads[k][j], 0);
        assert.ok(
          Math.abs(analytic - numeric) <= 1e-6 * Math.max(Math.abs(analytic), Math.abs(numeric)) + 1e-8,
          `${path}: gradient ${analytic}, difference ${numeric}`,
        );
        assert.ok(analytic !== 0, `${path} has no gradient`);
      });
    });
});

describe('costs', () => {
  test('decoding reads 5632 of 65536 keys: 11.6 times fewer (table 4 of the paper)', () => {
    const published = { stride: 16, size: 64, blocks: 16, window: 512 };
    const read = [8192, 16384, 32768, 65536].map((t) => decodeLoad(t, published));
    assert.deepEqual(read, [2048, 2560, 3584, 5632]);
    assert.equal((65536 / read[3]).toFixed(1), '11.6');
  });

  test('parameters and FLOPs by formula', () => {
    const [width, length] = [12, 50];
    for (const [attention, o] of [
      [kind({ headWidth: 4 }), { compressHidden: 8, share: false }],
      [kind({ headWidth: 4, share: true, compressHidden: 5 }), { compressHidden: 5, share: true }],
      [kind({ headWidth: 4, length: 60 }), { compressHidden: 8, share: false, length: 60 }],
    ] as [Record<string, unknown>, { compressHidden: number; share: boolean }][]) {
      const costs = blockSparseCosts(width, length, { ...sizes, headWidth: 4, ...o });
      const spec = smallSpec({ context: 64, depth: 2, attention });
      const dense = smallSpec({
        context: 64,
        depth: 2,
        attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 4 },
      });
      const [mine, full] = [spec, dense].map((s) => accountFor(parseTrainConfig(configOf(s, { length, batch: 1 }))));
      const facts = decoderFacts(parseTrainConfig(configOf(dense)).model, length);
      const projections = width * 4 * (2 * 4 + 2 * 2);
      assert.equal(mine.parameters - full.parameters, 2 * (costs.parameters - projections));
      const difference = (mine.forwardFlopsPerToken - full.forwardFlopsPerToken) * length;
      const attended = facts.attentionFlops * length + 2 * 2 * projections * length;
      assert.ok(Math.abs(difference - (2 * costs.flops - attended)) < 1e-6 * attended, `${difference}`);
    }
  });

  test('the choice costs the scores of compressed keys once more; no tensor has T x T/size elements', () => {
    const spec = smallSpec({ context: 512, depth: 1, attention: kind({ headWidth: 4 }) });
    const tokens = 500;
    const { batch, model, params } = stepOn(ref, spec, { batch: 1, length: tokens });
    const { calls } = trace(() =>
      scope(() => noGrad(() => model.hidden(params, batch, forwardContext({ device: ref, compute: 'f32' })))),
    );
    const choice = calls.filter((c) => c.kernel === 'block_select');
    assert.equal(choice.length, 1);
    assert.equal(
      choice[0].cost!.flops,
      blockSparseCosts(12, tokens, { ...sizes, headWidth: 4, compressHidden: 8, share: false }).choiceFlops,
    );
    const largest = Math.max(...calls.flatMap((c) => c.args.map((a) => a?.memory.bytes ?? 0))) / 4;
    assert.ok(largest < (tokens * tokens) / sizes.size, `${largest} elements`);
  });

  test('what decoding keeps: all keys for the choice, compressed ones, the window', () => {
    const o = { ...sizes, headWidth: 4, compressHidden: 8, share: false };
    assert.equal(keptKeys(100, o), 100 + 49 + 4 + 5);
    assert.equal(keptKeys(3, o), 3 + 0 + 3 + 3);
    assert.equal(keptKeys(100, { ...o, share: true }), 149);
  });
});

describe('options', () => {
  test('as a patch: published sizes from 4096 tokens on, in proportion below', () => {
    assert.deepEqual(sizesFor(4096), { size: 64, length: 32, stride: 16, blocks: 16, window: 512 });
    assert.deepEqual(sizesFor(65536), sizesFor(4096));
    assert.deepEqual(sizesFor(256), { size: 16, length: 8, stride: 4, blocks: 4, window: 32 });
    for (const context of [1, 7, 16, 100, 1000, 5000]) {
      const patch = trick('block-sparse-attention').patch!({ width: 24, depth: 2, context, heads: 6, hidden: 10 });
      const base = configOf(smallSpec({ width: 24, context, attention: { kind: 'full', heads: 6 } }));
      const config = parseTrainConfig(applyPatch(base, patch));
      assert.ok(countParams(buildModel(config.model)) > 0);
      assert.equal((config.model.attention as { kvHeads?: number }).kvHeads, 3);
    }
  });

  test('refusals say why', () => {
    const cases: [Record<string, unknown>, Record<string, unknown>, RegExp][] = [
      [{ stride: 3 }, {}, /stride 3 must divide length 4 and size 6/],
      [{ kvHeads: 3 }, {}, /4 query heads do not share 3 key heads/],
      [{ initial: 2, local: 3 }, {}, /2 initial and 3 local blocks are more than 4/],
      [{}, { positions: 'alibi' }, /no biases by distance/],
      [{}, { positions: { kind: 'xpos', scaleBase: 0.1 } }, /more than these positions turn at once/],
      [{}, { layout: { kind: 'encoder-decoder' } }, /causal by construction/],
    ];
    for (const [o, more, message] of cases)
      assert.throws(() => buildModel(smallSpec({ attention: kind({ headWidth: 4, ...o }), ...more })), message);
    const objective = { objective: { kind: 'fcm' } };
    assert.throws(
      () => parseTrainConfig(configOf(smallSpec({ attention: kind({ headWidth: 4 }) }), objective)),
      /causal/,
    );
    const { model, batch } = stepOn(ref, smallSpec({ attention: kind({ headWidth: 4 }) }), { batch: 1, length: 4 });
    const keep = Tensor.from(ref, [1, 0, 1, 1], [1, 4], 'i32');
    const c = forwardContext({ device: ref, compute: 'f32' });
    assert.throws(
      () => model.hidden(perturbedParams(model, ref), { ...batch, keep }, c),
      /other masks have no meaning/,
    );
  });
});
