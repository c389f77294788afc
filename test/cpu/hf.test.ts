// Hugging Face folders: what is written computes what the run computes, by an independent float64 reader; what is read
// is bit for bit what was written.
import assert from 'node:assert/strict';
import { cpSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { chatFiles } from '../../src/infer/formats/chat-files.ts';
import { importHuggingFace } from '../../src/infer/formats/import.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { latestCheckpoint } from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { ansatz, resultOf } from '../support/cli.ts';
import {
  apart,
  decoders,
  madeRun,
  runLogits,
  samples,
  smallPieces,
  smallTokenizer,
  t5,
  toGguf,
  toHf,
} from '../support/format-runs.ts';
import { editJson, editTensors, shard, tensorsIn } from '../support/hf-edit.ts';
import { decoderLogits, readHf, t5Logits } from '../support/hf-reference.ts';
import { temporaryFolder } from '../support/tiny-data.ts';

const root = temporaryFolder('hf');
const tokenizer = smallTokenizer();
const ids = Array.from({ length: 40 }, (_, k) => (k * 37 + 11) % tokenizer.vocabSize);
const given = Array.from({ length: 90 }, (_, k) => (k * 31 + 5) % tokenizer.vocabSize);
let count = 0;
const place = (): string => join(root, String(count++));

type Spec = Omit<ModelSpecInput, 'vocab'>;

/** All tensors of a run's newest checkpoint. */
async function weightsOf(run: RunFolder): Promise<Map<string, Float32Array>> {
  const file = await (await latestCheckpoint(run))!.tensors('model');
  const all = new Map<string, Float32Array>();
  for (const name of file.names) all.set(name, await file.readAs(name, 'F32'));
  await file.close();
  return all;
}

async function imported(folder: string, context?: number): Promise<RunFolder> {
  const out = place();
  await importHuggingFace({ folder, out, context });
  return RunFolder.open(out);
}

async function exported(spec: Spec, objective?: string): Promise<{ run: RunFolder; hf: string }> {
  const run = await madeRun(place(), spec, { tokenizer, objective });
  const hf = place();
  await toHf(run, hf);
  return { run, hf };
}

async function roundTrip(run: RunFolder, hf: string, read?: readonly number[]): Promise<void> {
  const again = await imported(hf);
  const [old, now] = [await weightsOf(run), await weightsOf(again)];
  assert.ok(old.size > 10);
  // Counts of experts' loads belong to training.
  for (const [name, values] of old) if (!/oad$/.test(name)) assert.deepEqual(now.get(name), values, name);
  assert.deepEqual(await runLogits(again, ids, read), await runLogits(run, ids, read));
  const theirs = Tokenizer.fromFile(join(again.path, 'tokenizer.json'));
  for (const text of samples) assert.deepEqual(theirs.encode(text), tokenizer.encode(text));
}

describe('decoders', () => {
  for (const [name, spec] of Object.entries(decoders))
    test(name, async () => {
      const { run, hf } = await exported(spec);
      const error = apart(await runLogits(run, ids), decoderLogits(readHf(hf), ids));
      assert.ok(error < 1e-4, `${error}`);
      await roundTrip(run, hf);
    });
});

describe('what ours has and theirs has not goes into the weights', () => {
  const dense = decoders['grouped heads, own head width, untied'];
  const tied = decoders['tied, one head a group, theta 500000'];
  const moe = decoders['mixture of experts'];
  const normalised = decoders['normalised queries and keys'];
  const mup = { kind: 'mup', baseWidth: 16, baseDepth: 1, embedding: 2, output: 0.7, attention: 1.5 };
  const cases: Record<string, Spec> = {
    'pairs side by side': { ...dense, positions: { kind: 'rope', interleaved: true } },
    'pairs side by side, with biases': {
      ...decoders['biases everywhere'],
      positions: { kind: 'rope', interleaved: true },
    },
    'NTK-aware positions': { ...dense, positions: { kind: 'rope-scaled', method: 'ntk', factor: 4, trained: 16 } },
    'norms without scale': { ...dense, norm: { kind: 'rms', scale: false } },
    'muP factors': { ...dense, parametrisation: mup },
    'muP factors, tied': { ...tied, parametrisation: mup },
    'gates that do not sum to 1': { ...moe, ffn: { ...(moe.ffn as object), kind: 'moe', gateScale: 1.7, active: 3 } },
    'other activations': { ...dense, ffn: { kind: 'glu', hidden: 48, activation: 'gelu' } },
    'normalised queries, pairs side by side, muP factors': {
      ...{ ...normalised, positions: { kind: 'rope', interleaved: true }, parametrisation: mup },
    },
    'a window': { ...dense, attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 16, window: 7 } },
    'more rows than tokens': { ...dense, vocab: tokenizer.vocabSize + 5 } as Spec,
  };
  for (const [name, spec] of Object.entries(cases))
    test(name, async () => {
      const { run, hf } = await exported(spec);
      const ours = await runLogits(run, ids);
      const error = apart(ours, decoderLogits(readHf(hf), ids));
      assert.ok(error < 1e-4, `written: ${error}`);
      const back = apart(await runLogits(await imported(hf), ids), ours);
      assert.ok(back < 1e-4, `read again: ${back}`);
    });
});

test('rows of the vocabulary that are no tokens are never drawn', async () => {
  const dense = decoders['grouped heads, own head width, untied'];
  const run = await madeRun(place(), { ...dense, vocab: tokenizer.vocabSize + 900 } as Spec, { tokenizer });
  const args = ['--prompt', 'to be', '--temperature', '3', '--top-k', '0', '--max-tokens', '40', '--json'];
  const shown = resultOf(await ansatz(['generate', run.path, ...args]), 'generate');
  assert.ok((shown.completion as string).length > 5);
});

describe('T5', () => {
  for (const [name, changes] of Object.entries({
    'gated tanh gelu': {},
    'plain relu, tied here': { ffn: { kind: 'mlp', hidden: 40, activation: 'relu' }, tied: true },
    'head width 12, encoder of one block': {
      attention: { kind: 'full', heads: 2, headWidth: 12 },
      layout: { kind: 'encoder-decoder', encoderDepth: 1 },
    },
  } as Record<string, Partial<Spec>>))
    test(name, async () => {
      const { run, hf } = await exported({ ...t5, ...changes }, 'prefix-lm');
      const ours = await runLogits(run, ids, given);
      const error = apart(ours, t5Logits(readHf(hf), given, ids));
      assert.ok(error < 1e-4, `written: ${error}`);
      const back = apart(await runLogits(await imported(hf), ids, given), ours);
      assert.ok(back < 1e-5, `read again: ${back}`);
      // sqrt(16) is a power of two: the queries' factor costs no bit.
      if (name === 'gated tanh gelu') await roundTrip(run, hf, given);
    });

  test('the token that decoders begin with, a tokenizer of pieces: text is generated, and both go out again', async () => {
    const known = Tokenizer.fromJSON(smallPieces());
    const run = await madeRun(place(), t5, { tokenizer: known, objective: 'prefix-lm' });
    const hf = place();
    await toHf(run, hf);
    editJson(hf, 'config.json', (c) => ({ ...c, decoder_start_token_id: 0, pad_token_id: 0, eos_token_id: 1 }));
    const again = await imported(hf);
    assert.deepEqual(again.config.objective, {
      ...{ kind: 'prefix-lm', share: 1, bidirectional: true, closed: true, start: '<pad>' },
    });
    const shown = resultOf(await ansatz(['generate', again.path, '--prompt', 'to be', '--json']), 'generate');
    assert.equal(typeof shown.completion, 'string');
    const out = place();
    await toHf(again, out);
    const { config } = readHf(out);
    assert.deepEqual([config.decoder_start_token_id, config.pad_token_id, config.eos_token_id], [0, 0, 1]);
    await assert.rejects(toGguf(again, place(), 'f32'), /cannot be exported: model\.layout 'encoder-decoder'/);
  });

  test('the first release: tied, with logits over sqrt(d)', async () => {
    const { hf } = await exported({ ...t5, ffn: { kind: 'mlp', hidden: 40, activation: 'relu' } }, 'prefix-lm');
    editJson(hf, 'config.json', ({ tie_word_embeddings: _, ...rest }) => rest);
    await editTensors(hf, (all) => all.filter((t) => t.name !== 'lm_head.weight'));
    const model = readHf(hf);
    const wanted = t5Logits({ ...model, config: { ...model.config, tie_word_embeddings: true } }, given, ids);
    const error = apart(await runLogits(await imported(hf), ids, given), wanted);
    assert.ok(error < 1e-4, `${error}`);
  });
});

describe('folders of others', () => {
  let hf: string;
  let run: RunFolder;
  const copy = (): string => {
    const to = place();
    cpSync(hf, to, { recursive: true });
    return to;
  };
  const agrees = async (folder: string, logits = decoderLogits(readHf(folder), ids)): Promise<void> => {
    const error = apart(await runLogits(await imported(folder), ids), logits);
    assert.ok(error < 1e-4, `${error}`);
  };

  before(async () => {
    ({ hf, run } = await exported(decoders['biases everywhere']));
    editJson(hf, 'config.json', (c) => ({ ...c, mlp_bias: false }));
    await editTensors(hf, (all) => all.filter((t) => !/mlp.*bias/.test(t.name)));
  });

  test('bf16 and f16 weights are read exactly', async () => {
    for (const dtype of ['BF16', 'F16'] as const) {
      const folder = copy();
      await editTensors(folder, (all) => all.map((t) => ({ ...t, dtype })));
      const again = await imported(folder);
      const theirs = new Map(tensorsIn(folder).map((t) => [t.name, t]));
      const ours = (await weightsOf(again)).get('blocks.1.attention.out')!;
      assert.equal(theirs.get('model.layers.1.self_attn.o_proj.weight')!.dtype, dtype);
      assert.deepEqual(ours, theirs.get('model.layers.1.self_attn.o_proj.weight')!.values);
      await agrees(folder);
      assert.equal(again.config.precision, 'bf16');
    }
  });

  test('weights in several files', async () => {
    const folder = copy();
    const wanted = decoderLogits(readHf(hf), ids);
    await shard(folder, 3);
    assert.equal(readdirSync(folder).includes('model.safetensors'), false);
    await agrees(folder, wanted);
  });

  test('Qwen2: biases on queries, keys and values, none on the output', async () => {
    const folder = copy();
    editJson(folder, 'config.json', ({ attention_bias: _, ...c }) => ({ ...c, architectures: ['Qwen2ForCausalLM'] }));
    await editTensors(folder, (all) => all.filter((t) => !/o_proj\.bias$/.test(t.name)));
    await agrees(folder);
    const bias = (await weightsOf(await imported(folder))).get('blocks.0.attention.outBias')!;
    assert.deepEqual([...bias], new Array(32).fill(0));
  });

  test('Mistral: a window', async () => {
    const folder = copy();
    editJson(folder, 'config.json', ({ attention_bias: _, ...c }) => ({
      ...{ ...c, architectures: ['MistralForCausalLM'], sliding_window: 7 },
    }));
    await editTensors(folder, (all) => all.filter((t) => !/self_attn.*bias$/.test(t.name)));
    const all = decoderLogits({ ...readHf(folder), config: { ...readHf(folder).config, sliding_window: null } }, ids);
    assert.ok(apart(decoderLogits(readHf(folder), ids), all) > 0.01, 'the window is seen');
    await agrees(folder);
  });

  test('what holds nothing may be there; a tied output matrix may be repeated', async () => {
    const { hf: tied } = await exported(decoders['tied, one head a group, theta 500000']);
    const wanted = decoderLogits(readHf(tied), ids);
    await editTensors(tied, (all) => [
      ...all,
      { ...all.find((t) => t.name === 'model.embed_tokens.weight')!, name: 'lm_head.weight' },
      { name: 'model.layers.0.self_attn.rotary_emb.inv_freq', shape: [4], values: new Float32Array(4), dtype: 'F32' },
    ]);
    await agrees(tied, wanted);
  });

  test('files that say how to talk to it come along, and go out again', async () => {
    const folder = copy();
    editJson(folder, 'tokenizer_config.json', (c) => ({ ...c, chat_template: '{{ messages }}' }));
    const again = await imported(folder);
    const out = place();
    await toHf(again, out);
    editJson(out, 'tokenizer_config.json', (c) => {
      assert.equal(c.chat_template, '{{ messages }}');
      assert.equal(c.eos_token, '<|endoftext|>');
      assert.deepEqual(c.model_input_names, ['input_ids', 'attention_mask'], 'generate() takes no token_type_ids');
      return c;
    });
  });

  test('what ends a text: from generation_config.json, or where it says nothing from config.json', async () => {
    const folder = copy();
    const ends = (run: RunFolder): readonly number[] => chatFiles(run.path).ends;
    editJson(folder, 'config.json', (c) => ({ ...c, eos_token_id: [5, 6, 1 << 20] }));
    assert.deepEqual(ends(await imported(folder)), [tokenizer.eot]);
    editJson(folder, 'generation_config.json', () => ({ temperature: 0.6 }));
    const run = await imported(folder);
    assert.deepEqual(ends(run), [5, 6]);
    const out = place();
    await toHf(run, out);
    editJson(out, 'generation_config.json', (c) => {
      assert.deepEqual(c.eos_token_id, [5, 6]);
      return c;
    });
    rmSync(join(folder, 'generation_config.json'));
    assert.deepEqual(ends(await imported(folder)), [5, 6]);
  });

  test('a shorter context', async () => {
    const again = await imported(hf, 48);
    assert.equal((again.config.model as { context: number }).context, 48);
    assert.ok(apart(await runLogits(again, ids), decoderLogits(readHf(hf), ids)) < 1e-4);
    await assert.rejects(imported(hf, 65), /made for 64 tokens, not 65/);
  });

  test('halves: rounded on the way out, exact on the way back; what is too large is refused', async () => {
    const out = place();
    await toHf(run, out, 'f16');
    const again = await imported(out);
    assert.ok(apart(await runLogits(again, ids), await runLogits(run, ids)) < 5e-3);
    await editTensors(hf, (all) =>
      all.map((t) => (t.name === 'model.norm.weight' ? { ...t, values: t.values.map((v) => v * 1e6) } : t)),
    );
    const large = await imported(hf);
    const never = place();
    await assert.rejects(toHf(large, never, 'f16'), /model\.norm\.weight has a value of .*e\+6|too large for f16/);
    assert.equal(
      readdirSync(root).some((f) => f.startsWith(`${never.split('/').at(-1)}.`)),
      false,
      'no draft stays',
    );
    await toHf(large, never, 'bf16');
  });
});
