/** Which tensors a model has in Hugging Face's and in GGUF's layouts, and where our parameters lie in them. */

import { rotaryPeriods } from '../../nn/positions.ts';
import { scaledPeriods } from '../../tricks/position-interpolation/index.ts';
import type { Block, FileTensor } from './blocks.ts';
import type { DecoderFacts, T5Facts } from './facts.ts';

/** A piece of one parameter. */
type Piece = Omit<Block, 'to'>;

const tensor = (
  name: string,
  shape: readonly number[],
  pieces: Piece | readonly Piece[],
  role: FileTensor['role'] = 'matrix',
): FileTensor => {
  let to = 0;
  const blocks = (Array.isArray(pieces) ? (pieces as readonly Piece[]) : [pieces as Piece]).map((piece) => {
    const block = { ...piece, to };
    to += piece.rows * piece.cols;
    return block;
  });
  return { name, shape, blocks, role };
};

/** A whole parameter, or `rows` of it from row `first`. */
const rowsOf = (ours: string, rows: number, cols: number, first = 0, more: Partial<Piece> = {}): Piece => ({
  ...{ ours, from: first * cols, rows, cols },
  ...more,
});

/** A vector is one row. */
const vector = (name: string, ours: string, size: number, from = 0, more: Partial<Piece> = {}): FileTensor =>
  tensor(name, [size], { ours, from, rows: 1, cols: size, ...more }, 'other');

function norm(name: string, ours: string, f: { width: number; normScale: boolean }): FileTensor {
  if (f.normScale) return vector(name, ours, f.width);
  return { name, shape: [f.width], blocks: [], fill: 1, role: 'other' };
}

/** Names of a decoder's tensors, `k` being a block. */
interface Names {
  readonly embed: string;
  readonly norm: string;
  readonly head: string;
  readonly block: (k: number) => string;
  readonly norm1: string;
  readonly norm2: string;
  readonly query: string;
  readonly key: string;
  readonly value: string;
  readonly out: string;
  readonly queryNorm: string;
  readonly keyNorm: string;
  readonly gate: string;
  readonly up: string;
  readonly down: string;
  readonly router: string;
}

const HF: Names = {
  embed: 'model.embed_tokens',
  norm: 'model.norm',
  head: 'lm_head',
  block: (k) => `model.layers.${k}.`,
  norm1: 'input_layernorm',
  norm2: 'post_attention_layernorm',
  query: 'self_attn.q_proj',
  key: 'self_attn.k_proj',
  value: 'self_attn.v_proj',
  out: 'self_attn.o_proj',
  queryNorm: 'self_attn.q_norm',
  keyNorm: 'self_attn.k_norm',
  gate: 'mlp.gate_proj',
  up: 'mlp.up_proj',
  down: 'mlp.down_proj',
  router: 'block_sparse_moe.gate',
};

const GGUF: Names = {
  embed: 'token_embd',
  norm: 'output_norm',
  head: 'output',
  block: (k) => `blk.${k}.`,
  norm1: 'attn_norm',
  norm2: 'ffn_norm',
  query: 'attn_q',
  key: 'attn_k',
  value: 'attn_v',
  out: 'attn_output',
  queryNorm: 'attn_q_norm',
  keyNorm: 'attn_k_norm',
  gate: 'ffn_gate',
  up: 'ffn_up',
  down: 'ffn_down',
  router: 'ffn_gate_inp',
};

export interface Variant {
  /** False where the file has no bias on attention's output (Qwen2): ours is then 0. */
  readonly outBias?: boolean;
}

export const huggingFaceDecoder = (f: DecoderFacts, variant: Variant = {}): FileTensor[] =>
  decoder(f, HF, f.rope.interleaved ? 'halves' : null, variant, hfExperts);

/** llama.cpp's name for the kind. */
export const ggufFamily = (f: DecoderFacts): 'llama' | 'qwen3' => (f.qkNorm ? 'qwen3' : 'llama');

/** llama.cpp turns pairs that lie side by side in models of its kind `llama`, and halves in others. */
export function ggufDecoder(f: DecoderFacts): FileTensor[] {
  const [file, ours] = [
    ggufFamily(f) === 'llama' ? 'side-by-side' : 'halves',
    f.rope.interleaved ? 'side-by-side' : 'halves',
  ] as const;
  const all = decoder(f, GGUF, file === ours ? null : file, {}, ggufExperts);
  const factors = ropeFactors(f);
  return factors ? [...all, { ...factors, role: 'other', blocks: [] }] : all;
}

/** What divides the frequencies of rotary pairs: GGUF has a tensor for scalings that it has no name for. */
export function ropeFactors({ rope, headWidth }: DecoderFacts): (FileTensor & { values: Float32Array }) | null {
  if (rope.scaling?.method !== 'llama3') return null;
  const base = rotaryPeriods(headWidth, rope.theta);
  const { periods } = scaledPeriods(headWidth, { ...rope.scaling, theta: rope.theta });
  const values = Float32Array.from(periods, (p, k) => p / base[k]);
  return { name: 'rope_freqs.weight', shape: [values.length], blocks: [], role: 'other', values };
}

type ExpertTensors = (f: DecoderFacts, ours: string, theirs: string, down: number) => FileTensor[];

function decoder(
  f: DecoderFacts,
  n: Names,
  pairs: 'side-by-side' | 'halves' | null,
  { outBias = true }: Variant,
  experts: ExpertTensors,
): FileTensor[] {
  const { width: d, headWidth: D, heads, kvHeads, hidden, vocab, factors } = f;
  const [q, kv] = [heads * D, kvHeads * D];
  const turned = pairs ? { pairs: { headWidth: D, file: pairs } } : {};
  // The others divide q.k by sqrt(D) themselves.
  const scale = factors.attention === 1 / Math.sqrt(D) ? 1 : factors.attention * Math.sqrt(D);
  const branch = { scale: factors.branch };
  const out: FileTensor[] = [
    tensor(
      `${n.embed}.weight`,
      [vocab, d],
      rowsOf('embed.weight', vocab, d, 0, { scale: factors.embedding }),
      f.tied ? 'output' : 'matrix',
    ),
  ];
  for (let k = 0; k < f.depth; k++) {
    const [ours, theirs] = [`blocks.${k}.`, n.block(k)];
    const projections: [string, number, number, Partial<Piece>][] = [
      [n.query, q, 0, f.qkNorm ? turned : { ...turned, scale }],
      [n.key, kv, q, turned],
      [n.value, kv, q + kv, {}],
    ];
    out.push(norm(`${theirs}${n.norm1}.weight`, `${ours}norm1.weight`, f));
    for (const [name, rows, first, more] of projections)
      out.push(tensor(`${theirs}${name}.weight`, [rows, d], rowsOf(`${ours}attention.qkv`, rows, d, first, more)));
    out.push(tensor(`${theirs}${n.out}.weight`, [d, q], rowsOf(`${ours}attention.out`, d, q, 0, branch)));
    if (f.attentionBias) {
      // As a column, so that rows are re-paired as those of the matrix.
      for (const [name, rows, first, more] of projections)
        out.push(
          tensor(`${theirs}${name}.bias`, [rows], rowsOf(`${ours}attention.qkvBias`, rows, 1, first, more), 'other'),
        );
      if (outBias) out.push(vector(`${theirs}${n.out}.bias`, `${ours}attention.outBias`, d, 0, branch));
    }
    if (f.qkNorm) {
      // What a norm takes away again goes into its own weights; elements lie as those of the heads' rows.
      const own = (name: string, param: string, more: Partial<Piece>): FileTensor =>
        tensor(`${theirs}${name}.weight`, [D], rowsOf(`${ours}attention.${param}`, D, 1, 0, more), 'other');
      out.push(own(n.queryNorm, 'qNorm', { ...turned, scale }), own(n.keyNorm, 'kNorm', turned));
    }
    out.push(norm(`${theirs}${n.norm2}.weight`, `${ours}norm2.weight`, f));
    if (f.moe) {
      const { experts: E, gate } = f.moe;
      out.push(tensor(`${theirs}${n.router}.weight`, [E, d], rowsOf(`${ours}ffn.router`, E, d), 'other'));
      out.push(...experts(f, `${ours}ffn.experts.`, theirs, gate * factors.branch));
      continue;
    }
    const up = (name: string, first: number): void => {
      out.push(tensor(`${theirs}${name}.weight`, [hidden, d], rowsOf(`${ours}ffn.up`, hidden, d, first)));
      if (f.ffnBias) out.push(vector(`${theirs}${name}.bias`, `${ours}ffn.upBias`, hidden, first));
    };
    up(n.gate, 0);
    up(n.up, hidden);
    out.push(tensor(`${theirs}${n.down}.weight`, [d, hidden], rowsOf(`${ours}ffn.down`, d, hidden, 0, branch)));
    if (f.ffnBias) out.push(vector(`${theirs}${n.down}.bias`, `${ours}ffn.downBias`, d, 0, branch));
  }
  out.push(norm(`${n.norm}.weight`, 'norm.weight', f));
  if (!f.tied) out.push(head(`${n.head}.weight`, f));
  return out;
}

/** The output matrix; a tied model's is its embedding matrix, with another factor. */
const head = (name: string, f: DecoderFacts | T5Facts, scale = f.factors.logits): FileTensor =>
  tensor(name, [f.vocab, f.width], rowsOf(f.head, f.vocab, f.width, 0, { scale }), 'output');

/** Pieces of expert e: gate and value rows of `up` [E, 2f, d], and `down` [E, f, d], which others have as [d, f]. */
function expertPieces({ width: d, hidden: f }: DecoderFacts, ours: string, e: number, down: number) {
  return {
    gate: rowsOf(`${ours}up`, f, d, 2 * e * f),
    up: rowsOf(`${ours}up`, f, d, (2 * e + 1) * f),
    down: { ours: `${ours}down`, from: e * f * d, rows: d, cols: f, transposed: true, scale: down },
  };
}

const hfExperts: ExpertTensors = (f, ours, theirs, scale) =>
  Array.from({ length: f.moe!.experts }, (_, e) => {
    const [name, { gate, up, down }] = [`${theirs}block_sparse_moe.experts.${e}.`, expertPieces(f, ours, e, scale)];
    return [
      tensor(`${name}w1.weight`, [f.hidden, f.width], gate),
      tensor(`${name}w2.weight`, [f.width, f.hidden], down),
      tensor(`${name}w3.weight`, [f.hidden, f.width], up),
    ];
  }).flat();

const ggufExperts: ExpertTensors = (f, ours, theirs, scale) => {
  const { hidden, width, moe } = f;
  const pieces = Array.from({ length: moe!.experts }, (_, e) => expertPieces(f, ours, e, scale));
  return (['gate', 'up', 'down'] as const).map((part) =>
    tensor(
      `${theirs}ffn_${part}_exps.weight`,
      [moe!.experts, ...(part === 'down' ? [width, hidden] : [hidden, width])],
      pieces.map((p) => p[part]),
    ),
  );
};

/** `tiedFile`: its output matrix is the embedding matrix over sqrt(d) (T5 before 1.1), which ours has no factor for. */
export function huggingFaceT5(f: T5Facts, { tiedFile = false } = {}): FileTensor[] {
  const { width: d, headWidth: D, heads, hidden, vocab, factors } = f;
  const q = heads * D;
  const branch = { scale: factors.branch };
  // T5 does not divide q.k by sqrt(D): the factor goes into the queries.
  const query = { scale: factors.attention };
  const out: FileTensor[] = [
    tensor('shared.weight', [vocab, d], rowsOf('embed.weight', vocab, d, 0, { scale: factors.embedding })),
  ];
  const attention = (theirs: string, ours: string): void => {
    const packed = (name: string, k: number, more: Partial<Piece> = {}): FileTensor =>
      tensor(`${theirs}${name}.weight`, [q, d], rowsOf(`${ours}qkv`, q, d, k * q, more));
    out.push(packed('q', 0, query), packed('k', 1), packed('v', 2));
    out.push(tensor(`${theirs}o.weight`, [d, q], rowsOf(`${ours}out`, d, q, 0, branch)));
  };
  const cross = (theirs: string, ours: string): void => {
    const one = (name: string, own: string, more: Partial<Piece> = {}): FileTensor =>
      tensor(`${theirs}${name}.weight`, [q, d], rowsOf(`${ours}${own}`, q, d, 0, more));
    out.push(one('q', 'query', query), one('k', 'key'), one('v', 'value'));
    out.push(tensor(`${theirs}o.weight`, [d, q], rowsOf(`${ours}out`, d, q, 0, branch)));
  };
  const ffn = (theirs: string, ours: string): void => {
    const up = (name: string, first: number): FileTensor =>
      tensor(`${theirs}${name}.weight`, [hidden, d], rowsOf(`${ours}up`, hidden, d, first));
    out.push(...(f.gated ? [up('wi_0', 0), up('wi_1', hidden)] : [up('wi', 0)]));
    out.push(tensor(`${theirs}wo.weight`, [d, hidden], rowsOf(`${ours}down`, d, hidden, 0, branch)));
  };
  for (const [stack, depth, prefix] of [
    ['encoder', f.encoderDepth, 'encoder.'],
    ['decoder', f.depth, ''],
  ] as const) {
    for (let k = 0; k < depth; k++) {
      const [own, layer] = [`${prefix}blocks.${k}.`, (n: number) => `${stack}.block.${k}.layer.${n}.`];
      out.push(norm(`${layer(0)}layer_norm.weight`, `${own}norm1.weight`, f));
      attention(`${layer(0)}SelfAttention.`, `${own}attention.`);
      if (k === 0) {
        const table = rowsOf(`${prefix}positions.weight`, f.buckets, heads);
        out.push(tensor(`${layer(0)}SelfAttention.relative_attention_bias.weight`, [f.buckets, heads], table, 'other'));
      }
      if (stack === 'decoder') {
        out.push(norm(`${layer(1)}layer_norm.weight`, `${own}normCross.weight`, f));
        cross(`${layer(1)}EncDecAttention.`, `${own}cross.`);
      }
      const last = layer(stack === 'decoder' ? 2 : 1);
      out.push(norm(`${last}layer_norm.weight`, `${own}norm2.weight`, f));
      ffn(`${last}DenseReluDense.`, `${own}ffn.`);
    }
    out.push(norm(`${stack}.final_layer_norm.weight`, `${prefix}norm.weight`, f));
  }
  out.push(tiedFile ? head('shared.weight', f, Math.sqrt(d)) : head('lm_head.weight', f));
  return out;
}
