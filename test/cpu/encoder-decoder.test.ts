// Encoder-decoders: who sees whom, a memory that is computed once, sizes and costs in closed form.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { childOf, forwardContext, type ParamTree, tensorOf } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { configOf, perturbedParams, smallSpec } from '../support/small-models.ts';
import {
  built,
  distance,
  logitsOf,
  type Rows,
  rowOn,
  stackVariants,
  tokens,
  twoStacks,
} from '../support/two-stacks.ts';

const device = new CpuDevice();
const [Te, T] = [9, 8];
const changed = (list: readonly number[], at: number): number[] => list.with(at, (list[at] + 5) % 11);

describe('who sees whom', () => {
  for (const [name, spec] of Object.entries(stackVariants))
    for (const compute of ['f32', 'bf16'] as const)
      test(`${name}, ${compute}`, () => {
        const { model, params } = built(device, spec);
        const rows: Rows = { encoder: tokens('encoder', Te), decoder: tokens('decoder', T) };
        const of = (r: Rows): number[][] => logitsOf(device, model, params, r, compute);
        const base = of(rows);
        for (const at of [0, 3, T - 1]) {
          const other = of({ ...rows, decoder: changed(rows.decoder, at) });
          assert.deepEqual(other.slice(0, at), base.slice(0, at), `decoder token ${at} reaches back`);
          assert.notDeepEqual(other[at], base[at]);
        }
        // Every decoder token reads all of the encoder, and every encoder token reads both sides.
        for (const at of [0, Te - 1]) {
          const other = of({ ...rows, encoder: changed(rows.encoder, at) });
          for (let t = 0; t < T; t++) assert.notDeepEqual(other[t], base[t], `decoder ${t} misses encoder ${at}`);
        }
        const states = (encoder: readonly number[]): Float32Array =>
          scope(() =>
            noGrad(() => {
              const c = forwardContext({ device, compute });
              return model.encoder!.encode(params, rowOn(device, { ...rows, encoder }).encoder!, c).dataSync();
            }),
          ) as Float32Array;
        const [a, b] = [states(rows.encoder), states(changed(rows.encoder, Te - 1))];
        const width = a.length / Te;
        for (let t = 0; t < Te; t++)
          assert.notDeepEqual(a.slice(t * width, (t + 1) * width), b.slice(t * width, (t + 1) * width));
      });

  for (const [name, spec] of Object.entries(stackVariants))
    test(`segments: ${name}`, () => {
      const { model, params } = built(device, spec);
      const rows: Rows = {
        ...{ encoder: tokens('encoder', Te), encoderSegments: [1, 1, 1, 1, 2, 2, 2, 3, 3] },
        ...{ decoder: tokens('decoder', T), decoderSegments: [1, 1, 2, 2, 2, 2, 3, 3] },
      };
      const of = (r: Rows): number[][] => logitsOf(device, model, params, r);
      const base = of(rows);
      const second = of({ ...rows, encoder: changed(rows.encoder, 5), decoder: changed(rows.decoder, 2) });
      assert.deepEqual([second.slice(0, 2), second.slice(6)], [base.slice(0, 2), base.slice(6)], 'bit for bit');
      for (let t = 2; t < 6; t++) assert.notDeepEqual(second[t], base[t]);
      // Each example by itself has the same logits.
      const alone = [
        [0, 4, 0, 2],
        [4, 7, 2, 6],
        [7, 9, 6, 8],
      ].flatMap(([a, b, x, y]) => of({ encoder: rows.encoder.slice(a, b), decoder: rows.decoder.slice(x, y) }));
      assert.ok(distance(base, alone) < 1e-5);
    });
});

describe('memory', () => {
  /** Decoder logits over keys and values that were computed before, piece by piece. */
  function cached(spec: ModelSpecInput, blocks: readonly number[][], decoder: readonly number[]): number[][] {
    const { model, params } = built(device, spec);
    model.prepare(device);
    const all = scope(() =>
      noGrad(() => {
        const c = forwardContext({ device, compute: 'f32' });
        const { encode, crossKeyValues, decode } = model.encoder!;
        const memories = blocks.map((b) =>
          crossKeyValues(params, encode(params, rowOn(device, { encoder: b, decoder }).encoder!, c), c),
        );
        const join = (pick: 'key' | 'value', k: number): Tensor => {
          const parts = memories.map((m) => m[k]![pick]);
          const [, , h, d] = parts[0].shape;
          const data = Float32Array.from(parts.flatMap((t) => [...t.dataSync()]));
          return Tensor.from(device, data, [1, data.length / (h * d), h, d]);
        };
        const memory = memories[0].map((m, k) => m && { key: join('key', k), value: join('value', k) });
        const n = blocks.flat().length;
        const { inputs, segments, positions } = rowOn(device, { encoder: [1], decoder });
        const readers = Tensor.from(device, new Int32Array(n).fill(1), [1, n], 'i32');
        const h = decode(params, { inputs, segments, positions }, memory, readers, c);
        return model.logits(params, h, c).dataSync();
      }),
    );
    return decoder.map((_, t) => Array.from(all.slice(t * 11, (t + 1) * 11)));
  }

  for (const [name, spec] of Object.entries(stackVariants)) {
    const [one, two] = [tokens('first', 4), tokens('second', 5)];
    const decoder = tokens('decoder', T);

    test(`kept keys and values give the logits of a full pass: ${name}`, () => {
      const { model, params } = built(device, spec);
      const full = logitsOf(device, model, params, { encoder: one, decoder });
      assert.ok(distance(full, cached(spec, [one], decoder)) < 1e-6);
    });

    test(`blocks that were read apart can be joined and reordered: ${name}`, () => {
      const { model, params } = built(device, spec);
      const rows = {
        encoder: [...one, ...two],
        decoder,
        encoderSegments: [1, 1, 1, 1, 2, 2, 2, 2, 2],
        readers: one.concat(two).map(() => 1),
      };
      const full = logitsOf(device, model, params, rows);
      assert.ok(distance(full, cached(spec, [one, two], decoder)) < 1e-6);
      assert.ok(distance(full, cached(spec, [two, one], decoder)) < 1e-5);
      const within = cached(spec, [[...one].reverse(), two], decoder);
      assert.ok(distance(full, within) > 1e-4, 'order within a block matters');
    });
  }

  test('merged attention over nothing is the decoder, with the same parameters', () => {
    const [spec, plain] = [twoStacks({ merged: true }), smallSpec()];
    const [model, decoder] = [buildModel(spec), buildModel(plain)];
    const [params, own] = [perturbedParams(model, device), perturbedParams(decoder, device)];
    const row = tokens('decoder', T);
    const never = { encoder: tokens('encoder', Te), readers: new Array(Te).fill(7), decoder: row };
    const got = logitsOf(device, model, params, never);
    const want = scope(() =>
      noGrad(() => {
        const c = forwardContext({ device, compute: 'f32' });
        decoder.prepare(device);
        const inputs = Tensor.from(device, row, [1, T], 'i32');
        return decoder.logits(own, decoder.hidden(own, { inputs, segments: null, positions: null }, c), c).dataSync();
      }),
    );
    assert.ok(
      distance(
        got,
        row.map((_, t) => Array.from(want.slice(11 * t, 11 * t + 11))),
      ) < 1e-6,
    );
    assert.ok(distance(got, logitsOf(device, model, params, { ...never, readers: undefined })) > 1e-3);
  });

  test('a decoder token reads the mean of values where all keys are alike', () => {
    const { model, params } = built(device, twoStacks());
    const cross = (k: number): ParamTree => childOf(childOf(childOf(params, 'blocks'), String(k)), 'cross');
    for (const k of [0, 1]) tensorOf(cross(k), 'key').write(new Float32Array(tensorOf(cross(k), 'key').size));
    const rows: Rows = { encoder: tokens('encoder', Te), decoder: tokens('decoder', T) };
    const positions = 'none';
    const flat = built(device, twoStacks({}, { positions }));
    for (const k of [0, 1]) {
      const own = childOf(childOf(childOf(flat.params, 'blocks'), String(k)), 'cross');
      tensorOf(own, 'key').write(new Float32Array(tensorOf(own, 'key').size));
    }
    // Without positions and with equal keys, the order of the encoder's tokens cannot matter.
    const of = (encoder: number[]): number[][] => logitsOf(device, flat.model, flat.params, { ...rows, encoder });
    assert.ok(distance(of([...rows.encoder]), of([...rows.encoder].reverse())) < 1e-5);
    const turned = logitsOf(device, model, params, { ...rows, encoder: [...rows.encoder].reverse() });
    assert.ok(distance(logitsOf(device, model, params, rows), turned) > 1e-4, 'rotary positions make it matter');
  });
});

describe('sizes and costs', () => {
  const wide = {
    vocab: 50,
    width: 16,
    context: 32,
    attention: { kind: 'full', heads: 4, kvHeads: 2 },
    ffn: { kind: 'glu', hidden: 24 },
  };
  const [d, f, kv, V] = [16, 24, 8, 50];
  const own = d * (d + 2 * kv) + d * d;
  const ffn = 3 * d * f;

  for (const [le, ld, every, merged] of [
    [3, 1, 1, false],
    [2, 4, 2, false],
    [2, 3, 1, true],
  ] as const)
    test(`${le} + ${ld} blocks, cross-attention ${merged ? 'merged' : `every ${every}`}`, () => {
      const layout = { encoderDepth: le, crossEvery: every, merged };
      const model = twoStacks(layout, { ...wide, depth: ld });
      const config = parseTrainConfig(configOf(model, { objective: 'prefix-lm', length: 32, batch: 2 }));
      const looks = merged
        ? 0
        : Array.from({ length: ld }, (_, k) => k).filter((k) => (k + 1) % every === 0 || k === ld - 1).length;
      const cross = d * d + 2 * d * kv + d * d;
      const parameters = V * d + (le + ld) * (own + ffn + 2 * d) + 2 * d + looks * (cross + d);
      const account = accountFor(config);
      assert.equal(account.parameters, parameters);

      // Means over splits s of 32: s given and 32 - s predicted in one half, the complement in the other.
      const P = 32;
      let [pe, pd, pc] = [0, 0, 0];
      for (let s = 1; s < P; s++) {
        pe += (s * s + (P - s) ** 2) / (P - 1);
        pd += (s * (s + 1) + (P - s) * (P - s + 1)) / 2 / (P - 1);
        pc += (2 * s * (P - s)) / (P - 1);
      }
      const keyValue = 2 * d * kv;
      const products =
        2 * P * (le * (own + ffn) + ld * (own + ffn)) +
        2 * P * V * d +
        (merged ? ld * 2 * P * keyValue : looks * 2 * P * cross);
      const attention = 4 * d * (le * pe + ld * pd + (merged ? ld : looks) * pc);
      // And the weighted sum of the losses: 2 a target.
      const flops = (products + attention + 2 * P) / (2 * P);
      assert.ok(
        Math.abs(account.forwardFlopsPerToken / flops - 1) < 1e-9,
        `${account.forwardFlopsPerToken}, not ${flops}`,
      );
      assert.deepEqual([account.positionsPerStep, account.lossTokensPerStep], [2 * 2 * P, 2 * P]);
    });

  test('what does not go together is refused with the reason', () => {
    const build = (layout: object, changes = {}) => buildModel(twoStacks({ ...layout }, changes));
    assert.throws(
      () => build({ merged: true }, { attention: { kind: 'full', heads: 2, window: 3 } }),
      /merged attention is plain/,
    );
    assert.throws(() => build({ merged: true, crossEvery: 2 }), /merged attention is plain/);
    assert.throws(() => build({ depth: 3 }), /layout encoder-decoder: .*depth/);
    assert.throws(() => build({ crossHeads: 3, crossKvHeads: 2 }), /do not share/);
    assert.throws(() => parseTrainConfig(configOf(twoStacks())), /causal gives an encoder nothing to read/);
  });
});
