/** Low-rank adaptation: what is trained, what stays, and that an adapted run is used as any other. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { exportHuggingFace } from '../../src/infer/formats/export.ts';
import { importHuggingFace } from '../../src/infer/formats/import.ts';
import { openRun } from '../../src/infer/load.ts';
import { declared, flatten, forwardContext, isTrainable } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { latestCheckpoint } from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { freshModel, trainedModel } from '../../src/train/session.ts';
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

const root = temporaryFolder('lora');
let data: TinyData;
const base = join(root, 'base');
const adapter = { kind: 'lora' as const, rank: 4 };
const config = (more: object = {}) =>
  tinyConfig(data, { steps: 12, from: base, adapter, optimiser: { kind: 'adamw', lr: 1e-2 }, ...more } as never);

before(async () => {
  data = await tinyData(join(root, 'data'), writeGrammar(join(root, 'text'), 600));
  await trainWhole(base, tinyConfig(data, { steps: 20, model: { embeddingStd: 0.3 } }));
});

/** Tensors of the newest checkpoint of a run. */
async function stored(path: string): Promise<Map<string, Float32Array>> {
  const checkpoint = await latestCheckpoint(RunFolder.open(path));
  const file = await checkpoint!.tensors('model');
  const all = new Map<string, Float32Array>();
  for (const name of file.names) all.set(name, (await file.read(name)) as Float32Array);
  await file.close();
  return all;
}

const spec = { embeddingStd: 0.3 };

describe('training', () => {
  test('changes the differences and nothing else, and lowers the loss', async () => {
    const path = join(root, 'adapted');
    const { summary, events } = await trainWhole(path, config({ steps: 40, model: spec }));
    const steps = events.filter((e) => e.event === 'step');
    assert.ok(summary.loss < steps[0].loss - 0.3, `${steps[0].loss} to ${summary.loss}`);
    const [before, after] = [await stored(base), await stored(path)];
    for (const [name, values] of before) assert.deepEqual(after.get(name), values, name);
    const own = [...after.keys()].filter((n) => !before.has(n));
    assert.equal(own.length, 2 * 2 * 4, 'two factors for four matrices of two blocks');
    for (const name of own) {
      assert.match(name, /^lora\.blocks\.\d\.(attention|ffn)\.\w+\.[ab]$/);
      assert.ok(
        after.get(name)!.some((x) => x !== 0),
        name,
      );
    }
  });

  test('begins where the other run ended', async () => {
    const last = (
      await trainRun(await createRun(join(root, 'plain'), tinyConfig(data, { steps: 1, from: base, model: spec })))
    ).events;
    const first = (await trainRun(await createRun(join(root, 'first'), config({ steps: 1, model: spec })))).events;
    const loss = (events: typeof last): number => events.find((e) => e.event === 'step')!.loss;
    assert.ok(Math.abs(loss(first) - loss(last)) < 1e-5);
  });

  test('stops and goes on to the same numbers', async () => {
    const whole = await trainWhole(join(root, 'whole'), config({ model: spec }));
    const run = await createRun(join(root, 'parts'), config({ model: spec }));
    await trainRun(run, { stopAfter: 5 });
    const { events } = await trainRun(run, { resume: true });
    const steps = (list: typeof events): number[] => list.flatMap((e) => (e.event === 'step' ? [e.loss] : []));
    assert.deepEqual(steps(events), steps(whole.events).slice(5));
  });

  test('needs little memory beyond the weights', () => {
    const [full, low] = [tinyConfig(data, { from: base }), config()].map((c) => accountFor(parseTrainConfig(c)));
    const { model } = freshModel(config());
    const own = declared(model).filter(isTrainable);
    assert.equal(
      low.parameters,
      own.reduce((n, p) => n + p.spec.shape.reduce((a, b) => a * b), 0),
    );
    assert.ok(low.memory.optimiser < 0.4 * full.memory.optimiser);
  });
});

describe('an adapted run', () => {
  test('opens with its differences added: the same as computing with them', async () => {
    const path = join(root, 'used');
    await trainWhole(path, config({ model: spec }));
    const opened = await openRun(path);
    const trained = trainedModel(opened.config);
    const values = await stored(path);
    const fresh = freshModel(RunFolder.open(path).config);
    for (const { path: name, tensor } of flatten(fresh.params)) tensor.writeBits(values.get(name)!);
    const logits = (model: typeof trained, params: typeof opened.params): Float32Array =>
      scope(() =>
        noGrad(() => {
          const c = forwardContext({ device: opened.device, compute: 'f32' });
          model.prepare(opened.device);
          const inputs = Tensor.from(opened.device, [1, 5, 9, 2, 7, 30], [1, 6], 'i32');
          const h = model.hidden(params, { inputs, segments: null, positions: null }, c);
          return (model.logits(params, h, c).dataSync() as Float32Array).slice();
        }),
      );
    const [merged, apart] = [logits(opened.model, opened.params), logits(fresh.model, fresh.params)];
    merged.forEach((x, k) => {
      assert.ok(Math.abs(x - apart[k]) < 1e-4, `${x} and ${apart[k]}`);
    });
    assert.ok(!flatten(opened.params).some((p) => p.path.startsWith('lora.')));
    const [before, now] = [await openRun(base), opened].map((r) => logits(r.model, r.params));
    assert.ok(
      before.some((x, k) => Math.abs(x - now[k]) > 1e-2),
      'and not the same as before',
    );
  });

  test('is exported with its differences added, rows of a matrix at a time', async () => {
    const { run, config, checkpoint, tokenizer, params } = await openRun(join(root, 'used'));
    const out = join(root, 'exported');
    await exportHuggingFace({ config, checkpoint, tokenizer, run: run.path, out }, 'f32');
    await importHuggingFace({ folder: out, out: join(root, 'imported') });
    const back = await openRun(join(root, 'imported'));
    const values = new Map(flatten(back.params).map((p) => [p.path, p.tensor.dataSync() as Float32Array]));
    for (const { path, tensor } of flatten(params)) {
      const [own, theirs] = [tensor.dataSync() as Float32Array, values.get(path)!];
      assert.ok(
        own.every((x, k) => Math.abs(x - theirs[k]) < 1e-6),
        path,
      );
    }
  });

  test('can be trained from, with its differences added', async () => {
    const again = join(root, 'again');
    const { events } = await trainRun(
      await createRun(again, tinyConfig(data, { steps: 1, from: join(root, 'adapted'), model: spec })),
    );
    const { events: adapted } = await trainRun(RunFolder.open(join(root, 'adapted')), { resume: true });
    const heldOut = adapted.find((e) => e.event === 'eval')!.loss;
    const first = events.find((e) => e.event === 'step')!.loss;
    assert.ok(Math.abs(first - heldOut) < 0.35, `${first} and ${heldOut}`);
    assert.deepEqual(events.find((e) => e.event === 'started-from')!.unused, []);
  });
});

describe('what is refused', () => {
  test('an adapter of nothing, or for nothing', () => {
    assert.throws(() => parseTrainConfig(config({ from: undefined })), /needs the weights of another run/);
    const none = parseTrainConfig(config({ adapter: { ...adapter, targets: ['nowhere'] } }));
    assert.throws(() => trainedModel(none), /none of its targets/);
    assert.throws(() => parseTrainConfig(config({ adapter: { kind: 'lora', rank: 0 } })), /rank/);
  });

  test('targets are parts of paths', () => {
    const { model } = freshModel(config({ adapter: { ...adapter, targets: ['attention'] } }));
    const own = declared(model).filter(isTrainable);
    assert.equal(own.length, 8);
    assert.ok(own.every((p) => p.path.includes('attention')));
  });
});

test('every layout and kind of feed-forward can be adapted', async () => {
  const kinds: Record<string, object> = {
    moe: { ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 32 } } },
    'sparse-ffn': { ffn: { kind: 'sparse-ffn', hidden: 64 } },
    reversible: { layout: 'reversible' },
    'two stacks': { layout: { kind: 'encoder-decoder', encoderDepth: 1 } },
  };
  for (const [name, model] of Object.entries(kinds)) {
    const objective = name === 'two stacks' ? 'prefix-lm' : 'causal';
    const from = join(root, `base-${name}`);
    const common = { model: { ...spec, ...model }, objective } as never;
    await trainWhole(from, tinyConfig(data, { steps: 3, ...(common as object) }));
    const { events } = await trainWhole(join(root, `kind-${name}`), config({ steps: 25, from, ...(common as object) }));
    const losses = events.flatMap((e) => (e.event === 'step' ? [e.loss] : []));
    const mean = (list: number[]): number => list.reduce((a, b) => a + b, 0) / list.length;
    assert.ok(mean(losses.slice(-5)) < mean(losses.slice(0, 5)) - 0.05, `${name}: ${losses.join(' ')}`);
  }
});
