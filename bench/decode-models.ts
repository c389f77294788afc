/** Models of given shapes with random weights, in our blocks and as GGUF files: what decoding costs does not ask for values. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, renameSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CpuDevice } from '../src/backend/cpu/device.ts';
import { blockTypeOf } from '../src/infer/blocks.ts';
import { type GgufTensor, type GgufValue, writeGguf } from '../src/infer/formats/gguf.ts';
import { weightUses } from '../src/infer/weights.ts';
import { buildModel, type Model } from '../src/model/model.ts';
import type { ModelSpecInput } from '../src/model/spec.ts';
import { buildTree, declared, flatten, type ParamTree } from '../src/nn/index.ts';
import { type BlockType, fill, noGrad, normal, quantise, RandomState, scope } from '../src/tensor/index.ts';
import '../src/tricks/index.ts';

export interface Shape {
  readonly name: string;
  readonly width: number;
  readonly depth: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly hidden: number;
  readonly vocab: number;
  readonly context: number;
}

/** Dense decoders as they are published at these sizes: grouped heads, gated feed-forward, tied embeddings. */
export const SHAPES: readonly Shape[] = [
  { name: '0.5B', width: 1280, depth: 24, heads: 20, kvHeads: 4, hidden: 3456, vocab: 32000, context: 1024 },
  { name: '3B', width: 3072, depth: 28, heads: 24, kvHeads: 8, hidden: 8192, vocab: 32000, context: 1024 },
];

export const specOf = (s: Shape): ModelSpecInput => ({
  ...{ vocab: s.vocab, context: s.context, width: s.width, depth: s.depth },
  attention: { kind: 'full', heads: s.heads, kvHeads: s.kvHeads },
  ffn: { kind: 'glu', hidden: s.hidden },
});

/** A model with random weights in blocks, made one matrix at a time: full-precision weights never lie side by side. */
export function randomBlocks(device: CpuDevice, model: Model, type: BlockType): ParamTree {
  const uses = weightUses(model);
  const random = new RandomState(device, 1);
  return noGrad(() =>
    buildTree(declared(model), ({ path, spec }) => {
      const block = blockTypeOf(uses.get(path), { matrices: type });
      return scope(() => {
        const std = spec.init.kind === 'normal' ? spec.init.std : 0;
        const w =
          spec.init.kind === 'normal'
            ? normal(random, spec.shape, 0, 0, std)
            : fill(device, spec.shape, spec.init.value);
        return block ? quantise(w, block) : w;
      }).keep();
    }),
  );
}

/** Bytes of all weights that a token reads: every tensor once (a tied table is read by the head). */
export const weightBytes = (params: ParamTree): number =>
  flatten(params).reduce((n, { tensor }) => n + tensor.storage.memory.bytes, 0);

/** A GGUF file of the same shape; kept in the temporary folder from run to run. */
export async function randomGguf(s: Shape, type: 'q8_0' | 'q4_0'): Promise<string> {
  const key = createHash('sha256')
    .update(JSON.stringify([s, type]))
    .digest('hex')
    .slice(0, 12);
  const folder = join(tmpdir(), 'ansatz-bench');
  const path = join(folder, `${s.name}-${type}-${key}.gguf`);
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  const d = s.width;
  const kv = (d / s.heads) * s.kvHeads;
  let state = 1;
  const values = (n: number): Float32Array => {
    // Pseudo-random values of the right size, repeated: quantising billions of them would take longer than the benchmark.
    const out = new Float32Array(n);
    const some = Math.min(n, 65536);
    for (let k = 0; k < some; k++) {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      out[k] = (state / 2 ** 31) * Math.sqrt(3 / d);
    }
    for (let k = some; k < n; k += some) out.copyWithin(k, 0, Math.min(some, n - k));
    return out;
  };
  const matrix = (name: string, rows: number, columns: number): GgufTensor => ({
    name: `${name}.weight`,
    shape: [rows, columns],
    type,
    data: async () => values(rows * columns),
  });
  const norm = (name: string): GgufTensor => ({
    name: `${name}.weight`,
    shape: [d],
    type: 'f32',
    data: async () => new Float32Array(d).fill(1),
  });
  const tensors: GgufTensor[] = [matrix('token_embd', s.vocab, d), norm('output_norm')];
  for (let k = 0; k < s.depth; k++) {
    const at = (name: string): string => `blk.${k}.${name}`;
    tensors.push(norm(at('attn_norm')), norm(at('ffn_norm')));
    tensors.push(matrix(at('attn_q'), d, d), matrix(at('attn_k'), kv, d), matrix(at('attn_v'), kv, d));
    tensors.push(
      matrix(at('attn_output'), d, d),
      matrix(at('ffn_gate'), s.hidden, d),
      matrix(at('ffn_up'), s.hidden, d),
    );
    tensors.push(matrix(at('ffn_down'), d, s.hidden));
  }
  const u32 = (value: number): GgufValue => ({ type: 'u32', value });
  const tokens = Array.from({ length: s.vocab }, (_, k) => (k < 256 ? byteSymbol(k) : `<t${k}>`));
  const metadata = new Map<string, GgufValue>([
    ['general.architecture', { type: 'string', value: 'llama' }],
    ['general.name', { type: 'string', value: `random ${s.name}` }],
    ['llama.block_count', u32(s.depth)],
    ['llama.context_length', u32(s.context)],
    ['llama.embedding_length', u32(d)],
    ['llama.feed_forward_length', u32(s.hidden)],
    ['llama.attention.head_count', u32(s.heads)],
    ['llama.attention.head_count_kv', u32(s.kvHeads)],
    ['llama.attention.layer_norm_rms_epsilon', { type: 'f32', value: 1e-6 }],
    ['llama.rope.dimension_count', u32(d / s.heads)],
    ['llama.vocab_size', u32(s.vocab)],
    ['tokenizer.ggml.model', { type: 'string', value: 'gpt2' }],
    ['tokenizer.ggml.pre', { type: 'string', value: 'gpt-2' }],
    ['tokenizer.ggml.tokens', { type: 'strings', value: tokens }],
    ['tokenizer.ggml.token_type', { type: 'i32s', value: new Int32Array(s.vocab).fill(1) }],
    ['tokenizer.ggml.merges', { type: 'strings', value: [`${tokens[97]} ${tokens[98]}`] }],
    ['tokenizer.ggml.eos_token_id', u32(s.vocab - 1)],
    ['tokenizer.ggml.bos_token_id', u32(s.vocab - 1)],
  ]);
  await writeGguf(`${path}.part`, metadata, tensors);
  renameSync(`${path}.part`, path);
  return path;
}

/** The printable character that GPT-2's byte-level alphabet gives a byte. */
function byteSymbol(b: number): string {
  const printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  if (printable) return String.fromCharCode(b);
  const others = [...Array(256).keys()].filter((x) => !((x >= 33 && x <= 126) || (x >= 161 && x <= 172) || x >= 174));
  return String.fromCharCode(256 + others.indexOf(b));
}

export const openCpu = (): CpuDevice => new CpuDevice();
export const modelOf = (s: Shape): Model => buildModel(specOf(s));
