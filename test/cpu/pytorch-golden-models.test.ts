// Decoders of every kind, and whole training runs, against what PyTorch computed (bench/peers/make_goldens.py):
// gradients and three AdamW steps of random specs; fifty steps of GPT-2 and Llama in Hugging Face's layouts.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { createBatch, type TokenBatch } from '../../src/data/types.ts';
import { buildModel, type Model } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { buildTree, declared, flatten, forwardContext, type ParamTree } from '../../src/nn/index.ts';
import { type Compute, gradients, scope, Tensor } from '../../src/tensor/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { DeviceBatch, TrainStep } from '../../src/train/step.ts';
import { goldens, numbers } from '../support/goldens.ts';
import { Rng } from '../support/kernel-cases/build.ts';

const cpu = new CpuDevice();
const { level, levels } = cpu.info();
after(() => cpu.useLevel(level));

/** A parameter's values, as bench/peers/golden_models.py draws them. */
function drawParams(model: Model, seed: string): ParamTree {
  return buildTree(declared(model), ({ path, spec: { shape } }) => {
    const rng = new Rng(`${seed} ${path}`);
    const spread = Math.sqrt(3 / shape[1]);
    const [lo, hi] = shape.length === 2 ? [-spread, spread] : /bias/i.test(path) ? [-0.2, 0.2] : [0.7, 1.3];
    const size = shape.reduce((n, d) => n * d, 1);
    return Tensor.from(
      cpu,
      Array.from({ length: size }, () => rng.uniform(lo, hi)),
      shape,
    ).parameter();
  });
}

/** A tensor's norm and its products with two fixed random vectors. */
function digest(name: string, values: ArrayLike<number>): number[] {
  const rng = new Rng(name);
  const v = Array.from(values);
  const along = (): number => v.reduce((s, x) => s + x * (rng.next() * 2 - 1), 0);
  return [Math.hypot(...v), along(), along()];
}

/** Distance of two digests, relative to the tensor's norm. */
const apart = (got: readonly number[], want: readonly number[], slack = 0): number =>
  Math.max(...got.map((g, k) => Math.max(0, Math.abs(g - want[k]) - slack))) / want[0];

interface Golden {
  readonly spec: ModelSpecInput;
  readonly rows: number;
  readonly length: number;
  readonly optimiser: Record<string, number>;
  readonly clip: number;
  readonly losses: string;
  readonly norms: string;
}

interface ModelGolden extends Golden {
  readonly segmented: boolean;
  /** By parameter: digest of its gradient in the first step, and of its change over three. */
  readonly digests: Record<string, string>;
}

interface CurveGolden extends Golden {
  readonly name: string;
  readonly accumulate: number;
  readonly schedule: Record<string, unknown>;
}

const configOf = (g: Golden, precision: Compute, changes: Record<string, unknown>) =>
  parseTrainConfig({
    model: g.spec,
    batch: g.rows,
    length: g.length,
    clip: g.clip,
    optimiser: { kind: 'adamw', ...g.optimiser },
    precision,
    ...changes,
  });

/** Random tokens with two documents a row; a fifth of the targets do not count. */
function drawBatch(seed: string, vocab: number, rows: number, length: number): TokenBatch {
  const rng = new Rng(seed);
  const b = createBatch(rows, length);
  const n = rows * length;
  for (let k = 0; k < n; k++) b.inputs[k] = rng.int(0, vocab - 1);
  for (let k = 0; k < n; k++) b.targets[k] = rng.int(0, vocab - 1);
  for (let k = 0; k < n; k++) if (rng.chance(0.2)) b.targets[k] = -1;
  for (let r = 0; r < rows; r++) {
    const border = rng.int(1, length - 1);
    for (let t = 0; t < length; t++) {
      b.segments[r * length + t] = +(t >= border);
      b.positions[r * length + t] = t >= border ? t - border : t;
    }
  }
  b.targetCount = b.targets.reduce((n, t) => n + +(t >= 0), 0);
  return b;
}

/** Loss and the gradients' digests of one batch. */
function gradientDigests(
  g: ModelGolden,
  seed: string,
  compute: Compute,
): { loss: number; grads: Map<string, number[]> } {
  const model = buildModel(g.spec);
  return scope(() => {
    const params = drawParams(model, seed);
    const named = flatten(params);
    const batch = new DeviceBatch(cpu, g.rows, g.length, g.segmented);
    const host = drawBatch(`${seed} batch 0`, g.spec.vocab, g.rows, g.length);
    batch.write(host, host.targetCount);
    model.prepare(cpu);
    const { total } = model.loss(params, batch, forwardContext({ device: cpu, compute }));
    const grads = gradients(
      total,
      named.map((p) => p.tensor),
    );
    const out = new Map(named.map(({ path }, k) => [path, digest(path, grads[k].dataSync())]));
    const loss = total.item();
    batch.dispose();
    for (const { tensor } of named) tensor.dispose();
    return { loss, grads: out };
  });
}

describe(`decoders of random specs (${levels.join(', ')})`, () => {
  goldens<ModelGolden>('models').forEach((g, k) => {
    const [losses, norms] = [numbers(g.losses), numbers(g.norms)];
    const want = new Map(Object.entries(g.digests).map(([path, text]) => [path, numbers(text)]));
    const seed = `model ${k}`;
    const what = [g.spec.attention, g.spec.ffn, g.spec.norm, g.spec.positions].map((s) => JSON.stringify(s)).join(' ');

    for (const [compute, lossTolerance, tolerance] of [
      ['f32', 1e-6, 1e-5],
      ['bf16', 5e-3, 8e-2],
    ] as const)
      test(`${k} loss and gradients in ${compute}: ${what}`, () => {
        for (const each of levels) {
          cpu.useLevel(each);
          const { loss, grads } = gradientDigests(g, seed, compute);
          assert.ok(Math.abs(loss / losses[0] - 1) <= lossTolerance, `${each}: loss ${loss}, PyTorch has ${losses[0]}`);
          assert.deepEqual([...grads.keys()].sort(), [...want.keys()].sort());
          const all = Math.hypot(...[...want.values()].map((d) => d[0]));
          for (const [path, d] of grads) {
            const off = apart(d, want.get(path)!.slice(0, 3), 1e-8 * all);
            assert.ok(off <= tolerance, `${each}: gradient of ${path} off by ${off}`);
          }
        }
      });

    test(`${k} three steps`, async () => {
      for (const each of levels) {
        cpu.useLevel(each);
        const model = buildModel(g.spec);
        const params = drawParams(model, seed);
        const start = new Map(flatten(params).map(({ path, tensor }) => [path, tensor.dataSync()]));
        const data = { folder: '', crossDocuments: !g.segmented };
        const step = new TrainStep(
          cpu,
          model,
          params,
          configOf(g, 'f32', { steps: 3, schedule: { kind: 'constant' }, data }),
          g.length,
        );
        for (let s = 0; s < 3; s++) {
          const r = await step.run(s, [drawBatch(`${seed} batch ${s}`, g.spec.vocab, g.rows, g.length)]);
          assert.ok(Math.abs(r.loss / losses[s] - 1) <= 1e-5, `${each}: loss ${r.loss}, PyTorch has ${losses[s]}`);
          assert.ok(Math.abs(r.gradNorm / norms[s] - 1) <= 1e-4, `${each}: norm ${r.gradNorm}, not ${norms[s]}`);
        }
        for (const { path, tensor } of flatten(params)) {
          const change = tensor.dataSync().map((v, j) => v - start.get(path)![j]);
          const off = apart(digest(path, change), want.get(path)!.slice(3));
          assert.ok(off <= 1e-4, `${each}: change of ${path} off by ${off}`);
          tensor.dispose();
        }
        step.dispose();
      }
    });
  });
});

/** Rows of a noisy affine walk x -> 5x + 3. */
function drawWalk(seed: string, vocab: number, rows: number, length: number): TokenBatch {
  const rng = new Rng(seed);
  const many = (n: number, draw: () => number): number[] => Array.from({ length: n }, draw);
  const x = many(rows, () => rng.int(0, vocab - 1));
  const jumps = many(rows * length, () => rng.int(0, vocab - 1));
  const stay = many(rows * length, () => rng.next());
  const b = createBatch(rows, length);
  for (let t = 0; t < length; t++)
    for (let r = 0; r < rows; r++) {
      const at = r * length + t;
      b.inputs[at] = x[r];
      x[r] = stay[at] < 0.8 ? (5 * x[r] + 3) % vocab : jumps[at];
      b.targets[at] = x[r];
    }
  b.targetCount = rows * length;
  return b;
}

describe('fifty steps', () => {
  for (const g of goldens<CurveGolden>('curves'))
    for (const [precision, tolerance] of [
      ['f32', 2e-5],
      ['bf16', 6e-2],
    ] as const)
      test(`${g.name}, ${precision}`, async () => {
        const [losses, norms] = [numbers(g.losses), numbers(g.norms)];
        for (const each of levels) {
          cpu.useLevel(each);
          const model = buildModel(g.spec);
          const params = drawParams(model, `curve ${g.name}`);
          const data = { folder: '', crossDocuments: true };
          const { schedule, accumulate } = g;
          const config = configOf(g, precision, { steps: losses.length, schedule, accumulate, data });
          const step = new TrainStep(cpu, model, params, config, g.length);
          for (let s = 0; s < losses.length; s++) {
            const micro = Array.from({ length: accumulate }, (_, m) =>
              drawWalk(`curve ${g.name} ${s} ${m}`, g.spec.vocab, g.rows, g.length),
            );
            const { loss, gradNorm } = await step.run(s, micro);
            const at = `${each}, step ${s}`;
            assert.ok(Math.abs(loss - losses[s]) <= tolerance, `${at}: loss ${loss}, PyTorch has ${losses[s]}`);
            if (precision === 'f32')
              assert.ok(Math.abs(gradNorm / norms[s] - 1) <= 1e-3, `${at}: norm ${gradNorm}, not ${norms[s]}`);
          }
          step.dispose();
          for (const { tensor } of flatten(params)) tensor.dispose();
        }
      });
});
