/** A run's weights as a Hugging Face folder or a GGUF file. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import { buildModel } from '../../model/model.ts';
import { baseNoteOf } from '../../train/base.ts';
import type { TrainConfig } from '../../train/config.ts';
import { withDifferences } from '../../train/lora.ts';
import { objectiveOf } from '../../train/objective.ts';
import type { Checkpoint } from '../../train/run/checkpoint.ts';
import { syncDirectory, writeDurable } from '../../train/run/files.ts';
import { type SafetensorsFile, type TensorSource, writeSafetensors } from '../../train/safetensors.ts';
import type { TensorFile } from '../../train/stored.ts';
import { type FileTensor, writeOut } from './blocks.ts';
import { type ChatFiles, chatFiles } from './chat-files.ts';
import { cannotSay, type DecoderFacts, factsOf } from './facts.ts';
import { HALF_MAX, toBfloats, toHalves } from './floats.ts';
import { blockOf, type GgufTensor, type GgufType, type GgufValue, writeGguf } from './gguf.ts';
import { ggufTokenizer } from './gguf-tokenizer.ts';
import { type HfType, huggingFaceConfig } from './hf-config.ts';
import { freePlace, madeWhole } from './place.ts';
import { codesAsQ8, hasCodes, type QuantisedFile, quantisedFile, quantisedNotes } from './quantised.ts';
import { ggufDecoder, ggufFamily, huggingFaceDecoder, huggingFaceT5, ropeFactors } from './tensors.ts';

export interface ExportOptions {
  readonly config: TrainConfig;
  readonly checkpoint: Checkpoint;
  readonly tokenizer: Tokenizer;
  /** The run's folder: files that came with an imported model are handed on. */
  readonly run: string;
  readonly out: string;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface ExportReport {
  readonly architecture: string;
  readonly bytes: number;
  readonly tensors: number;
  /** What a reader of the file will do otherwise than this program. */
  readonly notes: string[];
}

/** What an import noted of the model (import.ts). */
interface Origin {
  readonly decoderStart?: number;
}

const originOf = ({ state }: Checkpoint): Origin | undefined => state.imported as Origin | undefined;

/** Tokens that begin and end a text. */
function idsOf({ tokenizer, checkpoint }: ExportOptions): { bos: number; eos: number } {
  const [first] = tokenizer.template.before;
  return { bos: originOf(checkpoint)?.decoderStart ?? first ?? tokenizer.eot, eos: tokenizer.eot };
}

function notesOf(config: TrainConfig): string[] {
  const { shape } = objectiveOf(config);
  return shape.visible
    ? [`trained with objective ${config.objective.kind}, prompts see both ways here; other programs read them causally`]
    : [];
}

function checkHalf(values: Float32Array, name: string): Float32Array {
  for (const v of values)
    if (Math.abs(v) > HALF_MAX)
      throw new AnsatzError(`${name} has a value of ${v.toPrecision(3)}, too large for f16`, {
        hint: 'export with --type bf16 or f32',
      });
  return values;
}

export async function exportHuggingFace(o: ExportOptions, type: HfType): Promise<ExportReport> {
  const out = freePlace(o.out, 'folder');
  const facts = factsOf(o.config.model);
  const ids = idsOf(o);
  const json = huggingFaceConfig(facts, type, ids);
  const tensors = facts.family === 't5' ? huggingFaceT5(facts) : huggingFaceDecoder(facts);
  const { stored, source, quantised } = await weightsOf(o);
  try {
    const bytes = await madeWhole(out, async (draft) => {
      await mkdir(draft);
      let done = 0;
      const sources = tensors.map((t): TensorSource => {
        const data = async (): Promise<ArrayBufferView> => {
          const values = await writeOut(t, source);
          o.onProgress?.(++done, tensors.length);
          if (type === 'f32') return values;
          return type === 'f16' ? toHalves(checkHalf(values, t.name)) : toBfloats(values);
        };
        return { name: t.name, dtype: SAFE_TYPE[type], shape: t.shape, data };
      });
      const { bytes } = await writeSafetensors(join(draft, 'model.safetensors'), sources, { format: 'pt' });
      const write = (name: string, value: unknown): Promise<void> =>
        writeDurable(join(draft, name), `${JSON.stringify(value, null, 2)}\n`);
      await write('config.json', json);
      await write('generation_config.json', {
        bos_token_id: ids.bos,
        eos_token_id: endsOf(o.run, ids.eos),
        ...(facts.family === 't5' ? { decoder_start_token_id: ids.bos, pad_token_id: ids.bos } : {}),
      });
      o.tokenizer.save(join(draft, 'tokenizer.json'));
      await write('tokenizer_config.json', tokenizerConfig(o, ids, facts.family === 't5'));
      await syncDirectory(draft);
      return bytes;
    });
    const [architecture] = json.architectures as string[];
    const notes = [...notesOf(o.config), ...(quantised ? quantisedNotes(quantised, type) : [])];
    return { architecture, bytes, tensors: tensors.length, notes };
  } finally {
    await stored.close();
  }
}

/** A run's weights under the names of its parameters: those of a quantised one as the values that they stand for. */
async function weightsOf({ config, checkpoint }: ExportOptions): Promise<{
  stored: SafetensorsFile;
  source: TensorFile;
  quantised: QuantisedFile | null;
}> {
  if (baseNoteOf(checkpoint))
    throw new AnsatzError('this run adapts a quantised run: there is no file for it to be exported to', {
      hint: 'adapt the run that the quantised one was made from, and export that',
    });
  const stored = await checkpoint.tensors('model');
  const whole = withDifferences(stored, config.adapter);
  const quantised = quantisedFile(whole, buildModel(config.model));
  return { stored, source: quantised ?? whole, quantised };
}

const SAFE_TYPE = { f32: 'F32', f16: 'F16', bf16: 'BF16' } as const;

function tokenizerConfig(o: ExportOptions, ids: { bos: number; eos: number }, pads: boolean): object {
  const { templates, tokens } = chatOf(o.run);
  const named = [...templates].map(([name, template]) => ({ name, template }));
  return {
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: o.tokenizer.idToToken(ids.bos),
    eos_token: o.tokenizer.idToToken(ids.eos),
    ...(pads ? { pad_token: o.tokenizer.idToToken(ids.bos) } : {}),
    ...tokens,
    // Without it a tokenizer of this class also gives token_type_ids, and generate() refuses what its model does not know.
    model_input_names: ['input_ids', 'attention_mask'],
    model_max_length: o.config.model.context,
    clean_up_tokenization_spaces: false,
    ...(named.length > 0 && {
      chat_template: named.length === 1 && templates.has('default') ? named[0].template : named,
    }),
  };
}

/** The token that ends a text, or all of them where an imported model has several (of answers, of texts). */
function endsOf(run: string, eos: number): number | number[] {
  const { ends } = chatOf(run);
  return ends.length === 0 ? eos : ends.length === 1 ? ends[0] : [...ends];
}

/** How a model that was imported is talked to, if it said; an export does without what cannot be read. */
function chatOf(run: string): ChatFiles {
  try {
    return chatFiles(run);
  } catch (error) {
    if (error instanceof AnsatzError) return { templates: new Map(), tokens: {}, ends: [] };
    throw error;
  }
}

/** llama.cpp's numbers for the type that most weights have. */
const FILE_TYPE: Record<GgufType, number> = { f32: 0, f16: 1, q4_0: 2, q8_0: 7, bf16: 32 };

export async function exportGguf(o: ExportOptions, type: GgufType): Promise<ExportReport> {
  const out = freePlace(o.out, 'file');
  const facts = factsOf(o.config.model);
  if (facts.family === 't5')
    cannotSay(
      "model.layout 'encoder-decoder'",
      'no reader here can run a GGUF file of T5 to prove it right',
      'export it --to hf',
    );
  if (facts.activation !== 'silu')
    cannotSay(`model.ffn.activation '${facts.activation}'`, "GGUF's llama models have silu", 'export it --to hf');
  if (facts.window)
    cannotSay(
      `model.attention.window ${facts.window}`,
      "GGUF's llama models see all tokens",
      'export it --to hf, or set model.attention.window to 0',
    );
  if (facts.qkNorm && facts.attentionBias)
    cannotSay('model.attention.bias', "GGUF's qwen3 models have no biases", 'export it --to hf');
  const { metadata: tokens, notes } = ggufTokenizer(o.tokenizer, {
    vocab: facts.vocab,
    begins: originOf(o.checkpoint) === undefined,
    chatTemplate: chatOf(o.run).templates.get('default'),
  });
  const metadata = new Map([...modelMetadata(facts, o.config.name, type), ...tokens]);
  const tensors = ggufDecoder(facts);
  const { stored, source, quantised } = await weightsOf(o);
  let done = 0;
  const sources = tensors.map((t): GgufTensor => {
    const taken = quantised !== null && hasCodes(t, quantised);
    // What a quantised run has in full was too small for blocks, and stays so beside those that are taken over.
    const own = quantised && !taken && type === 'q8_0' ? 'f32' : typeOf(t, type);
    const data = async (): Promise<Float32Array | Uint8Array> => {
      if (taken && own === 'q8_0') {
        const codes = await codesAsQ8(t, quantised);
        o.onProgress?.(++done, tensors.length);
        return codes;
      }
      const values = t.name === 'rope_freqs.weight' ? ropeFactors(facts)!.values : await writeOut(t, source);
      o.onProgress?.(++done, tensors.length);
      // Scales of quantised blocks are halves too, and smaller than their weights.
      return own === 'f16' ? checkHalf(values, t.name) : values;
    };
    return { name: t.name, shape: t.shape, type: own, data };
  });
  const narrow = sources.filter((t, k) => t.type === 'f16' && type !== 'f16' && tensors[k].role !== 'other').length;
  try {
    const bytes = await madeWhole(out, (draft) => writeGguf(draft, metadata, sources));
    const kept = narrow ? [`${narrow} matrices have rows that are not whole blocks of 32: they are f16`] : [];
    const own = [...notesOf(o.config), ...(quantised ? quantisedNotes(quantised, type) : []), ...kept];
    return { architecture: ggufFamily(facts), bytes, tensors: sources.length, notes: [...own, ...notes] };
  } finally {
    await stored.close();
  }
}

/**
 * Vectors and routers stay f32. The output matrix has 8 bits where the rest has 4: its errors are the logits' own.
 * Matrices whose rows are not whole blocks are halves.
 */
function typeOf({ role, shape }: FileTensor, type: GgufType): GgufType {
  if (role === 'other') return 'f32';
  if (shape.at(-1)! % blockOf(type)) return 'f16';
  return type === 'q4_0' && role === 'output' ? 'q8_0' : type;
}

function modelMetadata(f: DecoderFacts, name: string, type: GgufType): [string, GgufValue][] {
  const family = ggufFamily(f);
  const u32 = (key: string, value: number): [string, GgufValue] => [`${family}.${key}`, { type: 'u32', value }];
  const f32 = (key: string, value: number): [string, GgufValue] => [`${family}.${key}`, { type: 'f32', value }];
  return [
    ['general.architecture', { type: 'string', value: family }],
    ['general.type', { type: 'string', value: 'model' }],
    ['general.name', { type: 'string', value: name }],
    ['general.file_type', { type: 'u32', value: FILE_TYPE[type] }],
    ['general.quantization_version', { type: 'u32', value: 2 }],
    u32('vocab_size', f.vocab),
    u32('context_length', f.context),
    u32('embedding_length', f.width),
    u32('block_count', f.depth),
    u32('feed_forward_length', f.hidden),
    u32('attention.head_count', f.heads),
    u32('attention.head_count_kv', f.kvHeads),
    u32('attention.key_length', f.headWidth),
    u32('attention.value_length', f.headWidth),
    f32('attention.layer_norm_rms_epsilon', f.eps),
    u32('rope.dimension_count', f.headWidth),
    ...ropeMetadata(f, u32, f32),
    ...(f.moe ? [u32('expert_count', f.moe.experts), u32('expert_used_count', f.moe.active)] : []),
  ];
}

type Entry = (key: string, value: number) => [string, GgufValue];

function ropeMetadata(f: DecoderFacts, u32: Entry, f32: Entry): [string, GgufValue][] {
  const { headWidth } = f;
  const { theta, scaling } = f.rope;
  if (!scaling || scaling.method === 'llama3') return [f32('rope.freq_base', theta)]; // llama3: rope_freqs.weight
  const { method, factor, trained, betaFast, betaSlow } = scaling;
  if (method === 'ntk') return [f32('rope.freq_base', theta * factor ** (headWidth / (headWidth - 2)))];
  const kind: [string, GgufValue] = [`${ggufFamily(f)}.rope.scaling.type`, { type: 'string', value: method }];
  const base = [f32('rope.freq_base', theta), kind, f32('rope.scaling.factor', factor)];
  if (method === 'linear') return base;
  return [
    ...base,
    u32('rope.scaling.original_context_length', trained),
    f32('rope.scaling.yarn_beta_fast', betaFast),
    f32('rope.scaling.yarn_beta_slow', betaSlow),
  ];
}
