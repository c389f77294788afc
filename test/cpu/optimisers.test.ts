// Optimisers against the papers' formulas in plain float64, over many steps; what Muon's iteration does to singular
// values; configs; checkpoints' names; the same bits whatever the number of threads.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import type { ParamSpec } from '../../src/nn/index.ts';
import { Tensor } from '../../src/tensor/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import {
  makeOptimiser,
  type OptimiserConfig,
  optimiserKinds,
  optimiserSchema,
} from '../../src/train/optimisers/index.ts';
import { iterations, orthogonalise } from '../../src/train/optimisers/orthogonalise.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { cpu } from '../support/logits.ts';
import { withoutRounding } from '../support/ref-values.ts';
import { configOf, smallSpec } from '../support/small-models.ts';

const { threads } = cpu.info();
after(() => cpu.useThreads(threads));

const STEPS = 100;
const parse = (input: unknown): OptimiserConfig => optimiserSchema.parse(input);
const hidden = (rows: number, cols: number, more: Partial<ParamSpec> = {}): ParamSpec => ({
  ...{ shape: [rows, cols], init: { kind: 'normal', std: 1 }, role: 'hidden', fanIn: cols, fanOut: rows, decay: true },
  ...more,
});
const vector = (n: number): ParamSpec => ({ ...hidden(1, n), shape: [n], role: 'vector', decay: false });
const normals = (seed: string, n: number): number[] => {
  const rng = new Rng(seed);
  return Array.from({ length: n }, () => Math.fround(rng.normal()));
};

/** Runs an optimiser on one tensor with drawn gradients; lr, gradient scale and finite flag as given. */
function run(
  config: OptimiserConfig,
  spec: ParamSpec,
  steps: number,
  device: typeof cpu | RefDevice = cpu,
): Float64Array {
  const n = spec.shape.reduce((a, b) => a * b, 1);
  const tensor = Tensor.from(device, normals('start', n), spec.shape);
  const optimiser = makeOptimiser(config, [{ path: 'w', spec, tensor }], device);
  for (let t = 1; t <= steps; t++) {
    const grad = Tensor.from(device, normals(`gradient ${t}`, n), spec.shape);
    const [c1, c2] = optimiser.corrections(t);
    const scalars = Tensor.from(device, [config.lr, 0.5, c1, c2, 1, 0, 0, optimiser.momentum?.(t) ?? 0], [8]);
    optimiser.update([grad], scalars);
  }
  const out = Float64Array.from(tensor.dataSync());
  for (const t of optimiser.state.values()) t.dispose();
  return out;
}

/** The same by a formula: `step(w, g, t)` changes w. */
function naive(n: number, steps: number, step: (w: Float64Array, g: number[], t: number) => void): Float64Array {
  const w = Float64Array.from(normals('start', n));
  for (let t = 1; t <= steps; t++)
    step(
      w,
      normals(`gradient ${t}`, n).map((g) => 0.5 * g),
      t,
    );
  return w;
}

function close(got: Float64Array, want: Float64Array, limit: number): void {
  const moved = Math.max(...want.map(Math.abs));
  got.forEach((x, k) => {
    assert.ok(Math.abs(x - want[k]) <= limit * moved, `element ${k} is ${x}, not ${want[k]}`);
  });
}

describe(`${STEPS} steps against formulas`, () => {
  test('adamw', () => {
    const [m, v] = [new Float64Array(60), new Float64Array(60)];
    const want = naive(60, STEPS, (w, g, t) => {
      for (let k = 0; k < 60; k++) {
        m[k] = 0.9 * m[k] + 0.1 * g[k];
        v[k] = 0.95 * v[k] + 0.05 * g[k] ** 2;
        w[k] -= 0.01 * (m[k] / (1 - 0.9 ** t) / (Math.sqrt(v[k] / (1 - 0.95 ** t)) + 1e-8) + 0.1 * w[k]);
      }
    });
    close(run(parse({ kind: 'adamw', lr: 0.01 }), hidden(6, 10), STEPS), want, 1e-6);
  });

  test('lion, with factors of a parametrisation', () => {
    const m = new Float64Array(60);
    const want = naive(60, STEPS, (w, g) => {
      for (let k = 0; k < 60; k++) {
        w[k] -= 0.01 * 0.25 * (Math.sign(0.9 * m[k] + 0.1 * g[k]) + 0.5 * 4 * w[k]);
        m[k] = 0.99 * m[k] + 0.01 * g[k];
      }
    });
    const spec = hidden(6, 10, { lrMult: 0.25, decayMult: 4 });
    close(run(parse({ kind: 'lion', lr: 0.01 }), spec, STEPS), want, 1e-6);
  });

  for (const [rows, cols, factored] of [
    [130, 140, true],
    [6, 10, false],
  ] as const)
    test(`adafactor, ${factored ? 'factored' : 'whole'}`, () => {
      const n = rows * cols;
      const [r, c, v] = [new Float64Array(rows), new Float64Array(cols), new Float64Array(n)];
      const rms = (x: ArrayLike<number>): number => Math.sqrt(Array.from(x).reduce((s, e) => s + e * e, 0) / x.length);
      const want = naive(n, STEPS, (w, g, t) => {
        const gain = t ** -0.8;
        r.forEach((old, i) => {
          let s = 0;
          for (let j = 0; j < cols; j++) s += (g[i * cols + j] ** 2 + 1e-30) / cols;
          r[i] = (1 - gain) * old + gain * s;
        });
        c.forEach((old, j) => {
          let s = 0;
          for (let i = 0; i < rows; i++) s += (g[i * cols + j] ** 2 + 1e-30) / rows;
          c[j] = (1 - gain) * old + gain * s;
        });
        const mean = r.reduce((a, b) => a + b, 0) / rows;
        const u = g.map((x, k) => {
          v[k] = (1 - gain) * v[k] + gain * (x * x + 1e-30);
          return x / Math.sqrt(factored ? (r[Math.floor(k / cols)] * c[k % cols]) / mean : v[k]);
        });
        const size = (0.01 * Math.max(1e-3, rms(w))) / Math.max(1, rms(u));
        u.forEach((x, k) => {
          w[k] -= size * x;
        });
      });
      close(run(parse({ kind: 'adafactor', lr: 0.01 }), hidden(rows, cols), STEPS), want, 2e-6);
    });

  test('muon moves matrices along orthogonalised Nesterov momentum, and vectors as AdamW does', () => {
    const [rows, cols] = [12, 8];
    const [ref, config] = [new RefDevice(), parse({ kind: 'muon', momentumWarmup: 10 })];
    const m = new Float64Array(rows * cols);
    const formula = () =>
      naive(rows * cols, 20, (w, g, t) => {
        const mu = t > 10 ? 0.95 : 0.85 + (0.1 * (t - 1)) / 10;
        const u = g.map((x, k) => (1 - mu) * x + mu * (m[k] = mu * m[k] + (1 - mu) * x));
        const o = orthogonalise(Tensor.from(ref, u, [rows, cols]), iterations.quintic).dataSync();
        o.forEach((x, k) => {
          w[k] -= 0.02 * (Math.sqrt(rows / cols) * x + 0.05 * w[k]);
        });
      });
    const [want, onRef] = withoutRounding(() => [formula(), run(config, hidden(rows, cols), 20, ref)]);
    // The iteration multiplies small singular values by up to 500, and with them the f32 rounding of what it is given.
    close(onRef, want, 1e-4);
    // bf16 products on one side, wider sums on the other: the same direction, not the same bits.
    close(run(config, hidden(rows, cols), 20), want, 2e-2);
    const adam = { ...parse({ kind: 'adamw', lr: 3e-3, eps: 1e-10 }) };
    close(run(config, vector(9), 20), run(adam, vector(9), 20), 1e-6);
  });
});

describe('orthogonalisation', () => {
  /** A matrix with given singular values: products of rotations on both sides. */
  function withSingular(values: readonly number[], rows: number): { x: Float64Array; cols: number } {
    const cols = values.length;
    const x = new Float64Array(rows * cols);
    for (let k = 0; k < cols; k++) x[k * cols + k] = values[k];
    const rng = new Rng('rotations');
    for (let round = 0; round < 400; round++) {
      const [c, s] = ((a) => [Math.cos(a), Math.sin(a)])(rng.uniform(0, 7));
      const left = rng.chance(0.5);
      const n = left ? rows : cols;
      const [i, j] = rng.shuffled(Array.from({ length: n }, (_, k) => k));
      for (let k = 0; k < (left ? cols : rows); k++) {
        const [a, b] = left ? [i * cols + k, j * cols + k] : [k * cols + i, k * cols + j];
        [x[a], x[b]] = [c * x[a] - s * x[b], s * x[a] + c * x[b]];
      }
    }
    return { x, cols };
  }

  /** Singular values by one-sided Jacobi rotations. */
  function singular(x: ArrayLike<number>, rows: number, cols: number): number[] {
    const a = Float64Array.from(x);
    const dot = (p: number, q: number): number => {
      let s = 0;
      for (let k = 0; k < rows; k++) s += a[k * cols + p] * a[k * cols + q];
      return s;
    };
    for (let sweep = 0; sweep < 30; sweep++)
      for (let p = 0; p < cols; p++)
        for (let q = p + 1; q < cols; q++) {
          const angle = 0.5 * Math.atan2(2 * dot(p, q), dot(q, q) - dot(p, p));
          const [c, s] = [Math.cos(angle), Math.sin(angle)];
          for (let k = 0; k < rows; k++) {
            const [u, v] = [a[k * cols + p], a[k * cols + q]];
            [a[k * cols + p], a[k * cols + q]] = [c * u - s * v, s * u + c * v];
          }
        }
    return Array.from({ length: cols }, (_, k) => Math.sqrt(dot(k, k)));
  }

  const ranges = { quintic: [0.681, 1.135], 'polar-express': [0.858, 1.142] } as const;
  for (const [name, [low, high]] of Object.entries(ranges))
    test(`${name}: singular values in [0.01, 1] of the norm end in [${low}, ${high}], tall, wide and by blocks`, () => {
      // The norm is the largest one's and little else's, so that ratios to it are those of the iteration's domain.
      const spread = [1, 0.3, 0.1, 0.05, 0.03, 0.02, 0.0125, 0.0115];
      const { x, cols } = withSingular(spread, 12);
      const iteration = iterations[name as keyof typeof iterations];
      const tall = orthogonalise(Tensor.from(cpu, x, [12, cols]), iteration).dataSync();
      // bf16 products: three digits.
      const inside = (s: number): boolean => s >= low - 0.02 && s <= high + 0.02;
      for (const s of singular(tall, 12, cols)) assert.ok(inside(s), `${s}`);
      const turned = Float64Array.from({ length: 12 * cols }, (_, k) => x[(k % 12) * cols + Math.floor(k / 12)]);
      const wide = orthogonalise(Tensor.from(cpu, turned, [cols, 12]), iteration).dataSync();
      wide.forEach((v, k) => {
        assert.ok(Math.abs(v - tall[(k % 12) * cols + Math.floor(k / 12)]) < 0.02);
      });
      const both = orthogonalise(
        Tensor.from(cpu, [...x, ...x.map((v) => 50 * v)], [2, 12, cols]),
        iteration,
      ).dataSync();
      both.forEach((v, k) => {
        assert.ok(Math.abs(v - tall[k % tall.length]) < 0.02, 'each matrix of a batch by itself, at any scale');
      });
    });

  test('packed matrices move as if they were apart', () => {
    const config = parse('muon');
    const packed = run(config, hidden(18, 8, { parts: [10, 4, 4] }), 1);
    const start = normals('start', 18 * 8);
    const grad = normals('gradient 1', 18 * 8);
    let at = 0;
    for (const rows of [10, 4, 4]) {
      const piece = orthogonalise(Tensor.from(cpu, grad.slice(at, at + rows * 8), [rows, 8]), iterations.quintic);
      const scale = Math.sqrt(Math.max(1, rows / 8));
      piece.dataSync().forEach((u, k) => {
        const want = start[at + k] - 0.02 * (scale * u + 0.05 * start[at + k]);
        assert.ok(Math.abs(packed[at + k] - want) < 2e-4);
      });
      at += rows * 8;
    }
  });
});

describe('registry', () => {
  test('kinds, defaults, refusals', () => {
    assert.deepEqual(
      optimiserKinds()
        .map((k) => k.kind)
        .sort(),
      ['adafactor', 'adamw', 'lion', 'muon'],
    );
    const adamw = { kind: 'adamw', lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1 };
    assert.deepEqual(parse('adamw'), adamw);
    assert.deepEqual(parseTrainConfig(configOf(smallSpec())).optimiser, adamw);
    const bad = (optimiser: unknown, message: RegExp) =>
      assert.throws(() => parseTrainConfig(configOf(smallSpec(), { optimiser })), message);
    bad('sgd', /unknown optimiser 'sgd': choose from adamw/);
    bad({ kind: 'lion', eps: 1 }, /optimiser.*eps/);
    bad({ kind: 'muon', momentum: 1 }, /optimiser\.momentum/);
  });

  test('names and sizes of state are what checkpoints have', () => {
    const device = new MetaDevice();
    const params = [
      ['blocks.0.ffn.up', hidden(256, 128)],
      ['norm.weight', vector(128)],
    ] as const;
    const state = (kind: string): string[] => {
      const list = params.map(([path, spec]) => ({ path, spec, tensor: Tensor.empty(device, 'f32', spec.shape) }));
      const { state: all } = makeOptimiser(parse(kind), list, device);
      return [...all].map(([name, t]) => `${name} ${t.shape}`).sort();
    };
    const [up, norm] = ['blocks.0.ffn.up', 'norm.weight'];
    assert.deepEqual(state('adamw'), [`m.${up} 256,128`, `m.${norm} 128`, `v.${up} 256,128`, `v.${norm} 128`]);
    assert.deepEqual(state('lion'), [`m.${up} 256,128`, `m.${norm} 128`]);
    assert.deepEqual(state('muon'), [`m.${up} 256,128`, `m.${norm} 128`, `v.${norm} 128`]);
    assert.deepEqual(state('adafactor'), [`c.${up} 1,128`, `r.${up} 1,256`, `v.${norm} 128`]);
  });

  test('1, 2 and 3 threads give the same bits', () => {
    for (const kind of ['lion', 'muon', 'adafactor']) {
      const results = [1, 2, 3].map((n) => {
        cpu.useThreads(n);
        return run(parse(kind), hidden(300, 140), 3);
      });
      for (const other of results) assert.deepEqual(other, results[0], kind);
    }
  });
});
