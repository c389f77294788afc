// Hugging Face folders that cannot be imported, runs that cannot be exported: one clear line, and nothing half-written.
import { cpSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe } from 'node:test';
import { refusals } from '../support/cli.ts';
import { decoders, madeRun, smallTokenizer, t5, toHf } from '../support/format-runs.ts';
import { editJson, editTensors, shard } from '../support/hf-edit.ts';
import { temporaryFolder } from '../support/tiny-data.ts';

const root = temporaryFolder('hf-malformed');
const good = join(root, 'good');
const sharded = join(root, 'sharded');
let count = 0;

before(async () => {
  const tokenizer = smallTokenizer();
  const spec = decoders['grouped heads, own head width, untied'];
  const run = await madeRun(join(root, 'run'), spec, { tokenizer });
  await toHf(run, good);
  cpSync(good, sharded, { recursive: true });
  await shard(sharded, 2);
  await madeRun(join(root, 't5'), t5, { tokenizer, objective: 'prefix-lm' });
  await madeRun(join(root, 'window'), { ...spec, attention: { kind: 'full', heads: 4, window: 8 } }, { tokenizer });
  await madeRun(join(root, 'gelu'), { ...spec, ffn: { kind: 'glu', hidden: 8, activation: 'gelu' } }, { tokenizer });
  // Changes that take time are made before the situations, which are made in one go.
  for (const [name, change] of Object.entries(tensorChanges)) {
    cpSync(good, join(root, name), { recursive: true });
    await editTensors(join(root, name), change);
  }
});

const tensorChanges: Record<string, Parameters<typeof editTensors>[1]> = {
  'tensor missing': (all) => all.filter((t) => t.name !== 'model.layers.1.mlp.up_proj.weight'),
  'tensor too many': (all) => [...all, { ...all[0], name: 'model.layers.2.input_layernorm.weight' }],
  'wrong shape': (all) => all.map((t) => (t.name === 'lm_head.weight' ? { ...t, shape: [...t.shape].reverse() } : t)),
};

/** A copy of a good folder with a change, to be imported. */
const importing =
  (change: (folder: string) => void, from = good) =>
  () => {
    const folder = join(root, `case-${count}`);
    const outer = join(root, `out-${count++}`);
    mkdirSync(outer);
    cpSync(from, folder, { recursive: true });
    change(folder);
    // Nothing may stay in the folder where the run would have been, not even a draft.
    return { commands: [['import', folder, '--out', join(outer, 'run')]], untouched: [outer, folder] };
  };
const header = (change: (bytes: Buffer) => Buffer) => (folder: string) => {
  const path = join(folder, 'model.safetensors');
  writeFileSync(path, change(readFileSync(path)));
};
const config = (changes: object) => (folder: string) => editJson(folder, 'config.json', (c) => ({ ...c, ...changes }));
const indexed = (change: (map: Record<string, unknown>) => object) => (folder: string) =>
  editJson(folder, 'model.safetensors.index.json', (i) => ({
    ...i,
    weight_map: change(i.weight_map as Record<string, unknown>),
  }));

describe('folders', () => {
  refusals('cannot be imported', 1, [
    {
      name: 'no such folder',
      error: /nowhere: there is no such folder/,
      make: () => ({
        commands: [['import', join(root, 'nowhere'), '--out', join(root, 'no')]],
        absent: [join(root, 'no')],
      }),
    },
    { name: 'no config', error: /config\.json: is missing/, make: importing((f) => rmSync(join(f, 'config.json'))) },
    {
      name: 'a config that is no JSON',
      error: /config\.json: is not a JSON object/,
      make: importing((f) => writeFileSync(join(f, 'config.json'), '{"a":')),
    },
    {
      name: 'no weights',
      error: /has no model\.safetensors/,
      make: importing((f) => rmSync(join(f, 'model.safetensors'))),
    },
    {
      name: 'pickled weights',
      error: /has no model\.safetensors, only pytorch_model\.bin/,
      next: /safetensors/,
      make: importing((f) => {
        rmSync(join(f, 'model.safetensors'));
        writeFileSync(join(f, 'pytorch_model.bin'), 'x');
      }),
    },
    {
      name: 'truncated weights',
      error: /ends at byte|truncated/,
      make: importing((f) => truncateSync(join(f, 'model.safetensors'), 20000)),
    },
    {
      name: 'an empty file',
      error: /has only 0 bytes/,
      make: importing((f) => truncateSync(join(f, 'model.safetensors'), 0)),
    },
    {
      name: 'an absurd header size',
      error: /declares a header of 18446744073709551615 bytes/,
      make: importing(header((b) => Buffer.concat([Buffer.alloc(8, 255), b.subarray(8)]))),
    },
    {
      name: 'a header longer than the file',
      error: /declares a header of 90000000 bytes but has/,
      make: importing(
        header((b) => {
          b.writeBigUInt64LE(90000000n);
          return b;
        }),
      ),
    },
    {
      name: 'a missing tensor',
      error: /no tensor "model\.layers\.1\.mlp\.up_proj\.weight"/,
      make: importing(() => {}, join(root, 'tensor missing')),
    },
    {
      name: 'a tensor too many',
      error: /a tensor "model\.layers\.2\.input_layernorm\.weight"/,
      make: importing(() => {}, join(root, 'tensor too many')),
    },
    {
      name: 'a wrong shape',
      error: /"lm_head\.weight" is \[48, \d+\], config\.json makes it \[\d+, 48\]/,
      make: importing(() => {}, join(root, 'wrong shape')),
    },
    {
      name: 'integer weights',
      error: /is I32; F32, F16 and BF16/,
      make: importing(header((b) => replaced(b, '"F32"', '"I32"'))),
    },
    {
      name: 'an unknown architecture',
      error: /"FalconForCausalLM" is not known/,
      next: /LlamaForCausalLM/,
      make: importing(config({ architectures: ['FalconForCausalLM'] })),
    },
    {
      name: 'an absurd size',
      error: /intermediate_size is 1e\+30/,
      make: importing(config({ intermediate_size: 1e30 })),
    },
    {
      name: 'absurdly many layers',
      error: /num_hidden_layers is 9999999, the weights are \d+ tensors/,
      make: importing(config({ num_hidden_layers: 9999999 })),
    },
    {
      name: 'no tokenizer',
      error: /tokenizer\.json: there is no such file/,
      make: importing((f) => rmSync(join(f, 'tokenizer.json'))),
    },
    {
      name: 'a tokenizer of another kind',
      error: /the model is "WordPiece"/,
      make: importing((f) => editJson(f, 'tokenizer.json', (t) => ({ ...t, model: { type: 'WordPiece', vocab: {} } }))),
    },
    {
      name: 'a tokenizer with more tokens than the model',
      error: /tokenizer\.json has \d+ tokens, the model only 300/,
      make: importing((f) => {
        editJson(f, 'config.json', (c) => ({ ...c, vocab_size: 300 }));
        editHeader(f, (h) => {
          for (const name of ['lm_head.weight', 'model.embed_tokens.weight']) h[name].shape = [300, 48];
        });
      }),
    },
    {
      name: 'a tokenizer without an end of text',
      error: /no end-of-text token/,
      make: importing((f) => editJson(f, 'tokenizer.json', (t) => ({ ...t, ...renamedEnd(t) }))),
    },
    {
      name: 'an index that leads outside',
      error: /"\.\.\/x\.safetensors" is not the name/,
      make: importing(
        indexed((m) => ({ ...m, a: '../x.safetensors' })),
        sharded,
      ),
    },
    {
      name: 'an index of a file that is not there',
      error: /model-9\.safetensors: cannot be opened/,
      make: importing(
        indexed((m) => ({ ...m, a: 'model-9.safetensors' })),
        sharded,
      ),
    },
    {
      name: 'an index that lies',
      error: /tensor "a" is not in/,
      make: importing(
        indexed((m) => ({ ...m, a: Object.values(m)[0] })),
        sharded,
      ),
    },
    {
      name: 'an index of nothing',
      error: /has no weight_map/,
      make: importing(
        indexed(() => ({})),
        sharded,
      ),
    },
    {
      name: 'where something is already',
      error: /exists already; nothing was written/,
      next: /--out/,
      make: () => ({ commands: [['import', good, '--out', join(root, 'run')]], untouched: [join(root, 'run')] }),
    },
  ]);
});

function replaced(bytes: Buffer, old: string, now: string): Buffer {
  return Buffer.from(bytes.toString('latin1').replace(old, now), 'latin1');
}

/** Changes the header and cuts the data down to what it then says; tensors stay in their order. */
function editHeader(folder: string, change: (header: Record<string, { shape: number[] }>) => void): void {
  const path = join(folder, 'model.safetensors');
  const all = readFileSync(path);
  const length = Number(all.readBigUInt64LE(0));
  const json = JSON.parse(all.toString('utf8', 8, 8 + length));
  change(json);
  const parts: Buffer[] = [];
  let at = 0;
  const entries = Object.entries<{ shape: number[]; data_offsets: number[] }>(json).filter(
    ([n]) => n !== '__metadata__',
  );
  for (const [, t] of entries.sort((a, b) => a[1].data_offsets[0] - b[1].data_offsets[0])) {
    const size = 4 * t.shape.reduce((a, b) => a * b, 1);
    const begin = 8 + length + t.data_offsets[0];
    parts.push(all.subarray(begin, begin + size));
    t.data_offsets = [at, at + size];
    at += size;
  }
  const text = Buffer.from(JSON.stringify(json));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([size, text, ...parts]));
}

function renamedEnd(tokenizer: Record<string, unknown>): object {
  return JSON.parse(JSON.stringify(tokenizer).replaceAll('<|endoftext|>', '<|other|>'));
}

describe('runs', () => {
  const exporting =
    (run: string, ...more: string[]) =>
    () => {
      const outer = join(root, `out-${count++}`);
      mkdirSync(outer);
      return { commands: [['export', join(root, run), '--out', join(outer, 'x'), ...more]], untouched: [outer] };
    };
  refusals('cannot be exported', 1, [
    { name: 'no run', error: /nothing: is not a run/, make: exporting('nothing', '--to', 'hf') },
    {
      name: 'a window',
      error: /this model cannot be exported: model\.attention\.window 8: GGUF's llama models see all tokens/,
      next: /set model\.attention\.window to 0/,
      make: exporting('window', '--to', 'gguf'),
    },
    { name: 'T5 as GGUF', error: /encoder-decoder.*GGUF/, next: /--to hf/, make: exporting('t5', '--to', 'gguf') },
    {
      name: 'another activation as GGUF',
      error: /activation 'gelu'/,
      next: /--to hf/,
      make: exporting('gelu', '--to', 'gguf'),
    },
    {
      name: 'where something is already',
      error: /good: exists already; nothing was written/,
      make: () => ({
        commands: [
          ['export', join(root, 'run'), '--to', 'hf', '--out', good],
          ['export', join(root, 'run'), '--to', 'gguf', '--out', good],
        ],
        untouched: [good],
      }),
    },
    {
      name: 'where nothing can be',
      error: /cannot be written|ENOTDIR|exists already/,
      make: () => ({
        commands: [['export', join(root, 'run'), '--to', 'gguf', '--out', join(good, 'config.json', 'x')]],
        untouched: [good],
      }),
    },
  ]);
});
