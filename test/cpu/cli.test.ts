// What every command promises: help with examples, a frozen list of flags, clean streams, JSON lines, exit codes.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { quoted } from '../../src/cli/invocation.ts';
import { program } from '../../src/cli/main.ts';
import { ansatz, bin, failure, jsonLines, refusals, resultOf } from '../support/cli.ts';
import { checkout, type TinyData, temporaryFolder, tinyConfig, tinyData, writeText } from '../support/tiny-data.ts';

// Programs and habits depend on these: a change here is a change of the interface.
const FLAGS: Record<string, string> = {
  ansatz: '--version --help',
  'train <recipe>': '--data --out --steps --seconds --seed --set --from --resume --json --plain --help',
  'generate <run>':
    '--prompt --context --specials --mode --max-tokens --temperature --top-k --top-p --min-p --presence-penalty --frequency-penalty --repetition-penalty --stop --schema --seed --step --verify --json --plain --help',
  'evaluate <run>':
    '--objective --by-position --length --scaling --blockwise --cross-documents --cache --max-tokens --data --step --verify --json --plain --help',
  'inspect [recipe]': '--set --json --plain --help',
  'plan [recipe]': '--spec --batch --set --json --plain --help',
  'prepare <paths...>': '--out --vocab --tokenizer --cap --seed --json --plain --help',
  'tricks [name]': '--width --depth --json --plain --help',
  'mup check [recipe]': '--widths --depths --seeds --steps --grow --grow-field --set --svg --lr --json --plain --help',
  'mup transfer [recipe]':
    '--widths --depths --seeds --steps --grow --grow-field --set --svg --rates --limit --data --json --plain --help',
  'lab first-look [texts...]':
    '--out --run --from --minutes --seeds --only --cap --width --workers --json --plain --help',
  'export <run>': '--to --out --type --step --verify --json --plain --help',
  'import <folder>': '--out --context --json --plain --help',
  'quantize <run>':
    '--bits --method --embedding-bits --damp --calibrate --out --data --max-tokens --seconds --step --json --plain --help',
  'prune <run>':
    '--method --sparsity --pattern --damp --calibrate --out --data --max-tokens --seconds --step --json --plain --help',
  'distill <teacher> [recipe]':
    '--config --data --out --steps --seconds --seed --set --lambda --temperature --start --max-tokens --measure --json --plain --help',
  'serve [runs...]':
    '--host --port --data --key --keys --new-key --requests-per-minute --tokens-per-minute --cors --verify --draft --lookup --sequences --queue --cache-bytes --max-body --stall-timeout --json --plain --help',
  'quickstart ': '--folder --seconds --out --seed --json --plain --help',
};
const COMMANDS = [
  'train',
  'mup',
  'lab',
  'generate',
  'evaluate',
  'inspect',
  'plan',
  'prepare',
  'tricks',
  'export',
  'import',
  'serve',
  'quantize',
  'prune',
  'distill',
  'quickstart',
];

const root = temporaryFolder('cli');
const text = join(root, 'text');
const run = join(root, 'run');
let data: TinyData;
let recipe: string;

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(text, 'small'));
  recipe = join(root, 'recipe.json');
  writeFileSync(recipe, JSON.stringify(tinyConfig(data, { steps: 20 })));
  resultOf(await ansatz(['train', recipe, '--data', data.folder, '--out', run, '--json']), 'train');
});

test('the flags of all commands', () => {
  const root = program();
  const listed: Record<string, string> = { ansatz: root.options.map((o) => o.long).join(' ') };
  listed.ansatz += ' --help';
  const leaves = root.commands.flatMap((c) =>
    c.commands.length
      ? c.commands.map((sub) => ({ name: `${c.name()} ${sub.name()}`, command: sub }))
      : [{ name: c.name(), command: c }],
  );
  for (const { name, command } of leaves) {
    const args = command.registeredArguments.map((a) => {
      const word = a.variadic ? `${a.name()}...` : a.name();
      return a.required ? `<${word}>` : `[${word}]`;
    });
    listed[`${name} ${args.join(' ')}`] = `${command.options.map((o) => o.long).join(' ')} --help`;
    assert.ok(
      command.options.every((o) => o.short === undefined),
      'long flags only',
    );
  }
  assert.deepEqual(listed, FLAGS);
});

describe('help', () => {
  for (const command of ['', ...COMMANDS, 'mup check', 'mup transfer', 'lab first-look']) {
    test(`ansatz ${command} --help`, async () => {
      const { code, stdout, stderr } = await ansatz([...command.split(' ').filter(Boolean), '--help']);
      assert.deepEqual([code, stderr], [0, '']);
      const prefix = command === 'quickstart' ? /npm run quickstart/ : /npx ansatz [a-z]/;
      assert.match(stdout.slice(stdout.indexOf('\nExamples:\n')), prefix);
      assert.ok(stdout.includes('\nExamples:\n'));
      const flags =
        command === 'mup' || command === 'lab'
          ? '--help'
          : FLAGS[Object.keys(FLAGS).find((k) => k.startsWith(command || 'ansatz'))!];
      for (const flag of flags.split(' ')) assert.ok(stdout.includes(flag), `${flag} is explained`);
      const examples = stdout.slice(stdout.indexOf('\nExamples:\n'));
      assert.ok(stdout.split('\n').length - examples.split('\n').length > 3);
      assert.doesNotMatch(stdout, /undefined|\[object|default: \[\]/);
    });
  }

  test('no command at all says what there is', async () => {
    const { code, stdout, stderr } = await ansatz([]);
    assert.deepEqual([code, stderr], [0, '']);
    for (const command of COMMANDS) assert.match(stdout, new RegExp(`^ {2}${command} `, 'm'));
  });

  test('--version is that of the package', async () => {
    const { code, stdout, stderr } = await ansatz(['--version']);
    const { version } = JSON.parse(readFileSync(join(checkout, 'package.json'), 'utf8'));
    assert.deepEqual([code, stdout, stderr], [0, `${version}\n`, '']);
  });
});

const misused: [string[], RegExp, RegExp?][] = [
  [['trian'], /unknown command 'trian'; did you mean train\?$/, /ansatz --help$/],
  [['mup', 'chek'], /unknown command 'chek'; did you mean check\?$/, /ansatz mup --help$/],
  [['lab', 'second-look'], /unknown command 'second-look'/, /ansatz lab --help$/],
  [['train', 'tiny', '--stpes', '3'], /unknown option '--stpes'; did you mean --steps\?$/, /ansatz train --help$/],
  [['mup', 'check', '--steps', '0'], /--steps cannot be '0'/, /ansatz mup check --help$/],
  [['lab', 'first-look'], /missing required argument 'texts'/, /ansatz lab first-look --help$/],
  [['tricks', '--depth', '257'], /--depth cannot be '257'/],
  [['prepare', 'x', '--out', 'y', '--vocab', '1e9'], /--vocab cannot be '1e9'/],
  [['--nope'], /unknown option '--nope'/, /ansatz --help$/],
  [['train'], /missing required argument 'recipe'/, /ansatz train --help$/],
  [['generate'], /missing required argument 'run'/, /ansatz generate --help$/],
  [['prepare', '--out', 'x'], /missing required argument 'paths'/, /npx ansatz prepare --help$/],
  [['prepare', 'text'], /required option '--out <folder>' not specified/],
  [['train', 'tiny', '--nope'], /unknown option '--nope'/, /ansatz train --help$/],
  [['train', 'tiny', 'more'], /too many arguments/],
  [['inspect', '--set'], /argument missing/],
  [['train', 'tiny'], /--data is missing/, /ansatz train tiny --data FOLDER/],
  [['train', 'tiny', '--data', 'x', '--steps', '0'], /--steps cannot be '0'/],
  [['train', 'tiny', '--data', 'x', '--steps', '1.5'], /--steps cannot be '1.5'/],
  [['train', 'tiny', '--data', 'x', '--steps', 'many'], /--steps cannot be 'many'/],
  [['train', 'tiny', '--data', 'x', '--seconds', '-3'], /--seconds cannot be '-3'/],
  [['train', 'tiny', '--data', 'x', '--seed', ''], /--seed cannot be ''/],
  [['train', 'tiny', '--data', 'x', '--steps', '5', '--seconds', '5'], /--steps and --seconds exclude each other/],
  [['train', 'runs/x', '--resume', '--seed', '2', '--set', 'batch=1'], /leave out --seed, --set/],
  [['inspect', 'tiny', '--set', 'batch'], /--set wants field=value, not 'batch'/],
  [['inspect', 'tiny', '--set', '=3'], /--set wants field=value/],
  [['inspect', 'tiny', '--set', 'model.=3'], /--set wants field=value/],
  [['inspect', 'tiny', '--set', '__proto__.x=3'], /--set wants field=value/],
  [['inspect', 'tiny', '--set', 'batch.size=3'], /batch has no fields/],
  [['generate', 'x', '--temperature', '-1'], /--temperature cannot be '-1'/],
  [['generate', 'x', '--top-p', '1.5'], /--top-p cannot be '1.5'/],
  [['generate', 'x', '--top-k', '-1'], /--top-k cannot be '-1'/],
  [['generate', 'x', '--min-p', '2'], /--min-p cannot be '2'/],
  [['generate', 'x', '--repetition-penalty', '0'], /--repetition-penalty cannot be '0'/],
  [['generate', 'x', '--max-tokens', '0'], /--max-tokens cannot be '0'/],
  [['serve'], /missing required argument 'runs'/, /ansatz serve RUN/],
  [['serve', 'x', '--port', '70000'], /--port cannot be '70000'/],
  [['serve', 'x', '--max-body', '1T'], /--max-body cannot be '1T'/],
  [['serve', 'x', '--key', 'short'], /a key must have at least 16 characters/],
  [['serve', 'x='], /names no folder/],
  [['serve', '--new-key', 'me'], /--new-key needs the file/],
  [['export', 'x'], /required option '--to <format>' not specified/],
  [['export', 'x', '--to', 'onnx'], /argument 'onnx' is invalid/],
  [['export', 'x', '--to', 'hf', '--type', 'q8_0'], /--type q8_0 is a type of GGUF files/],
  [['quantize', 'x'], /required option '--bits <n>' not specified/],
  [['quantize', 'x', '--bits', '3'], /argument '3' is invalid/],
  [['quantize', 'x', '--bits', '8', '--calibrate', '100'], /--method rtn looks at the weights alone/],
  [['prune', 'x', '--sparsity', '1'], /--sparsity cannot be '1'/],
  [['prune', 'x', '--pattern', '4:2'], /--pattern cannot be '4:2'/],
  [['prune', 'x', '--pattern', '2:4', '--sparsity', '0.5'], /--pattern and --sparsity exclude each other/],
  [['prune', 'x', '--method', 'magnitude', '--calibrate', '9'], /--method magnitude looks at the weights alone/],
  [['distill', 'x', 'tiny', '--config', 'y.json'], /a recipe and --config exclude each other/],
  [['distill', 'x', '--lambda', '2'], /--lambda cannot be '2'/],
  [['import', 'x'], /required option '--out <run>' not specified/],
  [['import', 'x', '--out', 'y', '--context', '0'], /--context cannot be '0'/],
  [['prepare', 'x', '--out', 'y', '--vocab', '256'], /--vocab cannot be '256'/],
  [['prepare', 'x', '--out', 'y', '--cap', '0'], /--cap cannot be '0'/],
  [['quickstart', '--seconds', 'NaN'], /--seconds cannot be 'NaN'/],
];
refusals(
  'a command line that is not understood: exit code 2, what is wrong, where to look',
  2,
  misused.map(([args, error, next]) => ({
    name: `ansatz ${args.map(quoted).join(' ')}`,
    error,
    next,
    make: () => ({ commands: [args], absent: ['y', 'runs/x'] }),
  })),
);

describe('the same in a process of its own', () => {
  test('the exit code, and nothing on stdout; the addon is not needed to say it', async () => {
    const result = await ansatz(['trian'], { env: { ANSATZ_NATIVE: join(root, 'nothing') } });
    failure(result, 2, /unknown command 'trian'/, /npx ansatz --help$/);
    assert.equal(result.stdout, '');
  });

  test('with --json also an error event on stdout', async () => {
    const result = await ansatz(['train', 'tiny', '--steps', 'x', '--json']);
    failure(result, 2, /--steps cannot be 'x'/);
    const event = JSON.parse(result.stdout);
    assert.deepEqual([event.event, event.exitCode], ['error', 2]);
    assert.match(event.message, /--steps/);
  });
});

describe('--json: every line is an object, the last is the result, stderr is empty', () => {
  test('prepare', async () => {
    const out = join(root, 'prepared');
    const result = resultOf(await ansatz(['prepare', text, '--out', out, '--vocab', '400', '--json']), 'prepare');
    assert.equal(result.vocab, 400);
    assert.ok((result.trainTokens as number) > 10_000 && (result.heldOutTokens as number) > 100);
    const baselines = result.baselines as Record<string, { bitsPerByte: number }>;
    assert.ok(baselines.gzip.bitsPerByte > 1 && baselines.strong.bitsPerByte > 1);
    for (const file of ['tokenizer.json', 'train.json', 'heldout.json', 'baselines.json'])
      assert.ok(existsSync(join(out, file)), file);
  });

  test('train: events in order, and the same ones in the run folder', async () => {
    const out = join(root, 'json');
    const lines = jsonLines(
      await ansatz(['train', recipe, '--data', data.folder, '--out', out, '--steps', '5', '--json']),
      'train',
    );
    const steps = Array.from({ length: 5 }, () => 'step');
    const kinds = ['run-start', 'plan', ...steps, 'checkpoint', 'eval', 'run-end', 'result'];
    assert.deepEqual(
      lines.map((l) => l.event).filter((kind) => kind !== 'fallback'),
      kinds,
    );
    const logged = readFileSync(join(out, 'events.jsonl'), 'utf8').trimEnd().split('\n');
    assert.deepEqual(
      logged.map((l) => JSON.parse(l)),
      lines.slice(0, -1),
    );
    for (const file of ['report.json', 'report.html', 'tokenizer.json', 'config.json'])
      assert.ok(existsSync(join(out, file)), file);
  });

  test('generate', async () => {
    const result = resultOf(
      await ansatz(['generate', run, '--prompt', 'a "b" \n', '--max-tokens', '8', '--json']),
      'generate',
    );
    assert.deepEqual([result.prompt, result.step, result.maxTokens], ['a "b" \n', 20, 8]);
    assert.equal(typeof result.completion, 'string');
  });

  test('generate: JSON under a schema, or one line', async () => {
    const schema = join(root, 'schema.json');
    writeFileSync(schema, JSON.stringify({ type: 'number', minimum: 0.5, maximum: 1.5 }));
    const args = ['generate', run, '--prompt', 'x = ', '--schema', schema, '--max-tokens', '40'];
    const made = JSON.parse(resultOf(await ansatz([...args, '--json']), 'generate').completion as string);
    assert.ok(made >= 0.5 && made <= 1.5, String(made));
    const failed = async (why: RegExp, ...more: string[]): Promise<void> => {
      const { code, stderr } = await ansatz([...args, ...more]);
      assert.equal(code, 1);
      assert.match(stderr, why);
      assert.equal(stderr.trim().split('\n').length, 2, stderr);
    };
    await failed(/--schema .*nowhere: there is no such file/, '--schema', join(root, 'nowhere'));
    writeFileSync(schema, '{"type": ');
    await failed(/--schema .*schema\.json: is not JSON/);
    writeFileSync(schema, '{"type": "number", "multipleOf": 2}');
    await failed(/JSON schema: keyword 'multipleOf' is not supported/);
  });

  test('inspect, with and without a recipe', async () => {
    const bare = resultOf(await ansatz(['inspect', '--json']), 'inspect');
    const device = bare.device as Record<string, unknown>;
    assert.deepEqual([device.kind, bare.recipe], ['cpu', undefined]);
    assert.ok((device.levels as string[]).includes(device.level as string));
    const full = resultOf(await ansatz(['inspect', 'tiny', '--set', 'model.depth=2', '--json']), 'inspect');
    const plan = full.recipe as { parameters: number; byRole: Record<string, number>; fits: boolean };
    assert.equal(
      Object.values(plan.byRole).reduce((a, b) => a + b),
      plan.parameters,
    );
    assert.equal(typeof plan.fits, 'boolean');
  });
});

describe('for people', () => {
  test('prepare, train, inspect: plain lines, stderr empty, the next command last', async () => {
    const prepared = join(root, 'plain-data');
    const out = join(root, 'plain-run');
    const first = await ansatz(['prepare', text, '--out', prepared, '--vocab', '384']);
    const second = await ansatz(['train', recipe, '--data', prepared, '--out', out]);
    const third = await ansatz(['inspect', recipe]);
    for (const { code, stderr, stdout } of [first, second, third]) {
      assert.deepEqual([code, stderr], [0, '']);
      assert.ok(!stdout.includes('\x1b'), 'no escape sequences in a pipe');
      assert.doesNotMatch(stdout, /undefined|NaN|\[object/);
    }
    assert.equal(first.stdout.trimEnd().split('\n').at(-1), `next: npx ansatz train tiny --data ${prepared}`);
    assert.match(second.stdout.trimEnd().split('\n').at(-1)!, /^next: npx ansatz generate \S+plain-run --prompt/);
    assert.match(second.stdout, /held-out loss [\d.]+, [\d.]+ bits\/byte \(gzip -9 [\d.]+, /);
    assert.match(third.stdout, /fits\s+yes/);
  });

  test('text is prepared on the way when --data is text, a folder or a file', async () => {
    for (const [name, from] of [
      ['from-folder', text],
      ['from-file', join(text, 'lib-help.js')],
    ]) {
      const out = join(root, name);
      const { code, stderr } = await ansatz(['train', recipe, '--data', from, '--out', out, '--steps', '3']);
      assert.deepEqual([code, stderr], [0, '']);
      assert.ok(existsSync(join(`${out}-data`, 'train.json')));
    }
  });

  test('--set reaches the config; kinds by name, options of a slot', async () => {
    const out = join(root, 'set');
    const settings = ['model.positions=none', 'model.norm.eps=0.001', 'optimiser.lr=0.002', 'name=other', 'steps=2'];
    const args = ['train', recipe, '--data', data.folder, '--out', out, '--json'];
    resultOf(await ansatz([...args, ...settings.flatMap((s) => ['--set', s])]), 'train');
    const { config } = JSON.parse(readFileSync(join(out, 'config.json'), 'utf8'));
    assert.deepEqual(
      [config.model.positions, config.model.norm.eps, config.optimiser.lr, config.name, config.steps],
      [{ kind: 'none' }, 0.001, 0.002, 'other', 2],
    );
  });

  test('a recipe of one’s own in TypeScript', async () => {
    const own = join(root, 'own.ts');
    writeFileSync(
      own,
      `const base = ${JSON.stringify(tinyConfig(data))};
       interface O { data: string; vocab: number; steps?: number }
       export default { summary: 'mine', vocab: 300, config: (o: O) => ({ ...base, model: { ...base.model, vocab: o.vocab }, data: { folder: o.data }, steps: o.steps ?? 4 }) };`,
    );
    const result = resultOf(
      await ansatz(['train', own, '--data', text, '--out', join(root, 'own'), '--json']),
      'train',
    );
    assert.equal(result.step, 4);
  });

  test('a reader that goes away ends the command quietly', async () => {
    const { spawnSync } = await import('node:child_process');
    const { stderr, status } = spawnSync(
      'bash',
      ['-c', `set -o pipefail; "${process.execPath}" "${bin}" generate "${run}" --max-tokens 400 | head -c 1`],
      { encoding: 'utf8' },
    );
    assert.equal(stderr, '');
    assert.ok(status === 141 || status === 0, `${status}`);
  });
});

describe('generate', () => {
  const generate = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await ansatz(['generate', run, '--max-tokens', '12', ...args]);
    assert.deepEqual([code, stderr], [0, '']);
    return stdout;
  };

  test('prints the prompt and its continuation; the same seed the same text, in every process', async () => {
    const first = await generate('--prompt', 'function ', '--seed', '4');
    assert.ok(first.startsWith('function ') && first.length > 12 && first.endsWith('\n'));
    assert.equal(await generate('--prompt', 'function ', '--seed', '4'), first);
    assert.notEqual(await generate('--prompt', 'function ', '--seed', '5'), first);
  });

  test('temperature 0 does not depend on the seed', async () => {
    const greedy = (seed: string): Promise<string> => generate('--temperature', '0', '--seed', seed);
    assert.equal(await greedy('1'), await greedy('2'));
  });

  test('any prompt', async () => {
    for (const prompt of ['', '👩‍👩‍👧 naïve\n日本', '<|endoftext|>', '--help', 'it\'s "quoted" $HOME `x`'])
      assert.ok((await generate(`--prompt=${prompt}`)).startsWith(prompt), prompt);
  });

  test('needs nothing but the run folder', async () => {
    const alone = join(root, 'alone');
    const own = join(root, 'own-data');
    await tinyData(own, text, 300);
    resultOf(await ansatz(['train', recipe, '--data', own, '--out', alone, '--json']), 'train');
    const { rmSync } = await import('node:fs');
    rmSync(own, { recursive: true });
    const { code, stderr } = await ansatz(['generate', alone, '--max-tokens', '3']);
    assert.deepEqual([code, stderr], [0, '']);
  });
});
