// Reversible layout: streams are rebuilt, gradients are those of the same equations with everything stored, choices are
// repeated and counted once.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import {
  Choices,
  flatten,
  forwardContext,
  initialise,
  type Norm,
  type ParamTree,
  repeats,
  tensorOf,
} from '../../src/nn/index.ts';
import { add, gradients, layerNorm, mul, scope, sum } from '../../src/tensor/index.ts';
import { type Half, runStack } from '../../src/tricks/reversible/index.ts';
import { apartBy, type Pass, passOf, reversibleSpec } from '../support/reversible-pass.ts';
import { normalTensor, slotLayer } from '../support/slot-layer.ts';
import type { SpecChanges } from '../support/small-models.ts';

const device = new CpuDevice();

describe('streams are rebuilt from what a stack gives', () => {
  /** Largest relative error of what the branches of `depth` blocks read in their second pass. */
  function inverseError(depth: number, grid: number, compute: 'f32' | 'bf16'): number {
    const width = 256;
    const seen: Float32Array[] = [];
    let [place, worst] = [0, 0];
    const spied = (norm: Norm): Norm => ({
      forward: (p, x, c) => {
        const values = Float32Array.from(x.dataSync());
        if (!repeats(c)) seen[place++] = values;
        else {
          const first = seen[--place];
          const size = Math.hypot(...first);
          worst = Math.max(worst, Math.hypot(...first.map((v, k) => v - values[k])) / size);
        }
        return norm.forward(p, x, c);
      },
    });
    const halves = Array.from({ length: 2 * depth }, (_, k): Half => {
      const { mixer, params } = slotLayer(
        device,
        'ffn',
        { kind: 'mlp', hidden: 512, activation: 'relu' },
        { width, depth: 1, seed: 1 + k },
      );
      const norm = slotNorm(width);
      return {
        norm: spied(norm),
        part: mixer,
        normParams: initialise(norm, device, 1),
        partParams: params,
      };
    });
    scope(() => {
      const x = [normalTensor(device, 'x1', [1, 4, width]), normalTensor(device, 'x2', [1, 4, width])] as const;
      for (const t of x) t.requiresGrad = true;
      const c = forwardContext({ device, compute });
      const [a, b] = runStack(halves, x, { store: false, grid }, c);
      gradients(sum(mul(add(a, b), b)), x);
    });
    assert.equal(place, 0, 'every branch was computed twice');
    assert.equal(seen.length, 2 * depth);
    return worst;
  }
  const slotNorm = (width: number): Norm => ({
    params: {
      weight: {
        shape: [width],
        init: { kind: 'constant', value: 1 },
        role: 'vector',
        fanIn: 1,
        fanOut: width,
        decay: false,
      },
    },
    forward: (p, x, c) => layerNorm(x, tensorOf(p, 'weight'), null, { eps: 1e-5, out: c.activation }),
  });
  test('f32: relative error at most 1e-5 at 24 blocks', () => {
    const error = inverseError(24, 0, 'f32');
    assert.ok(error > 0 && error <= 1e-5, `error ${error}`);
  });
  for (const compute of ['f32', 'bf16'] as const)
    test(`fixed point, ${compute}: not one bit is off`, () => assert.equal(inverseError(24, 16, compute), 0));
});

const full = (o = {}) => ({ kind: 'full', heads: 2, ...o });
const glu = (o = {}) => ({ kind: 'glu', hidden: 10, ...o });
const everyDropout: SpecChanges = { dropout: 0.2, attention: full({ dropout: 0.2 }), ffn: glu({ dropout: 0.2 }) };
const variants: Record<string, SpecChanges> = {
  plain: {},
  'dropout everywhere': everyDropout,
  moe: {
    ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 8, dropout: 0.1 }, biasRate: 0.01 },
  },
  'moe with capacity, random second choices, shared experts': {
    ffn: {
      ...{ kind: 'moe', experts: 4, active: 2, shared: 1, expert: { kind: 'mlp', hidden: 8 } },
      ...{ routing: { kind: 'capacity', factor: 1, convention: 'assignments', second: 'random' }, gate: 'softmax' },
    },
  },
  'moe with jitter': { ffn: { kind: 'moe', experts: 4, active: 1, jitter: 0.1, expert: { kind: 'mlp', hidden: 8 } } },
  'sparse-ffn with noise, soft and hard passes': { ffn: { kind: 'sparse-ffn', hidden: 32, block: 8, dropout: 0.1 } },
  'sparse-ffn experts': {
    ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'sparse-ffn', hidden: 16, block: 4 } },
  },
  'relu-l1': { ffn: { kind: 'relu-l1', hidden: 32, l1: 0.1 } },
  'topk-ffn': { ffn: { kind: 'topk-ffn', hidden: 32, density: 0.2 } },
  'hashed attention': { attention: { kind: 'lsh', heads: 2, chunk: 4, dropout: 0.1 } },
  'long convolutions': { attention: { kind: 'hyena' }, positions: 'none' },
  'sparse-qkv': { attention: { kind: 'sparse-qkv', heads: 2, dropout: 0.1 } },
  'biases by distance': { positions: 't5-bias' },
  muP: { parametrisation: { kind: 'mup', baseWidth: 8 } },
  'both streams to the head': { tied: false },
};

describe('gradients are those of the same equations with everything stored', () => {
  for (const [name, changes] of Object.entries(variants)) {
    const merge = name === 'both streams to the head' ? 'concat' : 'average';
    const both = (grid: number, compute: 'f32' | 'bf16'): [Pass, Pass] => {
      const of = (store: boolean): Pass => passOf(device, reversibleSpec({ grid, store, merge }, changes), { compute });
      return [of(true), of(false)];
    };
    const same = (stored: Pass, rebuilt: Pass): void => {
      assert.equal(rebuilt.loss, stored.loss);
      assert.deepEqual(rebuilt.terms, stored.terms);
      assert.deepEqual(rebuilt.state, stored.state, 'what layers count is counted once');
    };
    test(`${name}: floating point`, () => {
      const [stored, rebuilt] = both(0, 'f32');
      same(stored, rebuilt);
      const { off, at } = apartBy(stored, rebuilt);
      assert.ok(off <= 1e-4, `${at}: off by ${off}`);
    });
    for (const compute of ['f32', 'bf16'] as const)
      test(`${name}: fixed point, ${compute}, to the bit`, () => {
        const [stored, rebuilt] = both(16, compute);
        same(stored, rebuilt);
        assert.deepEqual(rebuilt.grads, stored.grads);
      });
  }
});

describe('near-ties', () => {
  /** In every block of units the first two have logits that are 1e-7 apart and above all others. */
  const tied = (params: ParamTree): void => {
    for (const { path, tensor } of flatten(params)) {
      if (!/ffn\.logits/.test(path)) continue;
      const values = Float32Array.from(tensor.dataSync());
      const r = /Bias/.test(path) ? 1 : tensor.shape[1];
      for (let j = 0; j < values.length; j += 8 * r)
        for (let k = 0; k < r; k++) {
          if (r === 1) values[j] = 20;
          values[j + r + k] = values[j + k] * (1 + (k % 2 ? -1e-7 : 1e-7));
        }
      tensor.write(values);
    }
  };
  const ffn = { kind: 'sparse-ffn', hidden: 64, block: 8, hard: 1, tau: 0 };
  const of = (store: boolean): Pass =>
    passOf(device, reversibleSpec({ grid: 0, store }, { ffn, depth: 12 }), { edit: tied, batch: 4 });

  test('the first pass decides', () => {
    const { off, at } = apartBy(of(true), of(false), 0.01);
    assert.ok(off <= 1e-4, `${at}: off by ${off}`);
  });
  test('passes that decide anew get other gradients', () => {
    const { rewind, end } = Choices.prototype;
    try {
      Choices.prototype.rewind = () => {};
      Choices.prototype.end = () => {};
      const { off } = apartBy(of(true), of(false), 0.01);
      assert.ok(off > 1e-3, `off by ${off} only: there are no near-ties, or they are of no consequence`);
    } finally {
      Object.assign(Choices.prototype, { rewind, end });
    }
  });
});
