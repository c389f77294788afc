// Quantised runs of sparse models: everything that decoding reads in blocks or records is so in the file.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { inBlocks } from '../../src/infer/blocks.ts';
import { Inspector } from '../../src/infer/inside/index.ts';
import { openRun } from '../../src/infer/load.ts';
import type { Model } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { childOf, disposeTree, flatten, forwardContext, type ParamTree } from '../../src/nn/index.ts';
import {
  cast,
  isBlock,
  matmul,
  noGrad,
  packLogits,
  packUnits,
  quantise,
  scope,
  sizeOfShape,
  Tensor,
  unitChoice,
} from '../../src/tensor/index.ts';
import { startFrom } from '../../src/train/from.ts';
import { latestCheckpoint, saveCheckpoint } from '../../src/train/run/checkpoint.ts';
import type { TensorSource } from '../../src/train/safetensors.ts';
import { loadModel, tensorSource } from '../../src/train/session.ts';
import { madeRun } from '../support/format-runs.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { quantisedRun } from '../support/quantised-runs.ts';
import { byRows, textOf, whole } from '../support/row-decoding.ts';
import { temporaryFolder } from '../support/tiny-data.ts';
import '../../src/tricks/index.ts';

const root = temporaryFolder('quantised-sparse');
const base = { context: 64, width: 64, depth: 2, tied: false, attention: { kind: 'full', heads: 4 } } as const;
type Spec = Omit<ModelSpecInput, 'vocab'>;
const sparse: Spec = {
  ...base,
  attention: { kind: 'sparse-qkv', heads: 4, modules: 4 },
  ffn: { kind: 'sparse-ffn', hidden: 128, block: 8, bias: true },
  head: { kind: 'factored', modules: 4 },
};
const specs: Record<string, Spec> = {
  'units, factors, convolutions, factored head': sparse,
  'products at the output, blocks of whole strips': {
    ...sparse,
    ffn: { kind: 'sparse-ffn', hidden: 128, block: 16, bias: true },
    attention: { kind: 'sparse-qkv', heads: 4, modules: 4, output: 'multiplicative' },
  },
  'units that are experts': {
    ...base,
    ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'sparse-ffn', hidden: 64, block: 8 } },
  },
};

const far = (a: Float32Array, b: Float32Array): number =>
  Math.sqrt(a.reduce((s, x, k) => s + (x - b[k]) ** 2, 0) / b.reduce((s, x) => s + x * x, 0));

/** Loss of a text, as evaluation computes it. */
function lossOf(model: Model, params: ParamTree, tokens: readonly number[]): number {
  const { device } = flatten(params)[0].tensor;
  model.prepare(device);
  return scope(() =>
    noGrad(() => {
      const row = (values: readonly number[]): Tensor => Tensor.from(device, [...values], [1, values.length], 'i32');
      const n = tokens.length - 1;
      const batch = {
        ...{
          inputs: row(tokens.slice(0, -1)),
          targets: row(tokens.slice(1)),
          segments: row(new Array<number>(n).fill(1)),
        },
        ...{ positions: row(Array.from({ length: n }, (_, k) => k)), encoder: null },
        weights: Tensor.from(device, new Float32Array(n).fill(1 / n), [1, n]),
      };
      return model.loss(params, batch as never, forwardContext({ device, compute: 'f32' })).total.item();
    }),
  );
}

for (const [name, spec] of Object.entries(specs))
  describe(name, () => {
    for (const bits of [8, 4] as const)
      test(`${bits} bits: the file is what decoding reads`, async () => {
        const plain = await madeRun(join(root, `${name} ${bits}`, 'plain'), spec);
        const made = await quantisedRun(plain, join(root, `${name} ${bits}`, 'made'), bits);
        const { model, params, device } = await openRun(made.path);
        const original = await loadModel(plain.config, (await latestCheckpoint(plain))!);
        const used = inBlocks(model, params, { matrices: 'q8' });
        // Only what takes less as it is, and what decides, is not in blocks or records.
        for (const { path, tensor } of flatten(used)) {
          const own = path.split('.').reduce<ParamTree | Tensor>((t, part) => (t as ParamTree)[part], params);
          assert.equal(own, tensor, `${path} was put into blocks when it was opened`);
        }
        const types = new Map(flatten(params).map((p) => [p.path, p.tensor.dtype]));
        for (const [path, type] of types)
          if (/(kernel|\.qk|\.q|\.k|\.v|weight|outKernel|attention\.out|qkv)$/.test(path) && !/norm/.test(path))
            assert.ok(isBlock(type), `${path} is ${type}`);
        if (JSON.stringify(spec).includes('moe')) assert.equal(types.get('blocks.0.ffn.experts.down'), `q${bits}`);
        else {
          assert.equal(types.get(`blocks.1.ffn.units_q${bits}`), 'u8');
          assert.equal(types.get('blocks.1.ffn.up'), undefined);
        }

        // What is stored is what would have been put together from the plain run, bit for bit.
        const wanted = inBlocks(original.model, original.params, { matrices: `q${bits}` });
        for (const { path, tensor } of flatten(wanted))
          if (types.get(path) === tensor.dtype && tensor.dtype !== 'f32')
            assert.deepEqual(
              flatten(params)
                .find((p) => p.path === path)!
                .tensor.bitsSync(),
              tensor.bitsSync(),
              path,
            );

        // Decoding, whole texts and the loss all take it, and agree.
        const { vocab } = model.spec;
        const tokens = textOf(30, 3, vocab);
        const [rows] = await byRows(device as never, model, params, [{ tokens }]);
        const all = whole(device as never, model, params, { tokens }).subarray(0, rows.length);
        assert.ok(far(rows, all) < 0.03, `rows and whole: ${far(rows, all)}`);
        const exact = whole(device as never, original.model, original.params, { tokens }).subarray(0, rows.length);
        assert.ok(far(all, exact) < (bits === 8 ? 0.06 : 0.6), `quantised and not: ${far(all, exact)}`);
        const [loss, before] = [lossOf(model, params, tokens), lossOf(original.model, original.params, tokens)];
        assert.ok(Math.abs(loss - before) < (bits === 8 ? 0.05 : 0.5), `loss ${before} to ${loss}`);
        disposeTree(params);
        disposeTree(original.params);
      });
  });

test('a run that was quantised when only matrices were, and by layers that had no form for controllers', async () => {
  for (const name of ['matrices', 'records']) {
    const folder = join(root, 'old', name);
    const run = await madeRun(folder, sparse);
    const { model, params, device } = await loadModel(run.config, (await latestCheckpoint(run))!);
    const { state } = (await latestCheckpoint(run))!;
    const stored = flatten(params).flatMap(({ path, tensor }): TensorSource[] => {
      if (path === 'embed.weight')
        return [
          tensorSource(
            path,
            noGrad(() => quantise(tensor, 'q8')),
          ),
        ];
      if (name === 'matrices' || !/ffn\.(up|down)$/.test(path)) return [tensorSource(path, tensor)];
      if (path.endsWith('down')) return [];
      const ffn = childOf(childOf(childOf(params, 'blocks'), path.split('.')[1]), 'ffn') as Record<string, Tensor>;
      const records = noGrad(() => packUnits(ffn.up, ffn.down, { type: 'q8', columns: true }));
      return [tensorSource(path.replace(/up$/, 'units_q8'), records)];
    });
    await saveCheckpoint(run, 1, { tensors: { model: stored }, state });
    const opened = await openRun(folder);
    const tokens = textOf(20, 3, model.spec.vocab);
    const [rows] = await byRows(device as never, opened.model, opened.params, [{ tokens }], { weights: 'q8' });
    const exact = whole(device as never, model, params, { tokens }).subarray(0, rows.length);
    assert.ok(far(rows, exact) < 0.06, `${name}: ${far(rows, exact)}`);
    const ffn = childOf(childOf(childOf(opened.params, 'blocks'), '0'), 'ffn');
    assert.deepEqual(['up' in ffn, 'units_q8' in ffn], [name === 'matrices', name === 'records']);
    assert.equal((ffn.low as Tensor).dtype, 'f32');
    disposeTree(opened.params);
    disposeTree(params);
  }
});

test('nothing is trained from records, and units that were chosen are seen', async () => {
  const plain = await madeRun(join(root, 'from', 'plain'), sparse);
  const made = await quantisedRun(plain, join(root, 'from', 'made'), 4);
  const { model, params, device } = await openRun(made.path);
  const own = childOf(childOf(childOf(params, 'blocks'), '0'), 'ffn');
  assert.ok('units_q4' in own && !('up' in own));
  const tokenizer = Tokenizer.fromFile(join(made.path, 'tokenizer.json'));
  const only = [{ path: 'blocks.0.ffn.low', tensor: own.low as Tensor, spec: {} }];
  await assert.rejects(startFrom(made.path, model, only as never, tokenizer), /units_q4 is quantised \(records\)/);

  const inspector = new Inspector(device, model, params, { compute: 'f32' });
  const seen = await inspector.inspect({ decoder: textOf(20, 3, model.spec.vocab) });
  await inspector.dispose();
  const layer = seen.layers.find((l) => l.layer === 'blocks.0.ffn')!;
  assert.deepEqual([layer.kind, layer.count], ['units', 128]);
  for (const share of layer.active) assert.ok(Math.abs(share - 1 / 8) < 1e-6);
  // Of two layers of 128 records, 7 of 8 are not read: parts of 64 values in 4 bits and 2 scales.
  const idle = (2 * 128 * 2 * 64 * 7) / 8;
  const table = (params.embed as ParamTree).weight as Tensor;
  const row = table.storage.memory.bytes * (1 - 1 / table.shape[0]);
  for (const b of seen.bytes.token) assert.equal(b, Math.round(seen.bytes.weights - row - idle));
  disposeTree(params);
});

test('controllers in bf16 choose as those in f32, but for near-ties', () => {
  const device = new CpuDevice();
  const [rows, d, F, N, r] = [128, 256, 1024, 32, 8];
  const rng = new Rng('controllers');
  const normals = (shape: number[], std = 1): Tensor =>
    Tensor.from(
      device,
      Float64Array.from({ length: sizeOfShape(shape) }, () => std * rng.normal()),
      shape,
    );
  scope(() =>
    noGrad(() => {
      const [x, low, logits] = [normals([rows, d]), normals([r, d], d ** -0.5), normals([F, r], r ** -0.5)];
      const exact = unitChoice(x, low, packLogits(logits, 'f32'), { block: N }).dataSync();
      assert.deepEqual(unitChoice(x, low, logits, { block: N }).dataSync(), exact, 'strips and matrices');
      const rounded = unitChoice(x, cast(low, 'bf16'), packLogits(logits, 'bf16'), { block: N }).dataSync();
      const z = matmul(matmul(x, low, { transB: true }), logits, { transB: true }).dataSync();
      let other = 0;
      exact.forEach((n, k) => {
        if (rounded[k] === n) return;
        other++;
        const gap = z[k * N + n] - z[k * N + rounded[k]];
        assert.ok(gap < 0.02, `a logit lower by ${gap} (their deviation is 1) was chosen`);
      });
      assert.ok(other > 0 && other < 0.005 * exact.length, `${other} of ${exact.length} choices are others`);
    }),
  );
});
