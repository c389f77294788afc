/** config.json of Hugging Face models, from what we know of ours. */
import type { DecoderFacts, Facts, T5Facts } from './facts.ts';
import { cannotSay } from './facts.ts';

/** Names of gated layers' activations; their `gelu` is the exact one, ours the tanh approximation. */
const ACTIVATIONS: Readonly<Record<string, string>> = {
  silu: 'silu',
  gelu: 'gelu_pytorch_tanh',
  gelu_erf: 'gelu',
  relu: 'relu',
  sigmoid: 'sigmoid',
  identity: 'linear',
};
/** T5 says the tanh approximation where it is gated and says gelu. */
const T5_GATED: Readonly<Record<string, string>> = {
  ...ACTIVATIONS,
  gelu: 'gelu',
  gelu_erf: '',
};
const T5_PLAIN: Readonly<Record<string, string>> = { relu: 'relu', gelu: 'gelu_new', gelu_erf: 'gelu', silu: 'silu' };

export type HfType = 'f32' | 'f16' | 'bf16';
const TORCH: Record<HfType, string> = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' };

export interface TokenIds {
  readonly eos: number;
  readonly bos: number;
}

export type Json = { [field: string]: unknown };

export function huggingFaceConfig(f: Facts, type: HfType, ids: TokenIds): Json {
  return f.family === 't5' ? t5Config(f, type, ids) : decoderConfig(f, type, ids);
}

const nameOf = (table: Readonly<Record<string, string>>, activation: string): string =>
  table[activation] ||
  cannotSay(`model.ffn.activation '${activation}'`, 'the other format has no name for it', 'use silu or gelu');

function decoderConfig(f: DecoderFacts, type: HfType, { eos, bos }: TokenIds): Json {
  const [architecture, family] = f.moe
    ? ['MixtralForCausalLM', 'mixtral']
    : f.qkNorm
      ? ['Qwen3ForCausalLM', 'qwen3']
      : f.window
        ? ['MistralForCausalLM', 'mistral']
        : ['LlamaForCausalLM', 'llama'];
  return {
    architectures: [architecture],
    model_type: family,
    torch_dtype: TORCH[type],
    vocab_size: f.vocab,
    hidden_size: f.width,
    intermediate_size: f.hidden,
    num_hidden_layers: f.depth,
    num_attention_heads: f.heads,
    num_key_value_heads: f.kvHeads,
    head_dim: f.headWidth,
    hidden_act: nameOf(ACTIVATIONS, f.activation),
    max_position_embeddings: f.context,
    rms_norm_eps: f.eps,
    ...ropeFields(f),
    ...(f.moe
      ? { num_local_experts: f.moe.experts, num_experts_per_tok: f.moe.active, sliding_window: f.window || null }
      : f.qkNorm
        ? { attention_bias: f.attentionBias, use_sliding_window: false, sliding_window: null }
        : f.window
          ? { sliding_window: f.window }
          : { attention_bias: f.attentionBias, mlp_bias: f.ffnBias }),
    tie_word_embeddings: f.tied,
    attention_dropout: 0,
    initializer_range: 0.02,
    use_cache: true,
    bos_token_id: bos,
    eos_token_id: eos,
  };
}

/** theta, and the scaling where there is one. Some versions of transformers take YaRN's factor from the lengths. */
function ropeFields({ rope, headWidth, context }: DecoderFacts): Json {
  const { theta, scaling } = rope;
  if (!scaling) return { rope_theta: theta };
  const { method, factor, trained, betaFast, betaSlow } = scaling;
  if (method === 'ntk') return { rope_theta: theta * factor ** (headWidth / (headWidth - 2)) };
  if (method === 'linear') return { rope_theta: theta, rope_scaling: { rope_type: 'linear', factor } };
  const fields = { factor, original_max_position_embeddings: trained };
  if (method === 'llama3')
    return {
      rope_theta: theta,
      rope_scaling: { rope_type: 'llama3', ...fields, high_freq_factor: betaFast, low_freq_factor: betaSlow },
    };
  if (context !== factor * trained)
    cannotSay(
      `model.context ${context}`,
      `readers take YaRN's factor to be context / trained, not ${factor}`,
      `set model.context to ${factor * trained}`,
    );
  return {
    rope_theta: theta,
    rope_scaling: { rope_type: 'yarn', ...fields, beta_fast: betaFast, beta_slow: betaSlow },
  };
}

function t5Config(f: T5Facts, type: HfType, { eos, bos }: TokenIds): Json {
  const activation = nameOf(f.gated ? T5_GATED : T5_PLAIN, f.activation);
  return {
    architectures: ['T5ForConditionalGeneration'],
    model_type: 't5',
    torch_dtype: TORCH[type],
    vocab_size: f.vocab,
    d_model: f.width,
    d_kv: f.headWidth,
    d_ff: f.hidden,
    num_layers: f.encoderDepth,
    num_decoder_layers: f.depth,
    num_heads: f.heads,
    relative_attention_num_buckets: f.buckets,
    relative_attention_max_distance: f.maxDistance,
    feed_forward_proj: f.gated ? `gated-${activation}` : activation,
    layer_norm_epsilon: f.eps,
    dropout_rate: 0,
    is_encoder_decoder: true,
    tie_word_embeddings: false,
    use_cache: true,
    n_positions: f.context,
    // Decoders here begin with the token that ends texts.
    decoder_start_token_id: bos,
    pad_token_id: bos,
    eos_token_id: eos,
  };
}
