/** A ModelSpec from a Hugging Face config.json. What our parts cannot do is refused with the field that asks for it. */
import { AnsatzError } from '../../backend/errors.ts';
import { type ModelSpec, type ModelSpecInput, parseSpec } from '../../model/spec.ts';
import type { FileTensor } from './blocks.ts';
import { type DecoderFacts, factsOf, type T5Facts } from './facts.ts';
import type { Json } from './hf-config.ts';
import { huggingFaceDecoder, huggingFaceT5 } from './tensors.ts';

export interface Imported {
  readonly architecture: string;
  readonly spec: ModelSpec;
  readonly tensors: FileTensor[];
  /** Tensors that the file may have besides, which hold nothing of their own. */
  readonly idle: RegExp;
}

/** Fields of a config, checked as they are read. */
class Fields {
  readonly json: Json;
  private readonly path: string;

  constructor(json: Json, path: string) {
    this.json = json;
    this.path = path;
  }

  fail(what: string, hint?: string): never {
    throw new AnsatzError(`${this.path}: ${what}`, { hint: hint ?? 'docs/export.md says what can be imported' });
  }

  /** A whole number within reason: sizes of a damaged file must not become allocations. */
  size(name: string, fallback?: number): number {
    const value = this.json[name] ?? fallback;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > 1 << 24)
      this.fail(`${name} is ${shown(value)}, not a whole number from 1 to ${1 << 24}`);
    return value;
  }

  positive(name: string, fallback: number, from: Json = this.json): number {
    const value = from[name] ?? fallback;
    if (typeof value !== 'number' || !(value > 0) || !Number.isFinite(value))
      this.fail(`${name} is ${shown(value)}, not a positive number`);
    return value;
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.json[name] ?? fallback;
    if (typeof value !== 'boolean') this.fail(`${name} is ${shown(value)}, not true or false`);
    return value;
  }

  object(name: string): Json | null {
    const value = this.json[name];
    if (value === undefined || value === null) return null;
    if (typeof value !== 'object' || Array.isArray(value)) this.fail(`${name} is ${shown(value)}, not an object`);
    return value as Json;
  }
}

const shown = (value: unknown): string => (JSON.stringify(value) ?? 'missing').slice(0, 60);

const DECODERS = [
  'LlamaForCausalLM',
  'MistralForCausalLM',
  'Qwen2ForCausalLM',
  'Qwen3ForCausalLM',
  'MixtralForCausalLM',
];
/** Of these, layers have windows only where the config says so. */
const QWEN = ['Qwen2ForCausalLM', 'Qwen3ForCausalLM'];

const GATED: Readonly<Record<string, string>> = {
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu_erf',
  gelu_new: 'gelu',
  gelu_pytorch_tanh: 'gelu',
  gelu_fast: 'gelu',
  relu: 'relu',
  sigmoid: 'sigmoid',
  linear: 'identity',
};
const PLAIN: Readonly<Record<string, string>> = { relu: 'relu', gelu: 'gelu_erf', gelu_new: 'gelu', silu: 'silu' };

const named = (table: Readonly<Record<string, string>>, name: unknown): string | undefined =>
  typeof name === 'string' && Object.hasOwn(table, name) ? table[name] : undefined;

/** What old versions of transformers saved along with the weights; and the copy of a tied output matrix. */
const IDLE = /rotary_emb\.inv_freq$|\.masked_bias$/;
const IDLE_TIED = /rotary_emb\.inv_freq$|\.masked_bias$|^lm_head\.weight$/;

/**
 * @param path for messages
 * @param most tensors that the files hold: a config that speaks of more layers than that is damaged
 * @throws AnsatzError when the model is of no kind that we have
 */
export function importedSpec(json: Json, path: string, o: { most: number; context?: number }): Imported {
  const { context, most } = o;
  const f = new Fields(json, path);
  for (const name of ['num_hidden_layers', 'num_layers', 'num_decoder_layers', 'num_local_experts'])
    if (json[name] != null && f.size(name) > most)
      f.fail(`${name} is ${shown(json[name])}, the weights are ${most} tensors`);
  const [architecture] = Array.isArray(json.architectures) ? json.architectures : [];
  if (json.quantization_config)
    f.fail('its weights are quantised (quantization_config)', 'import the original weights (F32, F16 or BF16)');
  if (architecture === 'T5ForConditionalGeneration') return t5(f, context);
  if (typeof architecture === 'string' && DECODERS.includes(architecture)) return decoder(f, architecture, context);
  return f.fail(
    `the architecture ${shown(architecture)} is not known`,
    `import one of ${[...DECODERS, 'T5ForConditionalGeneration'].join(', ')}`,
  );
}

function decoder(f: Fields, architecture: string, wanted?: number): Imported {
  const [width, heads] = [f.size('hidden_size'), f.size('num_attention_heads')];
  const mixtral = architecture === 'MixtralForCausalLM';
  const qwen = architecture === 'Qwen2ForCausalLM';
  const normalised = architecture === 'Qwen3ForCausalLM';
  const act = f.json.hidden_act ?? 'silu';
  const activation = named(GATED, act) ?? f.fail(`hidden_act is ${shown(act)}, which no layer here has`);
  if (f.json.head_dim == null && !normalised && width % heads)
    f.fail(`${heads} heads do not divide hidden_size ${width}`);
  const headWidth = f.size('head_dim', normalised ? 128 : width / heads);
  const longest = f.size('max_position_embeddings', mixtral ? 131072 : 2048);
  const eps = f.positive('rms_norm_eps', mixtral ? 1e-5 : 1e-6);
  const glu = { kind: 'glu', hidden: f.size('intermediate_size'), activation };
  const spec: ModelSpecInput = {
    vocab: f.size('vocab_size'),
    context: contextOf(f, longest, wanted),
    width,
    depth: f.size('num_hidden_layers'),
    attention: {
      kind: 'full',
      heads,
      kvHeads: f.size('num_key_value_heads', heads),
      headWidth,
      bias: qwen || f.flag('attention_bias', false),
      window: windowOf(f, architecture, wanted ?? longest),
      ...(normalised && { qkNorm: eps }),
    },
    ffn: mixtral ? mixture(f, glu) : { ...glu, bias: !normalised && f.flag('mlp_bias', false) },
    norm: { kind: 'rms', eps },
    positions: positionsOf(f, longest, mixtral ? 1e6 : 10000),
    tied: f.flag('tie_word_embeddings', false),
  };
  if (f.positive('partial_rotary_factor', 1) !== 1) f.fail('partial_rotary_factor: only whole heads are turned');
  const parsed = parseSpec(spec);
  // What a file of this kind holds does not depend on windows.
  const plain = { ...parsed, attention: { ...parsed.attention, window: 0 } };
  const facts = factsOf(plain) as DecoderFacts;
  const tensors = huggingFaceDecoder(facts, { outBias: !qwen });
  return { architecture, spec: parsed, tensors, idle: parsed.tied ? IDLE_TIED : IDLE };
}

/** The file's own length, or a shorter one that was asked for. */
function contextOf(f: Fields, longest: number, wanted?: number): number {
  if (wanted !== undefined && wanted > longest)
    f.fail(`it was made for ${longest} tokens, not ${wanted}`, `ask for at most --context ${longest}`);
  return wanted ?? longest;
}

const mixture = (f: Fields, expert: object) => ({
  kind: 'moe',
  expert,
  experts: f.size('num_local_experts', 8),
  active: f.size('num_experts_per_tok', 2),
  gate: 'renormalised',
  gateScale: 1,
  balanceLoss: f.json.router_aux_loss_coef ? f.positive('router_aux_loss_coef', 0.001) : 0,
  routerZLoss: 0,
});

/** 0 where no sequence is longer than the window. */
function windowOf(f: Fields, architecture: string, context: number): number {
  const types = f.json.layer_types;
  if (Array.isArray(types) && new Set(types).size > 1) f.fail('layer_types differ: layers with different windows');
  if (QWEN.includes(architecture) && !f.flag('use_sliding_window', false)) return 0;
  if (architecture === 'LlamaForCausalLM') return 0;
  const given = f.json.sliding_window;
  if (given === null || (given === undefined && architecture !== 'MistralForCausalLM')) return 0;
  const window = f.size('sliding_window', 4096);
  if (QWEN.includes(architecture) && f.size('max_window_layers', 28) < f.size('num_hidden_layers'))
    f.fail('max_window_layers: only some layers have a window');
  return window >= context ? 0 : window;
}

/** rope_theta and rope_scaling, or both in one object as newer files have them. */
function positionsOf(f: Fields, longest: number, usual: number): ModelSpecInput['positions'] {
  const together = f.object('rope_parameters');
  const scaling = together ?? f.object('rope_scaling');
  const theta = f.positive('rope_theta', f.positive('rope_theta', usual), together ?? f.json);
  const kind = scaling ? (scaling.rope_type ?? scaling.type ?? 'default') : 'default';
  if (!scaling || kind === 'default') return { kind: 'rope', theta };
  if (kind !== 'linear' && kind !== 'yarn' && kind !== 'llama3')
    return f.fail(`rope_scaling ${shown(kind)} is not known; linear, yarn and llama3 are`);
  const factor = f.positive('factor', Number.NaN, scaling);
  if (kind === 'linear') return { kind: 'rope-scaled', method: 'linear', theta, factor, trained: longest };
  const given = scaling.original_max_position_embeddings;
  const trained = given == null ? longest : f.positive('original_max_position_embeddings', longest, scaling);
  if (kind === 'llama3') {
    const turns = {
      betaFast: f.positive('high_freq_factor', 4, scaling),
      betaSlow: f.positive('low_freq_factor', 1, scaling),
    };
    return { kind: 'rope-scaled', method: 'llama3', theta, factor, trained, ...turns };
  }
  const magnitude = scaling.attention_factor;
  if (magnitude != null && Math.abs((magnitude as number) - (0.1 * Math.log(factor) + 1)) > 1e-6)
    f.fail(`rope_scaling.attention_factor is ${shown(magnitude)}, YaRN's own is 0.1 ln(factor) + 1`);
  for (const name of ['mscale', 'mscale_all_dim'])
    if (scaling[name]) f.fail(`rope_scaling.${name}: only YaRN's own magnitude is known`);
  if (scaling.truncate === false) f.fail('rope_scaling.truncate false: only whole pairs begin and end the ramp');
  if (given != null && longest !== factor * trained)
    f.fail(
      `rope_scaling: its factor ${factor} is not max_position_embeddings / ${trained}, and readers disagree which counts`,
    );
  const turns = {
    betaFast: f.positive('beta_fast', 32, scaling),
    betaSlow: f.positive('beta_slow', 1, scaling),
  };
  return { kind: 'rope-scaled', method: 'yarn', theta, factor, trained, ...turns };
}

function t5(f: Fields, wanted?: number): Imported {
  const depth = f.size('num_layers');
  const heads = f.size('num_heads');
  const projection = f.json.feed_forward_proj ?? 'relu';
  const parts = typeof projection === 'string' ? projection.split('-') : [];
  const gated = parts[0] === 'gated';
  const name = parts.at(-1) ?? '';
  const activation = gated ? (name === 'gelu' ? 'gelu' : named(GATED, name)) : named(PLAIN, name);
  if (parts.length !== (gated ? 2 : 1) || !activation) f.fail(`feed_forward_proj is ${shown(projection)}`);
  const bias = {
    kind: 't5-bias',
    buckets: f.size('relative_attention_num_buckets', 32),
    maxDistance: f.size('relative_attention_max_distance', 128),
  };
  const spec = parseSpec({
    layout: {
      kind: 'encoder-decoder',
      encoderDepth: depth,
      encoderPositions: { ...bias, bidirectional: true },
    },
    vocab: f.size('vocab_size'),
    context: contextOf(f, wanted ?? f.size('n_positions', 512), wanted),
    width: f.size('d_model'),
    depth: f.size('num_decoder_layers', depth),
    attention: { kind: 'full', heads, headWidth: f.size('d_kv') },
    ffn: { kind: gated ? 'glu' : 'mlp', hidden: f.size('d_ff'), activation },
    norm: { kind: 'rms', eps: f.positive('layer_norm_epsilon', 1e-6) },
    positions: { ...bias, bidirectional: false },
    tied: false,
  });
  const tiedFile = f.flag('tie_word_embeddings', true);
  return {
    architecture: 'T5ForConditionalGeneration',
    spec,
    tensors: huggingFaceT5(factsOf(spec) as T5Facts, { tiedFile }),
    // Aliases of `shared`, and a table that T5's first release saved but never read.
    idle: new RegExp(
      `^(en|de)coder\\.embed_tokens\\.weight$|EncDecAttention\\.relative_attention_bias${tiedFile ? '|^lm_head\\.weight$' : ''}`,
    ),
  };
}
