// Hugging Face models in plain float64 loops, straight from config.json and the names in model.safetensors. Nothing of
// src/ is used: this is the other side that exported files are read by.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Matrix {
  readonly shape: number[];
  readonly data: Float64Array;
}
export interface HfModel {
  readonly config: Record<string, unknown>;
  readonly tensors: ReadonlyMap<string, Matrix>;
}
type Rows = Float64Array[];

const bit = new DataView(new ArrayBuffer(4));
const half = (u: number): number => {
  const [e, m] = [(u >> 10) & 31, u & 1023];
  const size = e === 0 ? m / 2 ** 24 : e === 31 ? (m ? Number.NaN : Infinity) : (1 + m / 1024) * 2 ** (e - 15);
  return u & 0x8000 ? -size : size;
};

/** Values of one tensor's bytes. */
function decode(bytes: Buffer, dtype: string): Float64Array {
  if (dtype === 'F32') return Float64Array.from({ length: bytes.length / 4 }, (_, k) => bytes.readFloatLE(4 * k));
  return Float64Array.from({ length: bytes.length / 2 }, (_, k) => {
    const u = bytes.readUInt16LE(2 * k);
    if (dtype === 'F16') return half(u);
    bit.setUint32(0, u << 16);
    return bit.getFloat32(0);
  });
}

export function readSafetensors(path: string): Map<string, Matrix & { dtype: string }> {
  const all = readFileSync(path);
  const length = Number(all.readBigUInt64LE(0));
  const header = JSON.parse(all.subarray(8, 8 + length).toString());
  const out = new Map<string, Matrix & { dtype: string }>();
  for (const [name, { dtype, shape, data_offsets: at }] of Object.entries<never>(header as never) as never as [
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] },
  ][])
    if (name !== '__metadata__')
      out.set(name, { dtype, shape, data: decode(all.subarray(8 + length + at[0], 8 + length + at[1]), dtype) });
  return out;
}

export function readHf(folder: string): HfModel {
  return {
    config: JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')),
    tensors: readSafetensors(join(folder, 'model.safetensors')),
  };
}

/** y = W x + b for every row. */
function project(m: HfModel, name: string, x: Rows): Rows {
  const w = m.tensors.get(`${name}.weight`);
  if (!w) throw new Error(`no tensor ${name}.weight`);
  const bias = m.tensors.get(`${name}.bias`)?.data;
  const [rows, cols] = w.shape;
  return x.map((v) => {
    const y = new Float64Array(rows);
    for (let r = 0; r < rows; r++) {
      let sum = bias ? bias[r] : 0;
      for (let c = 0; c < cols; c++) sum += w.data[r * cols + c] * v[c];
      y[r] = sum;
    }
    return y;
  });
}

function rms(m: HfModel, name: string, x: Rows, eps: number): Rows {
  const w = m.tensors.get(`${name}.weight`)!.data;
  return x.map((v) => {
    const scale = 1 / Math.sqrt(v.reduce((s, a) => s + a * a, 0) / v.length + eps);
    return v.map((a, k) => a * scale * w[k]);
  });
}

const add = (x: Rows, y: Rows): Rows => x.map((v, t) => v.map((a, k) => a + y[t][k]));
const erf = (x: number): number => {
  // Maclaurin series; arguments here are small.
  let [sum, term] = [x, x];
  for (let n = 1; n < 200 && Math.abs(term) > 1e-18; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
};
const tanhGelu = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
const activations: Record<string, (x: number) => number> = {
  silu: (x) => x / (1 + Math.exp(-x)),
  relu: (x) => Math.max(0, x),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_new: tanhGelu,
  gelu_pytorch_tanh: tanhGelu,
};

function softmax(x: Float64Array): Float64Array {
  const top = Math.max(...x);
  const e = x.map((v) => Math.exp(v - top));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / sum);
}

/** Softmax attention of heads; `score` changes q.k of query t and key s, -Infinity hides it. */
function attend(
  q: Rows,
  k: Rows,
  v: Rows,
  o: { heads: number; kvHeads: number; width: number },
  score: (dot: number, t: number, s: number, head: number) => number,
): Rows {
  const { heads, kvHeads, width: D } = o;
  return q.map((query, t) => {
    const out = new Float64Array(heads * D);
    for (let h = 0; h < heads; h++) {
      const g = Math.floor((h * kvHeads) / heads);
      const scores = Float64Array.from(k, (key, s) => {
        let dot = 0;
        for (let c = 0; c < D; c++) dot += query[h * D + c] * key[g * D + c];
        return score(dot, t, s, h);
      });
      softmax(scores).forEach((p, s) => {
        for (let c = 0; c < D; c++) out[h * D + c] += p * v[s][g * D + c];
      });
    }
    return out;
  });
}

/** Angles per position of the pairs of a head, and the factor on cos and sin (transformers' modeling_rope_utils). */
function rotary(config: Record<string, unknown>, D: number): { frequency: Float64Array; factor: number } {
  const theta = config.rope_theta as number;
  const scaling = config.rope_scaling as Record<string, number> | undefined;
  const base = Float64Array.from({ length: D / 2 }, (_, k) => theta ** ((-2 * k) / D));
  if (!scaling) return { frequency: base, factor: 1 };
  const kind = scaling.rope_type as unknown as string;
  const s = scaling.factor;
  const length = scaling.original_max_position_embeddings;
  if (kind === 'linear') return { frequency: base.map((f) => f / s), factor: 1 };
  if (kind === 'llama3') {
    const { low_freq_factor: low, high_freq_factor: high } = scaling;
    return {
      factor: 1,
      frequency: base.map((f) => {
        const wave = (2 * Math.PI) / f;
        if (wave < length / high) return f;
        if (wave > length / low) return f / s;
        const smooth = (length / wave - low) / (high - low);
        return ((1 - smooth) * f) / s + smooth * f;
      }),
    };
  }
  if (kind !== 'yarn') throw new Error(kind);
  const dim = (turns: number): number => (D * Math.log(length / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const low = Math.max(0, Math.floor(dim(scaling.beta_fast)));
  const high = Math.min(D - 1, Math.ceil(dim(scaling.beta_slow)));
  return {
    factor: 0.1 * Math.log(s) + 1,
    frequency: base.map((f, k) => {
      const ramp = Math.min(1, Math.max(0, (k - low) / (high === low ? 0.001 : high - low)));
      return (f / s) * ramp + f * (1 - ramp);
    }),
  };
}

/** rotate_half: dimension k of the first half turns with dimension k of the second. */
function turn(x: Rows, heads: number, D: number, r: ReturnType<typeof rotary>): Rows {
  return x.map((v, t) => {
    const out = new Float64Array(v.length);
    for (let h = 0; h < heads; h++)
      for (let k = 0; k < D / 2; k++) {
        const [cos, sin] = [r.factor * Math.cos(t * r.frequency[k]), r.factor * Math.sin(t * r.frequency[k])];
        const [a, b] = [v[h * D + k], v[h * D + k + D / 2]];
        out[h * D + k] = a * cos - b * sin;
        out[h * D + k + D / 2] = b * cos + a * sin;
      }
    return out;
  });
}

const embed = (table: Matrix, ids: readonly number[]): Rows =>
  ids.map((id) => table.data.slice(id * table.shape[1], (id + 1) * table.shape[1]));

function mixtral(m: HfModel, prefix: string, x: Rows): Rows {
  const act = activations[m.config.hidden_act as string];
  const active = m.config.num_experts_per_tok as number;
  const probabilities = project(m, `${prefix}gate`, x).map(softmax);
  return x.map((v, t) => {
    const chosen = [...probabilities[t].keys()]
      .sort((a, b) => probabilities[t][b] - probabilities[t][a])
      .slice(0, active);
    const sum = chosen.reduce((s, e) => s + probabilities[t][e], 0);
    const out = new Float64Array(v.length);
    for (const e of chosen) {
      const name = `${prefix}experts.${e}.`;
      const [[gate], [up]] = [project(m, `${name}w1`, [v]), project(m, `${name}w3`, [v])];
      const [y] = project(m, `${name}w2`, [gate.map((g, k) => act(g) * up[k])]);
      for (let k = 0; k < out.length; k++) out[k] += (probabilities[t][e] / sum) * y[k];
    }
    return out;
  });
}

/** Logits [T][V] of LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MistralForCausalLM, MixtralForCausalLM. */
export function decoderLogits(m: HfModel, ids: readonly number[]): number[][] {
  const c = m.config as Record<string, number>;
  const heads = c.num_attention_heads;
  const kvHeads = c.num_key_value_heads;
  const D = c.head_dim ?? c.hidden_size / heads;
  const eps = c.rms_norm_eps;
  const r = rotary(m.config, D);
  const window = c.sliding_window ?? Infinity;
  let x = embed(m.tensors.get('model.embed_tokens.weight')!, ids);
  for (let layer = 0; layer < c.num_hidden_layers; layer++) {
    const name = `model.layers.${layer}.`;
    const h = rms(m, `${name}input_layernorm`, x, eps);
    // Qwen3 normalises each head's queries and keys.
    const normalised = (part: 'q' | 'k', x: Rows): Rows =>
      m.tensors.has(`${name}self_attn.${part}_norm.weight`)
        ? x.map((v) => {
            const parts = Array.from({ length: v.length / D }, (_, n) => v.slice(n * D, (n + 1) * D));
            return Float64Array.from(rms(m, `${name}self_attn.${part}_norm`, parts, eps).flatMap((p) => [...p]));
          })
        : x;
    const q = turn(normalised('q', project(m, `${name}self_attn.q_proj`, h)), heads, D, r);
    const k = turn(normalised('k', project(m, `${name}self_attn.k_proj`, h)), kvHeads, D, r);
    const v = project(m, `${name}self_attn.v_proj`, h);
    const mixed = attend(q, k, v, { heads, kvHeads, width: D }, (dot, t, s) =>
      s <= t && s > t - window ? dot / Math.sqrt(D) : -Infinity,
    );
    x = add(x, project(m, `${name}self_attn.o_proj`, mixed));
    const g = rms(m, `${name}post_attention_layernorm`, x, eps);
    if (c.num_local_experts) x = add(x, mixtral(m, `${name}block_sparse_moe.`, g));
    else {
      const act = activations[m.config.hidden_act as string];
      const [gate, up] = [project(m, `${name}mlp.gate_proj`, g), project(m, `${name}mlp.up_proj`, g)];
      x = add(
        x,
        project(
          m,
          `${name}mlp.down_proj`,
          gate.map((v, t) => v.map((a, n) => act(a) * up[t][n])),
        ),
      );
    }
  }
  const h = rms(m, 'model.norm', x, eps);
  return project(m, c.tie_word_embeddings ? 'model.embed_tokens' : 'lm_head', h).map((row) => [...row]);
}

/** T5Attention._relative_position_bucket. */
function bucket(relative: number, bidirectional: boolean, buckets: number, distance: number): number {
  let out = 0;
  let n = buckets;
  let away: number;
  if (bidirectional) {
    n /= 2;
    out = relative > 0 ? n : 0;
    away = Math.abs(relative);
  } else away = -Math.min(relative, 0);
  const exact = n / 2;
  if (away < exact) return out + away;
  // In f32, as there.
  const log = Math.fround(Math.fround(Math.log(Math.fround(away / exact))) / Math.fround(Math.log(distance / exact)));
  return out + Math.min(n - 1, exact + Math.floor(Math.fround(log * (n - exact))));
}

/** Logits [T][V] of T5ForConditionalGeneration. */
export function t5Logits(m: HfModel, given: readonly number[], ids: readonly number[]): number[][] {
  const c = m.config as Record<string, number>;
  const [heads, D, eps] = [c.num_heads, c.d_kv, c.layer_norm_epsilon];
  const shape = { heads, kvHeads: heads, width: D };
  const projection = m.config.feed_forward_proj as string;
  const gated = projection.startsWith('gated-');
  const act = activations[projection === 'gated-gelu' ? 'gelu_new' : projection.split('-').at(-1)!];
  const table = m.tensors.get('shared.weight')!;
  const ffn = (name: string, h: Rows): Rows => {
    const inner = gated
      ? project(m, `${name}wi_0`, h).map((v, t) => v.map((a, k) => act(a) * project(m, `${name}wi_1`, [h[t]])[0][k]))
      : project(m, `${name}wi`, h).map((v) => v.map(act));
    return project(m, `${name}wo`, inner);
  };
  const look = (name: string, h: Rows, at: Rows, score: Parameters<typeof attend>[4]): Rows =>
    project(
      m,
      `${name}o`,
      attend(project(m, `${name}q`, h), project(m, `${name}k`, at), project(m, `${name}v`, at), shape, score),
    );
  const stack = (side: 'encoder' | 'decoder', layers: number, start: Rows, memory?: Rows): Rows => {
    const biases = m.tensors.get(`${side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight`)!.data;
    const bias = (t: number, s: number, head: number): number => {
      const b = bucket(s - t, !memory, c.relative_attention_num_buckets, c.relative_attention_max_distance);
      return biases[b * heads + head];
    };
    let x = start;
    for (let n = 0; n < layers; n++) {
      const name = `${side}.block.${n}.layer.`;
      const h = rms(m, `${name}0.layer_norm`, x, eps);
      x = add(
        x,
        look(`${name}0.SelfAttention.`, h, h, (dot, t, s, head) =>
          memory && s > t ? -Infinity : dot + bias(t, s, head),
        ),
      );
      if (memory)
        x = add(
          x,
          look(`${name}1.EncDecAttention.`, rms(m, `${name}1.layer_norm`, x, eps), memory, (dot) => dot),
        );
      const last = `${name}${memory ? 2 : 1}.`;
      x = add(x, ffn(`${last}DenseReluDense.`, rms(m, `${last}layer_norm`, x, eps)));
    }
    return rms(m, `${side}.final_layer_norm`, x, eps);
  };
  const memory = stack('encoder', c.num_layers, embed(table, given));
  let h = stack('decoder', c.num_decoder_layers, embed(table, ids), memory);
  if (c.tie_word_embeddings) h = h.map((v) => v.map((a) => a * c.d_model ** -0.5));
  return project(m, c.tie_word_embeddings ? 'shared' : 'lm_head', h).map((row) => [...row]);
}
