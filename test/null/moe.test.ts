// The mixture-of-experts layer in float64: against a loop over experts, gradients by differences, refusals.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { flatten, forwardContext } from '../../src/nn/index.ts';
import { add, assign, gradients, mul, noGrad, scope, sum, Tensor } from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { type Layer, moeLayer, normals, outputOf, paramValues } from '../support/moe-layer.ts';
import { refValues, slope, valuesOf } from '../support/ref-values.ts';
import { smallSpec } from '../support/small-models.ts';

const device = new RefDevice();
const glu = { kind: 'glu', hidden: 5 };
const mlp = { kind: 'mlp', hidden: 5, activation: 'relu2' };

const softmax = (z: readonly number[]): number[] => {
  const top = Math.max(...z);
  const e = z.map((x) => Math.exp(x - top));
  const total = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / total);
};
const sigma = (x: number): number => 1 / (1 + Math.exp(-x));
const dot = (a: readonly number[], b: readonly number[]): number => a.reduce((s, x, k) => s + x * b[k], 0);
const rowsOf = (flat: readonly number[], n: number): number[][] => {
  const width = flat.length / n;
  return Array.from({ length: n }, (_, r) => flat.slice(r * width, (r + 1) * width));
};

interface Expected {
  readonly E: number;
  readonly k: number;
  readonly f: number;
  readonly gate: 'softmax' | 'renormalised' | 'sigmoid';
  readonly scale: number;
  readonly gated: boolean;
}

/** One token at a time, one expert after another. */
function loopOverExperts(layer: Layer, x: readonly number[][], o: Expected): number[][] {
  const d = layer.width;
  const router = rowsOf(paramValues(layer, 'router'), o.E);
  const up = rowsOf(paramValues(layer, 'experts.up'), o.E);
  const down = rowsOf(paramValues(layer, 'experts.down'), o.E);
  return x.map((row) => {
    const z = router.map((w) => dot(w, row));
    const s = o.gate === 'sigmoid' ? z.map(sigma) : softmax(z);
    const chosen = z
      .map((_, e) => e)
      .sort((a, b) => z[b] - z[a] || a - b)
      .slice(0, o.k);
    const total = o.gate === 'softmax' ? 1 : chosen.reduce((t, e) => t + s[e], 0);
    const out = new Array<number>(d).fill(0);
    for (const e of chosen) {
      const units = rowsOf(up[e], o.gated ? 2 * o.f : o.f).map((w) => dot(w, row));
      const h = Array.from({ length: o.f }, (_, j) =>
        o.gated ? units[j] * sigma(units[j]) * units[o.f + j] : Math.max(units[j], 0) ** 2,
      );
      rowsOf(down[e], o.f).forEach((w, j) => {
        for (let c = 0; c < d; c++) out[c] += ((o.scale * s[e]) / total) * h[j] * w[c];
      });
    }
    return out;
  });
}

const worst = (a: readonly number[][], b: readonly number[][]): number =>
  Math.max(...a.flatMap((row, r) => row.map((x, c) => Math.abs(x - b[r][c]))));

describe('against a loop over experts', () => {
  const [B, T, d] = [2, 7, 8];
  const x = normals('x', B * T * d);
  for (const [gate, k] of [
    ['softmax', 1],
    ['softmax', 3],
    ['renormalised', 2],
    ['sigmoid', 4],
  ] as const)
    for (const expert of [glu, mlp])
      test(`${gate} gates, ${k} of 6 experts ${expert.kind}`, () => {
        const layer = moeLayer(device, { kind: 'moe', experts: 6, active: k, gate, expert });
        const scale = gate === 'softmax' ? 1 : Math.sqrt(k);
        const want = loopOverExperts(layer, rowsOf(Array.from(x), B * T), {
          ...{ E: 6, k, f: 5, gate, scale, gated: expert === glu },
        });
        assert.ok(worst(outputOf(layer, device, x, [B, T]), want) < 1e-12);
      });

  test('shared experts add a dense layer of all their units', () => {
    const options = { kind: 'moe', experts: 4, active: 2, expert: glu };
    const with2 = moeLayer(device, { ...options, shared: 2 });
    const without = moeLayer(device, options);
    const units = rowsOf(paramValues(with2, 'shared.up'), 20);
    const down = rowsOf(paramValues(with2, 'shared.down'), d);
    const [all, routed] = [outputOf(with2, device, x, [B, T]), outputOf(without, device, x, [B, T])];
    rowsOf(Array.from(x), B * T).forEach((row, t) => {
      const a = units.map((w) => dot(w, row));
      const h = Array.from({ length: 10 }, (_, j) => a[j] * sigma(a[j]) * a[10 + j]);
      for (let c = 0; c < d; c++) assert.ok(Math.abs(all[t][c] - routed[t][c] - dot(down[c], h)) < 1e-12);
    });
  });
});

/** Scalar of a training pass with all its losses; state is put back before. */
function objective(layer: Layer, x: Tensor, weights: Tensor): Tensor {
  for (const { path, tensor } of flatten(layer.params)) if (/load/i.test(path)) assign(tensor, 0);
  const c = forwardContext({ device, compute: 'f32', training: true });
  const residual = Tensor.from(device, new Float64Array(x.size), x.shape);
  let total = sum(mul(layer.mixer.forward(layer.params, x, residual, c), weights));
  for (const term of c.losses.values()) total = add(total, term);
  return total;
}

describe('gradients against finite differences, balance and z-loss included', () => {
  const [B, T, d] = [2, 5, 8];
  const capacity = { kind: 'capacity', convention: 'assignments', factor: 0.8, minimum: 1 };
  const cases: [string, Record<string, unknown>, boolean?][] = [
    ['top-1, raw gate', { experts: 4, active: 1, expert: mlp }],
    ['top-2, raw gate', { experts: 4, active: 2, gate: 'softmax', expert: glu }],
    ['top-2, renormalised', { experts: 4, active: 2, expert: glu }],
    ['top-3, sigmoid, bias', { experts: 5, active: 3, gate: 'sigmoid', expert: mlp, biasRate: 0.01 }],
    [
      'balance in sequences, first choices',
      { experts: 4, active: 2, expert: mlp, balanceOver: 'sequence', balanceCounts: 'first' },
    ],
    ['capacity with drops', { experts: 3, active: 2, expert: glu, routing: capacity }],
    ['shared experts', { experts: 3, active: 1, shared: 1, expert: glu }],
    ['groups of experts', { experts: 6, active: 2, groups: 3, keepGroups: 1, expert: mlp }],
    ['expert choice', { experts: 3, expert: glu, routing: { kind: 'expert-choice', factor: 2 } }, false],
  ];
  for (const [name, options, causal = true] of cases)
    test(name, () => {
      scope(() => {
        const layer = moeLayer(
          device,
          { kind: 'moe', balanceLoss: options.routing && !causal ? undefined : 0.3, routerZLoss: 0.1, ...options },
          { causal },
        );
        const x = Tensor.from(device, normals('x', B * T * d), [B, T, d]).parameter();
        const weights = Tensor.from(device, normals('w', B * T * d), [B, T, d]);
        const wrt = [x, ...flatten(layer.params).map((p) => p.tensor)].filter((t) => t.requiresGrad);
        const grads = gradients(objective(layer, x, weights), wrt).map((g) => refValues(g).slice());
        const value = (): number => noGrad(() => scope(() => refValues(objective(layer, x, weights))[0]));
        const rng = new Rng(name);
        wrt.forEach((t, k) => {
          const values = refValues(t);
          const centre = values.slice();
          for (let n = 0; n < 12; n++) {
            const j = rng.int(0, values.length - 1);
            const numeric = slope((step) => {
              values[j] = centre[j] + step;
              const result = value();
              values[j] = centre[j];
              return result;
            }, 1e-5);
            const analytic = grads[k][j];
            const most = Math.max(Math.abs(analytic), Math.abs(numeric), 1e-2);
            assert.ok(Math.abs(analytic - numeric) <= 1e-7 * most, `input ${k} element ${j}: ${analytic}, ${numeric}`);
          }
        });
      });
    });

  test('one expert a token with a renormalised gate gives the router nothing', () => {
    scope(() => {
      for (const [gate, nothing] of [
        ['renormalised', true],
        ['sigmoid', true],
        ['softmax', false],
      ] as const) {
        const options = { experts: 4, active: 1, gate, expert: glu, balanceLoss: 0, routerZLoss: 0 };
        const layer = moeLayer(device, { kind: 'moe', ...options });
        const x = Tensor.from(device, normals('x', B * T * d), [B, T, d]);
        const router = flatten(layer.params).find((p) => p.path === 'router')!.tensor;
        const [g] = gradients(objective(layer, x, Tensor.from(device, normals('w', x.size), x.shape)), [router]);
        const most = Math.max(...Array.from(valuesOf(g), Math.abs));
        assert.equal(most < 1e-14, nothing, `${gate}: ${most}`);
      }
    });
  });
});

describe('refusals are one clear line', () => {
  const ffn = (o: Record<string, unknown>) => () =>
    buildModel(smallSpec({ ffn: { kind: 'moe', experts: 4, expert: glu, ...o } as never }));
  const capacity = (o: object) => ({ routing: { kind: 'capacity', convention: 'tokens', ...o } });
  const refusals: [string, () => unknown, RegExp][] = [
    ['more active experts than there are', ffn({ active: 5 }), /moe: 5 active experts of 4/],
    [
      'expert choice in a decoder',
      ffn({ routing: { kind: 'expert-choice' } }),
      /expert choice in a causal decoder.*depends on later ones/,
    ],
    [
      'second choices last',
      ffn({ active: 2, ...capacity({ order: 'choice' }) }),
      /order 'choice' in a causal decoder.*later token/,
    ],
    ['priority', ffn(capacity({ order: 'priority' })), /order 'priority' in a causal decoder/],
    ['no convention', ffn({ routing: { kind: 'capacity' } }), /convention/],
    ['jitter', ffn({ active: 2, jitter: 0.01 }), /jitter with 2 active experts/],
    ['groups', ffn({ active: 2, groups: 4, keepGroups: 1 }), /leave fewer than 2/],
    ['second choice of one', ffn({ ...capacity({ second: 'random' }) }), /second choices with one active expert/],
    ['unknown expert', ffn({ expert: { kind: 'oracle' } }), /unknown expert 'oracle': choose from/],
    ['unknown option', ffn({ expert: { kind: 'glu', hidden: 3, bias: true } }), /bias/],
  ];
  for (const [name, fn, message] of refusals)
    test(name, () => {
      assert.throws(
        fn,
        (e: unknown) => e instanceof AnsatzError && message.test(e.message) && !e.message.includes('\n'),
      );
    });

  test('what leaks is accepted when asked for, or outside of decoders', () => {
    ffn({ active: 2, ...capacity({ order: 'choice', allowLeaks: true }) })();
    ffn(capacity({ order: 'choice' }))();
    const options = { kind: 'moe', experts: 3, expert: glu, routing: { kind: 'expert-choice' } };
    const layer = moeLayer(device, options, { causal: false });
    assert.equal(outputOf(layer, device, normals('x', 6 * 8), [1, 6]).length, 6);
  });
});
