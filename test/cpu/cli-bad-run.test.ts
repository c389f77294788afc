// Damaged runs, folders that are no runs, output folders that are taken: refused in one line, and left as they are.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { ansatz, bin, type CliOptions, contentsOf, failure, type Refusal, refusals, resultOf } from '../support/cli.ts';
import { checkout, type TinyData, temporaryFolder, tinyConfig, tinyData, writeText } from '../support/tiny-data.ts';

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

/** Runs one command in a process of its own that must fail. */
async function refused(args: string[], error: RegExp, options: CliOptions & { next?: RegExp } = {}): Promise<void> {
  const { next, ...how } = options;
  failure(await ansatz(args, how), 1, error, next);
}

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

const newest = (folder: string, file: string): string => join(folder, 'checkpoints', '00000006', file);
const onEach = (folder: string, file: string, spoil: (path: string) => void): void => {
  for (const step of readdirSync(join(folder, 'checkpoints'))) spoil(join(folder, 'checkpoints', step, file));
};
const damagedRun: [string, (folder: string) => void, RegExp][] = [
  [
    'a flipped byte in every checkpoint',
    (f) => onEach(f, 'model.safetensors', (p) => flipByte(p, -5)),
    /model\.safetensors.*(checksum|sha256|damaged)/,
  ],
  ['weights cut short', (f) => onEach(f, 'model.safetensors', (p) => truncateSync(p, 4000)), /model\.safetensors/],
  ['missing manifests', (f) => onEach(f, 'manifest.json', rmSync), /manifest\.json/],
  ['manifests that are not JSON', (f) => onEach(f, 'manifest.json', (p) => writeFileSync(p, '{')), /manifest/],
  ['states that are missing', (f) => onEach(f, 'state.json', rmSync), /state\.json/],
  [
    'a changed config',
    (f) =>
      writeFileSync(
        join(f, 'config.json'),
        readFileSync(join(f, 'config.json'), 'utf8').replace('"batch": 4', '"batch": 5'),
      ),
    /config\.json: was changed after the run was made/,
  ],
  ['a config that is not JSON', (f) => truncateSync(join(f, 'config.json'), 40), /is not a run/],
];
refusals(
  'a damaged run is neither resumed nor used',
  1,
  damagedRun.map(([name, spoil, error]) => ({
    name,
    error,
    make: () => {
      const folder = copyOf(run);
      spoil(folder);
      // Opening the log to write is all that resuming may do.
      return {
        commands: [
          ['generate', folder],
          ['train', folder, '--resume'],
        ],
        untouched: [folder],
      };
    },
  })),
);

describe('a run with something wrong about it', () => {
  test('when only the newest is damaged, the one before it serves, and that is said', async () => {
    const folder = copyOf(run);
    flipByte(newest(folder, 'model.safetensors'), -5);
    const generated = await ansatz(['generate', folder, '--max-tokens', '2']);
    assert.deepEqual([generated.code, generated.stderr], [0, '']);
    assert.match(generated.stdout, /^warning: .*00000006.*; trying an older checkpoint$/m);
    const resumed = await ansatz(['train', folder, '--resume']);
    assert.deepEqual([resumed.code, resumed.stderr], [0, '']);
    assert.match(resumed.stdout, /resumed from step 4/);
    assert.equal((await ansatz(['generate', folder, '--max-tokens', '2'])).stdout.includes('warning'), false);
  });

  test('another tokenizer than it was trained with', async () => {
    const folder = copyOf(run);
    cpSync(join(other, 'tokenizer.json'), join(folder, 'tokenizer.json'));
    await refused(['generate', folder], /is not the tokenizer that .* was trained with/);
    writeFileSync(join(folder, 'tokenizer.json'), 'no JSON');
    await refused(['generate', folder], /tokenizer\.json is not valid JSON/);
  });

  test('data that is gone or has changed since: not resumed, nothing saved', async () => {
    const folder = copyOf(data.folder);
    const out = fresh();
    resultOf(await ansatz(['train', recipe, '--data', folder, '--out', out, '--steps', '4', '--json']), 'train');
    const before = contentsOf(join(out, 'checkpoints'));
    rmSync(folder, { recursive: true });
    await refused(['train', out, '--resume'], /tokenizer\.json: there is no such file/);
    await tinyData(folder, join(checkout, 'docs'));
    await refused(
      ['train', out, '--resume'],
      /cannot continue from the saved data position: the data of "train".* has changed/,
    );
    assert.deepEqual(contentsOf(join(out, 'checkpoints')), before);
  });

  test('--resume with a recipe’s name says what to type instead', async () => {
    const place = join(root, 'place');
    cpSync(run, join(place, 'runs', 'tiny'), { recursive: true });
    await refused(['train', 'tiny', '--resume'], /tiny: is not a run folder/, {
      cwd: place,
      next: /ansatz(\.mjs)? train runs\/tiny --resume$/,
    });
  });
});

refusals('a folder that is no run, or has not what is asked for', 1, [
  ...(
    [
      ['a missing folder', () => join(root, 'nothing'), /is not a run: there is no such folder/],
      ['a file', () => recipe, /recipe\.json: is not a run: it is a file, not a folder/],
      ['a folder of text', () => text, /is not a run: it has no config\.json/],
      [
        'another program’s config.json',
        () => {
          const foreign = join(root, 'foreign');
          mkdirSync(foreign);
          writeFileSync(join(foreign, 'config.json'), '{"model_type":"gpt2"}');
          return foreign;
        },
        /is not a run: it has no config\.json of a run/,
      ],
    ] as [string, () => string, RegExp][]
  ).map(([name, path, error]) => ({
    name,
    error,
    make: () => {
      const folder = path();
      const commands = [
        ['train', folder, '--resume'],
        ['generate', folder],
      ];
      return folder.endsWith('nothing') || folder === recipe
        ? { commands, absent: [join(root, 'nothing')] }
        : { commands, untouched: [folder] };
    },
  })),
  {
    name: 'a checkpoint that was never made',
    error: /has no checkpoint of step 3/,
    next: /choose from 2, 4, 6/,
    make: () => ({ commands: [['generate', run, '--step', '3']], untouched: [run] }),
  },
  {
    name: 'no checkpoint at all',
    error: /has no checkpoint to generate from/,
    next: /npx ansatz train .* --resume/,
    make: () => {
      const empty = copyOf(run);
      rmSync(join(empty, 'checkpoints'), { recursive: true });
      return { commands: [['generate', empty]], untouched: [empty] };
    },
  },
]);

refusals('output folders that are taken', 1, [
  {
    name: 'a run is never trained over, its data is not prepared anew',
    error: /already holds a run; nothing was changed/,
    next: /npx ansatz train .* --resume/,
    make: () => {
      const folder = copyOf(run);
      cpSync(data.folder, `${folder}-data`, { recursive: true });
      const commands = [
        ['train', recipe, '--data', text, '--out', folder],
        ['train', recipe, '--data', data.folder, '--out', folder],
      ];
      return { commands, untouched: [folder, `${folder}-data`] };
    },
  },
  {
    name: 'neither is a run replaced by a quickstart that did not make it',
    error: /is not empty and not a quickstart run; nothing was changed/,
    make: () => ({ commands: [['quickstart', '--folder', text, '--out', run]], untouched: [run] }),
  },
  {
    name: 'another folder',
    error: /is not empty and not a .*run; nothing was/,
    make: () => {
      const folder = copyOf(text);
      writeFileSync(join(folder, 'config.json'), '{"mine":true}');
      const commands = [
        ['train', recipe, '--data', data.folder, '--out', folder],
        ['quickstart', '--folder', text, '--seconds', '1', '--out', folder],
      ];
      return { commands, untouched: [folder], absent: [`${folder}-data`] };
    },
  },
  {
    name: 'another tokenizer.json',
    error: /holds a tokenizer\.json that is no prepared data set's; nothing was written/,
    make: () => {
      const folder = copyOf(text);
      writeFileSync(join(folder, 'tokenizer.json'), '{"mine":true}');
      return { commands: [['prepare', text, '--out', folder]], untouched: [folder] };
    },
  },
  {
    name: 'a file',
    error: /a-file\S*: /,
    make: () => {
      const place = join(root, 'files');
      mkdirSync(place);
      const file = join(place, 'a-file');
      writeFileSync(file, 'x');
      const commands = [
        ['prepare', text],
        ['train', recipe, '--data', data.folder],
        ['train', recipe, '--data', text],
        ['quickstart', '--folder', text],
      ].map((args) => [...args, '--out', file]);
      return { commands, untouched: [place] };
    },
  },
  {
    name: 'a run given as --data is no text',
    error: /is a run, not text to train on/,
    make: () => training([recipe, '--data', run], [run]),
  },
]);

// Root may write anywhere; then the command runs as another user, who must be able to read the checkout.
test('a folder that may not be written to', async (t) => {
  const uid = process.getuid?.() === 0 ? 65534 : undefined;
  if (uid !== undefined) {
    chmodSync(root, 0o755);
    const probe = spawnSync(process.execPath, ['-e', `fs.accessSync(${JSON.stringify(bin)})`], { uid, gid: uid });
    if (probe.status !== 0) return t.skip('another user cannot read this checkout');
  }
  const locked = join(root, 'locked');
  mkdirSync(locked);
  chmodSync(locked, 0o555);
  const out = join(locked, 'out');
  const how = { uid, env: { HOME: locked, TMPDIR: undefined } };
  const denied = /locked\/out.*(EACCES|permission denied)/;
  await refused(['prepare', text, '--out', out], denied, how);
  await refused(['train', recipe, '--data', data.folder, '--out', out], denied, how);
  await refused(['train', recipe, '--data', text, '--out', out], denied, how);
  assert.deepEqual(readdirSync(locked), []);
  const mine = copyOf(run);
  chmodSync(mine, 0o555);
  const before = contentsOf(mine);
  await refused(['train', mine, '--resume'], /(EACCES|permission denied)/, how);
  assert.deepEqual(contentsOf(mine), before);
  chmodSync(mine, 0o755);
});
