import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { before } from 'node:test';
import { ansatz, type Refusal, refusals, resultOf } from '../support/cli.ts';
import { type TinyData, temporaryFolder, tinyConfig, tinyData, writeText } from '../support/tiny-data.ts';

const root = temporaryFolder('bad');
const text = join(root, 'text');
const run = join(root, 'run');
const other = join(root, 'other');
let data: TinyData;
let recipe: string;
let count = 0;

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(text, 'small'));
  await tinyData(other, text, 300);
  recipe = join(root, 'recipe.json');
  writeFileSync(recipe, JSON.stringify(tinyConfig(data, { steps: 6, checkpoint: { every: 2 } })));
  resultOf(await ansatz(['train', recipe, '--data', data.folder, '--out', run, '--json']), 'train');
});

/** A copy to spoil. */
function copyOf(folder: string): string {
  const copy = join(root, `copy-${count++}`);
  cpSync(folder, copy, { recursive: true });
  return copy;
}

const fresh = (): string => join(root, `out-${count++}`);

/** Training into a new folder: neither it nor data for it may be left. */
function training(args: string[], untouched: string[] = []): ReturnType<Refusal['make']> {
  const out = fresh();
  return { commands: [['train', ...args, '--out', out]], untouched, absent: [out, `${out}-data`] };
}

function flipByte(file: string, at: number): void {
  const bytes = readFileSync(file);
  bytes[at < 0 ? bytes.length + at : at] ^= 0x10;
  writeFileSync(file, bytes);
}

const shardOf = (folder: string, name = 'train'): string =>
  join(folder, readdirSync(folder).find((f) => f.startsWith(`${name}-`) && f.endsWith('.tokens'))!);

const noText: [string, (folder: string) => void, RegExp][] = [
  ['a missing folder', () => {}, /there is no such file or folder/],
  ['an empty folder', (f) => mkdirSync(f), /no text found in .*: there are no files/],
  [
    'binary files only',
    (f) => {
      mkdirSync(f);
      for (let k = 0; k < 3; k++) writeFileSync(join(f, `${k}.bin`), Buffer.alloc(30_000, Buffer.from([0, 255, 7, 1])));
    },
    /no text found in .*: 3 binary/,
  ],
  [
    'links only',
    (f) => {
      mkdirSync(f);
      symlinkSync(join(text, 'lib-help.js'), join(f, 'link'));
    },
    /no text found in .*: 1 symbolic links/,
  ],
  [
    'a tiny corpus',
    (f) => {
      mkdirSync(f);
      writeFileSync(join(f, 'note.txt'), 'hello, world\n');
    },
    /the corpus is too small to train on: 13 bytes/,
  ],
  ['a binary file', (f) => writeFileSync(f, Buffer.alloc(40_000)), /no text found in .*: 1 binary/],
];
refusals(
  'text that is none: not trained on, not prepared, not in place of older data, not by quickstart',
  1,
  noText.map(([name, make, error]) => ({
    name,
    error,
    make: () => {
      const folder = join(root, `none-${count++}`);
      make(folder);
      const [out, old] = [fresh(), copyOf(other)];
      const { commands, absent } = training([recipe, '--data', folder]);
      commands.push(
        ['prepare', folder, '--out', out],
        ['prepare', folder, '--out', old],
        ['quickstart', '--folder', folder, '--out', out],
      );
      return { commands, untouched: [old], absent: [...absent!, out, `${out}-data`] };
    },
  })),
);

const damagedData: [string, (folder: string) => void, RegExp][] = [
  ['a flipped byte in a shard', (f) => flipByte(shardOf(f), 1000), /checksum does not match: the file is damaged/],
  ['a flipped byte in held-out text', (f) => flipByte(shardOf(f, 'heldout'), -200), /damaged/],
  ['a shard cut short', (f) => truncateSync(shardOf(f), 500), /train-.*\.tokens/],
  ['a missing shard', (f) => rmSync(shardOf(f)), /the file is missing/],
  [
    'a manifest that is not JSON',
    (f) => writeFileSync(join(f, 'train.json'), '{"format":'),
    /train\.json: it is not valid JSON/,
  ],
  ['a missing manifest', (f) => rmSync(join(f, 'train.json')), /train\.json: no such file/],
  ['missing held-out data', (f) => rmSync(join(f, 'heldout.json')), /heldout\.json: no such file/],
  [
    'another tokenizer',
    (f) => cpSync(join(other, 'tokenizer.json'), join(f, 'tokenizer.json')),
    /it was made with tokenizer/,
  ],
  [
    'a tokenizer that is not JSON',
    (f) => truncateSync(join(f, 'tokenizer.json'), 300),
    /tokenizer\.json is not valid JSON/,
  ],
  [
    'a tokenizer.json of something else',
    (f) => writeFileSync(join(f, 'tokenizer.json'), '{"version":1}'),
    /tokenizer\.json: /,
  ],
  ['damaged baselines', (f) => writeFileSync(join(f, 'baselines.json'), '{'), /baselines\.json is damaged/],
];
refusals('a damaged data folder', 1, [
  ...damagedData.map(([name, spoil, error]) => ({
    name,
    error,
    make: () => {
      const folder = copyOf(data.folder);
      spoil(folder);
      return training([recipe, '--data', folder], [folder]);
    },
  })),
  {
    name: 'a vocabulary larger than the model’s',
    error: /has 384 tokens, the model a vocabulary of 300/,
    next: /set model\.vocab to 384/,
    make: () => {
      const small = join(root, 'small-vocab.json');
      const config = tinyConfig(data);
      writeFileSync(small, JSON.stringify({ ...config, model: { ...config.model, vocab: 300 } }));
      return training([small, '--data', data.folder]);
    },
  },
]);
