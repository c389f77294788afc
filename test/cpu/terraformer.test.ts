// Terraformer: who sees whom, padding and packing that change nothing, what is read once, sizes and costs, a toy task.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { createBatch, type TokenBatch } from '../../src/data/types.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { flatten, forwardContext, initialise } from '../../src/nn/index.ts';
import { gradients, noGrad, scope } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { TrainStep } from '../../src/train/step.ts';
import { sruCosts } from '../../src/tricks/terraformer/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { configOf, type SpecChanges, smallSpec } from '../support/small-models.ts';
import { built, distance, logitsOf, type Rows, rowOn, tokens } from '../support/two-stacks.ts';

const device = new CpuDevice();
const sru = (inner: object = { kind: 'glu', hidden: 10 }) => ({ kind: 'sru-ffn', units: 4, inner });
const terraformer = (layout: Record<string, unknown> = {}, changes: SpecChanges = {}): ModelSpecInput =>
  smallSpec({ layout: { kind: 'terraformer', ...layout }, ffn: sru(), ...changes });

const variants: Record<string, ModelSpecInput> = {
  'as published': terraformer(
    { encoderAttention: { kind: 'full', heads: 2 } },
    {
      attention: { kind: 'sparse-qkv', heads: 2 },
      ffn: sru({ kind: 'sparse-ffn', hidden: 32, block: 8 }),
      ...{ tied: false, head: { kind: 'factored', modules: 2 } },
    },
  ),
  'rotary positions, floating point': terraformer({ grid: 0, encoderDepth: 1 }),
  'dense bridge, learned positions, forgetting': terraformer(
    { bridge: 'dense', forgetEvery: 1 },
    { positions: 'learned', depth: 3, norm: { kind: 'layer', bias: true } },
  ),
  'biases by distance, window': terraformer(
    {},
    { positions: 't5-bias', attention: { kind: 'full', heads: 2, window: 6 } },
  ),
  'one attention a block, experts': terraformer(
    { attentionLayers: 1 },
    { ffn: sru({ kind: 'moe', experts: 3, active: 2, expert: { kind: 'glu', hidden: 6 } }) },
  ),
};
const [Te, T] = [7, 6];
const changed = (list: readonly number[], at: number): number[] => list.with(at, (list[at] + 5) % 11);
const repeat = (n: number, value: number): number[] => new Array(n).fill(value);

for (const [name, spec] of Object.entries(variants))
  describe(name, () => {
    const { model, params } = built(device, spec);
    const of = (rows: Rows): number[][] => logitsOf(device, model, params, rows);
    const rows: Rows = { encoder: tokens('encoder', Te), decoder: tokens('decoder', T) };
    const base = of(rows);

    test('decoder tokens do not reach back', () => {
      for (let at = 0; at < T; at++) {
        const other = of({ ...rows, decoder: changed(rows.decoder, at) });
        assert.deepEqual(other.slice(0, at), base.slice(0, at), `decoder token ${at} reaches back`);
        assert.notDeepEqual(other[at], base[at]);
      }
    });

    test('the decoder reads what the encoder read, from both sides', () => {
      const windowed = name.includes('window');
      for (let at = 0; at < Te; at++) {
        const other = of({ ...rows, encoder: changed(rows.encoder, at) });
        assert.notDeepEqual(other[0], base[0], `the first decoder token misses encoder token ${at}`);
        if (!windowed) assert.notDeepEqual(other[T - 1], base[T - 1]);
      }
    });

    test('padding changes nothing, wherever it is', () => {
      const pad = (front: number, back: number, behind: number): number[][] =>
        of({
          encoder: [...repeat(front, 3), ...rows.encoder, ...repeat(back, 9)],
          encoderSegments: [...repeat(front, 0), ...repeat(Te, 1), ...repeat(back, 0)],
          decoder: [...rows.decoder, ...repeat(behind, 4)],
          decoderSegments: [...repeat(T, 1), ...repeat(behind, 0)],
        }).slice(0, T);
      for (const [front, back, behind] of [
        [0, 1, 0],
        [0, 5, 3],
        [2, 4, 1],
      ]) {
        // Embedding positions of a padded front are those that its batch says: rowOn counts from the first of a segment.
        assert.ok(distance(base, pad(front, back, behind)) < 2e-5, `${front}, ${back}, ${behind}`);
      }
    });

    test('two texts in a row are as each by itself', () => {
      const other: Rows = { encoder: tokens('other encoder', 4), decoder: tokens('other decoder', 5) };
      const both = of({
        encoder: [...rows.encoder, ...other.encoder, 0],
        encoderSegments: [...repeat(Te, 1), ...repeat(4, 2), 0],
        decoder: [...rows.decoder, ...other.decoder],
        decoderSegments: [...repeat(T, 1), ...repeat(5, 2)],
      });
      assert.ok(distance([...base, ...of(other)], both) < 2e-5);
    });

    test('what is read once gives the logits of a full pass', () => {
      const got = scope(() =>
        noGrad(() => {
          const c = forwardContext({ device, compute: 'f32' });
          const batch = rowOn(device, rows);
          const { encode, crossKeyValues, decode } = model.encoder!;
          const memory = crossKeyValues(params, encode(params, batch.encoder!, c), c);
          // As in generation: a longer window, whose end is not looked at.
          const longer = rowOn(device, { ...rows, decoder: [...rows.decoder, 5, 5, 5] });
          const h = decode(params, longer, memory, batch.encoder!.segments, c);
          return model.logits(params, h, c).dataSync();
        }),
      );
      const logits = rows.decoder.map((_, t) => Array.from(got.slice(11 * t, 11 * t + 11)));
      assert.ok(distance(base, logits) < 2e-5);
    });

    test('gradients are those of the same equations with everything stored', () => {
      const layout = spec.layout as { kind: string };
      const grads = (store: boolean): Float32Array[] => {
        const made = built(device, { ...spec, layout: { ...layout, store } });
        made.model.prepare(device);
        const trained = flatten(made.params).filter(({ tensor }) => tensor.requiresGrad);
        return scope(() => {
          const batch = rowOn(device, { ...rows, targets: tokens('targets', T) });
          const { total } = made.model.loss(
            made.params,
            batch,
            forwardContext({ device, compute: 'f32', training: true }),
          );
          return gradients(
            total,
            trained.map(({ tensor }) => tensor),
          ).map((g) => Float32Array.from(g.dataSync()));
        });
      };
      const [stored, rebuilt] = [grads(true), grads(false)];
      const exact = !('grid' in layout);
      stored.forEach((g, k) => {
        if (exact) assert.deepEqual(rebuilt[k], g);
        else assert.ok(Math.hypot(...g.map((v, j) => v - rebuilt[k][j])) <= 1e-4 * Math.hypot(...g));
      });
    });
  });

describe('sizes and costs', () => {
  const [d, f, V, P, n] = [16, 24, 50, 32, 8];
  const wide = { vocab: V, width: d, context: P, attention: { kind: 'full', heads: 4 } };
  const attention = 4 * d * d;
  const ffn = 3 * d * f + sruCosts(d, n).parameters;
  const products = 3 * d * f * 2 + sruCosts(d, n).flops;
  for (const [le, ld, layers] of [
    [3, 1, 2],
    [1, 2, 1],
  ])
    test(`${le} + ${ld} blocks of ${layers}`, () => {
      const layout = { kind: 'terraformer', encoderDepth: le, attentionLayers: layers };
      const inner = { kind: 'glu', hidden: f };
      const model = smallSpec({ ...wide, layout, depth: ld, ffn: { kind: 'sru-ffn', units: n, inner } });
      const account = accountFor(parseTrainConfig(configOf(model, { objective: 'prefix-lm', length: P, batch: 2 })));
      const encoder = le * (attention + ffn + 2 * d);
      const decoder = ld * (layers * (attention + d) + ffn + d);
      assert.equal(account.parameters, V * d + encoder + decoder + d);

      // Means over splits s of P, as in prefix-lm: each row holds two texts, cut at s and at P - s.
      let [pe, pj] = [0, 0];
      for (let s = 1; s < P; s++) {
        pe += (s * s + (P - s) ** 2) / (P - 1);
        pj += (2 * (P * (P + 1))) / 2 / (P - 1);
      }
      const matrices =
        P * le * (2 * attention + products) + 2 * P * ld * (layers * 2 * attention + products) + 2 * P * V * d + 2 * P;
      const scores = 4 * d * (le * pe + ld * layers * pj);
      const flops = (matrices + scores) / (2 * P);
      assert.ok(
        Math.abs(account.forwardFlopsPerToken / flops - 1) < 1e-9,
        `${account.forwardFlopsPerToken}, not ${flops}`,
      );
      assert.deepEqual([account.positionsPerStep, account.lossTokensPerStep], [2 * 2 * P, 2 * P]);
    });

  test('activation memory does not grow with depth', () => {
    const bytes = (depth: number): number => {
      const model = smallSpec({ ...wide, width: 64, layout: 'terraformer', depth, ffn: sru() });
      const { memory, parameters } = accountFor(
        parseTrainConfig(configOf(model, { objective: 'prefix-lm', length: P, batch: 8 })),
      );
      return memory.arena - 4 * parameters;
    };
    const [two, twelve] = [2, 12].map(bytes);
    assert.ok(twelve < 1.02 * two, `${two} bytes at 2 blocks, ${twelve} at 12`);
  });

  test('what does not go together is refused with the reason', () => {
    assert.throws(() => parseTrainConfig(configOf(terraformer())), /causal gives an encoder nothing to read/);
    const { model, params } = built(device, terraformer());
    const c = forwardContext({ device, compute: 'f32' });
    const batch = rowOn(device, { encoder: [1, 2], decoder: [3] });
    assert.throws(() => model.hidden(params, { ...batch, keep: batch.inputs }, c), /follows the causal mask only/);
    assert.throws(() => model.hidden(params, { ...batch, segments: null }, c), /needs segments/);
  });
});

describe('learning', () => {
  for (const [name, spec, precision] of [
    ['dense', { ffn: sru({ kind: 'glu', hidden: 64 }) }, 'bf16'],
    [
      'sparse throughout',
      {
        ...{ layout: { kind: 'terraformer', encoderDepth: 1, encoderAttention: { kind: 'full', heads: 4 } } },
        attention: { kind: 'sparse-qkv', heads: 4, output: 'multiplicative' },
        ffn: sru({ kind: 'sparse-ffn', hidden: 96, block: 8 }),
        ...{ tied: false, head: { kind: 'factored', modules: 1 } },
      },
      'bf16',
    ],
  ] as [string, SpecChanges, 'bf16'][])
    test(`copying what the encoder read: ${name}, ${precision}`, async () => {
      const length = 10;
      const config = parseTrainConfig(
        configOf(
          smallSpec({
            ...{ width: 48, depth: 1, context: length, attention: { kind: 'full', heads: 4 } },
            layout: { kind: 'terraformer', encoderDepth: 1 },
            ...spec,
          }),
          {
            ...{ objective: 'prefix-lm', length, batch: 32, steps: 500, precision },
            ...{ optimiser: { kind: 'adamw', lr: 6e-3, decay: 0.01 }, schedule: { kind: 'cosine', warmup: 0.05 } },
          },
        ),
      );
      const model = buildModel(config.model);
      const step = new TrainStep(device, model, initialise(model, device, 1), config, length);
      const batch = createBatch(32, length, { encoder: length });
      const losses: number[] = [];
      for (let k = 0; k < config.steps; k++) {
        fillCopies(batch, new Rng(k + 1), length);
        losses.push((await step.run(k, [batch])).loss);
      }
      step.dispose();
      // Every batch is fresh.
      const last = losses.slice(-20).reduce((a, b) => a + b) / 20;
      assert.ok(losses[0] > 2 && last < 0.1, `${losses[0]} nats a token, then ${last}; chance is ${Math.log(10)}`);
    });
});

/** The decoder's own past says nothing: what it writes can only come from the encoder. Two texts a row. */
function fillCopies(batch: TokenBatch, rng: Rng, n: number): void {
  const encoder = batch.encoder!;
  for (let at = 0; at < batch.inputs.length; at++) {
    const t = at % n;
    const first = t < 4;
    encoder.inputs[at] = batch.targets[at] = rng.int(1, 10);
    batch.inputs[at] = t === 0 || t === 4 ? 0 : batch.targets[at - 1];
    encoder.positions[at] = batch.positions[at] = first ? t : t - 4;
    encoder.segments[at] = batch.segments[at] = first ? 1 : 2;
  }
  batch.targetCount = batch.inputs.length;
}
