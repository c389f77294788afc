// Making models smaller on the CPU: the solver against its definition, what it gains, and whole runs end to end.
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { columnOrder, diagonal, gptq, gptqExperts } from '../../src/infer/compress/gptq.ts';
import { decodingSpeed } from '../../src/infer/compress/measure.ts';
import { pruneModel } from '../../src/infer/compress/prune.ts';
import { type QuantizeOptions, quantizeModel } from '../../src/infer/compress/quantize.ts';
import { calibrationOf } from '../../src/infer/compress/stages.ts';
import { weightBytes } from '../../src/infer/compress/targets.ts';
import { Generator } from '../../src/infer/generate.ts';
import { flatten } from '../../src/nn/index.ts';
import {
  dequantise,
  inverseFactor,
  isBlock,
  matmul,
  noGrad,
  obsRound,
  quantise,
  sub,
  sumsq,
  Tensor,
} from '../../src/tensor/index.ts';
import { heldOutLoss } from '../../src/train/evaluate.ts';
import { latestCheckpoint } from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { type LoadedModel, loadModel, openRunData, type RunData } from '../../src/train/session.ts';
import { ansatz, failure, resultOf } from '../support/cli.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { type TinyData, temporaryFolder, tinyConfig, tinyData, trainWhole, writeText } from '../support/tiny-data.ts';

const device = new CpuDevice();

/** Weights, and correlated inputs with columns of very different strength. */
function problem(seed: string, n: number, k: number, rows: number): { w: Tensor; x: Tensor; h: Tensor } {
  const rng = new Rng(seed);
  const w = Tensor.from(
    device,
    Float32Array.from({ length: n * k }, () => rng.normal()),
    [n, k],
  );
  const values = new Float32Array(rows * k);
  for (let r = 0; r < rows; r++) {
    const common = rng.normal();
    for (let c = 0; c < k; c++) values[r * k + c] = (common + 0.5 * rng.normal()) * (1 + (c % 7));
  }
  const x = Tensor.from(device, values, [rows, k]);
  return { w, x, h: matmul(x, x, { transA: true }) };
}

/** The error of x W^T that a change of W makes, relative to x W^T. */
const outputError = (x: Tensor, w: Tensor, changed: Tensor): number =>
  Math.sqrt(sumsq(matmul(x, sub(changed, w), { transB: true })).item() / sumsq(matmul(x, w, { transB: true })).item());

describe('the solver', () => {
  // Frantar & Alistarh 2022, "Optimal Brain Compression": the inverse itself loses a row and a column at every step.
  test('rounds as the optimal brain surgeon does, column after column, in float64', () => {
    const [n, k, damp] = [5, 40, 0.01];
    const { w, h } = problem('surgeon', n, k, 100);
    const order = columnOrder(diagonal(h));
    const o = Tensor.from(device, order, [k], 'i32');
    const rounded = obsRound(w, inverseFactor(h, damp, o), { to: 'q4' }, o);
    const [got, scales] = [rounded.w.dataSync(), rounded.scales!.dataSync()];

    const gram = Array.from({ length: k }, (_, i) => Array.from({ length: k }, (_, j) => h.dataSync()[i * k + j]));
    const mean = gram.reduce((s, row, i) => s + row[i], 0) / k;
    gram.forEach((row, i) => {
      row[i] += damp * mean;
    });
    const levels = [-127, -98, -77, -61, -47, -34, -22, -11, 0, 11, 23, 35, 49, 64, 82, 105];
    const weights = w.dataSync();
    for (let r = 0; r < n; r++) {
      const left = Float64Array.from(weights.subarray(r * k, (r + 1) * k));
      const inverse = inverted(gram);
      for (const c of order) {
        const scale = scales[r * 2 + Math.floor(c / 32)];
        const nearest = levels
          .map((l) => l * scale)
          .reduce((a, b) => (Math.abs(b - left[c]) < Math.abs(a - left[c]) ? b : a));
        assert.ok(
          Math.abs(nearest - got[r * k + c]) < 1e-5,
          `row ${r}, column ${c}: ${got[r * k + c]}, not ${nearest}`,
        );
        const e = (left[c] - nearest) / inverse[c][c];
        const column = inverse.map((row) => row[c]);
        for (let t = 0; t < k; t++) left[t] -= e * column[t];
        const pivot = column[c];
        inverse.forEach((row, i) => {
          for (let j = 0; j < k; j++) row[j] -= (column[i] * column[j]) / pivot;
        });
      }
    }
  });

  for (const type of ['q8', 'q4'] as const)
    test(`${type}: products of correlated inputs come out better than by rounding to nearest`, () => {
      const { w, x, h } = problem('products', 48, 200, 400);
      const plain = outputError(x, w, dequantise(quantise(w, type)));
      for (const order of [false, true]) {
        const ours = outputError(x, w, dequantise(gptq(w, h, type, { damp: 0.01, order }, true)!));
        assert.ok(ours < 0.7 * plain, `${ours} against ${plain}`);
      }
    });

  test('what is packed is what was solved for, and zeros stay', () => {
    const { w, h } = problem('packed', 20, 70, 200);
    const sparse = Tensor.from(
      device,
      Array.from(w.dataSync(), (v, k) => (k % 3 === 0 ? 0 : v)),
      [20, 70],
    );
    const solved = obsRound(sparse, inverseFactor(h, 0.01), { to: 'q4', keepZeros: true });
    const packed = dequantise(quantise(solved.w, 'q4', solved.scales)).dataSync();
    const positive = (x: ArrayLike<number>): number[] => Array.from(x, (v) => v + 0); // a zero may have a sign
    assert.deepEqual(positive(packed), positive(solved.w.dataSync()));
    for (let k = 0; k < packed.length; k += 3) assert.equal(Math.abs(packed[k]), 0);
  });

  test('experts are solved one by one; those that saw nothing are rounded to nearest', () => {
    const parts = ['a', 'b'].map((seed) => problem(seed, 20, 40, 90));
    const stack = (ts: (Tensor | null)[], shape: number[]): Tensor =>
      Tensor.from(
        device,
        ts.flatMap((t) => (t ? [...t.dataSync()] : new Array<number>(40 * 40).fill(0))),
        shape,
      );
    const w = stack([parts[0].w, parts[1].w, parts[0].w], [3, 20, 40]);
    const h = stack([parts[0].h, parts[1].h, null], [3, 40, 40]);
    const o = { damp: 0.01, order: true };
    const { weights, unseen } = gptqExperts(w, h, 'q4', o);
    assert.equal(unseen, 1);
    const got = dequantise(weights).dataSync();
    const want = [...parts.map((p) => gptq(p.w, p.h, 'q4', o, false)!), quantise(parts[0].w, 'q4')];
    want.forEach((q, e) => {
      assert.deepEqual(got.slice(e * 800, (e + 1) * 800), dequantise(q).dataSync());
    });
  });

  test('removal with correction beats removal by size, at the exact share in every row', () => {
    const { w, x, h } = problem('removal', 30, 256, 600);
    const u = inverseFactor(h, 0.01);
    const solved = obsRound(w, u, { sparsity: 0.5 }).w;
    const bySize = Tensor.from(device, w.dataSync(), w.shape);
    bySize.write(Array.from(w.dataSync(), (v) => (Math.abs(v) < 0.6745 ? 0 : v)));
    assert.ok(outputError(x, w, solved) < 0.5 * outputError(x, w, bySize));
    const rows = (t: Tensor) => Array.from({ length: 30 }, (_, r) => t.dataSync().slice(r * 256, (r + 1) * 256));
    for (const row of rows(solved)) assert.equal([...row].filter((v) => v === 0).length, 128);
    for (const row of rows(obsRound(w, u, { pattern: { least: 2, among: 4 } }).w))
      for (let k = 0; k < 256; k += 4) assert.equal([...row.slice(k, k + 4)].filter((v) => v === 0).length, 2);
  });
});

/** The inverse by Gauss-Jordan elimination. */
function inverted(m: readonly (readonly number[])[]): number[][] {
  const n = m.length;
  const a = m.map((row, i) => [...row, ...Array.from({ length: n }, (_, j) => +(i === j))]);
  for (let k = 0; k < n; k++) {
    const pivot = a[k][k];
    a[k] = a[k].map((v) => v / pivot);
    for (let i = 0; i < n; i++) if (i !== k) a[i] = a[i].map((v, j) => v - a[i][k] * a[k][j]);
  }
  return a.map((row) => row.slice(n));
}

const root = temporaryFolder('compress');
let data: TinyData;
const quantize = (more: Partial<QuantizeOptions> = {}): QuantizeOptions => ({
  ...{ bits: 4, embeddingBits: 8, method: 'gptq', gptq: { damp: 0.01, order: true }, memory: 2 ** 28 },
  ...more,
});

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
  await trainWhole(join(root, 'run'), tinyConfig(data, { steps: 80 }));
});

async function opened(folder: string): Promise<{ loaded: LoadedModel; text: RunData }> {
  const run = RunFolder.open(folder);
  const loaded = await loadModel(run.config, (await latestCheckpoint(run))!);
  return { loaded, text: openRunData(loaded.config) };
}

describe('whole models', () => {
  const kinds: Record<string, object> = {
    decoder: {},
    untied: { tied: false },
    experts: { ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 64 } } },
    'encoder-decoder': { layout: 'encoder-decoder' },
  };
  for (const [name, model] of Object.entries(kinds))
    test(`${name}: 8 and 4 bits, and half the weights gone, cost little`, async () => {
      const objective = name === 'encoder-decoder' ? ({ kind: 'prefix-lm' } as const) : ('causal' as const);
      const folder = join(root, name);
      const vocab = data.prepared.tokenizer.vocabSize + 8;
      await trainWhole(folder, tinyConfig(data, { steps: 60, objective, model: { width: 64, ...model, vocab } }));
      const { loaded, text } = await opened(folder);
      const calibration = calibrationOf(loaded, text, 2048);
      const loss = async (params: LoadedModel['params']): Promise<number> =>
        (await heldOutLoss({ ...loaded, params }, loaded.config, text, 4000)).loss;
      const own = await loss(loaded.params);
      try {
        for (const [options, most] of [
          [quantize({ bits: 8, method: 'rtn' }), 1.002],
          [quantize({ bits: 8 }), 1.002],
          [quantize({ method: 'rtn' }), 1.03],
          [quantize(), 1.03],
          [quantize({ embeddingBits: 4, memory: 1 }), 1.06],
        ] as const) {
          const { params, report } = await quantizeModel(loaded, options, calibration);
          const after = await loss(params);
          assert.ok(after / own < most && after / own > 0.97, `${JSON.stringify(options)}: ${own} to ${after}`);
          assert.ok(
            weightBytes(params) < (options.bits === 8 ? 0.5 : 0.45) * weightBytes(loaded.params),
            JSON.stringify([options.bits, weightBytes(params), weightBytes(loaded.params), report]),
          );
          assert.ok(report.passes > (options.method === 'rtn' ? -1 : options.memory === 1 ? 2 : 0));
          for (const { path, tensor } of flatten(params))
            if (/norm|router|load/.test(path)) assert.equal(tensor.dtype, 'f32', path);
        }
        for (const method of ['magnitude', 'wanda', 'sparsegpt'] as const) {
          const o = { method, sparsity: 0.5, pattern: null, damp: 0.01, memory: 2 ** 28 };
          const { params, report } = await pruneModel(loaded, o, calibration);
          assert.ok(Math.abs(report.zeros / report.weights - 0.5) < 0.01);
          const after = await loss(params);
          assert.ok(after / own < 1.3, `${method}: ${own} to ${after}`);
          assert.equal(
            flatten(params).find((t) => t.path === 'embed.weight')!.tensor,
            flatten(loaded.params).find((t) => t.path === 'embed.weight')!.tensor,
          );
        }
      } finally {
        calibration.dispose();
        text.close();
      }
    });

  test('sparse: units, factors and convolutions in 8 and 4 bits cost little; what there is to calibrate is', async () => {
    const model = {
      attention: { kind: 'sparse-qkv', heads: 4, modules: 4, output: 'dense' },
      ffn: { kind: 'sparse-ffn', hidden: 256, block: 16 },
      ...{ head: { kind: 'factored', modules: 4 }, tied: false, width: 64 },
    } as const;
    const folder = join(root, 'sparse');
    await trainWhole(folder, tinyConfig(data, { steps: 150, model }));
    const { loaded, text } = await opened(folder);
    const calibration = calibrationOf(loaded, text, 2048);
    const loss = async (params: LoadedModel['params']): Promise<number> =>
      (await heldOutLoss({ ...loaded, params }, loaded.config, text, 4000)).loss;
    const own = await loss(loaded.params);
    for (const [options, most] of [
      [quantize({ bits: 8, method: 'rtn' }), 1.002],
      [quantize({ method: 'rtn' }), 1.02],
      [quantize(), 1.02],
    ] as const) {
      const { params, report } = await quantizeModel(loaded, options, calibration);
      const after = await loss(params);
      assert.ok(after / own < most && after / own > 0.98, `${JSON.stringify(options)}: ${own} to ${after}`);
      assert.equal(report.passes, options.method === 'gptq' ? 1 : 0);
      assert.ok(weightBytes(params) < (options.bits === 8 ? 0.45 : 0.4) * weightBytes(loaded.params));
      const parameters = Object.values(report.types).reduce((a, b) => a + b, 0);
      assert.equal(
        parameters,
        flatten(loaded.params).reduce((n, p) => n + p.tensor.size, 0),
      );
    }
    calibration.dispose();
    text.close();
  });

  test('calibration leaves nothing behind, and is the same every time', async () => {
    const { loaded, text } = await opened(join(root, 'run'));
    const calibration = calibrationOf(loaded, text, 1000);
    const bits = async (): Promise<string> => {
      const { params } = await quantizeModel(loaded, quantize(), calibration);
      const all = flatten(params).map(({ tensor }) => Buffer.from(tensor.bitsSync().slice().buffer).toString('base64'));
      for (const { tensor } of flatten(params)) if (isBlock(tensor.dtype)) tensor.dispose();
      return all.join();
    };
    const first = await bits();
    const { liveAllocations } = loaded.device.memory();
    assert.equal(await bits(), first);
    assert.equal(loaded.device.memory().liveAllocations, liveAllocations);
    calibration.dispose();
    text.close();
  });
});

describe('ansatz quantize, prune, distill', () => {
  test('a quantised run evaluates to what was said, generates, and cannot be trained', async () => {
    const [run, out] = [join(root, 'run'), join(root, 'run-4bit')];
    const made = resultOf(
      await ansatz(['quantize', run, '--bits', '4', '--calibrate', '2000', '--seconds', '0.2', '--out', out, '--json']),
      'quantize',
    ) as unknown as {
      before: { loss: number; bytes: number; tokensPerSecond: number };
      after: typeof made.before;
      types: Record<string, number>;
    };
    assert.ok(made.after.bytes < 0.4 * made.before.bytes);
    assert.ok(made.after.tokensPerSecond > 0 && made.before.tokensPerSecond > 0);
    assert.ok(made.after.loss < 1.03 * made.before.loss);
    assert.ok(made.types.q4 > 0 && made.types.q8 > 0 && made.types.f32 > 0);
    const of = async (folder: string): Promise<number> =>
      Number(resultOf(await ansatz(['evaluate', folder, '--json']), 'evaluate').loss);
    assert.ok(Math.abs((await of(run)) - made.before.loss) < 1e-6);
    assert.ok(Math.abs((await of(out)) - made.after.loss) < 1e-6);

    // The file holds what the memory held, byte for byte.
    const { loaded, text } = await opened(out);
    assert.equal(weightBytes(loaded.params), made.after.bytes);
    assert.deepEqual(loaded.config.madeFrom?.by, 'quantize');
    assert.ok((await decodingSpeed(loaded, text, 0.05)) > 0);
    const generator = new Generator(
      loaded.device,
      loaded.model,
      loaded.params,
      text.tokenizer,
      loaded.config.precision,
    );
    assert.equal((await generator.complete('the ', { maxTokens: 8, temperature: 0 })).length > 0, true);
    await generator.dispose();
    text.close();

    failure(await ansatz(['train', out, '--resume']), 1, /is quantised \(q[48]\), which can be used but not trained/);
    failure(await ansatz(['quantize', out, '--bits', '8']), 1, /is quantised already/);
    failure(await ansatz(['quantize', run, '--bits', '4', '--out', out]), 1, /exists already; nothing was written/);
    assert.deepEqual(
      readdirSync(root).filter((f) => f.includes('draft')),
      [],
    );
  });

  test('a pruned run has its zeros in the file, and goes on being a run', async () => {
    const [run, out] = [join(root, 'run'), join(root, 'run-2of4')];
    const args = ['prune', run, '--method', 'sparsegpt', '--pattern', '2:4', '--calibrate', '2000', '--seconds', '0'];
    const made = resultOf(await ansatz([...args, '--out', out, '--json']), 'prune');
    assert.equal(made.zeros, Number(made.weights) / 2);
    const { loaded, text } = await opened(out);
    for (const { path, tensor } of flatten(loaded.params)) {
      if (!/qkv|out|up|down/.test(path)) continue;
      const values = tensor.dataSync();
      for (let k = 0; k < values.length; k += 4)
        assert.ok(values.slice(k, k + 4).filter((v: number) => v === 0).length === 2, path);
    }
    text.close();
    // It is f32: a quantised one can be made of it, zeros and all.
    const both = join(root, 'run-2of4-q4');
    resultOf(
      await ansatz(['quantize', out, '--bits', '4', '--calibrate', '1000', '--seconds', '0', '--out', both, '--json']),
      'quantize',
    );
    const small = await opened(both);
    const up = flatten(small.loaded.params).find((t) => t.path === 'blocks.0.ffn.up')!.tensor;
    const zeros = noGrad(() => dequantise(up))
      .dataSync()
      .filter((v: number) => v === 0).length;
    assert.ok(zeros >= up.size / 2);
    small.text.close();
  });

  test('a student learns from its teacher, stops and goes on, and starts from its layers', async () => {
    const [run, out] = [join(root, 'run'), join(root, 'student')];
    const shape = ['--set', 'model.depth=1', '--steps', '30', '--measure', '0'];
    const made = resultOf(
      await ansatz(['distill', run, ...shape, '--start', 'layers', '--out', out, '--json']),
      'distill',
    ) as unknown as {
      before: { loss: number; bytes: number };
      after: { loss: number; bytes: number };
    };
    assert.ok(made.after.bytes < made.before.bytes);
    assert.ok(made.after.loss < 1.5 * made.before.loss);
    const { loaded, text } = await opened(out);
    assert.equal(loaded.config.distil?.teacher, run);
    assert.equal(loaded.config.model.depth, 1);
    text.close();
    // The log says where it began.
    const events = [];
    for await (const e of RunFolder.open(out).events()) events.push(e);
    assert.ok(events.some((e) => e.event === 'started-from' && e.run === run && e.fresh.length === 0));
  });

  test('teachers that do not fit are refused, and nothing is left', async () => {
    const run = join(root, 'run');
    const other = await tinyData(join(root, 'other-data'), writeText(join(root, 'other-text'), 'small'), 300);
    const cases: [string[], RegExp][] = [
      [['--data', other.folder], /has another tokenizer than the student/],
      [['--set', 'model.context=64'], /the teacher's context is 32, rows have 64 tokens/],
      [
        ['--set', 'model.layout="encoder-decoder"', '--set', 'objective="prefix-lm"'],
        /the teacher has no encoder, the student an encoder/,
      ],
    ];
    for (const [k, [args, error]] of cases.entries()) {
      const out = join(root, `refused-${k}`);
      failure(await ansatz(['distill', run, '--steps', '2', '--out', out, ...args]), 1, error);
      assert.equal(existsSync(out), false);
    }
    failure(await ansatz(['distill', join(root, 'nowhere'), 'tiny']), 1, /is not a run/);
  });
});
