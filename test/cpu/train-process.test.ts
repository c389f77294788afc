// Training in processes of its own that are interrupted and killed: resuming gives what never stopping gives.
import assert from 'node:assert/strict';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { Checkpoint } from '../../src/train/run/checkpoint.ts';
import { ansatz, type CliResult, failure, jsonLines, resultOf } from '../support/cli.ts';
import {
  checkpointsOf,
  type Numbers,
  numbersLogged,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';

const STEPS = 900;
const root = temporaryFolder('process');
let data: TinyData;
let wanted: Numbers;
let recipe: string;

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
  // Evaluation, several epochs and frequent checkpoints: whatever a kill can hit.
  const config = tinyConfig(data, {
    precision: 'bf16',
    steps: STEPS,
    evaluate: { every: 50, tokens: 256 },
    checkpoint: { every: 7, keepLast: 2 },
  });
  recipe = join(root, 'recipe.json');
  writeFileSync(recipe, JSON.stringify(config));
  wanted = (await trainWhole(join(root, 'whole'), { ...config, checkpoint: {} })).numbers;
  assert.equal(wanted.filter(([kind]) => kind === 'step').length, STEPS);
});

type Line = { event: string; step?: number; status?: string; next?: string[] };
const start = (out: string): string[] => ['train', recipe, '--data', data.folder, '--out', out, '--json'];
const resume = (out: string): string[] => ['train', out, '--resume', '--json'];

/** Runs a command and signals it once, after it has reported `steps` steps of this sitting. */
function signalled(
  args: string[],
  signal: NodeJS.Signals,
  steps: number,
  env: Record<string, string> = {},
): Promise<CliResult> {
  let seen = 0;
  return ansatz(args, {
    env,
    onLine: (line, child) => {
      if ((JSON.parse(line) as Line).event === 'step' && ++seen === steps) child.kill(signal);
    },
  });
}

describe('a signal saves and stops', () => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    test(signal, async () => {
      const out = join(root, signal);
      const first = await signalled(start(out), signal, 20);
      const result = resultOf(first, 'train');
      assert.equal(result.status, 'stopped');
      const step = result.step as number;
      assert.ok(step >= 20 && step < STEPS, `stopped at ${step}`);
      assert.equal(Number(checkpointsOf(out).at(-1)), step, 'the step it stopped at is saved');
      assert.deepEqual(
        readdirSync(out).filter((name) => name.startsWith('.lock')),
        [],
        'the run is free again',
      );
      assert.match(String((result.next as string[])[0]), /ansatz train .* --resume$/);

      const second = await ansatz(resume(out));
      assert.deepEqual(jsonLines(second, 'resume')[0].step, step);
      assert.equal(resultOf(second, 'train').status, 'completed');
      assert.deepEqual(await numbersLogged(out), wanted);
    });
  }

  test('one key press that arrives twice, as it does through npm, is one', async () => {
    const out = join(root, 'twice');
    let sent = false;
    const result = await ansatz(start(out), {
      onLine: (line, child) => {
        if ((JSON.parse(line) as Line).event !== 'step' || sent) return;
        sent = true;
        child.kill('SIGINT');
        setTimeout(() => child.kill('SIGINT'), 2);
      },
    });
    assert.equal(resultOf(result, 'train').status, 'stopped');
    resultOf(await ansatz(resume(out)), 'train');
    assert.deepEqual(await numbersLogged(out), wanted);
  });

  test('a second key press does not wait for the step in progress', async () => {
    const out = join(root, 'second');
    // A step of tens of seconds: it cannot end before the second signal.
    const args = [...start(out), '--set', 'accumulate=20000'];
    let sent = false;
    const result = await ansatz(args, {
      onLine: (line, child) => {
        if ((JSON.parse(line) as Line).event !== 'plan' || sent) return;
        sent = true;
        child.kill('SIGINT');
        setTimeout(() => child.kill('SIGINT'), 1500);
      },
    });
    assert.deepEqual([result.code, result.stderr], [130, '']);
    assert.deepEqual(checkpointsOf(out), []);
  });
});

test('kill -9 again and again: every resume goes on, and the end is the same', async () => {
  const out = join(root, 'killed');
  let kills = 0;
  // Before the first checkpoint, then at moments that differ from run to run.
  for (const steps of [3, ...Array.from({ length: 6 }, () => 1 + Math.floor(Math.random() * 90))]) {
    const result = await signalled(existsSync(out) ? resume(out) : start(out), 'SIGKILL', steps, {
      ANSATZ_THREADS: String(1 + (kills % 3)),
    });
    assert.deepEqual([result.signal, result.stderr], ['SIGKILL', ''], 'killed while it trained');
    kills++;
    for (const name of checkpointsOf(out).filter((name) => /^\d+$/.test(name)))
      await Checkpoint.load(join(out, 'checkpoints', name)); // throws if it is not whole
  }
  const last = await ansatz(resume(out));
  assert.equal(resultOf(last, 'train').status, 'completed');
  assert.equal(kills, 7);
  assert.deepEqual(await numbersLogged(out), wanted);
  assert.deepEqual(
    checkpointsOf(out).filter((name) => !name.startsWith('superseded')),
    [896, STEPS].map((step) => String(step).padStart(8, '0')),
    'two are kept, no drafts are left',
  );
});

test('ANSATZ_THREADS changes no bit', async () => {
  for (const threads of ['1', '2', '4']) {
    const out = join(root, `threads-${threads}`);
    const args = [...start(out), '--steps', '40'];
    resultOf(await ansatz(args, { env: { ANSATZ_THREADS: threads } }), 'train');
  }
  const [one, two, four] = await Promise.all(['1', '2', '4'].map((n) => numbersLogged(join(root, `threads-${n}`))));
  assert.ok(one.length >= 40);
  assert.deepEqual(two, one);
  assert.deepEqual(four, one);
});

test('a run that another process trains into is refused and left alone', async () => {
  const out = join(root, 'busy');
  let refused: Promise<CliResult> | undefined;
  const trained = await ansatz(start(out), {
    onLine: (line, child) => {
      if ((JSON.parse(line) as Line).event !== 'step' || refused) return;
      child.kill('SIGSTOP'); // it waits, alive, while the other one tries
      refused = ansatz(['train', out, '--resume']).finally(() => child.kill('SIGCONT'));
    },
  });
  failure(await refused!, 1, /is training into this run/, /stop it first/);
  assert.equal(resultOf(trained, 'train').status, 'completed');
  assert.deepEqual(await numbersLogged(out), wanted);
});
