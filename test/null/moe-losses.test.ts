// Balance loss and router z-loss: known values, gradients by formula, monitors and sizing.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { gradients, scope, Tensor } from '../../src/tensor/index.ts';
import {
  balanceLoss,
  fineGrained,
  isoFlopHidden,
  isoParameterHidden,
  loadStats,
  moeCost,
  routerEntropy,
  routerZLoss,
  uniqueExperts,
} from '../../src/tricks/moe/index.ts';
import { normals } from '../support/moe-layer.ts';
import { valuesOf } from '../support/ref-values.ts';

const device = new RefDevice();
const of = (values: ArrayLike<number>, shape: number[]): Tensor => Tensor.from(device, values, shape);
const near = (a: number, b: number, tolerance = 1e-7): void =>
  assert.ok(Math.abs(a - b) <= tolerance * Math.max(1, Math.abs(b)), `${a}, not ${b}`);
const value = (fn: () => Tensor): number => scope(() => valuesOf(fn())[0]);

describe('balance loss', () => {
  const E = 4;

  test('is 1 for a uniform router, whatever the load', () => {
    for (const load of [
      [1, 1, 1, 1],
      [7, 0, 0, 1],
      [0, 0, 0, 3],
    ])
      near(
        value(() => balanceLoss(of(new Float64Array(5 * E).fill(1 / E), [5, E]), of(load, [E]))),
        1,
      );
  });

  test('is E when one expert has everything', () => {
    near(
      value(() => balanceLoss(of([0, 1, 0, 0, 0, 1, 0, 0], [2, E]), of([0, 2, 0, 0], [E]))),
      E,
    );
  });

  test('is at least 1 when the load equals the probabilities', () => {
    const p = [0.1, 0.2, 0.3, 0.4];
    const loss = value(() => balanceLoss(of(p, [1, E]), of(p, [E])));
    near(loss, E * p.reduce((s, x) => s + x * x, 0));
    assert.ok(loss > 1);
  });

  test('can be less than 1: 60 tokens (.51, .49) and 40 tokens (.01, .99) give 0.924', () => {
    const probs = Array.from({ length: 100 }, (_, t) => (t < 60 ? [0.51, 0.49] : [0.01, 0.99])).flat();
    near(
      value(() => balanceLoss(of(probs, [100, 2]), of([60, 40], [2]))),
      0.924,
    );
  });

  test('of sequences is the mean of theirs', () => {
    const probs = Array.from(normals('p', 2 * 3 * E), (x) => Math.exp(x));
    const load = [3, 0, 1, 2, 0, 0, 5, 1];
    const both = value(() => balanceLoss(of(probs, [2, 3, E]), of(load, [2, E])));
    const each = [0, 1].map((b) =>
      value(() =>
        balanceLoss(of(probs.slice(b * 3 * E, (b + 1) * 3 * E), [3, E]), of(load.slice(b * E, (b + 1) * E), [E])),
      ),
    );
    near(both, (each[0] + each[1]) / 2);
  });

  test('with the load of all of them, micro-batches average to the loss of one big batch', () => {
    const probs = Array.from(normals('micro', 6 * E), (x) => Math.exp(x));
    const load = of([3, 0, 2, 1], [E]);
    const part = (b: number) => value(() => balanceLoss(of(probs.slice(b * 2 * E, (b + 1) * 2 * E), [2, E]), load));
    near(
      [0, 1, 2].reduce((s, b) => s + part(b), 0) / 3,
      value(() => balanceLoss(of(probs, [6, E]), load)),
    );
  });

  test('padding counts for nothing', () => {
    const probs = [0.7, 0.3, 0.2, 0.8, 0.5, 0.5];
    const padded = value(() => balanceLoss(of(probs, [3, 2]), of([2, 1], [2]), of([1, 1, 0], [3])));
    near(
      padded,
      value(() => balanceLoss(of(probs.slice(0, 4), [2, 2]), of([2, 1], [2]))),
    );
    near(
      value(() => balanceLoss(of(probs, [3, 2]), of([0, 0], [2]), of([0, 0, 0], [3]))),
      0,
    );
  });

  test('its gradient is E f / n, with no gradient through the load', () => {
    scope(() => {
      const probs = of(new Float64Array(2 * E).fill(1 / E), [2, E]).parameter();
      const [g] = gradients(balanceLoss(probs, of([3, 1, 0, 4], [E])), [probs]);
      const f = [3, 1, 0, 4].map((n) => n / 8);
      for (let e = 0; e < E; e++) near(valuesOf(g)[E + e], (E * f[e]) / 2);
    });
  });
});

describe('router z-loss', () => {
  const E = 5;

  test('is (c + ln E)^2 for logits that are all c', () => {
    for (const c of [0, 1.5, -3])
      near(
        value(() => routerZLoss(of(new Float64Array(3 * E).fill(c), [3, E]))),
        (c + Math.log(E)) ** 2,
      );
  });

  test('its gradient is 2/n lse p', () => {
    scope(() => {
      const z = normals('z', 4 * E);
      const logits = of(z, [4, E]).parameter();
      const [g] = gradients(routerZLoss(logits), [logits]);
      for (let t = 0; t < 4; t++) {
        const row = Array.from(z.slice(t * E, (t + 1) * E));
        const total = row.reduce((s, x) => s + Math.exp(x), 0);
        for (let e = 0; e < E; e++)
          near(valuesOf(g)[t * E + e], (2 / 4) * Math.log(total) * (Math.exp(row[e]) / total));
      }
    });
  });

  test('padding counts for nothing', () => {
    const z = normals('z', 3 * E);
    const padded = value(() => routerZLoss(of(z, [3, E]), of([1, 0, 1], [3])));
    const rest = [...z.slice(0, E), ...z.slice(2 * E)];
    near(
      padded,
      value(() => routerZLoss(of(rest, [2, E]))),
    );
  });
});

describe('monitors', () => {
  test('uniform, skewed and collapsed loads', () => {
    assert.deepEqual(loadStats([5, 5, 5, 5]), { share: [0.25, 0.25, 0.25, 0.25], maxVio: 0, entropy: 1, dead: 0 });
    const collapsed = loadStats([0, 12, 0, 0]);
    assert.deepEqual([collapsed.maxVio, collapsed.entropy, collapsed.dead], [3, 0, 3]);
    near(loadStats([2, 1, 1]).maxVio, 0.5);
    assert.equal(loadStats([0, 0]).dead, 2);
    near(routerEntropy([0.5, 0.5, 1, 0], 2), Math.log(2) / 2);
  });

  test('unique experts of a decoding step, as published models have them', () => {
    near(uniqueExperts(8, 2, 4), 5.47, 1e-3);
    near(uniqueExperts(64, 8, 1), 8);
    near(uniqueExperts(256, 8, 16), 256 * (1 - (1 - 8 / 256) ** 16));
  });
});

describe('sizing', () => {
  const dense = { width: 512, expert: 'glu', dense: 1536 } as const;
  const denseParameters = 3 * 512 * 1536;

  test('experts at equal FLOPs cost at most what the dense layer does, and nearly that', () => {
    for (const [experts, active, shared] of [
      [8, 1, 0],
      [64, 4, 0],
      [63, 3, 1],
    ]) {
      const hidden = isoFlopHidden({ ...dense, experts, active, shared });
      const cost = (h: number) => moeCost({ width: 512, expert: 'glu', hidden: h, experts, active, shared });
      assert.ok(cost(hidden).flopsPerToken <= 2 * denseParameters);
      assert.ok(cost(hidden + 1).flopsPerToken > 2 * denseParameters);
    }
  });

  test('experts at equal parameters likewise', () => {
    for (const expert of ['glu', 'mlp'] as const) {
      const target = { ...dense, expert, experts: 16, active: 2, shared: 1 };
      const hidden = isoParameterHidden(target);
      const budget = (expert === 'glu' ? 3 : 2) * 512 * 1536;
      const cost = (h: number) => moeCost({ width: 512, expert, hidden: h, experts: 16, active: 2, shared: 1 });
      assert.ok(cost(hidden).parameters <= budget && cost(hidden + 1).parameters > budget);
    }
    assert.throws(() => isoParameterHidden({ ...dense, experts: 4096, active: 1 }), /no expert of 1 units/);
  });

  test('fine-grained experts keep the units in all and for a token', () => {
    assert.deepEqual(fineGrained({ dense: 1536, expansion: 16, granularity: 4 }), {
      ...{ experts: 64, active: 4, shared: 0, hidden: 384 },
    });
    const f = fineGrained({ dense: 1536, expansion: 16, granularity: 4, shared: 1 });
    assert.deepEqual([(f.experts + f.shared) * f.hidden, (f.active + f.shared) * f.hidden], [16 * 1536, 1536]);
  });

  test('the formulas of the specification: 3dfE + dE parameters, 6dfk + 2dE FLOPs', () => {
    const [d, f, E, k] = [64, 24, 8, 2];
    const { parameters, activeParameters, flopsPerToken } = moeCost({
      ...{ width: d, expert: 'glu', hidden: f, experts: E, active: k },
    } as const);
    assert.deepEqual(
      [parameters, activeParameters, flopsPerToken],
      [3 * d * f * E + d * E, 3 * d * f * k + d * E, 6 * d * f * k + 2 * d * E],
    );
  });
});
