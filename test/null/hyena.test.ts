// Hyena and gated convolutions: filters, closed formulas for costs, roles, and what is refused. No native code.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { countParams, declared, forwardContext, initialise } from '../../src/nn/index.ts';
import { fftPoints, gradients, longConvFlops, noGrad, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { gatedConvCosts, hasAttention } from '../../src/tricks/conv-attention/index.ts';
import { decayRates, filterOptions, hyenaCosts, hyenaSchema, implicitFilters } from '../../src/tricks/hyena/index.ts';
import { refValues, valuesOf } from '../support/ref-values.ts';
import { normalTensor, slotLayer } from '../support/slot-layer.ts';
import { configOf, smallSpec } from '../support/small-models.ts';

const ref = new RefDevice();
const options = (changes: object = {}) => hyenaSchema.parse(changes);

describe('implicit filters', () => {
  test('windows fall to 0.01 after 1.5 of the reach in the first channel and 0.3 in the last', () => {
    const o = filterOptions(options({ order: 3 }), 5, 101);
    const rates = [0, 1].map((r) => decayRates(o, r));
    assert.ok(Math.abs(rates[0].first * 100 - -Math.log(0.01) / 1.5) < 1e-12);
    assert.ok(Math.abs(rates[1].last * 100 - -Math.log(0.01) / 0.3) < 1e-12);
    // All (order - 1) width channels are spaced evenly, the filters taking turns.
    const gap = rates[1].first - rates[0].first;
    assert.ok(Math.abs(rates[0].last - (rates[0].first + 8 * gap)) < 1e-12);
    assert.ok(Math.abs(rates[1].last - (rates[0].first + 9 * gap)) < 1e-12);
  });

  test('are the network of sines of the position, times the window', () => {
    const width = 4;
    const config = { filterWidth: 6, bands: 3, frequency: 5, order: 3 };
    const { params } = slotLayer(ref, 'attention', { kind: 'hyena', ...config }, { width });
    const o = filterOptions(options(config), width, 64);
    const p = Object.fromEntries(Object.entries(params).map(([k, t]) => [k, valuesOf(t as Tensor)]));
    const affine = (x: number[], name: string): number[] =>
      Array.from({ length: 6 }, (_, k) =>
        x.reduce((s, v, n) => s + v * p[`filter${name}`][k * x.length + n], p[`filterBias${name}`][k]),
      );
    const filters = implicitFilters(params, ref, 10, o).map((t) => valuesOf(t));
    for (let r = 0; r < 2; r++)
      for (let tau = 0; tau < 10; tau++) {
        const angles = [1e-4, (1e-4 + 2) / 2, 2].map((f) => (2 * Math.PI * f * tau) / 64);
        let x = [tau / 63, ...angles.map(Math.cos), ...angles.map((a) => -Math.sin(a))];
        for (const name of ['0', '1', '2']) x = affine(x, name).map((v, k) => Math.sin(v * p.frequency[k]));
        for (let c = 0; c < width; c++) {
          const out = x.reduce((s, v, n) => s + v * p.filterOut[(r * width + c) * 6 + n], 0);
          const rate = 3.0701134573253945 + ((15.350567286626973 - 3.0701134573253945) * (c * 2 + r)) / 7;
          const want = out * Math.exp((-rate * tau) / 63);
          assert.ok(Math.abs(filters[r][tau * width + c] - want) < 1e-9, `filter ${r}, tap ${tau}, channel ${c}`);
        }
      }
  });

  test('do not depend on how many taps are asked for', () => {
    const { params } = slotLayer(ref, 'attention', { kind: 'hyena' }, { width: 3 });
    const o = filterOptions(options(), 3, 64);
    const [few, many] = [5, 64].map((n) => Array.from(valuesOf(implicitFilters(params, ref, n, o)[0])));
    assert.deepEqual(few, many.slice(0, 15));
  });
});

describe('costs', () => {
  test('transforms are the next 2^a, 3 2^a or 5 2^a', () => {
    assert.deepEqual(
      [97, 128, 129, 160, 161, 193, 1000, 4097].map(fftPoints),
      [128, 128, 160, 160, 192, 256, 1024, 5120],
    );
  });
  test('a token of a long convolution costs 10 log2(2T) + 6, besides the filter and the skip', () => {
    for (const T of [128, 2048, 32768]) {
      const perToken = longConvFlops(T, T, Number.POSITIVE_INFINITY, false, false) / T;
      assert.equal(perToken, 10 * Math.log2(2 * T) + 6);
    }
    assert.equal(longConvFlops(50, 50, 1, false, true), 50 * 51 + 100);
    assert.equal(longConvFlops(50, 20, 1, true, false), 2 * (20 * 50 - 190));
  });

  for (const [name, changes] of [
    ['hyena', {}],
    ['hyena of order 3', { order: 3, shortKernel: 4, bias: false, filterWidth: 20 }],
  ] as const)
    test(`${name}: parameters and FLOPs are those of the formula`, () => {
      const o = options(changes);
      const [width, length, batch] = [48, 160, 3];
      const model = {
        width,
        vocab: 30,
        context: length,
        depth: 3,
        positions: 'none',
        attention: { kind: 'hyena', ...changes },
      } as const;
      const rest = { ...model, attention: { kind: 'full', heads: 4 } } as const;
      const [with_, without] = [model, rest].map((m) =>
        accountFor(
          parseTrainConfig(configOf(smallSpec(m), { batch, length, data: { folder: '', crossDocuments: true } })),
        ),
      );
      const costs = hyenaCosts({ ...o, width }, length, batch);
      assert.equal(with_.parameters - without.parameters, 3 * (costs.parameters - 4 * width * width));
      const attentionFlops = 2 * 4 * width * width + 2 * width * (length + 1);
      const flops = 3 * (costs.flops - attentionFlops);
      const got = with_.forwardFlopsPerToken - without.forwardFlopsPerToken;
      // The formula counts the product of two convolved parts with the convolutions, as the kernel does.
      assert.ok(Math.abs(got - flops) < 1e-6 * with_.forwardFlopsPerToken, `${got} and ${flops}`);
    });

  test('gated-conv: parameters and FLOPs are those of the formula, attention every period layers', () => {
    assert.deepEqual(
      Array.from({ length: 9 }, (_, k) => hasAttention({ period: 4 }, k)).map(Number),
      [0, 0, 0, 1, 0, 0, 0, 1, 0],
    );
    const [width, length] = [16, 40];
    const config = (attention: object) =>
      parseTrainConfig(
        configOf(smallSpec({ width, context: length, depth: 4, attention } as object), {
          ...{ length, data: { folder: '', crossDocuments: true } },
        }),
      );
    const mixed = accountFor(config({ kind: 'gated-conv', period: 2, heads: 2, hidden: 24, kernel: 3, bias: false }));
    const full = accountFor(config({ kind: 'full', heads: 2 }));
    const costs = gatedConvCosts({ hidden: 24, kernel: 3, bias: false }, width);
    assert.equal(mixed.parameters - full.parameters, 2 * (costs.parameters - 4 * width * width));
    const attentionFlops = 8 * width * width + 2 * width * (length + 1);
    const got = mixed.forwardFlopsPerToken - full.forwardFlopsPerToken;
    assert.ok(Math.abs(got - 2 * (costs.flops - attentionFlops)) < 1e-9 * full.forwardFlopsPerToken);
    const biased = slotLayer(ref, 'attention', { kind: 'gated-conv', period: 0, bias: true, kernel: 3 }, { width: 8 });
    assert.equal(countParams(biased.mixer), gatedConvCosts({ hidden: 8, kernel: 3, bias: true }, 8).parameters);
  });
});

test('muP: inner filter layers are constants, the last one an input, taps and skips vectors', () => {
  const at = (width: number) => {
    const spec = smallSpec({
      ...{ width, attention: { kind: 'hyena', filterRate: 0.5 }, positions: 'none' },
      parametrisation: { kind: 'mup', baseWidth: 12 },
    });
    return new Map(declared(buildModel(spec)).map(({ path, spec: s }) => [path.replace('blocks.0.attention.', ''), s]));
  };
  const [base, wide] = [at(12), at(48)];
  for (const name of ['filter0', 'filter1', 'filter2', 'filterBias1', 'frequency', 'filterOut', 'short', 'skip']) {
    const [a, b] = [base.get(name)!, wide.get(name)!];
    assert.deepEqual([b.init, b.lrMult ?? 1, b.decay], [a.init, a.lrMult ?? 1, false], name);
    if (name.startsWith('f')) assert.equal(b.lrMult, 0.5, name);
  }
  assert.deepEqual([base.get('filterOut')!.role, base.get('filter1')!.role], ['embedding', 'constant']);
  for (const name of ['in', 'out']) assert.equal(wide.get(name)!.lrMult, 1 / 4, name);
});

test('gradients of whole layers agree with finite differences', () => {
  for (const config of [
    { kind: 'hyena', filterWidth: 5, bands: 2, frequency: 2 },
    { kind: 'hyena', order: 4, filterWidth: 3, bands: 2, frequency: 2, shift: 0.1 },
    { kind: 'gated-conv', period: 0, bias: true },
  ]) {
    const { mixer, params } = slotLayer(ref, 'attention', config, { width: 3 });
    const x = normalTensor(ref, 'x', [2, 5, 3]).parameter();
    const segments = Tensor.from(ref, [0, 0, 1, 1, 1, 0, 0, 0, 0, 1], [2, 5], 'i32');
    const run = () => mixer.forward(params, x, x, forwardContext({ device: ref, compute: 'f32', segments }));
    const seed = normalTensor(ref, 'seed', [2, 5, 3]);
    const weigh = (): number => {
      const y = noGrad(() => valuesOf(run()));
      return Array.from(valuesOf(seed)).reduce((s, w, k) => s + w * y[k], 0);
    };
    const all = { x, ...params } as Record<string, Tensor>;
    const grads = gradients(run(), Object.values(all), seed).map((g) => Float64Array.from(valuesOf(g)));
    Object.entries(all).forEach(([name, t], n) => {
      const values = refValues(t);
      for (const k of [0, values.length >> 1, values.length - 1]) {
        const before = values[k];
        const [up, down] = [1e-5, -1e-5].map((h) => {
          values[k] = before + h;
          return weigh();
        });
        values[k] = before;
        const want = (up - down) / 2e-5;
        assert.ok(Math.abs(grads[n][k] - want) < 1e-6 * (1 + Math.abs(want)), `${config.kind} ${name}[${k}]`);
      }
    });
  }
});

test('refused with the reason', () => {
  const device = ref;
  for (const kind of ['hyena', 'gated-conv']) {
    const { mixer, params } = slotLayer(
      device,
      'attention',
      { kind, ...(kind === 'hyena' ? {} : { period: 0 }) },
      { width: 4 },
    );
    const x = normalTensor(device, 'x', [1, 4, 4]);
    const visible = Tensor.from(device, [1, 1, 2, 3], [1, 4], 'i32');
    const c = forwardContext({ device, compute: 'f32', visible });
    assert.throws(() => mixer.forward(params, x, x, c), /convolutions look back only/);
  }
  const spec = smallSpec({ attention: { kind: 'gated-conv' } });
  assert.throws(() => buildModel(spec), /every 4 layers one has attention, and needs heads/);
  assert.throws(() => buildModel(smallSpec({ attention: { kind: 'hyena', order: 1 } })), />=2/);
  assert.doesNotThrow(() =>
    initialise(buildModel(smallSpec({ attention: { kind: 'gated-conv', period: 0 } })), ref, 1),
  );
});
