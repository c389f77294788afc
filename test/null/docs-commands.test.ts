// Every command line in the documents is one that the program understands: command, flags, choices, numbers, arguments.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import type { Command } from 'commander';
import { program } from '../../src/cli/main.ts';
import { checkout } from '../support/tiny-data.ts';

const markdown = (folder: string): string[] =>
  readdirSync(join(checkout, folder))
    .filter((f) => f.endsWith('.md'))
    .map((f) => join(folder, f));
const tricks = readdirSync(join(checkout, 'src/tricks'), { withFileTypes: true })
  .filter((e) => e.isDirectory())
  .flatMap((e) => markdown(join('src/tricks', e.name)));
const files = ['README.md', ...markdown('docs'), ...markdown('docs/verdicts'), ...tricks];
const contents = new Map(files.map((file) => [file, readFileSync(join(checkout, file), 'utf8')]));

/** Words of a line as a shell would split them; ends at a comment, a pipe, or columns of blanks. */
function words(line: string): string[] {
  const out: string[] = [];
  const part = /\s*(?:((?:'[^']*'|"(?:\\.|[^"\\])*"|[^\s'"])+)|(['"]))/y;
  const end = line.search(/\s#\s| {3,}|\s(\|{1,2}|&&|>)\s/);
  const text = end < 0 ? line : line.slice(0, end);
  for (let m = part.exec(text); m; m = part.exec(text))
    out.push((m[1] ?? m[2]).replace(/'([^']*)'|"((?:\\.|[^"\\])*)"/g, (_, a, b) => a ?? b));
  return out;
}

/** Lines of code blocks and spans of code that start with the program's name, or an npm script. */
function commands(text: string): string[] {
  const blocks = [...text.matchAll(/^```\w*\n([\s\S]*?)^```/gm)].flatMap((m) =>
    m[1]
      .replaceAll('\\\n', ' ')
      .replace(/'[^']*'/g, (quote) => quote.replace(/\n\s*/g, ' '))
      .split('\n'),
  );
  const outside = text.replace(/^```\w*\n[\s\S]*?^```/gm, '');
  const spans = [...outside.matchAll(/`([^`]+)`/g)].map((m) => m[1].replace(/\s+/g, ' '));
  return [...blocks, ...spans]
    .map((s) => s.trim())
    .filter((s) => /^(npx )?ansatz [a-z-]|^([A-Z_]+=\S+ )*npm (run|test)/.test(s));
}

/** What stands for a value: `N`, `RUN`, `<n>`, `8|4`. */
function filled(word: string, flag: string | undefined, command: Command): string {
  const option = command.options.find((o) => o.long === flag);
  if (/^[^|]+(\|[^|]+)+$/.test(word)) return word.split('|')[0];
  if (option && /^(\.\.\.|[A-Z]|<\w+>)$/.test(word)) return option.argChoices?.[0] ?? '1';
  return word;
}

/** @throws with what is wrong with a command line, as far as parsing tells. */
function check(line: string): void {
  const all = words(line.replace(/^npx /, '')).slice(1);
  let command: Command = program();
  while (command.commands.length > 0 && all.length > 0 && !all[0].startsWith('-')) {
    const next = command.commands.find((c) => c.name() === all[0]);
    assert.ok(next, `no command '${all[0]}'`);
    command = next;
    all.shift();
  }
  command
    .exitOverride()
    .configureOutput({ outputError: () => {} })
    .helpOption('--help');
  const args = all
    .map((w) => w.replace(/^\[(.*)\]$/, '$1'))
    .map((w, k, list) => filled(w, list[k - 1], command))
    .filter((w) => w !== '--help');
  // A flag that is only named has no value.
  if (command.options.some((o) => o.required && o.long === args.at(-1))) args.pop();
  const { operands, unknown } = command.parseOptions(args);
  assert.deepEqual(unknown, [], 'unknown options');
  const arity = command.registeredArguments;
  assert.ok(arity.some((a) => a.variadic) || operands.length <= arity.length, `too many arguments: ${operands}`);
}

describe('commands in documents', () => {
  test('are found where they are', () => {
    assert.ok(commands(contents.get('README.md')!).length >= 14);
    assert.deepEqual(
      commands('x `ansatz train RUN\n--resume` `ansatz`\n```sh\nnpx ansatz plan tiny   # note\nls\n```\n'),
      ['npx ansatz plan tiny   # note', 'ansatz train RUN --resume'],
    );
    assert.deepEqual(words(`ansatz generate r --prompt "a \\" b" --set 'x=[1, 2]' # y`).slice(3), [
      '--prompt',
      'a \\" b',
      '--set',
      'x=[1, 2]',
    ]);
  });

  test('what the program would refuse is refused here', () => {
    for (const [line, why] of [
      ['ansatz trian tiny', /no command 'trian'/],
      ['ansatz lab second-look', /no command 'second-look'/],
      ['ansatz train tiny --stops 3', /unknown options/],
      ['ansatz train tiny --steps many', /--steps cannot be 'many'/],
      ['ansatz export RUN --to onnx', /is invalid/],
      ['ansatz import a b', /too many arguments/],
    ] as const)
      assert.throws(() => check(line), why);
  });

  const { scripts } = JSON.parse(readFileSync(join(checkout, 'package.json'), 'utf8'));
  for (const [file, text] of contents) {
    const lines = commands(text);
    if (lines.length === 0) continue;
    test(`${file}: ${lines.length} commands`, () => {
      for (const line of lines) {
        const script = /npm (?:run )?([\w:-]+)/.exec(line.replace(/^([A-Z_]+=\S+ )*/, ''));
        if (/^([A-Z_]+=\S+ )*npm /.test(line)) assert.ok(Object.hasOwn(scripts, script![1]), `no script: ${line}`);
        else
          try {
            check(line);
          } catch (error) {
            assert.fail(`${line}: ${(error as Error).message}`);
          }
      }
    });
  }

  test('flags that are named alone exist', () => {
    const root = program();
    const known = new Set(
      [root, ...root.commands, ...root.commands.flatMap((c) => c.commands)].flatMap((c) =>
        c.options.map((o) => o.long),
      ),
    );
    for (const [file, text] of contents)
      for (const [, flag] of text.matchAll(/`(--[a-z][a-z-]*)[^`]*`/g))
        assert.ok(known.has(flag) || flag === '--help', `${file}: ${flag}`);
  });
});
