// The README's first command on a small folder: what is promised comes, in order, and the next commands work as printed.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { ansatz, bin, contentsOf, type JsonLine, jsonLines } from '../support/cli.ts';
import { checkout, temporaryFolder, writeGrammar, writeText } from '../support/tiny-data.ts';

const root = temporaryFolder('quickstart');
const text = writeText(join(root, 'text'));
const out = join(root, 'runs', 'first try');
let lines: JsonLine[];
let result: JsonLine;

const quickstart = (...more: string[]): string[] => ['quickstart', '--folder', text, '--seconds', '5', ...more];

before(async () => {
  const run = await ansatz(quickstart('--out', out, '--json'));
  lines = jsonLines(run, 'quickstart');
  result = lines.at(-1)!;
});

const of = (event: string): JsonLine[] => lines.filter((l) => l.event === event);

test('events come in order: text, run-start, plan, every step once, a checkpoint, held-out text, the end, the result', () => {
  const kinds = lines.map((l) => l.event).filter((kind) => kind !== 'fallback');
  const order = ['progress', 'run-start', 'plan', 'step', 'checkpoint', 'eval', 'run-end', 'result'];
  assert.deepEqual([...new Set(kinds)], order);
  assert.deepEqual(
    kinds.map((kind) => order.indexOf(kind)),
    kinds.map((kind) => order.indexOf(kind)).sort((a, b) => a - b),
  );
  const labels = [...new Set(of('progress').map((l) => l.label))];
  assert.deepEqual(labels, ['reading text', 'training the tokenizer', 'making tokens']);
  const [plan] = of('plan');
  assert.deepEqual(
    of('step').map((l) => l.step),
    Array.from({ length: plan.steps as number }, (_, k) => k + 1),
  );
  assert.ok((plan.parameters as number) > 4e6);
});

test('it learns, and says how well next to gzip and xz (or brotli)', () => {
  const losses = of('step').map((l) => l.loss as number);
  assert.ok(losses.at(-1)! < losses[0] - 1, `${losses[0]} to ${losses.at(-1)}`);
  const [evaluation] = of('eval');
  const baselines = evaluation.baselines as Record<string, number>;
  const names = Object.keys(baselines);
  assert.match(names[0], /^gzip -9$/);
  assert.match(names[1], /^(xz -9e|brotli .*)$/);
  for (const bits of [evaluation.bitsPerByte as number, ...Object.values(baselines)])
    assert.ok(bits > 0.5 && bits < 8.5, `${bits} bits per byte`);
  assert.deepEqual(result.heldOut, { loss: evaluation.loss, bitsPerByte: evaluation.bitsPerByte });
});

test('the result: a finished run, completions of held-out text, next commands', () => {
  assert.deepEqual(
    [result.command, result.status, result.run, result.data],
    ['quickstart', 'completed', out, `${out}-data`],
  );
  const samples = result.samples as { prompt: string; completion: string }[];
  assert.ok(samples.length >= 1 && samples.length <= 3);
  for (const { prompt, completion } of samples) assert.ok(prompt.length > 20 && completion.length > 10);
  const trainingText = Object.keys(contentsOf(text)).map((file) => readFileSync(join(text, file), 'utf8'));
  const manifest = JSON.parse(readFileSync(join(`${out}-data`, 'heldout.json'), 'utf8'));
  assert.ok(manifest.documents >= 1);
  // The prompts are text that was read, from the held-out part of it.
  for (const { prompt } of samples)
    assert.ok(
      trainingText.some((t) => t.includes(prompt)),
      prompt,
    );
  assert.ok((result.next as string[]).length >= 3);
  for (const file of ['report.html', 'report.json', 'tokenizer.json']) assert.ok(existsSync(join(out, file)), file);
});

describe('the next commands work exactly as printed', () => {
  // Commands are printed for the folder they are read in: the checkout for npx, elsewhere the path of the script.
  const shell = (command: string, cwd: string) =>
    spawnSync('bash', ['-c', command], {
      cwd,
      encoding: 'utf8',
      env: { ...process.env, NODE_TEST_CONTEXT: undefined, npm_config_offline: 'true' },
    });
  const shortened = (command: string): string =>
    command.replace(/--seconds 600/, `--seconds 1 --set model.depth=1 --out '${join(root, 'next')}'`);

  test('in the checkout, through npx, without a network', () => {
    const commands = result.next as string[];
    assert.ok(commands.every((c) => c.startsWith('npx ansatz ')));
    for (const command of commands) {
      const { status, stderr, stdout } = shell(shortened(command), checkout);
      assert.deepEqual([status, stderr], [0, ''], command);
      assert.ok(stdout.length > 40, command);
    }
    assert.ok(existsSync(join(root, 'next', 'config.json')), 'training went on with the prepared text');
  });

  test('in another folder, with the script’s path', async () => {
    const run = await ansatz(quickstart('--seconds', '1', '--json'), { cwd: root });
    const [generate, ...rest] = jsonLines(run, 'quickstart').at(-1)!.next as string[];
    assert.ok(
      [generate, ...rest].every((c) => c.startsWith(`node ${bin} `)),
      generate,
    );
    assert.ok(existsSync(join(root, 'runs', 'quickstart', 'config.json')));
    const { status, stderr } = shell(`${generate} --max-tokens 5`, root);
    assert.deepEqual([status, stderr], [0, '']);
  });
});

test('a second quickstart replaces the first, with other text too; a failing one leaves it', async () => {
  const failed = await ansatz(['quickstart', '--folder', join(root, 'nowhere'), '--out', out]);
  assert.equal(failed.code, 1);
  const before = contentsOf(out);
  assert.ok(before['config.json']);
  const grammar = writeGrammar(join(root, 'grammar'), 2000);
  const args = ['quickstart', '--folder', grammar, '--seconds', '2', '--out', out];
  const { code, stdout, stderr } = await ansatz(args);
  assert.deepEqual([code, stderr], [0, '']);
  assert.notEqual(contentsOf(out)['config.json'], before['config.json']);
  // For people: the figures side by side, the model's own words, what to do next.
  assert.match(stdout, /held-out text, bits per byte \(lower is better\)\n +this model +[\d.]+\n +gzip -9 +[\d.]+\n/);
  assert.match(stdout, /your model is in /);
  assert.match(stdout, /^ {2}npx ansatz generate /m);
  assert.doesNotMatch(stdout, /undefined|NaN|\[object/);
});

test('interrupted, it saves, says how to go on, and goes on', async () => {
  const place = join(root, 'interrupted');
  let sent = false;
  const run = await ansatz(quickstart('--out', place, '--json'), {
    onLine: (line, child) => {
      const event = JSON.parse(line) as JsonLine;
      if (event.event !== 'step' || (event.step as number) < 3 || sent) return;
      sent = true;
      child.kill('SIGINT');
    },
  });
  const last = jsonLines(run, 'quickstart').at(-1)!;
  assert.equal(last.status, 'stopped');
  assert.deepEqual(last.next, [`npx ansatz train ${place} --resume`]);
  const resumed = jsonLines(await ansatz(['train', place, '--resume', '--json']), 'resume');
  assert.deepEqual([resumed[0].event, resumed[0].step], ['resumed', last.step]);
  assert.deepEqual([resumed.at(-1)!.status, resumed.at(-1)!.step], ['completed', resumed[1].steps]);
});
