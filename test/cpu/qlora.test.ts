// Adapting a quantised run: what is trained and written, that it is used as any other run, and that its base is not touched.
import assert from 'node:assert/strict';
import { cpSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import type { CpuDevice } from '../../src/backend/cpu/device.ts';
import { openDecoding } from '../../src/infer/decoding.ts';
import { exportHuggingFace } from '../../src/infer/formats/export.ts';
import { openRun } from '../../src/infer/load.ts';
import { disposeTree, flatten } from '../../src/nn/index.ts';
import { AdaptedTensor, isBlock } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { heldOutLoss } from '../../src/train/evaluate.ts';
import { checkpointPath, latestCheckpoint, listCheckpoints } from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { openRunData } from '../../src/train/session.ts';
import { quantisedRun } from '../support/quantised-runs.ts';
import { byRows, textOf, whole } from '../support/row-decoding.ts';
import {
  createRun,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeGrammar,
} from '../support/tiny-data.ts';

const root = temporaryFolder('qlora');
let data: TinyData;
const [plain, base] = [join(root, 'plain'), join(root, 'base')];
const adapter = { kind: 'lora' as const, rank: 4 };
const spec = { embeddingStd: 0.3, width: 64 };
const config = (more: object = {}) =>
  tinyConfig(data, {
    ...{ steps: 12, from: base, adapter, model: spec, optimiser: { kind: 'adamw', lr: 1e-2 } },
    ...more,
  } as never);
const weights = (path: string): string => {
  const run = RunFolder.open(path);
  return join(checkpointPath(run, listCheckpoints(run).at(-1)!), 'model.safetensors');
};

before(async () => {
  data = await tinyData(join(root, 'data'), writeGrammar(join(root, 'text'), 600));
  await trainWhole(plain, tinyConfig(data, { steps: 20, model: spec }));
  await quantisedRun(RunFolder.open(plain), base, 4);
});

describe('training', () => {
  test('lowers the loss, writes the differences alone, and leaves the base as it is', async () => {
    const untouched = readFileSync(weights(base));
    const path = join(root, 'adapted');
    const { summary, events } = await trainWhole(path, config({ steps: 40 }));
    const steps = events.filter((e) => e.event === 'step');
    assert.ok(summary.loss < steps[0].loss - 0.3, `${steps[0].loss} to ${summary.loss}`);
    assert.deepEqual(readFileSync(weights(base)), untouched);
    const checkpoint = (await latestCheckpoint(RunFolder.open(path)))!;
    const file = await checkpoint.tensors('model');
    assert.equal(file.names.length, 2 * 2 * 4);
    for (const name of file.names) assert.match(name, /^lora\.blocks\.\d\.(attention|ffn)\.\w+\.[ab]$/);
    await file.close();
    assert.equal((checkpoint.state.base as { run: string }).run, base);
    const started = events.find((e) => e.event === 'started-from')!;
    assert.deepEqual([started.fresh.length, started.copied > 4], [16, true]);
  });

  test('begins where the base is, which is about where the run in full is', async () => {
    const first = async (name: string, more: object): Promise<number> => {
      const { events } = await trainRun(await createRun(join(root, name), config({ steps: 1, ...more })));
      return events.find((e) => e.event === 'step')!.loss;
    };
    const [own, full] = [await first('first', {}), await first('first-plain', { from: plain })];
    assert.ok(Math.abs(own - full) < 0.02 * full && own !== full, `${own} and ${full}`);
  });

  test('stops and goes on to the same numbers', async () => {
    const whole = await trainWhole(join(root, 'whole'), config());
    const run = await createRun(join(root, 'parts'), config());
    await trainRun(run, { stopAfter: 5 });
    const { events } = await trainRun(run, { resume: true });
    const steps = (list: typeof events): number[] => list.flatMap((e) => (e.event === 'step' ? [e.loss] : []));
    assert.deepEqual(steps(events), steps(whole.events).slice(5));
  });

  test('with products in bf16, and of experts', async () => {
    const ffn = { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 64 } } as const;
    const [from, quantised] = [join(root, 'experts'), join(root, 'experts-8')];
    await trainWhole(from, tinyConfig(data, { steps: 10, model: { ...spec, ffn } }));
    await quantisedRun(RunFolder.open(from), quantised, 8);
    const more = { from: quantised, model: { ...spec, ffn }, precision: 'bf16', steps: 30 };
    const { summary, events } = await trainWhole(join(root, 'experts-adapted'), config(more));
    const steps = events.filter((e) => e.event === 'step');
    assert.ok(summary.loss < steps[0].loss - 0.2, `${steps[0].loss} to ${summary.loss}`);
  });

  test('all of the weights, or units as records: refused, with what to do instead', async () => {
    await assert.rejects(
      trainWhole(join(root, 'full'), config({ adapter: undefined })),
      (error: Error & { hint?: string }) =>
        /is quantised \(q[48]\), which can be used but not trained/.test(error.message) &&
        /adapter\.kind=lora/.test(error.hint ?? ''),
    );
    const ffn = { kind: 'sparse-ffn', hidden: 64, block: 8 } as const;
    const [from, quantised] = [join(root, 'sparse'), join(root, 'sparse-8')];
    await trainWhole(from, tinyConfig(data, { steps: 2, model: { ...spec, ffn } }));
    await quantisedRun(RunFolder.open(from), quantised, 8);
    await assert.rejects(
      trainWhole(join(root, 'sparse-adapted'), config({ from: quantised, model: { ...spec, ffn } })),
      /sparse-8: is quantised, and there is no gradient through blocks\.0\.ffn\.units_q8/,
    );
  });
});

test('is planned with the bytes that the base has, and less than one in full', async () => {
  const { params } = await openRun(base);
  const parsed = parseTrainConfig(config());
  const [own, full] = [accountFor(parsed, params), accountFor(parseTrainConfig(config({ from: plain })))];
  assert.ok(own.memory.parameters < 0.5 * full.memory.parameters, JSON.stringify([own.memory, full.memory]));
  assert.ok(own.memory.total < full.memory.total);
  assert.equal(own.parameters, full.parameters);
  assert.ok(own.forwardFlopsPerToken > 0.9 * full.forwardFlopsPerToken);
  disposeTree(params);
});

describe('an adapted run', () => {
  test('opens beside its base, and decodes what it computes', async () => {
    const path = join(root, 'used');
    const { summary } = await trainWhole(path, config({ steps: 40 }));
    const opened = await openRun(path);
    const tensors = flatten(opened.params).map((p) => p.tensor);
    assert.equal(tensors.filter((t) => t instanceof AdaptedTensor).length, 8);
    assert.ok(tensors.every((t) => !isBlock(t.dtype) || t.storage.memory.readOnly || process.platform === 'win32'));
    const { loss } = await heldOutLoss(opened, opened.config, openRunData(opened.config));
    // Evaluated as it was after training: with the kernels that serve it.
    assert.ok(Math.abs(loss - summary.heldOut!.loss) < 0.01 * loss, `${loss} and ${summary.heldOut!.loss}`);
    const below = await openRun(base);
    const worse = (await heldOutLoss(below, below.config, openRunData(below.config))).loss;
    assert.ok(loss < worse - 0.2, `${worse} to ${loss}`);

    const device = opened.device as CpuDevice;
    const { vocab } = opened.model.spec;
    const texts = [5, 3, 11].map((seed) => ({ tokens: textOf(20, seed, vocab) }));
    const rows = await byRows(device, opened.model, opened.params, texts);
    const alone = await byRows(device, opened.model, opened.params, texts.slice(1, 2));
    assert.deepEqual(rows[1], alone[0], 'neighbours in a pass change nothing');
    const all = whole(device, opened.model, opened.params, texts[1]);
    const most = rows[1].reduce((m, x, k) => Math.max(m, Math.abs(x - all[k])), 0);
    assert.ok(most < 0.05 * all.reduce((m, x) => Math.max(m, Math.abs(x)), 0), `${most}`);
    const decoding = openDecoding(device, opened.model, opened.params, { compute: 'bf16' });
    await decoding.close();
    disposeTree(opened.params);
    disposeTree(below.params);
  });

  test('without its base, or with another one in its place, it says so in one line', async () => {
    const [own, path, away] = [join(root, 'own-base'), join(root, 'orphan'), join(root, 'away')];
    cpSync(base, own, { recursive: true });
    await trainWhole(path, config({ from: own, steps: 2 }));
    renameSync(own, away);
    await assert.rejects(openRun(path), /the quantised run that this one adapts cannot be used: .*own-base/);
    rmSync(join(root, 'other'), { recursive: true, force: true });
    await quantisedRun(RunFolder.open(plain), own, 8);
    await assert.rejects(openRun(path), /is not the checkpoint that was adapted: it was written anew/);
    await assert.rejects(
      trainWhole(join(root, 'next'), tinyConfig(data, { steps: 1, from: path, model: spec })),
      /adapts a quantised run, and has differences of low rank only/,
    );
    const run = RunFolder.open(path);
    const options = {
      config: parseTrainConfig(run.config),
      checkpoint: (await latestCheckpoint(run))!,
      tokenizer: data.prepared.tokenizer,
    };
    await assert.rejects(
      exportHuggingFace({ ...options, run: path, out: join(root, 'hf') }, 'f32'),
      /adapts a quantised run: there is no file for it to be exported to/,
    );
  });
});
