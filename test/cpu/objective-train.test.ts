// Runs with every objective: stopped and resumed without a trace, evaluated on all held-out tokens, started from others.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import type { CpuDevice } from '../../src/backend/cpu/device.ts';
import { reserveSpecials } from '../../src/data/tokenizer/index.ts';
import { PAD_SEGMENT } from '../../src/data/types.ts';
import { Generator } from '../../src/infer/generate.ts';
import { parseTrainConfig, type TrainConfigInput } from '../../src/train/config.ts';
import { objectiveOf } from '../../src/train/objective.ts';
import { latestCheckpoint } from '../../src/train/run/checkpoint.ts';
import { heldOutRows, loadModel, openRunData } from '../../src/train/session.ts';
import { segmentsIn } from '../support/objective-rows.ts';
import {
  createRun,
  numbersLogged,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';

const root = temporaryFolder('objectives');
let data: TinyData;
before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
});

const objectives: Record<
  string,
  { objective: TrainConfigInput['objective']; two?: boolean; bf16?: boolean; accumulate?: number }
> = {
  'ul2, two stacks': { objective: { kind: 'ul2', budget: 32 }, two: true },
  'ul2, one stream, bf16': { objective: { kind: 'ul2', budget: 32, mixture: 'ul2r' }, bf16: true, accumulate: 2 },
  'prefix-lm, two stacks, bf16': { objective: 'prefix-lm', two: true, bf16: true },
  'prefix-lm, one stream': { objective: { kind: 'prefix-lm', share: 0.8 }, accumulate: 2 },
  fcm: { objective: { kind: 'fcm', max: 0.4 } },
  'fim, characters': { objective: 'fim' },
  'fim, documents': { objective: { kind: 'fim', level: 'document' } },
};

function configFor(name: string, changes: Partial<TrainConfigInput> = {}): TrainConfigInput {
  const { objective, two, bf16, accumulate = 1 } = objectives[name];
  const layout = two ? { kind: 'encoder-decoder', encoderDepth: 1 } : 'decoder';
  const sized = tinyConfig(data, { objective, model: { vocab: 100_000, layout } });
  const own = objectiveOf(parseTrainConfig(sized)).specials.length;
  const vocab = data.prepared.tokenizer.vocabSize + own;
  const rest = { precision: bf16 ? 'bf16' : 'f32', accumulate, batch: 2, steps: 8 } as const;
  return tinyConfig(data, { ...rest, objective, model: { vocab, layout }, ...changes } as never);
}

for (const name of Object.keys(objectives))
  test(`${name}: resumed anywhere, the same bits; held-out text in full`, async () => {
    const folder = (part: string): string => join(root, name.replace(/\W+/g, '-'), part);
    const config = configFor(name);
    const whole = await trainWhole(folder('whole'), config);
    assert.equal(whole.summary.status, 'completed');
    assert.ok(whole.summary.heldOut!.bitsPerByte > 0);
    const again = await createRun(folder('stopped'), config);
    let resume = false;
    for (const stopAfter of [1, 5, undefined]) {
      await trainRun(again, { stopAfter, resume });
      resume = true;
    }
    assert.deepEqual(await numbersLogged(again.path), whole.numbers, 'stopping and resuming leaves no trace');
    const losses = whole.numbers.filter((n) => n[0] === 'step').map((n) => n[3]);
    assert.equal(new Set(losses).size, config.steps);
    // Random choices are the seed's.
    const other = await trainWhole(folder('seed'), { ...config, seed: 4 });
    assert.notDeepEqual(other.numbers, whole.numbers);
    const plan = whole.events.find((e) => e.event === 'plan')!;
    const last = whole.events.filter((e) => e.event === 'step').at(-1)!;
    assert.equal(last.tokens, plan.tokensPerStep * config.steps);
    assert.ok(last.lossTokens! > 0 && last.lossTokens! <= last.tokens);
    if (objectives[name].two) assert.equal(last.lossTokens, plan.lossTokensPerStep! * config.steps, 'no padding');
  });

describe('held-out text', () => {
  for (const name of ['ul2, two stacks', 'prefix-lm, two stacks, bf16'])
    test(`${name}: every token is a target once, from its document’s own past`, () => {
      const config = parseTrainConfig(configFor(name));
      const run = openRunData(config);
      const { loader, encoder, batches } = heldOutRows(config, run);
      assert.ok(encoder > 0);
      const stored = new Int32Array(run.heldOut.tokenCount);
      run.heldOut.read(0, stored.length, stored, 0);
      const isText = (id: number): boolean => id < data.prepared.tokenizer.vocabSize;
      const targets: number[] = [];
      let given = 0;
      for (const batch of batches())
        for (let r = 0; r < batch.batch; r++) {
          const part = (x: Int32Array, n: number): Int32Array => x.subarray(r * n, (r + 1) * n);
          const of = (rows: { inputs: Int32Array; segments: Int32Array; positions: Int32Array }, n: number) => ({
            inputs: part(rows.inputs, n),
            segments: part(rows.segments, n),
            positions: part(rows.positions, n),
          });
          const read = segmentsIn(of(batch.encoder!, encoder));
          const said = segmentsIn({ ...of(batch, batch.length), targets: part(batch.targets, batch.length) });
          for (const [s, d] of said) {
            assert.notEqual(s, PAD_SEGMENT);
            const before = read
              .get(s - [...said.keys()][0] + 1)!
              .inputs.filter((id) => isText(id) && id !== run.tokenizer.eot);
            const own = d.targets.filter((t) => t >= 0);
            assert.deepEqual(
              d.positions,
              d.positions.map((_, k) => k),
            );
            assert.deepEqual(d.inputs.slice(1, own.length), own.slice(0, -1));
            assert.deepEqual(before, [...stored.subarray(targets.length - before.length, targets.length)]);
            given += before.length;
            targets.push(...own);
          }
        }
      assert.deepEqual(targets, [...stored]);
      assert.equal(loader.tokens, stored.length);
      assert.ok(given > stored.length / 3, `${given} of ${stored.length} tokens were given`);
      run.close();
    });
});

describe('special tokens', () => {
  test('text never encodes to them, whatever it says', () => {
    const { tokenizer } = data.prepared;
    const names = ['<|S|>', '<|start|>', '<|s_0|>', '<|s_1|>'];
    const more = reserveSpecials(tokenizer, names);
    assert.equal(more.vocabSize, tokenizer.vocabSize + 4);
    names.forEach((name, k) => {
      assert.equal(more.specialIds.get(name), tokenizer.vocabSize + k);
    });
    for (const text of [...names, 'a<|s_0|>b', '<|S|><|s_1|>', 'function <|start|>', '<|endoftext|>']) {
      const ids = more.encode(text, { special: 'text' });
      assert.deepEqual([...ids], [...tokenizer.encode(text, { special: 'text' })], 'as without them');
      assert.ok(ids.every((id) => id < tokenizer.vocabSize && ![...more.specialIds.values()].includes(id)));
      assert.equal(more.decode(ids), text);
    }
    assert.deepEqual([...more.encode('<|s_1|>')], [tokenizer.vocabSize + 3], 'unless they are asked for');
    assert.equal(reserveSpecials(more, names), more);
    assert.equal(reserveSpecials(more, ['<|x|>', ...names]).specialIds.get('<|x|>'), more.vocabSize);
    assert.throws(() => reserveSpecials(tokenizer, [tokenizer.idToToken(300)!]), /as text/);
  });

  test('a vocabulary without room for them is refused before training', () => {
    const config = configFor('ul2, two stacks');
    const { vocabSize } = data.prepared.tokenizer;
    const small = parseTrainConfig({ ...config, model: { ...config.model, vocab: vocabSize } });
    assert.throws(() => openRunData(small), /and the objective \d+ of its own, the model a vocabulary of/);
  });
});

describe('another run’s weights', () => {
  test('UL2R: a causal checkpoint goes on with denoisers and new tokens', async () => {
    const base = await trainWhole(join(root, 'from', 'base'), tinyConfig(data, { batch: 2, steps: 40 }));
    const config = { ...configFor('ul2, one stream, bf16', { steps: 2, precision: 'f32' }), from: base.run.path };
    const run = await createRun(join(root, 'from', 'ul2r'), config);
    const { events } = await trainRun(run);
    const started = events.find((e) => e.event === 'started-from')!;
    assert.deepEqual([started.fresh, started.unused, started.grown], [[], [], ['embed.weight']]);
    const fresh = await trainWhole(join(root, 'from', 'fresh'), { ...config, from: undefined });
    const first = (list: typeof events): number => list.find((e) => e.event === 'step')!.loss;
    assert.ok(
      first(events) < first(fresh.events) - 0.3,
      `${first(events)} against ${first(fresh.events)} from scratch`,
    );
    // A resumed run goes on from its own checkpoint, not from the other run again.
    const longer = await createRun(join(root, 'from', 'stopped'), { ...config, steps: 6 });
    await trainRun(longer, { stopAfter: 3 });
    const second = await trainRun(longer, { resume: true });
    assert.ok(!second.events.some((e) => e.event === 'started-from'));
    const unbroken = await trainWhole(join(root, 'from', 'unbroken'), { ...config, steps: 6 });
    assert.deepEqual(await numbersLogged(longer.path), unbroken.numbers);
  });

  test('a decoder starts both stacks of a merged encoder-decoder off', async () => {
    const base = await trainWhole(join(root, 'adapt', 'base'), tinyConfig(data, { batch: 2, steps: 4 }));
    const layout = { kind: 'encoder-decoder', merged: true };
    const config = tinyConfig(data, { batch: 2, steps: 1, objective: 'prefix-lm', model: { layout } as never });
    const { events } = await trainRun(await createRun(join(root, 'adapt', 'two'), { ...config, from: base.run.path }));
    const started = events.find((e) => e.event === 'started-from')!;
    assert.deepEqual([started.fresh, started.unused], [[], []], 'no new weights');
  });

  test('other sizes are refused', async () => {
    const base = await trainWhole(join(root, 'sizes', 'base'), tinyConfig(data, { batch: 2, steps: 1 }));
    const config = { ...tinyConfig(data, { batch: 2, steps: 1, model: { width: 48 } }), from: base.run.path };
    await assert.rejects(trainRun(await createRun(join(root, 'sizes', 'other'), config)), /this model wants \[/);
  });
});

describe('generation', () => {
  for (const name of [
    'ul2, two stacks',
    'ul2, one stream, bf16',
    'prefix-lm, two stacks, bf16',
    'prefix-lm, one stream',
  ])
    test(name, async () => {
      const { run } = await trainWhole(join(root, name.replace(/\W+/g, '-'), 'generate'), configFor(name));
      const checkpoint = (await latestCheckpoint(run))!;
      const { config, device, model, params } = await loadModel(run.config, checkpoint);
      const own = openRunData(config);
      const make = (): Generator =>
        new Generator(device, model, params, own.tokenizer, config.precision, objectiveOf(config));
      await make().dispose(); // position tables are made once a model
      const live = (): number => (device as CpuDevice).memory().liveBytes;
      const before = live();
      const generator = make();
      const say = (prompt: string, more = {}): Promise<string> =>
        generator.complete(prompt, { temperature: 0, maxTokens: 12, ...more });
      const [a, b] = [await say('export function x('), await say('# Usage of things')];
      assert.equal(a, await say('export function x('), 'the same again');
      assert.equal(typeof b, 'string');
      const long = 'export function '.repeat(60);
      assert.equal(typeof (await say(long)), 'string', 'longer than the window');
      assert.equal(typeof (await say('x', { context: 'given text' })), 'string');
      if (name.startsWith('ul2')) {
        assert.equal(typeof (await say('x', { mode: 'X' })), 'string');
        for (const mode of ['Q', 'toString']) await assert.rejects(say('x', { mode }), /no mode '/);
      } else await assert.rejects(say('x', { mode: 'S' }), /has no modes/);
      await generator.dispose();
      assert.ok(live() <= before, 'nothing is left');
      own.close();
    });
});
