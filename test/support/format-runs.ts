// Runs with weights drawn at random, and what their models make of tokens: for tests of exported and imported files.
import { join } from 'node:path';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { tokenizerHash } from '../../src/data/prepare.ts';
import { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { type ExportOptions, exportGguf, exportHuggingFace } from '../../src/infer/formats/export.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { disposeTree, flatten, forwardContext } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import type { JsonObject } from '../../src/train/run/canonical.ts';
import { latestCheckpoint, saveCheckpoint } from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { loadModel, tensorSource } from '../../src/train/session.ts';
import { perturbedParams } from './small-models.ts';

export const cpu = new CpuDevice();

/** A few kinds of everything: words, digits, contractions, spaces, line ends, other scripts, and control tokens. */
export const samples = [
  'The quick brown fox jumps over the lazy dog.',
  "I'll say it's 12345 o'clock; DON'T you've 1,000.50?  Two  spaces\tand tabs",
  'function run(options) {\n  return options.value;\r\n}\n\n\n// end   \n',
  'naïve café — déjà vu … “quotes” ‘single’ №5 ½ ²³',
  'Привет мир! 你好，世界。こんにちは 안녕하세요 שלום नमस्ते',
  'emoji 😀👩‍👩‍👧 and 𝒳 math, a\u00a0nbsp, zero\u200bwidth',
  '   leading and trailing   ',
  '<|endoftext|> in a text',
  '',
];

/** A small tokenizer that knows some words. */
export const smallTokenizer = (
  pattern: 'cl100k' | 'qwen2' | 'gpt2' = 'cl100k',
  specials = ['<|endoftext|>'],
): Tokenizer =>
  Tokenizer.train(
    samples.flatMap((s) => [s, s, s]),
    { vocabSize: 380, specials, pattern, threads: 1 },
  );

/** A tokenizer.json of T5's form: Unigram pieces, a space as U+2581, </s> after every text. */
export function smallPieces(): object {
  const special = (id: number, content: string) => ({
    ...{ id, content, special: true, normalized: false, single_word: false, lstrip: false, rstrip: false },
  });
  return {
    added_tokens: [special(0, '<pad>'), special(1, '</s>'), special(2, '<unk>')],
    normalizer: null,
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ Sequence: { id: 'A', type_id: 0 } }, { SpecialToken: { id: '</s>', type_id: 0 } }],
      special_tokens: { '</s>': { id: '</s>', ids: [1], tokens: ['</s>'] } },
    },
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
    model: {
      ...{ type: 'Unigram', unk_id: 2 },
      vocab: [
        ...['<pad>', '</s>', '<unk>'].map((piece) => [piece, 0]),
        ...['▁', '▁to', '▁be', '▁or', '▁not', ...'abcdefghijklmnopqrstuvwxyz.,'].map((piece) => [piece, -piece.length]),
      ],
    },
  };
}

/** A run of a model with random weights, none of them special. */
export async function madeRun(
  folder: string,
  model: Omit<ModelSpecInput, 'vocab'> & { vocab?: number },
  o: { tokenizer?: Tokenizer; objective?: string; seed?: string } = {},
): Promise<RunFolder> {
  const { tokenizer = smallTokenizer(), objective = 'causal', seed } = o;
  const config = parseTrainConfig({
    name: 'made',
    model: { vocab: tokenizer.vocabSize, ...model },
    data: { folder: 'none' },
    objective,
    precision: 'f32',
    steps: 1,
  });
  const run = await RunFolder.create(folder, config as unknown as JsonObject);
  tokenizer.save(join(folder, 'tokenizer.json'));
  const params = perturbedParams(buildModel(config.model), cpu, seed);
  await saveCheckpoint(run, 0, {
    tensors: { model: flatten(params).map((p) => tensorSource(p.path, p.tensor)) },
    state: { step: 0, tokenizer: tokenizerHash(tokenizer) },
  });
  disposeTree(params);
  return run;
}

/** What a command would hand to the exporters. */
export async function exporting(run: RunFolder, out: string): Promise<ExportOptions> {
  return {
    config: parseTrainConfig(run.config),
    checkpoint: (await latestCheckpoint(run))!,
    tokenizer: Tokenizer.fromFile(join(run.path, 'tokenizer.json')),
    run: run.path,
    out,
  };
}

export const toHf = async (run: RunFolder, out: string, type: 'f32' | 'f16' | 'bf16' = 'f32') =>
  exportHuggingFace(await exporting(run, out), type);
export const toGguf = async (run: RunFolder, out: string, type: Parameters<typeof exportGguf>[1]) =>
  exportGguf(await exporting(run, out), type);

/** Logits [T][V] of a run's model in f32; with `given`, of its decoder over what the encoder reads. */
export async function runLogits(
  run: RunFolder,
  ids: readonly number[],
  given?: readonly number[],
): Promise<number[][]> {
  const { model, params, device } = await loadModel(run.config, (await latestCheckpoint(run))!);
  model.prepare(device);
  const flat = scope(() =>
    noGrad(() => {
      const row = (values: readonly number[]): Tensor => Tensor.from(device, values, [1, values.length], 'i32');
      const all = (n: number, value: number): Tensor => row(Array.from({ length: n }, () => value));
      const encoder = given && {
        inputs: row(given),
        segments: all(given.length, 1),
        positions: row(given.map((_, k) => k)),
      };
      const batch = { inputs: row(ids), segments: given ? all(ids.length, 1) : null, positions: null, encoder };
      const c = forwardContext({ device, compute: 'f32' });
      return model.logits(params, model.hidden(params, batch, c), c).dataSync();
    }),
  );
  disposeTree(params);
  const vocab = flat.length / ids.length;
  return ids.map((_, t) => Array.from(flat.slice(t * vocab, (t + 1) * vocab)));
}

/** Largest difference over the largest value. */
export function apart(a: readonly number[][], b: readonly number[][]): number {
  const most = Math.max(...b.flat().map(Math.abs));
  return Math.max(...a.flatMap((row, t) => row.map((x, k) => Math.abs(x - b[t][k])))) / most;
}

/** Root mean square of the differences over that of the values. */
export function relativeError(a: readonly number[][], b: readonly number[][]): number {
  const square = (x: readonly number[]): number => x.reduce((s, v) => s + v * v, 0);
  const difference = a.flatMap((row, t) => row.map((x, k) => x - b[t][k]));
  return Math.sqrt(square(difference) / square(b.flat()));
}

/** Decoders of every kind that Hugging Face's Llama and Mixtral can say. */
export const decoders: Record<string, Omit<ModelSpecInput, 'vocab'>> = {
  'grouped heads, own head width, untied': {
    ...{ context: 64, width: 48, depth: 2, tied: false },
    attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 16 },
    ffn: { kind: 'glu', hidden: 80 },
  },
  'tied, one head a group, theta 500000': {
    ...{ context: 64, width: 32, depth: 3 },
    attention: { kind: 'full', heads: 4 },
    ffn: { kind: 'glu', hidden: 64 },
    positions: { kind: 'rope', theta: 500000 },
    norm: { kind: 'rms', eps: 1e-5 },
  },
  'biases everywhere': {
    ...{ context: 64, width: 32, depth: 2, tied: false },
    attention: { kind: 'full', heads: 2, kvHeads: 1, bias: true },
    ffn: { kind: 'glu', hidden: 48, bias: true },
  },
  yarn: {
    ...{ context: 64, width: 32, depth: 2 },
    attention: { kind: 'full', heads: 2 },
    ffn: { kind: 'glu', hidden: 48 },
    positions: { kind: 'rope-scaled', method: 'yarn', factor: 4, trained: 16 },
  },
  'llama3 scaling': {
    ...{ context: 64, width: 32, depth: 2 },
    attention: { kind: 'full', heads: 2 },
    ffn: { kind: 'glu', hidden: 48 },
    positions: { kind: 'rope-scaled', method: 'llama3', factor: 8, trained: 32, betaFast: 4, betaSlow: 1 },
  },
  'linear scaling': {
    ...{ context: 64, width: 32, depth: 2 },
    attention: { kind: 'full', heads: 2 },
    ffn: { kind: 'glu', hidden: 48 },
    positions: { kind: 'rope-scaled', method: 'linear', factor: 2, trained: 32 },
  },
  'normalised queries and keys': {
    ...{ context: 64, width: 48, depth: 2 },
    attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 16, qkNorm: 1e-6 },
    ffn: { kind: 'glu', hidden: 80 },
  },
  'mixture of experts': {
    ...{ context: 64, width: 32, depth: 2, tied: false },
    attention: { kind: 'full', heads: 4, kvHeads: 2 },
    ffn: { kind: 'moe', experts: 6, active: 2, gateScale: 1, expert: { kind: 'glu', hidden: 32 } },
  },
};

export const t5: Omit<ModelSpecInput, 'vocab'> = {
  layout: { kind: 'encoder-decoder', encoderDepth: 3, encoderPositions: { kind: 't5-bias', bidirectional: true } },
  ...{ context: 96, width: 48, depth: 2, tied: false },
  attention: { kind: 'full', heads: 3, headWidth: 16 },
  ffn: { kind: 'glu', hidden: 56, activation: 'gelu' },
  positions: { kind: 't5-bias' },
};
