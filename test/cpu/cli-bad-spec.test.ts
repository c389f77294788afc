// Specs and recipes that do not hold, and machines or checkouts that are not ready: one line each, and nothing is made.
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { ansatz, type CliOptions, failure, type Refusal, refusals } from '../support/cli.ts';
import { checkout, type TinyData, temporaryFolder, tinyConfig, tinyData, writeText } from '../support/tiny-data.ts';

const root = temporaryFolder('spec');
const text = join(root, 'text');
let data: TinyData;
let recipe: string;
let count = 0;

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(text, 'small'));
  recipe = join(root, 'recipe.json');
  writeFileSync(recipe, JSON.stringify(tinyConfig(data)));
});

async function refused(args: string[], error: RegExp, options: CliOptions & { next?: RegExp } = {}): Promise<void> {
  const { next, ...how } = options;
  failure(await ansatz(args, how), 1, error, next);
}

function training(args: string[]): ReturnType<Refusal['make']> {
  const out = join(root, `out-${count++}`);
  return { commands: [['train', ...args, '--out', out]], absent: [out, `${out}-data`] };
}

const bad = (name: string, contents: string): string => {
  const path = join(root, name);
  writeFileSync(path, contents);
  return path;
};
const set = (setting: string): string[] => [recipe, '--data', text, '--set', setting];
const specs: [string, () => string[], RegExp][] = [
  ['heads that do not divide the width', () => set('model.attention.heads=5'), /5 heads do not divide width 32/],
  [
    'key heads that do not divide heads',
    () => set('model.attention.kvHeads=3'),
    /2 query heads do not share 3 key heads evenly/,
  ],
  ['a misspelled field', () => set('model.widht=64'), /model: .*widht/],
  ['a misspelled part', () => set('modle.width=64'), /modle/],
  ['a misspelled option of a slot', () => set('model.ffn.hiden=64'), /hiden/],
  ['an unknown kind', () => set('model.attention.kind=flash'), /unknown attention 'flash': choose from full/],
  ['an unknown layout', () => set('model.layout=encoder'), /unknown layout 'encoder': choose from decoder/],
  ['a device that computes nothing', () => set('device=meta'), /the meta device only plans/],
  ['an unknown device', () => set('device=tpu'), /no device 'tpu'/],
  ['an unknown precision', () => set('precision=fp8'), /precision: /],
  ['an unknown schedule', () => set('schedule.kind=step'), /schedule/],
  ['a negative batch', () => set('batch=-1'), /batch: /],
  ['a number that is text', () => set('batch=many'), /batch: /],
  ['rows longer than the context', () => set('length=64'), /rows of 64 tokens, the model's context is 32/],
  [
    'more memory than there is',
    () => set('batch=40000000'),
    /out of memory by plan: the run needs [\d.]+ GiB .* are free/,
  ],
  ['a recipe that does not exist', () => ['larg', '--data', text], /no recipe 'larg'/],
  ['a recipe that is a folder', () => [text, '--data', text], /no recipe/],
  [
    'a recipe that is not JSON',
    () => [bad('broken.json', '{"steps": 5,'), '--data', text],
    /broken\.json does not load/,
  ],
  [
    'a recipe that is no object',
    () => [bad('null.json', 'null'), '--data', text],
    /null\.json does not load: it is not an object/,
  ],
  [
    'a recipe without a model',
    () => [bad('empty.json', '{"steps": 5}'), '--data', text],
    /empty\.json does not load: it is not an object with a model/,
  ],
  [
    'a recipe without steps',
    () => [bad('nosteps.json', JSON.stringify({ ...tinyConfig(data), steps: undefined })), '--data', text],
    /steps: /,
  ],
  [
    'a recipe with a syntax error',
    () => [bad('syntax.ts', 'export default {'), '--data', text],
    /syntax\.ts does not load/,
  ],
  [
    'a recipe that exports nothing',
    () => [bad('nothing.ts', 'export const x = 1;'), '--data', text],
    /nothing\.ts does not load: it has no default export/,
  ],
  [
    'a recipe that throws',
    () => [
      bad('throws.ts', "export default { vocab: 300, config() { throw new Error('not today') } };"),
      '--data',
      text,
    ],
    /throws\.ts fails in config\(\): not today/,
  ],
  [
    'a recipe that imports nothing there',
    () => [bad('import.ts', "import './missing.ts'; export default {};"), '--data', text],
    /import\.ts does not load/,
  ],
];
refusals(
  'specs and recipes that do not hold',
  1,
  specs.map(([name, args, error]) => ({ name, error, make: () => training(args()) })),
);

describe('inspect and --json', () => {
  test('inspect says the same', async () => {
    await refused(['inspect', 'tiny', '--set', 'model.attention.heads=5'], /5 heads do not divide width 256/);
    await refused(['inspect', 'nothing'], /no recipe 'nothing'/, { next: /choose from ansatz, gpt2-124m, tiny/ });
  });

  test('with --json, the error is also the last event', async () => {
    const result = await ansatz(['inspect', 'nothing', '--json']);
    failure(result, 1, /no recipe/);
    const event = JSON.parse(result.stdout);
    assert.deepEqual([event.event, event.exitCode], ['error', 1]);
    assert.ok(event.message && event.hint);
  });
});

describe('a machine or checkout that is not ready', () => {
  test('a Node that is too old', async () => {
    const preload = join(root, 'old-node.cjs');
    writeFileSync(
      preload,
      "Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '18.19.1' } });",
    );
    await refused(['inspect'], /Node 18\.19\.1 is too old: 20\.19 or later is needed/, {
      node: ['--require', preload],
    });
  });

  test('dependencies that are not installed', async () => {
    const copy = join(root, 'not-installed');
    for (const part of ['bin', 'src', 'package.json'])
      cpSync(join(checkout, part), join(copy, part), { recursive: true });
    await refused(['inspect'], /dependencies are not installed/, {
      script: join(copy, 'bin', 'ansatz.mjs'),
      next: /npm ci/,
    });
  });

  test('an addon that is missing or damaged', async () => {
    const copy = join(root, 'no-addon');
    for (const part of ['bin', 'src', 'recipes', 'package.json'])
      cpSync(join(checkout, part), join(copy, part), { recursive: true });
    symlinkSync(join(checkout, 'node_modules'), join(copy, 'node_modules'));
    const script = join(copy, 'bin', 'ansatz.mjs');
    await refused(['inspect'], /the native addon is not built/, { script, next: /npm run build/ });
    const out = join(root, 'no-addon-out');
    await refused(['train', recipe, '--data', text, '--out', out], /the native addon is not built/, { script });
    mkdirSync(join(copy, 'build'));
    const addon = join(copy, 'build', 'ansatz.node');
    const bytes = readFileSync(join(checkout, 'build', 'ansatz.node'));
    for (const damaged of [Buffer.alloc(0), Buffer.from('no addon'), Buffer.concat([Buffer.from('\0'), bytes])]) {
      writeFileSync(addon, damaged);
      await refused(['inspect'], /the native addon does not load: /, { script, next: /npm run build/ });
    }
    assert.deepEqual([existsSync(out), existsSync(`${out}-data`)], [false, false]);
  });

  test('an instruction set that this CPU does not have is not silently another', async () => {
    const result = await ansatz(['inspect'], { env: { ANSATZ_ISA: 'avx1024' } });
    failure(result, 1, /ANSATZ_ISA=avx1024 is not an instruction-set level/);
  });

  test('a number of threads that is none', async () => {
    for (const threads of ['0', '-2', 'many']) {
      const result = await ansatz(['inspect', '--json'], { env: { ANSATZ_THREADS: threads } });
      if (result.code === 0) assert.ok((JSON.parse(result.stdout).device as { threads: number }).threads >= 1);
      else failure(result, 1, /ANSATZ_THREADS/);
    }
  });
});
