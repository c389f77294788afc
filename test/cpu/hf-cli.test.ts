// From a trained run to other programs' files and back, by commands: text, loss and further training stay the same.
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { ansatz, type JsonLine, jsonLines, resultOf } from '../support/cli.ts';
import { readGguf } from '../support/gguf-read.ts';
import { type TinyData, temporaryFolder, tinyConfig, tinyData, writeText } from '../support/tiny-data.ts';

const root = temporaryFolder('hf-cli');
const run = join(root, 'run');
const again = join(root, 'again');
let data: TinyData;
let exported: JsonLine;
let imported: JsonLine;

async function result(command: string, ...args: string[]): Promise<JsonLine> {
  return resultOf(await ansatz([command, ...args, '--json']), command);
}

before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
  const recipe = join(root, 'recipe.json');
  writeFileSync(recipe, JSON.stringify(tinyConfig(data, { steps: 30 })));
  await result('train', recipe, '--data', data.folder, '--out', run);
  exported = await result('export', run, '--to', 'hf');
  imported = await result('import', `${run}-hf`, '--out', again);
});

test('what the commands say', () => {
  assert.deepEqual(
    [exported.out, exported.architecture, exported.type, exported.step],
    [`${run}-hf`, 'LlamaForCausalLM', 'f32', 30],
  );
  assert.deepEqual(readdirSync(`${run}-hf`).sort(), [
    ...['config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'],
  ]);
  assert.deepEqual([imported.architecture, imported.types, imported.context], ['LlamaForCausalLM', ['F32'], 32]);
  assert.deepEqual(readdirSync(again).sort(), [
    ...['checkpoints', 'config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json'],
  ]);
});

test('the same text', async () => {
  const of = (path: string) =>
    result('generate', path, '--prompt', 'function ', '--temperature', '0', '--max-tokens', '20');
  const [old, now] = [await of(run), await of(again)];
  assert.ok((old.completion as string).length > 5);
  assert.equal(now.completion, old.completion);
});

test('the same loss', async () => {
  const [old, now] = [await result('evaluate', run), await result('evaluate', again, '--data', data.folder)];
  assert.equal(now.loss, old.loss);
});

test('training goes on from it', async () => {
  const recipe = join(root, 'more.json');
  writeFileSync(recipe, JSON.stringify(tinyConfig(data, { steps: 2 })));
  const lines = jsonLines(
    await ansatz(['train', recipe, '--data', data.folder, '--out', join(root, 'more'), '--from', again, '--json']),
    'train',
  );
  const from = lines.find((l) => l.event === 'started-from')!;
  assert.deepEqual([from.fresh, from.unused, from.step], [[], [], 0]);
  const first = lines.find((l) => l.event === 'step')!;
  assert.ok((first.loss as number) < 5.5, `a trained model's loss: ${first.loss}`);
});

test('other text is prepared with its tokenizer, and trained on', async () => {
  const folder = join(root, 'other');
  const text = writeText(join(root, 'more-text'), 'usual');
  const prepared = await result('prepare', text, '--out', folder, '--tokenizer', again);
  assert.equal(prepared.vocab, data.prepared.tokenizer.vocabSize);
  assert.deepEqual(tokensOf(folder), tokensOf(again));
  const recipe = join(root, 'other.json');
  writeFileSync(recipe, JSON.stringify(tinyConfig(data, { steps: 2 })));
  const out = join(root, 'other-run');
  await result('train', recipe, '--data', folder, '--out', out, '--from', again);
  const { code, stderr } = await ansatz([
    'prepare',
    text,
    '--out',
    join(root, 'no'),
    '--tokenizer',
    join(root, 'nothing'),
  ]);
  assert.equal(code, 1);
  assert.match(stderr, /cannot read the tokenizer .*nothing: there is no such file/);
  assert.equal(existsSync(join(root, 'no')), false);
});

const tokensOf = (folder: string): unknown => JSON.parse(readFileSync(join(folder, 'tokenizer.json'), 'utf8'));

test('what came from elsewhere does not go on as if it had been trained here', async () => {
  const { code, stderr } = await ansatz(['train', again, '--resume']);
  assert.equal(code, 1);
  assert.match(stderr, /^error: .*\n {2}next: .*\n$/);
  assert.doesNotMatch(stderr, /unexpected/);
});

test('GGUF, beside the run and by name', async () => {
  const beside = await result('export', run, '--to', 'gguf', '--type', 'q8_0');
  assert.equal(beside.out, `${run}.q8_0.gguf`);
  assert.equal(readGguf(`${run}.q8_0.gguf`).size, beside.bytes);
  const [own, first] = [join(root, 'own.gguf'), readdirSync(join(run, 'checkpoints'))[0]];
  const named = await result('export', run, '--to', 'gguf', '--out', own, '--step', String(Number(first)));
  assert.deepEqual([named.type, named.architecture], ['f16', 'llama']);
  assert.ok(existsSync(own));
  // An imported model does not begin texts with the end of another, unless its tokenizer says so.
  await result('export', again, '--to', 'gguf', '--out', join(root, 'again.gguf'));
  const begins = (path: string) => readGguf(path).metadata.get('tokenizer.ggml.add_bos_token');
  assert.deepEqual([begins(own), begins(join(root, 'again.gguf'))], [true, false]);
});
