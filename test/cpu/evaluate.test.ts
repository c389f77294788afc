// `ansatz evaluate` and `ansatz mup` as a user runs them; resuming with every optimiser.
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { type Evaluation, evaluateCheckpoint } from '../../src/train/by-position.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { latestCheckpoint } from '../../src/train/run/checkpoint.ts';
import { ansatz, type JsonLine } from '../support/cli.ts';
import {
  createRun,
  numbersLogged,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeGrammar,
} from '../support/tiny-data.ts';

const root = temporaryFolder('evaluate');
let data: TinyData;
let run: string;
let heldOut: number;

before(async () => {
  data = await tinyData(join(root, 'data'), writeGrammar(join(root, 'text')), 320);
  run = join(root, 'run');
  const { summary } = await trainWhole(run, tinyConfig(data, { steps: 40, batch: 8 }));
  heldOut = summary.heldOut!.loss;
});

const json = (stdout: string): JsonLine[] =>
  stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
const result = (stdout: string): JsonLine => json(stdout).find((e) => e.event === 'result')!;
interface Bin {
  from: number;
  to: number;
  loss: number | null;
  targets: number;
}

describe('ansatz evaluate', () => {
  test('plain: the loss that training reported at its end', async () => {
    const { code, stdout } = await ansatz(['evaluate', run, '--json']);
    assert.equal(code, 0);
    const r = result(stdout) as JsonLine & { loss: number; bins?: unknown };
    assert.ok(Math.abs(r.loss - heldOut) < 1e-6 * heldOut, `${r.loss}, not ${heldOut}`);
    assert.equal(r.bins, undefined);
  });

  test('by position, past the training length, as it is, scaled and in blocks', async () => {
    for (const extra of [[], ['--scaling', 'yarn'], ['--blockwise']]) {
      const args = ['evaluate', run, '--by-position', '--length', '128', '--cross-documents', '--json', ...extra];
      const { code, stdout, stderr } = await ansatz(args);
      assert.equal(code, 0, stderr);
      const r = result(stdout) as JsonLine & { bins: Bin[]; trained: number; targets: number; loss: number };
      assert.equal(r.trained, 32);
      assert.ok(r.bins.some((b) => b.to === 32) && r.bins.at(-1)!.to === 128);
      assert.equal(
        r.bins.reduce((n, b) => n + b.targets, 0),
        r.targets,
      );
      const mean = r.bins.reduce((s, b) => s + (b.loss ?? 0) * b.targets, 0) / r.targets;
      assert.ok(Math.abs(mean - r.loss) < 1e-9 * mean);
    }
  });

  test('--objective: of a causal run, the same number', async () => {
    const { code, stdout, stderr } = await ansatz(['evaluate', run, '--objective', '--json']);
    assert.equal(code, 0, stderr);
    const { loss, targets, objective } = result(stdout) as JsonLine & Evaluation;
    // Ordinary rows are held-out rows.
    assert.deepEqual({ kind: objective!.kind, targets: objective!.targets }, { kind: 'causal', targets });
    assert.ok(Math.abs(objective!.loss! - loss) < 1e-6 * loss);
    const plain = await ansatz(['evaluate', run, '--objective']);
    assert.match(plain.stdout, /objective causal +[\d.]+ nats a target, [\d.]+K? targets/);
  });

  for (const [objective, model] of [
    [{ kind: 'prefix-lm' }, {}],
    [{ kind: 'prefix-lm' }, { layout: 'encoder-decoder' }],
    [{ kind: 'fim' }, { vocab: 323 }],
    [
      { kind: 'ul2', budget: 32 },
      { vocab: 640, context: 64 },
    ],
  ] as const) {
    const { kind } = objective;
    const name = `${kind}${'layout' in model ? ' with an encoder' : ''}`;
    test(`the loss of ${name} is that of fixed held-out rows`, async () => {
      const runs = await Promise.all(
        // The seed decides weights and training rows, not the held-out rows.
        [1, 2].map(async (seed) => {
          const folder = await createRun(
            join(root, `${name}-${seed}`),
            tinyConfig(data, { steps: 6, batch: 8, seed, objective, model }),
          );
          await trainRun(folder);
          return folder;
        }),
      );
      const evaluated = async (k: number, maxTokens?: number): Promise<Evaluation> => {
        const checkpoint = await latestCheckpoint(runs[k]);
        return evaluateCheckpoint(parseTrainConfig(runs[k].config), checkpoint!, { objective: true, maxTokens });
      };
      const [a, b, again] = [await evaluated(0), await evaluated(1), await evaluated(0)];
      assert.deepEqual(a, again);
      assert.equal(a.objective!.kind, kind);
      assert.equal(a.objective!.targets, b.objective!.targets);
      assert.notEqual(a.objective!.loss, b.objective!.loss);
      if (kind === 'prefix-lm') assert.ok(a.objective!.targets < 0.75 * a.targets);
      const some = await evaluated(0, a.targets >> 2);
      assert.ok(some.objective!.targets > 0 && some.objective!.targets < 0.6 * a.objective!.targets);
    });
  }

  for (const [name, objective, layout] of [
    ['ul2', 'ul2', 'decoder'],
    ['ul2 with an encoder', 'ul2', { kind: 'encoder-decoder', encoderPositions: 'rope' }],
    ['prefix-lm', 'prefix-lm', 'decoder'],
    ['prefix-lm with an encoder', 'prefix-lm', 'encoder-decoder'],
  ] as const)
    test(`rows of another length than in training: ${name}`, async () => {
      const path = join(root, `longer ${name}`);
      const config = tinyConfig(data, { steps: 2, batch: 1, objective, model: { vocab: 640, layout } });
      const { summary } = await trainWhole(path, config);
      const evaluated = async (...flags: string[]): Promise<JsonLine & Evaluation> => {
        const { code, stdout, stderr } = await ansatz(['evaluate', path, '--json', ...flags]);
        assert.equal(code, 0, stderr);
        return result(stdout) as JsonLine & Evaluation;
      };
      const [own, half] = [await evaluated('--objective'), await evaluated('--objective', '--length', '16')];
      assert.ok(Math.abs(own.loss - summary.heldOut!.loss) < 1e-6 * own.loss);
      const twice = await evaluated('--by-position', '--length', '64', '--cross-documents');
      assert.ok(twice.bins.some((b) => b.from === 32) && twice.bins.at(-1)!.to === 64);
      // Examples of the mixture stay what they were, and so do their special tokens.
      if (objective === 'ul2') {
        assert.deepEqual(half.objective, own.objective);
        const longer = await evaluated('--objective', '--length', '64');
        assert.deepEqual(longer.objective, own.objective);
      }
      for (const flags of [
        ['--blockwise', '--length', '64'],
        ['--scaling', 'yarn', '--length', '64'],
      ])
        assert.ok(Math.abs((await evaluated(...flags)).loss - own.loss) < 0.05 * own.loss, flags.join(' '));
      // At the trained length blocks are the whole row.
      assert.ok(Math.abs((await evaluated('--blockwise')).loss - own.loss) < 1e-6 * own.loss);
    });

  test('plain text has a curve and a table', async () => {
    const { stdout, code } = await ansatz(['evaluate', run, '--by-position', '--length', '64', '--cross-documents']);
    assert.equal(code, 0);
    assert.match(stdout, /bits per byte/);
    assert.match(stdout, /position/);
    assert.match(stdout, /past the training length/);
  });

  test('refusals say what to do', async () => {
    const refused = async (args: string[], message: RegExp) => {
      const { code, stderr } = await ansatz(['evaluate', run, ...args]);
      assert.ok(code === 1 || code === 2);
      assert.match(stderr, message);
    };
    await refused(['--length', '0'], /--length cannot be '0'/);
    await refused(['--scaling', 'magic'], /magic/);
    await refused(['--step', '7'], /no checkpoint of step 7/);
  });
});

describe('ansatz mup', () => {
  test('sizes and rates that say nothing are refused', async () => {
    for (const [args, message] of [
      [['check', '--widths', '128,128'], /--widths wants two or more different numbers/],
      [['check', '--widths', '64,128', '--depths', '2,4'], /cannot be used with/],
      [['transfer', '--rates', '0.01,0.01,0.02'], /--rates wants two or more different numbers/],
    ] as const) {
      const { code, stderr } = await ansatz(['mup', ...args]);
      assert.equal(code, 2);
      assert.match(stderr, message);
    }
  });

  const quick = ['--seeds', '3', '--steps', '4', '--widths', '128,256,512'];
  test('check: exit 0 and a drawing under muP, exit 1 and names of what grows without it', async () => {
    const svg = join(root, 'check.svg');
    const good = await ansatz(['mup', 'check', ...quick, '--svg', svg, '--json']);
    assert.equal(good.code, 0, good.stderr);
    const r = result(good.stdout) as JsonLine & { ok: boolean; verdicts: { name: string }[] };
    assert.ok(r.ok && r.verdicts.some((v) => v.name === 'blocks.1.residual'));
    assert.match(readFileSync(svg, 'utf8'), /^<svg [^>]*xmlns[\s\S]*<polyline[\s\S]*<\/svg>\n$/);
    const bad = await ansatz(['mup', 'check', ...quick, '--lr', '0.01', '--set', 'model.parametrisation=standard']);
    assert.equal(bad.code, 1);
    assert.match(bad.stderr, /activations change with width: .*residual/);
    assert.match(bad.stdout, /out of band/);
  });

  test('transfer: curves, and a refusal when the optimum is not in the range', async () => {
    const svg = join(root, 'transfer.svg');
    const args = ['mup', 'transfer', '--widths', '64,128', '--steps', '20', '--rates', '0.0001,0.0002', '--svg', svg];
    const { code, stdout, stderr } = await ansatz([...args, '--json']);
    assert.equal(code, 1);
    assert.match(stderr, /end of the range/);
    const r = result(stdout) as JsonLine & { curves: { size: number; losses: number[] }[] };
    assert.deepEqual(
      r.curves.map((c) => [c.size, c.losses.length]),
      [
        [64, 2],
        [128, 2],
      ],
    );
    assert.ok(existsSync(svg));
  });

  test('sizes that do not fit are refused', async () => {
    const { code, stderr } = await ansatz(['mup', 'check', '--widths', '128,160']);
    assert.equal(code, 1);
    assert.match(stderr, /width 160: .*kvHeads would be 2\.5/);
    assert.equal((await ansatz(['mup'])).code, 0);
    assert.equal((await ansatz(['mup', 'check', '--widths', '128'])).code, 2);
  });
});

describe('runs with other optimisers and positions', () => {
  for (const kind of ['lion', 'muon', 'adafactor'])
    test(`${kind}: stopped and resumed is the same as never stopped`, async () => {
      const model = { positions: { kind: kind === 'lion' ? 'xpos' : kind === 'muon' ? 't5-bias' : 'alibi' } };
      const config = tinyConfig(data, { steps: 12, optimiser: { kind }, model, accumulate: kind === 'muon' ? 2 : 1 });
      const whole = await trainWhole(join(root, `${kind}-whole`), config);
      const stopped = await createRun(join(root, `${kind}-stopped`), config);
      await trainRun(stopped, { stopAfter: 5 });
      await trainRun(stopped, { resume: true });
      assert.deepEqual(await numbersLogged(stopped.path), whole.numbers);
    });
});
