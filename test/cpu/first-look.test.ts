// The first look from end to end on a small text: trainings that are paired and repeatable, an interrupted sweep that
// goes on, files that say what was done and name no place of this machine. Not who wins.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { BASE, buildArms, CONTROL } from '../../src/lab/first-look/arms.ts';
import { type BaseSize, sizeOf } from '../../src/lab/first-look/base.ts';
import { runsOfBase, runsOfControl } from '../../src/lab/first-look/plan.ts';
import { doAll } from '../../src/lab/first-look/pool.ts';
import { type RunResult, runTask, type SpeedResult, type Task } from '../../src/lab/first-look/task.ts';
import { ansatz, failure, type JsonLine, jsonLines } from '../support/cli.ts';
import { type TinyData, temporaryFolder, tinyData, writeGrammar } from '../support/tiny-data.ts';

const root = temporaryFolder('first-look');
const text = writeGrammar(join(root, 'stories'), 2000);
const size: BaseSize = { ...sizeOf(32), depth: 2, length: 64 };
const TOKENS = 4096;
let data: TinyData;
let arms: ReturnType<typeof buildArms>;

before(async () => {
  data = await tinyData(join(root, 'data'), text);
  const vocab = data.prepared.tokenizer.vocabSize;
  arms = buildArms(size, { folder: data.folder, vocab }, { only: ['alibi', 'encoder-decoder', 'ul2', 'mup'] });
});

const task = (name: string, steps: number, seed = 1): Task & { kind: 'run' } => {
  const arm = arms.find((a) => a.name === name)!;
  assert.equal(arm.refused, undefined);
  return { kind: 'run', config: { ...arm.config!, seed, steps }, heldOutTokens: TOKENS };
};

describe('one training', () => {
  test('repeats exactly; another seed ends elsewhere, at as much text; the control is the base', async () => {
    const [a, b] = [await runTask(task(BASE, 20)), await runTask(task(BASE, 20))];
    assert.equal(a.bitsPerByte, b.bitsPerByte);
    assert.equal(a.trainLoss, b.trainLoss);
    const again = await runTask(task(CONTROL, 20));
    assert.deepEqual([again.bitsPerByte, again.targets], [a.bitsPerByte, a.targets]);
    const most = 20 * size.batch * size.length;
    assert.ok(a.targets > 0.95 * most && a.targets <= most, `${a.targets} targets of ${most} positions`);
    assert.notEqual((await runTask(task(BASE, 20, 2))).bitsPerByte, a.bitsPerByte);
    assert.ok(a.cpuSeconds > 0 && a.seconds > 0 && a.otherSeconds > 0);
  });

  test('what has learned nothing costs log2 V a token, in decoders and encoder-decoders alike', async () => {
    const { heldOut, tokenizer } = data.prepared;
    const all = { ...task(BASE, 1), heldOutTokens: Number.MAX_SAFE_INTEGER };
    const uniform = (Math.log2(tokenizer.vocabSize) * heldOut.tokens) / heldOut.textBytes;
    for (const name of [BASE, 'alibi', 'encoder-decoder']) {
      const { bitsPerByte } = await runTask({ ...all, config: task(name, 1).config });
      assert.ok(Math.abs(bitsPerByte / uniform - 1) < 0.02, `${name}: ${bitsPerByte} bits, uniform has ${uniform}`);
    }
  });
});

describe('processes', () => {
  test('a task that fails fails alone, and processes compute what this one does', async () => {
    const seen = new Map<string, { result?: RunResult; failed?: string }>();
    const broken = task(BASE, 5);
    const tasks = [
      {
        key: 'broken',
        task: { ...broken, config: { ...broken.config, data: { ...broken.config.data, folder: 'no' } } },
      },
      { key: 'first', task: task(BASE, 20) },
      { key: 'second', task: task('mup', 20) },
    ];
    await doAll<string, RunResult>(tasks, 2, { onDone: (key, outcome) => seen.set(key, outcome) });
    assert.match(seen.get('broken')!.failed!, /no/);
    assert.equal(seen.get('first')!.result!.bitsPerByte, (await runTask(task(BASE, 20))).bitsPerByte);
    assert.equal(seen.get('second')!.result!.steps, 20);
  });
});

describe('speed', () => {
  test('is measured against the base in turns', async () => {
    const [base, ul2] = [task(BASE, 1).config, task('ul2', 1).config];
    const seen = new Map<string, SpeedResult>();
    const measure = (key: string, arm: typeof base) => ({
      key,
      task: { kind: 'speed' as const, base, arm, seconds: 0.3, heldOutTokens: TOKENS },
    });
    await doAll<string, SpeedResult>([measure('same', base), measure('ul2', ul2)], 1, {
      onDone: (key, { result }) => seen.set(key, result!),
    });
    const same = seen.get('same')!;
    assert.ok(same.ratio > 0.7 && same.ratio < 1.4, `${same.ratio}`);
    assert.ok(same.rounds >= 8 && same.baseMs > 0 && same.busy > 0.5 && same.evaluationSeconds > 0);
    // A row of ten examples has more than twice the positions of the base's step.
    assert.ok(seen.get('ul2')!.ratio > 1.3, `${seen.get('ul2')!.ratio}`);
  });
});

describe('ansatz lab first-look', () => {
  const run = join(root, 'run');
  const out = join(root, 'docs', 'look.md');
  const args = ['lab', 'first-look', text, '--run', run, '--out', out, '--only', 'alibi,ul2', '--width', '32'];
  const all = [...args, '--minutes', '0.02', '--seeds', '2', '--workers', '2', '--json'];
  let lines: JsonLine[];
  before(async () => {
    lines = jsonLines(await ansatz(all), 'first-look');
  });
  const labs = (of: readonly JsonLine[], what: string): JsonLine[] =>
    of.filter((l) => l.event === 'lab' && l.what === what);

  test('says the plan and every run, and ends with the result', () => {
    assert.equal(labs(lines, 'plan').length, 1);
    assert.equal(labs(lines, 'speed').length, 3);
    const runs = labs(lines, 'run');
    assert.equal(runs.length, labs(lines, 'plan')[0].runs);
    assert.ok(runs.every((r) => r.failed === undefined && (r.bitsPerByte as number) > 0));
    assert.deepEqual(
      [BASE, CONTROL].map((name) => runs.filter((r) => r.arm === name).length),
      [runsOfBase(2), runsOfControl(2)],
    );
    assert.equal(new Set(runs.map((r) => r.bitsPerByte)).size, runs.length);
    const result = lines.at(-1)!;
    assert.deepEqual([result.event, result.command], ['result', 'lab first-look']);
    assert.deepEqual(
      (result.arms as { name: string }[]).map((a) => a.name),
      [CONTROL, 'alibi', 'ul2'],
    );
  });

  test('the verdict names corpora and machine, not places; plot and numbers lie beside it', () => {
    const verdict = readFileSync(out, 'utf8');
    const json = readFileSync(join(root, 'docs', 'look.json'), 'utf8');
    for (const file of [verdict, json]) assert.ok(!file.includes(root), 'a path of this machine');
    assert.match(verdict, /stories \(\d+ documents/);
    assert.match(verdict, /\| alibi \|.*(better|worse|not distinguished)/);
    assert.match(verdict, /No arm was tuned/i);
    assert.match(readFileSync(join(root, 'docs', 'look.svg'), 'utf8'), /^<svg [\s\S]*<\/svg>\n$/);
    const { arms: listed, runs } = JSON.parse(json);
    assert.ok(listed.every((a: { parameters: number }) => a.parameters > 0));
    assert.ok(runs.length >= runsOfBase(2) + runsOfControl(2) + 2 * 2);
  });

  test('what is missing is trained, what is there is kept, and the verdict is the same', async () => {
    const file = join(run, 'results.jsonl');
    const kept = readFileSync(file, 'utf8').trimEnd().split('\n');
    // As after a kill: one line is cut off in the middle, some never came.
    writeFileSync(file, `${kept.slice(0, 3).join('\n')}\n${kept[3].slice(0, 40)}`);
    rmSync(out);
    const again = jsonLines(await ansatz(all), 'first-look');
    const runs = labs(lines, 'run').length;
    assert.equal(labs(again, 'run').length, runs - 3);
    assert.equal(labs(again, 'speed').length, 0);
    const values = (of: readonly JsonLine[]) =>
      (of.at(-1)!.arms as { name: string; positions: { values: number[] } }[]).map((a) => a.positions?.values);
    assert.deepEqual(values(again), values(lines));
    assert.ok(existsSync(out));
    assert.equal(labs(jsonLines(await ansatz(all), 'first-look'), 'run').length, 0);
  });

  test('verdicts are computed anew from the numbers, without the runs', async () => {
    const json = join(root, 'docs', 'look.json');
    const again = join(root, 'again.md');
    const now = jsonLines(await ansatz(all), 'first-look').at(-1)!;
    const [result] = jsonLines(await ansatz(['lab', 'first-look', '--from', json, '--out', again, '--json']), 'from');
    assert.deepEqual(result.arms, now.arms);
    const before = readFileSync(out, 'utf8');
    const kept = readFileSync(again, 'utf8').split('\n');
    assert.equal(
      kept
        .filter((l) => !l.includes('--from look.json'))
        .join('\n')
        .replaceAll('again.svg', 'look.svg'),
      before,
    );
    // Beside the numbers, unless another place is named.
    rmSync(out);
    jsonLines(await ansatz(['lab', 'first-look', '--from', json, '--json']), 'from');
    assert.ok(readFileSync(out, 'utf8').includes('--from look.json'));
    failure(await ansatz(['lab', 'first-look', '--from', text]), 1, /look|stories/, /\.json/);
    failure(await ansatz(['lab', 'first-look', text, '--from', json]), 2, /--from trains nothing/);
    failure(await ansatz(['lab', 'first-look']), 2, /missing required argument 'texts'/);
  });

  test('another comparison in the same folder is refused, and so is nonsense', async () => {
    const other = await ansatz([...args, '--minutes', '0.03', '--seeds', '2', '--workers', '2']);
    failure(other, 1, /other minutes \(0\.02\)/, /--run/);
    failure(await ansatz(['lab', 'first-look', join(root, 'nowhere')]), 1, /nowhere: does not exist/);
    failure(await ansatz([...all.slice(0, 3), '--seeds', '1']), 2, /--seeds cannot be '1'/);
    failure(
      await ansatz(['lab', 'first-look', text, '--only', 'nothing', '--run', join(root, 'other')]),
      1,
      /no arm 'nothing'/,
      /alibi/,
    );
    failure(await ansatz(['lab', 'first-look', text, '--run', text]), 1, /not a comparison's folder/);
    const file = join(root, 'docs', 'look.json');
    failure(
      await ansatz(['lab', 'first-look', text, '--run', file]),
      1,
      /cannot be kept there: it is no folder/,
      /--run/,
    );
    // Text that is too small leaves nothing that other text would have to agree with.
    const small = join(root, 'small.txt');
    const started = join(root, 'started');
    writeFileSync(small, 'hello\n');
    failure(await ansatz(['lab', 'first-look', small, '--run', started]), 1, /too small/);
    const small2 = join(root, 'small2.txt');
    writeFileSync(small2, 'hello again\n');
    failure(await ansatz(['lab', 'first-look', small2, '--run', started]), 1, /too small/);
  });
});
