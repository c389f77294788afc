// Long convolutions on the CPU: accuracy, causality, documents, and devices against each other.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel, withContext } from '../../src/model/model.ts';
import { parseSpec } from '../../src/model/spec.ts';
import { forwardContext } from '../../src/nn/index.ts';
import { gradients, longConv, noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { distance, drawTokens, logitsOf } from '../support/logits.ts';
import { valuesOf } from '../support/ref-values.ts';
import { checkCausality, normalTensor, slotLayer } from '../support/slot-layer.ts';
import { batchOn, hostBatch, perturbedParams, smallSpec } from '../support/small-models.ts';

const device = new CpuDevice();
const { levels, level: initial } = device.info();
after(() => device.useLevel(initial));

const draw = (seed: string, n: number, scale = 1): Float64Array => {
  const rng = new Rng(seed);
  return Float64Array.from({ length: n }, () => Math.fround(scale * rng.normal()));
};

/** sum over j of h[j] v[t-j] in float64, one channel of C. */
function directSum(v: Float64Array, h: Float64Array, T: number, C: number, c: number): Float64Array {
  const [x, f] = [v, h].map((a) => Float64Array.from({ length: T }, (_, t) => a[t * C + c]));
  return Float64Array.from({ length: T }, (_, t) => {
    let sum = 0;
    for (let j = 0; j <= t; j++) sum += f[j] * x[t - j];
    return sum;
  });
}

const largest = (x: ArrayLike<number>): number => Array.from(x).reduce((m, v) => Math.max(m, Math.abs(v)), 0);

describe(`transforms against direct sums in float64 (${levels.join(', ')})`, () => {
  for (const T of [97, 257, 1000, 2048, 5000, 8192])
    test(`${T} tokens: forward and both gradients within 1e-5`, () => {
      const C = T < 4000 ? 5 : 2;
      const [v, h, g] = [draw('v', T * C), draw('h', T * C, 1 / Math.sqrt(T)), draw('g', T * C)];
      const back = (a: Float64Array): Float64Array =>
        Float64Array.from({ length: T * C }, (_, k) => a[(T - 1 - Math.floor(k / C)) * C + (k % C)]);
      const wanted = Array.from({ length: C }, (_, c) => [
        directSum(v, h, T, C, c),
        directSum(back(g), h, T, C, c).reverse(),
        directSum(back(g), v, T, C, c).reverse(),
      ]);
      for (const level of levels) {
        device.useLevel(level);
        const got = scope(() => {
          const x = Tensor.from(device, v, [1, T, C]).parameter();
          const f = Tensor.from(device, h, [T, C]).parameter();
          const out = longConv(x, f);
          const grads = gradients(out, [x, f], Tensor.from(device, g, [1, T, C]));
          return [out, ...grads].map((t) => Float64Array.from(valuesOf(t))) as never;
        }) as unknown as Float64Array[];
        wanted.forEach((of, c) => {
          of.forEach((want, k) => {
            const error = largest(want.map((w, t) => got[k][t * C + c] - w)) / largest(want);
            assert.ok(error < 1e-5, `${level} ${['y', 'dv', 'dh'][k]}, channel ${c}: error ${error}`);
          });
        });
      }
    });
});

describe('causality of the operator', () => {
  const [T, C, at] = [700, 5, 400];
  const outputs = (direct: boolean, later: number): Float64Array =>
    scope(() => {
      const v = draw('v', T * C);
      for (let k = at * C; k < T * C; k++) v[k] += later;
      const filter = Tensor.from(device, draw('h', T * C, 0.05), [T, C]);
      return Float64Array.from(valuesOf(longConv(Tensor.from(device, v, [1, T, C]), filter, { direct }))) as never;
    }) as unknown as Float64Array;
  test('direct sums before a change stay the same bits', () => {
    const [a, b] = [outputs(true, 0), outputs(true, 1)].map((y) => y.slice(0, at * C));
    assert.deepEqual(a, b);
  });
  test('by FFT they move by less than 1e-6 of the largest output', () => {
    const [a, b] = [outputs(false, 0), outputs(false, 1)];
    const moved = largest(a.slice(0, at * C).map((y, k) => y - b[k]));
    assert.ok(moved < 1e-6 * largest(b), `${moved} of ${largest(b)}`);
    assert.ok(largest(a.slice(at * C).map((y, k) => y - b[at * C + k])) > 0.1);
  });
});

describe('models', () => {
  const none = { positions: 'none' } as const;
  for (const [name, spec] of [
    ['hyena', { attention: { kind: 'hyena' }, ...none }],
    ['hyena, order 3', { attention: { kind: 'hyena', order: 3 }, ...none }],
    [
      'hyena, direct, with attention in the last block',
      {
        attention: { kind: 'hyena', convolution: 'direct' },
        overrides: [{ layers: [-1], attention: { kind: 'full', heads: 2 } }],
      },
    ],
    ['gated-conv', { attention: { kind: 'gated-conv', period: 0 }, ...none }],
    ['gated-conv with attention', { attention: { kind: 'gated-conv', period: 2, heads: 2 } }],
  ] as const)
    test(`${name}: tokens change nothing before them, documents nothing in others`, () =>
      checkCausality(device, smallSpec(spec as object)));

  test('over 300 tokens logits before a change move by rounding noise only', () => {
    const T = 300;
    const model = buildModel(smallSpec({ context: T, attention: { kind: 'hyena' }, ...none }));
    const params = perturbedParams(model, device);
    const logits = (change: number): Float64Array =>
      scope(() =>
        noGrad(() => {
          const host = hostBatch('long', 11, 1, T);
          for (let t = change; t < T; t++) host.inputs[t] = (host.inputs[t] + 1) % 11;
          const c = forwardContext({ device, compute: 'f32' });
          return Float64Array.from(
            valuesOf(model.logits(params, model.hidden(params, batchOn(device, host, 1, T), c), c)),
          ) as never;
        }),
      ) as unknown as Float64Array;
    const [a, b] = [logits(T), logits(150)];
    const moved = largest(a.slice(0, 150 * 11).map((y, k) => y - b[k]));
    assert.ok(moved < 1e-5 * largest(a), `${moved} of ${largest(a)}`);
  });
});

test('documents packed in a row give what each gives alone', () => {
  for (const kind of ['hyena', 'gated-conv']) {
    const [width, T] = [20, 500];
    const config = kind === 'hyena' ? { kind, reach: 600, bands: 3 } : { kind, period: 0 };
    const { mixer, params } = slotLayer(device, 'attention', config, { width });
    const borders = [0, 130, 131, 200, 500];
    const x = draw('x', T * width);
    const run = (from: number, to: number, ids: number[] | null): Float64Array =>
      scope(() =>
        noGrad(() => {
          const n = to - from;
          const input = Tensor.from(device, x.slice(from * width, to * width), [1, n, width]);
          const segments = ids && Tensor.from(device, ids, [1, n], 'i32');
          const c = forwardContext({ device, compute: 'f32', segments });
          return Float64Array.from(valuesOf(mixer.forward(params, input, input, c))) as never;
        }),
      ) as unknown as Float64Array;
    const ids = Array.from({ length: T }, (_, t) => borders.findIndex((b) => b > t));
    const packed = run(0, T, ids);
    for (let k = 0; k + 1 < borders.length; k++) {
      const alone = run(borders[k], borders[k + 1], null);
      const error = largest(alone.map((y, n) => y - packed[borders[k] * width + n]));
      assert.ok(error < 1e-5 * largest(alone), `${kind}, document ${k}: ${error}`);
    }
  }
});

test('a model for longer rows has the same filters', () => {
  for (const [attention, layout] of [
    [{ kind: 'hyena' }, 'decoder'],
    [{ kind: 'hyena', order: 3, reach: 9 }, 'decoder'],
    [{ kind: 'hyena' }, { kind: 'terraformer', encoderAttention: { kind: 'full', heads: 2 } }],
  ] as const) {
    const spec = parseSpec(smallSpec({ context: 16, attention, positions: 'none', layout }));
    const tokens = drawTokens('filters', 14);
    const [own, longer] = [spec, withContext(spec, 50)].map((s) => logitsOf(s, tokens));
    assert.deepEqual(longer, own);
    if ('reach' in attention) continue;
    // Filters that were measured against the longer rows would be others.
    assert.ok(distance(logitsOf({ ...spec, context: 50 }, tokens), own) > 1e-3);
  }
});

test('whole layers agree with the reference, over transforms too', () => {
  const ref = new RefDevice();
  for (const [config, T] of [
    [{ kind: 'hyena' }, 20],
    [{ kind: 'hyena', order: 3, reach: 130 }, 130],
    [{ kind: 'gated-conv', period: 0, bias: true, hidden: 33 }, 50],
  ] as const) {
    const width = 18;
    const [a, b] = [ref, device].map((on) => {
      const { mixer, params } = slotLayer(on, 'attention', config, { width });
      const x = normalTensor(on, 'x', [2, T, width]).parameter();
      const y = mixer.forward(params, x, x, forwardContext({ device: on, compute: 'f32' }));
      const grads = gradients(y, [x, ...(Object.values(params) as Tensor[])], normalTensor(on, 'seed', [2, T, width]));
      return [y, ...grads].map((t) => Float64Array.from(valuesOf(t)));
    });
    // Initial values are drawn by each device from the same stream, to the last bit of f32 or nearly.
    a.forEach((want, k) => {
      const error = largest(want.map((w, n) => w - b[k][n]));
      assert.ok(
        error < 3e-4 * (largest(want) + 1e-3),
        `${JSON.stringify(config)}, tensor ${k}: ${error} of ${largest(want)}`,
      );
    });
  }
});
