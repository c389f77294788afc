// GGUF files of runs: what is in them, and that llama.cpp reads the same text and computes the same logits.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { quantiseQ4_0, quantiseQ8_0 } from '../../src/infer/formats/ggml-blocks.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { latestCheckpoint, saveCheckpoint } from '../../src/train/run/checkpoint.ts';
import type { RunFolder } from '../../src/train/run/folder.ts';
import type { TensorSource } from '../../src/train/safetensors.ts';
import {
  apart,
  decoders,
  madeRun,
  relativeError,
  runLogits,
  samples,
  smallTokenizer,
  toGguf,
} from '../support/format-runs.ts';
import { dequantised, readGguf } from '../support/gguf-read.ts';
import { llamaPeer, type PeerHandle, peerMissing } from '../support/llama-peer.ts';
import { checkout, temporaryFolder } from '../support/tiny-data.ts';

const root = temporaryFolder('gguf-runs');
const tokenizer = smallTokenizer();
const ids = Array.from({ length: 40 }, (_, k) => (k * 37 + 11) % tokenizer.vocabSize);
let count = 0;
const place = (): string => join(root, String(count++));
const types = ['f32', 'f16', 'bf16', 'q8_0', 'q4_0'] as const;
const numbers = { f32: 0, f16: 1, bf16: 30, q8_0: 8, q4_0: 2 };

type Spec = Omit<ModelSpecInput, 'vocab'>;
/** Every row is whole blocks of 32. */
const even: Spec = {
  ...{ context: 64, width: 64, depth: 2, tied: false },
  attention: { kind: 'full', heads: 4, kvHeads: 2 },
  ffn: { kind: 'glu', hidden: 96 },
};
const evenExperts: Spec = {
  ...even,
  ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 64 } },
};

describe('what is in a file', () => {
  test('types: vectors and routers f32, matrices as asked, the output with 8 bits at least', async () => {
    const run = await madeRun(place(), evenExperts, { tokenizer });
    for (const type of types) {
      const path = place();
      const { notes, bytes } = await toGguf(run, path, type);
      const file = readGguf(path);
      assert.deepEqual([notes, file.size], [[], bytes]);
      for (const { name, type: found } of file.tensors) {
        const wanted = /norm|gate_inp/.test(name) ? 0 : type === 'q4_0' && name === 'output.weight' ? 8 : numbers[type];
        assert.equal(found, wanted, name);
      }
      assert.equal(file.metadata.get('llama.expert_used_count'), 2);
    }
  });

  test('rows that are no whole blocks become halves, and are mentioned', async () => {
    const run = await madeRun(place(), decoders['grouped heads, own head width, untied'], { tokenizer });
    const path = place();
    const { notes } = await toGguf(run, path, 'q8_0');
    assert.match(notes.join(), /14 matrices have rows that are not whole blocks of 32: they are f16/);
    assert.equal(readGguf(path).tensors.find((t) => t.name === 'blk.0.ffn_down.weight')!.type, 1);
    assert.equal(readGguf(path).tensors.find((t) => t.name === 'blk.0.attn_output.weight')!.type, 8);
  });

  test('weights: queries and keys have their pairs side by side', async () => {
    const run = await madeRun(place(), even, { tokenizer });
    const path = place();
    await toGguf(run, path, 'f32');
    const file = await (await latestCheckpoint(run))!.tensors('model');
    const qkv = await file.readAs('blocks.1.attention.qkv', 'F32');
    const up = await file.readAs('blocks.1.ffn.up', 'F32');
    await file.close();
    const of = (name: string): number[] => {
      const t = readGguf(path).tensors.find((o) => o.name === `blk.1.${name}.weight`)!;
      return dequantised(t.type, t.bytes);
    };
    const row = (values: ArrayLike<number>, r: number): number[] => Array.from(values).slice(64 * r, 64 * (r + 1));
    // Head 2 of width 16: its dimensions 0 and 8 turn together, and lie at 0 and 1.
    assert.deepEqual(row(of('attn_q'), 32), row(qkv, 32));
    assert.deepEqual(row(of('attn_q'), 33), row(qkv, 40));
    assert.deepEqual(row(of('attn_k'), 17), row(qkv, 64 + 24));
    assert.deepEqual(row(of('attn_v'), 17), row(qkv, 96 + 17));
    assert.deepEqual(row(of('ffn_up'), 3), row(up, 96 + 3));
  });

  test('tokens, their kinds, and merges', async () => {
    const known = smallTokenizer('gpt2', ['<|endoftext|>', '<|hole|>']);
    const run = await madeRun(place(), { ...even, vocab: known.vocabSize + 3 } as Spec, { tokenizer: known });
    const path = place();
    await toGguf(run, path, 'f32');
    const { metadata } = readGguf(path);
    const get = (key: string): unknown => metadata.get(`tokenizer.ggml.${key}`);
    const tokens = get('tokens') as string[];
    assert.deepEqual([tokens.length, new Set(tokens).size], [known.vocabSize + 3, known.vocabSize + 3]);
    for (let id = 0; id < known.vocabSize; id++) assert.equal(tokens[id], known.idToToken(id));
    const kinds = get('token_type') as number[];
    assert.deepEqual([kinds[0], kinds[1], kinds[2], kinds.at(-1)], [3, 3, 1, 5]);
    assert.deepEqual([get('pre'), get('model'), get('eos_token_id'), get('add_bos_token')], ['gpt-2', 'gpt2', 0, true]);
    const model = known.toJSON().model as { merges: string[] };
    assert.deepEqual(get('merges'), model.merges);
  });

  test('a tokenizer whose rule has no name there is refused', async () => {
    const odd = Tokenizer.train(samples, { vocabSize: 300, pattern: '\\p{L}+|\\p{N}+|[^\\p{L}\\p{N}]+', threads: 1 });
    const run = await madeRun(place(), even, { tokenizer: odd });
    await assert.rejects(toGguf(run, place(), 'f32'), /its rule for cutting text has no name there/);
  });
});

/** A run whose matrices hold only values that a block format has: nothing is lost when they are written in it. */
async function snapped(run: RunFolder, type: 'q8_0' | 'q4_0'): Promise<RunFolder> {
  const { path, config } = await madeRun(place(), even, { tokenizer });
  assert.deepEqual(config, run.config);
  const file = await (await latestCheckpoint(run))!.tensors('model');
  const model: TensorSource[] = [];
  for (const name of file.names) {
    let values = await file.readAs(name, 'F32');
    const { shape } = file.info(name);
    if (shape.length > 1) {
      const eight = type === 'q8_0' || name === 'head.weight';
      const bytes = Buffer.from((eight ? quantiseQ8_0 : quantiseQ4_0)(values));
      values = Float32Array.from(dequantised(eight ? 8 : 2, bytes));
    }
    model.push({ name, dtype: 'F32', shape, data: () => values });
  }
  const { state } = (await latestCheckpoint(run))!;
  const other = (run.constructor as typeof RunFolder).open(path);
  await saveCheckpoint(other, 1, { tensors: { model }, state });
  await file.close();
  return other;
}

describe('llama.cpp', { skip: peerMissing }, () => {
  let peer: PeerHandle;
  before(async () => {
    peer = await llamaPeer();
  });
  after(() => peer?.close());

  async function theirs(run: RunFolder, type: (typeof types)[number]): Promise<number[][]> {
    const path = place();
    await toGguf(run, path, type);
    const model = await peer.load(path);
    const logits = await peer.logits(model, ids);
    await model.dispose();
    return logits;
  }

  for (const [name, spec] of Object.entries({
    ...decoders,
    'pairs side by side': { ...even, positions: { kind: 'rope', interleaved: true } } as Spec,
    'normalised queries, pairs side by side, muP factors': {
      ...decoders['normalised queries and keys'],
      positions: { kind: 'rope', interleaved: true },
      parametrisation: { kind: 'mup', baseWidth: 16, attention: 1.5 },
    } as Spec,
    'NTK-aware positions': {
      ...even,
      positions: { kind: 'rope-scaled', method: 'ntk', factor: 4, trained: 16 },
    } as Spec,
    'gates that do not sum to 1': evenExperts,
    'norms without scale': { ...even, norm: { kind: 'rms', scale: false } } as Spec,
  }))
    test(`logits of f32 weights: ${name}`, async () => {
      const run = await madeRun(place(), spec, { tokenizer });
      const error = apart(await theirs(run, 'f32'), await runLogits(run, ids));
      assert.ok(error < 1e-5, `${error}`);
    });

  test('logits of other types: as far off as their rounding', async () => {
    const run = await madeRun(place(), even, { tokenizer });
    const ours = await runLogits(run, ids);
    // Activations are rounded to halves, to 8 bits; random weights of so narrow a model average little.
    for (const [type, most] of [
      ['f16', 2e-3],
      ['bf16', 2e-2],
      ['q8_0', 4e-2],
      ['q4_0', 0.3],
    ] as const) {
      const error = relativeError(await theirs(run, type), ours);
      assert.ok(error < most && error > most / 50, `${type}: ${error}`);
    }
  });

  test('logits of weights that lose nothing in blocks: as far off as 8-bit activations', async () => {
    const run = await madeRun(place(), even, { tokenizer });
    for (const type of ['q8_0', 'q4_0'] as const) {
      const exact = await snapped(run, type);
      const error = relativeError(await theirs(exact, type), await runLogits(exact, ids));
      assert.ok(error < 0.03, `${type}: ${error}`);
    }
  });

  for (const pattern of ['cl100k', 'qwen2', 'gpt2'] as const)
    test(`text: the rule ${pattern}`, async () => {
      const documents = ['docs/kernels.md', 'src/nn/slots.ts', 'node_modules/zod/README.md'].map((f) =>
        readFileSync(join(checkout, f), 'utf8'),
      );
      const known = Tokenizer.train([...documents, ...samples, ...samples], { vocabSize: 1500, pattern, threads: 1 });
      const path = place();
      await toGguf(await madeRun(place(), even, { tokenizer: known }), path, 'f16');
      const model = await peer.load(path);
      for (const text of [...samples, ...documents]) {
        assert.deepEqual(
          [...model.tokenize(text, false)],
          [...known.encode(text, { special: 'text' })],
          text.slice(0, 60),
        );
        assert.deepEqual([...model.tokenize(text, true)], [...known.encode(text)], text.slice(0, 60));
      }
      const { bos, eos, shouldPrependBosToken } = model.tokens;
      assert.deepEqual([bos, eos, shouldPrependBosToken], [known.eot, known.eot, true]);
      await model.dispose();
    });
});
