// Decoders on the CPU: what they cost is what was planned; no token sees the future or another document.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import type { KernelCall } from '../../src/backend/device.ts';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { disposeTree, flatten, forwardContext, initialise } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { TrainStep } from '../../src/train/step.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { configOf, decoderFacts, decoderVariants, perturbedParams, smallSpec } from '../support/small-models.ts';

const device = new CpuDevice();

describe('what a step costs on the CPU is what accountFor() says', () => {
  const plain = ({ kernel, ints, floats, cost, args }: KernelCall): unknown => ({
    kernel,
    ints,
    floats,
    cost,
    tensors: args.map((a) => a && [a.memory.dtype, a.memory.elements, a.offset]),
  });

  for (const [name, spec] of Object.entries(decoderVariants))
    for (const [accumulate, crossDocuments] of [
      [1, true],
      [3, false],
    ] as const)
      test(`${name}, ${accumulate} micro-batches`, () => {
        const config = parseTrainConfig(
          configOf(spec, { length: 12, accumulate, precision: 'bf16', data: { folder: 'unused', crossDocuments } }),
        );
        const account = accountFor(config);
        const before = device.memory().liveBytes;
        const live = (): number => device.memory().liveBytes - before;

        const model = buildModel(config.model);
        const params = initialise(model, device, 1);
        assert.equal(live(), account.memory.parameters);
        assert.equal(
          flatten(params).reduce((n, p) => n + p.tensor.size, 0),
          account.parameters,
        );
        assert.equal(account.parameters, decoderFacts(config.model, 12).parameters);

        const step = new TrainStep(device, model, params, config, 12);
        // The account adds the arena to what is live; here it is live.
        assert.equal(live(), account.memory.total);
        const { parameters, optimiser, arena, other, total } = account.memory;
        assert.equal(parameters + optimiser + arena + other, total);

        const meta = new MetaDevice();
        const planned = new TrainStep(meta, buildModel(config.model), initialise(model, meta, 1), config, 12);
        let [flops, bytes, calls] = [0, 0, 0];
        step.programs.forEach(({ program, times }, k) => {
          assert.deepEqual(program.calls.map(plain), planned.programs[k].program.calls.map(plain));
          assert.equal(program.arenaBytes, planned.programs[k].program.arenaBytes);
          for (const { cost } of program.calls) {
            flops += times * cost!.flops;
            bytes += times * cost!.bytes;
          }
          calls += times * program.calls.length;
        });
        assert.deepEqual([account.stepFlops, account.stepBytes, account.calls], [flops, bytes, calls]);
        step.dispose();
        disposeTree(params);
      });
});

/** Logits [T][V] of one row of tokens. */
function logitsOf(
  spec: ModelSpecInput,
  tokens: readonly number[],
  options: { segments?: readonly number[]; positions?: readonly number[]; compute?: 'f32' | 'bf16' } = {},
): number[][] {
  const model = buildModel(spec);
  const params = perturbedParams(model, device);
  const out = scope(() =>
    noGrad(() => {
      const ids = (values: readonly number[]): Tensor => Tensor.from(device, values, [1, values.length], 'i32');
      const c = forwardContext({ device, compute: options.compute ?? 'f32' });
      const batch = {
        inputs: ids(tokens),
        segments: options.segments ? ids(options.segments) : null,
        positions: options.positions ? ids(options.positions) : null,
      };
      return model.logits(params, model.hidden(params, batch, c), c).dataSync();
    }),
  );
  disposeTree(params);
  const V = out.length / tokens.length;
  return tokens.map((_, t) => Array.from(out.slice(t * V, (t + 1) * V)));
}

const T = 14;
const draw = (seed: string, n = T): number[] => {
  const rng = new Rng(seed);
  return Array.from({ length: n }, () => rng.int(0, 10));
};
const changed = (tokens: readonly number[], at: number): number[] => tokens.with(at, (tokens[at] + 5) % 11);

describe('causality', () => {
  const norms = ['rms', { kind: 'layer', bias: true }];
  const positions = ['rope', 'learned', 'none'];
  const ffns = [
    { kind: 'glu', hidden: 10 },
    { kind: 'mlp', hidden: 10, activation: 'relu2' },
  ];
  const attentions = [
    { kind: 'full', heads: 2 },
    { kind: 'full', heads: 6, kvHeads: 2 },
    { kind: 'full', heads: 2, kvHeads: 1, window: 4 },
  ];
  for (const norm of norms)
    for (const place of positions)
      test(`${JSON.stringify(norm)}, positions ${place}: a token changes no logits before it`, () => {
        for (const ffn of ffns)
          for (const attention of attentions)
            for (const compute of ['f32', 'bf16'] as const) {
              const spec = smallSpec({ norm, positions: place, ffn, attention });
              const tokens = draw('causal');
              const base = logitsOf(spec, tokens, { compute });
              for (const at of [0, 1, 6, T - 1]) {
                const other = logitsOf(spec, changed(tokens, at), { compute });
                assert.deepEqual(other.slice(0, at), base.slice(0, at), `token ${at}`);
                assert.notDeepEqual(other[at], base[at], `token ${at} has no effect`);
              }
            }
      });

  test('later tokens do see earlier ones, as far as the windows of all layers reach', () => {
    const [window, depth] = [3, 2];
    const reach = depth * (window - 1);
    const spec = smallSpec({ depth, attention: { kind: 'full', heads: 2, window } });
    const tokens = draw('window');
    const [base, other] = [logitsOf(spec, tokens), logitsOf(spec, changed(tokens, 2))];
    for (let t = 2; t < T; t++)
      if (t <= 2 + reach) assert.notDeepEqual(other[t], base[t], `token ${t} should see token 2`);
      else assert.deepEqual(other[t], base[t], `token ${t} should not see token 2`);
    const open = smallSpec({ depth });
    assert.notDeepEqual(logitsOf(open, changed(tokens, 0))[T - 1], logitsOf(open, tokens)[T - 1]);
  });
});

describe('segments', () => {
  const border = 5;
  const segments = Array.from({ length: T }, (_, t) => (t < border ? 1 : 2));
  const positions = Array.from({ length: T }, (_, t) => (t < border ? t : t - border));

  for (const [name, spec] of Object.entries(decoderVariants))
    test(`${name}: documents in one row do not see each other`, () => {
      for (const compute of ['f32', 'bf16'] as const) {
        const tokens = draw('segments');
        const base = logitsOf(spec, tokens, { segments, positions, compute });
        for (const at of [0, border - 1]) {
          const other = logitsOf(spec, changed(tokens, at), { segments, positions, compute });
          assert.deepEqual(other.slice(border), base.slice(border));
          assert.notDeepEqual(other[at], base[at]);
        }
        // Each document has the logits that it has by itself.
        const tolerance = compute === 'f32' ? 1e-5 : 2e-2;
        const alone = [
          ...logitsOf(spec, tokens.slice(0, border), { compute }),
          ...logitsOf(spec, tokens.slice(border), { compute }),
        ];
        const most = Math.max(...base.flat().map(Math.abs));
        alone.flat().forEach((x, k) => {
          assert.ok(Math.abs(x - base.flat()[k]) <= tolerance * most, `logit ${k}: ${base.flat()[k]}, alone ${x}`);
        });
      }
    });
});
