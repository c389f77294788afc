// The table of muP by role, its depth rules, and what it leaves alone.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { declared, forwardContext, initialise, type ParamSpec } from '../../src/nn/index.ts';
import { capture, noGrad } from '../../src/tensor/index.ts';
import { type MupOptions, mup } from '../../src/tricks/mup/index.ts';
import { batchOn, hostBatch } from '../support/small-models.ts';
import '../../src/train/config.ts';

const defaults = { alpha: 1, embedding: 1, output: 1, attention: 1, zeroOutput: false };
const tensor = (role: string, std: number, more: Partial<ParamSpec> = {}): ParamSpec => ({
  ...{ shape: [4, 4], init: { kind: 'normal', std }, role, fanIn: 4, fanOut: 4, decay: true },
  ...more,
});

/** std, rate, decay and epsilon of a tensor as muP has it, over those of the base model. */
function factors(spec: ParamSpec, path: string, o: Partial<MupOptions>, sizes: { width: number; depth: number }) {
  const options = { baseWidth: 64, ...defaults, ...o };
  const made = mup(options, { ...sizes, headWidth: 16 }).param({ path, spec });
  const { init, lrMult = 1, decayMult = 1, epsMult = 1 } = made;
  return [init.kind === 'normal' ? init.std : init.value, lrMult, decayMult, epsMult];
}

describe('by width, m = 4 (declared standard deviations fall as layers declare them)', () => {
  const at = { width: 256, depth: 2 };
  const fans = { grows: 4, fixed: 2 };
  const cases: [string, ParamSpec, number[]][] = [
    ['embedding', tensor('embedding', 0.02), [0.02, 1, 1, 1]],
    ['vector', tensor('vector', 1, { decay: false }), [1, 1, 1, 1]],
    ['hidden: std 1/sqrt(fan-in) as declared', tensor('hidden', 1 / 16), [1 / 16, 1 / 4, 4, 1 / 4]],
    ['head: std of the base', tensor('output', 1 / 16, { logits: true }), [1 / 8, 1, 1, 1]],
    ['router: 1/m of the base', tensor('output', 1 / 16), [1 / 8 / 4, 1 / 4, 4, 1 / 4]],
    ['constant', tensor('constant', 0.5), [0.5, 1, 1, 1]],
    ['a role nobody knows', tensor('taps', 0.5), [0.5, 1, 1, 1]],
    // Variance 2 / (4 + 2) here, 2 / (1 + 2) at the base: larger there by the root of 2.
    ['Glorot head', tensor('output', 1, { logits: true, fans }), [Math.SQRT2, 1, 1, 1]],
    ['Glorot output', tensor('output', 1, { fans }), [Math.SQRT2 / 4, 1 / 4, 4, 1 / 4]],
    ['Glorot input', tensor('embedding', 1, { fans }), [Math.SQRT2, 1, 1, 1]],
  ];
  for (const [name, spec, want] of cases) test(name, () => assert.deepEqual(factors(spec, 'x', {}, at), want));

  test('heads and what may start from zero, routers never', () => {
    const start = (more: Partial<ParamSpec>) => factors(tensor('output', 1, more), 'x', { zeroOutput: true }, at);
    assert.deepEqual([start({ logits: true })[0], start({})[0]], [0, 0.5]);
    assert.deepEqual(start({ mayStartAtZero: true }), [0, 1 / 4, 4, 1 / 4]);
    assert.equal(factors(tensor('output', 1, { mayStartAtZero: true }), 'x', {}, at)[0], 0.5);
  });

  test('factors on the forward pass', () => {
    const { scales } = mup(
      { baseWidth: 64, ...defaults, embedding: 10, output: 2, attention: 3 },
      { ...at, headWidth: 16 },
    );
    assert.deepEqual([scales.embedding, scales.logits, scales.branch], [10, 2 / 4, 1]);
    assert.equal(scales.attention(16), 3 / 4);
    const wide = mup({ baseWidth: 64, ...defaults, baseHeadWidth: 16 }, { ...at, headWidth: 64 }).scales;
    assert.equal(wide.attention(64), 4 / 64);
  });

  test('rate times decay is the same for every tensor that decays', () => {
    for (const [, spec] of cases) {
      const [, rate, decay] = factors(spec, 'blocks.0.x', { baseDepth: 2 }, at);
      assert.equal(rate * decay, 1);
    }
  });
});

describe('by depth, mL = 8', () => {
  const at = { width: 64, depth: 16 };
  const depthGain = 1 / Math.sqrt(32);
  const out = tensor('hidden', depthGain / 8, { depthGain });

  test('CompleteP: branches and epsilon, nothing else; the initial factor of depth is gone', () => {
    const o = { baseDepth: 2 };
    assert.deepEqual(factors(out, 'blocks.3.ffn.down', o, at), [1 / 8, 1, 1, 1 / 8]);
    assert.deepEqual(factors(tensor('vector', 1), 'blocks.3.norm1.weight', o, at), [1, 1, 1, 1 / 8]);
    assert.deepEqual(factors(tensor('embedding', 0.02), 'embed.weight', o, at), [0.02, 1, 1, 1]);
    assert.deepEqual(factors(tensor('vector', 1), 'norm.weight', o, at), [1, 1, 1, 1]);
    assert.equal(mup({ baseWidth: 64, ...defaults, ...o }, { ...at, headWidth: 16 }).scales.branch, 1 / 8);
  });

  test('depth-muP: rates fall with the root of depth', () => {
    const [std, rate, , eps] = factors(out, 'encoder.blocks.0.ffn.down', { baseDepth: 2, alpha: 0.5 }, at);
    assert.deepEqual([std, rate, eps], [1 / 8, 8 ** -0.5, 8 ** -0.5]);
    for (const role of ['vector', 'embedding', 'output', 'constant'])
      assert.equal(factors(tensor(role, 1), 'blocks.0.x', { baseDepth: 2, alpha: 0.5 }, at)[1], 8 ** -0.5);
    assert.equal(factors(tensor('embedding', 1), 'embed.weight', { baseDepth: 2, alpha: 0.5 }, at)[1], 1);
  });

  test('without a base depth nothing depends on depth', () => {
    assert.deepEqual(factors(out, 'blocks.3.ffn.down', {}, at), [depthGain / 8, 1, 1, 1]);
  });
});

describe('models', () => {
  const spec = (width: number, parametrisation: ModelSpecInput['parametrisation'], depth = 2): ModelSpecInput => ({
    ...{ vocab: 32, context: 8, width, depth, tied: false, parametrisation },
    attention: { kind: 'full', heads: width / 16, kvHeads: width / 32 },
    ffn: { kind: 'glu', hidden: 2 * width },
  });
  const kind = { kind: 'mup', baseWidth: 64 };

  test('at the base width parameters and calls are those of the standard parametrisation', () => {
    const device = new MetaDevice();
    const callsOf = (parametrisation: ModelSpecInput['parametrisation']) => {
      const model = buildModel(spec(64, parametrisation));
      const params = initialise(model, device, 1);
      model.prepare(device);
      const batch = batchOn(device, hostBatch('b', 32, 2, 8), 2, 8);
      const c = forwardContext({ device, compute: 'f32' });
      const { program } = capture(device, () => noGrad(() => model.loss(params, batch, c).total));
      return program.calls.map(({ kernel, ints, floats }) => ({ kernel, ints, floats }));
    };
    assert.deepEqual(callsOf(kind), callsOf('standard'));
    const plain = declared(buildModel(spec(64, 'standard')));
    for (const [k, p] of declared(buildModel(spec(64, kind))).entries()) {
      const { lrMult = 1, decayMult = 1, epsMult = 1, widthMult = 1, ...rest } = p.spec;
      assert.deepEqual([lrMult, decayMult, epsMult, widthMult], [1, 1, 1, 1], p.path);
      assert.deepEqual(rest, plain[k].spec);
    }
  });

  test('every tensor of a decoder has the factors of its role', () => {
    const rates = Object.fromEntries(declared(buildModel(spec(256, kind))).map((p) => [p.path, p.spec.lrMult ?? 1]));
    assert.deepEqual(
      Object.entries(rates)
        .filter(([, rate]) => rate !== 1 / 4)
        .map(([path]) => path)
        .sort(),
      ['blocks.0.norm1.weight', 'blocks.0.norm2.weight', 'blocks.1.norm1.weight', 'blocks.1.norm2.weight']
        .concat(['embed.weight', 'head.weight', 'norm.weight'])
        .sort(),
    );
  });

  test('no initial value depends on depth under CompleteP', () => {
    const stds = (depth: number) =>
      declared(buildModel(spec(64, { ...kind, baseDepth: 2 }, depth)))
        .filter((p) => /^blocks\.0\./.test(p.path))
        .map((p) => p.spec.init);
    assert.deepEqual(stds(16), stds(2));
  });
});
