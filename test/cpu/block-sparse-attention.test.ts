// Block-sparse attention on the CPU: causality, full attention as its limit, the reference, precision, short rows.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { flatten, forwardContext, type ParamTree } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';
import { openGates } from '../support/block-sparse.ts';
import { cpu, distance, drawTokens, logitsOf } from '../support/logits.ts';
import { checkCausality } from '../support/slot-layer.ts';
import { perturbedParams, smallSpec, stepOn } from '../support/small-models.ts';

const { levels, level, threads } = cpu.info();
after(() => {
  cpu.useLevel(level);
  cpu.useThreads(threads);
});

const sizes = { heads: 4, kvHeads: 2, headWidth: 6, length: 4, stride: 2, size: 6, blocks: 4, window: 5 };
const kind = (o: Record<string, unknown> = {}) => ({ kind: 'block-sparse', ...sizes, ...o });
const spec = (o: Record<string, unknown> = {}, more: Partial<ModelSpecInput> = {}): ModelSpecInput =>
  smallSpec({ context: 256, attention: kind(o), ...more });

describe('causality', () => {
  for (const [name, s] of Object.entries({
    'tiny blocks, two of which are chosen': spec({ length: 2, stride: 1, size: 2, blocks: 2, local: 1, window: 2 }),
    'shared projections, xpos': spec({ length: 2, stride: 2, size: 2, blocks: 3, share: true }, { positions: 'xpos' }),
    'published sizes': spec({ length: 32, stride: 16, size: 64, blocks: 16, window: 512 }),
  }))
    test(`nothing ahead, nothing of another document: ${name}`, () => checkCausality(cpu, s));

  test('over many blocks, on every level: the token at t changes nothing before t', () => {
    const s = spec({ length: 8, stride: 4, size: 16, blocks: 4, window: 10 });
    const tokens = drawTokens('blocks', 150);
    for (const name of levels)
      for (const compute of ['f32', 'bf16'] as const) {
        cpu.useLevel(name);
        const base = logitsOf(s, tokens, { compute });
        for (const t of [0, 15, 16, 77, 149]) {
          const moved = logitsOf(
            s,
            tokens.map((x, k) => (k === t ? (x + 1) % 11 : x)),
            { compute },
          );
          assert.deepEqual(moved.slice(0, t), base.slice(0, t), `${name} ${compute}: token ${t}`);
          assert.notDeepEqual(moved[t], base[t]);
        }
      }
    cpu.useLevel(level);
  });
});

/** Logits with given parameters. */
function logitsWith(s: ModelSpecInput, params: ParamTree, tokens: readonly number[], segments?: number[]): number[][] {
  const model = buildModel(s);
  model.prepare(cpu);
  const ids = (v: readonly number[]): Tensor => Tensor.from(cpu, v, [1, v.length], 'i32');
  return scope(() =>
    noGrad(() => {
      const batch = { inputs: ids(tokens), segments: segments ? ids(segments) : null, positions: null };
      const c = forwardContext({ device: cpu, compute: 'f32' });
      const out = Array.from(model.logits(params, model.hidden(params, batch, c), c).dataSync());
      return tokens.map((_, t) => out.slice(t * s.vocab, (t + 1) * s.vocab));
    }),
  );
}

/** The parameters of full attention that has the queries of a block-sparse model and the keys of one of its branches. */
function fullParams(s: ModelSpecInput, sparse: ParamTree, branch: 'selected' | 'window'): ParamTree {
  const params = perturbedParams(buildModel(s), cpu);
  const of = new Map(flatten(sparse).map(({ path, tensor }) => [path, tensor.dataSync()]));
  for (const { path, tensor } of flatten(params)) {
    const parts = ['query', `${branch}Key`, `${branch}Value`].map((name) => of.get(path.replace('qkv', name)));
    const values = path.endsWith('qkv') ? parts.flatMap((x) => Array.from(x!)) : of.get(path)!;
    tensor.write(values);
  }
  return params;
}

describe('full attention is the limit', () => {
  const tokens = drawTokens('limit', 150);
  const segments = tokens.map((_, t) => 1 + +(t >= 40) + +(t >= 101));
  for (const positions of ['rope', 'none', 'xpos'] as const)
    for (const documents of [undefined, segments])
      test(`chosen blocks alone, all of them chosen: ${positions}${documents ? ', three documents' : ''}`, () => {
        const s = spec({ size: 16, blocks: 10 }, { positions });
        const params = perturbedParams(buildModel(s), cpu);
        for (const k of [0, 1]) openGates(params, `blocks.${k}.attention.`, [false, true, false]);
        const full = { ...s, attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 6 } };
        const want = logitsWith(full, fullParams(full, params, 'selected'), tokens, documents);
        const got = logitsWith(s, params, tokens, documents);
        assert.ok(distance(got, want) < 2e-6, `off by ${distance(got, want)}`);
        const few = { ...s, attention: kind({ size: 16, blocks: 4 }) };
        assert.ok(distance(logitsWith(few, params, tokens, documents), want) > (documents ? 0 : 1e-4));
      });

  test('the window branch alone is windowed attention', () => {
    const s = spec({ window: 20 });
    const params = perturbedParams(buildModel(s), cpu);
    for (const k of [0, 1]) openGates(params, `blocks.${k}.attention.`, [false, false, true]);
    const full = { ...s, attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 6, window: 20 } };
    const want = logitsWith(full, fullParams(full, params, 'window'), tokens);
    assert.ok(distance(logitsWith(s, params, tokens), want) < 2e-6);
  });
});

describe('the CPU', () => {
  const ref = new RefDevice();
  for (const [name, s, length] of [
    ['blocks of 6', spec(), 61],
    ['shared projections, one key head', spec({ share: true, kvHeads: 1, blocks: 3 }), 61],
    ['sixteen heads on one', spec({ heads: 16, kvHeads: 1, headWidth: 4, size: 8, length: 8, stride: 4 }), 90],
    ['rows shorter than a block', spec({ length: 32, stride: 16, size: 64 }), 7],
  ] as [string, ModelSpecInput, number][])
    test(`agrees with the reference, for any number of threads: ${name}`, () => {
      const options = { batch: 2, length, segmented: name === 'blocks of 6' };
      const want = scope(() => {
        const { loss, grads } = stepOn(ref, s, options).run();
        return [loss, ...grads].map((t) => Array.from(t.dataSync()));
      });
      const { names, run } = stepOn(cpu, s, options);
      for (const instructions of levels) {
        cpu.useLevel(instructions);
        const runs = [1, 2, 3].map((n) => {
          cpu.useThreads(n);
          return scope(() => {
            const { loss, grads } = run();
            return [loss, ...grads].map((t) => Array.from(t.dataSync()));
          });
        });
        for (const other of runs.slice(1)) assert.deepEqual(other, runs[0], `${instructions}: depends on threads`);
        runs[0].forEach((values, k) => {
          const most = Math.max(...want[k].map(Math.abs), 1e-6);
          const off = Math.max(...values.map((v, j) => Math.abs(v - want[k][j])));
          assert.ok(off < 1e-4 * most, `${instructions}: ${k ? names[k - 1] : 'loss'} is off by ${off / most}`);
        });
      }
      cpu.useLevel(level);
    });

  test('bf16 stays close to f32', () => {
    const s = spec({ size: 16, length: 8, stride: 4 });
    const tokens = drawTokens('precision', 120);
    const off = distance(logitsOf(s, tokens, { compute: 'bf16' }), logitsOf(s, tokens));
    assert.ok(off < 0.1, `off by ${off}`);
  });
});
