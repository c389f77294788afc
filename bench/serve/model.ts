/** A run with random weights of a real size, made once and kept in the temporary folder. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { tokenizerHash } from '../../src/data/prepare.ts';
import { BYTE_SYMBOLS } from '../../src/data/tokenizer/byte-level.ts';
import { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { blockTypeOf } from '../../src/infer/blocks.ts';
import { madeWhole } from '../../src/infer/formats/place.ts';
import { weightUses } from '../../src/infer/weights.ts';
import { buildModel } from '../../src/model/model.ts';
import { buildTree, declared, disposeTree, flatten } from '../../src/nn/index.ts';
import { type BlockType, fill, noGrad, normal, quantise, RandomState, scope, Tensor } from '../../src/tensor/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import type { JsonObject } from '../../src/train/run/canonical.ts';
import { saveCheckpoint } from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { tensorSource } from '../../src/train/session.ts';
import { openCpu, type Shape, specOf } from '../decode-models.ts';
import { uniform } from './work.ts';

/** Grouped heads, gated feed-forward, tied embeddings, as published at these sizes. */
export const SERVED: readonly Shape[] = [
  { name: '0.1B', width: 768, depth: 12, heads: 12, kvHeads: 4, hidden: 2048, vocab: 32000, context: 1024 },
  { name: '0.5B', width: 1280, depth: 24, heads: 20, kvHeads: 4, hidden: 3456, vocab: 32000, context: 1024 },
];

/** Byte tokens, whose rows are zeros: greedy decoding of random weights never picks half a character. */
const BYTES = 256;
/** Ids of prompts. */
export const idsOf = (s: Shape): [number, number] => [BYTES, s.vocab - 1];

/** A byte for every byte, a word for every other token, and the end of texts. */
function tokenizerOf(s: Shape): Tokenizer {
  const word = (k: number): string => `${BYTE_SYMBOLS[32]}t${k}`;
  const vocab = Object.fromEntries(
    Array.from({ length: s.vocab - 1 }, (_, k) => [k < BYTES ? BYTE_SYMBOLS[k] : word(k), k]),
  );
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const eot = { id: s.vocab - 1, content: '<|endoftext|>', special: true };
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  return Tokenizer.fromJSON({
    version: '1.0',
    ...{ truncation: null, padding: null, normalizer: null, post_processor: null },
    added_tokens: [{ ...eot, ...flags }],
    pre_tokenizer: byteLevel,
    decoder: byteLevel,
    model: { type: 'BPE', dropout: null, unk_token: null, vocab, merges: [] },
  });
}

/** The path of a run of this shape. */
export async function randomRun(s: Shape, type: BlockType): Promise<string> {
  const key = createHash('sha256')
    .update(JSON.stringify([s, type]))
    .digest('hex')
    .slice(0, 12);
  const path = join(tmpdir(), 'ansatz-bench', `serve-${s.name}-${type}-${key}`);
  if (existsSync(path)) return path;
  const device = openCpu();
  const spec = specOf(s);
  const model = buildModel(spec);
  const uses = weightUses(model);
  const random = new RandomState(device, 1);
  const table = (shape: readonly number[]): Tensor => {
    const values = new Float32Array(shape[0] * shape[1]);
    const next = uniform(1);
    for (let k = BYTES * shape[1]; k < values.length - shape[1]; k++) values[k] = 2 * next() - 1;
    return Tensor.from(device, values, shape);
  };
  const params = noGrad(() =>
    buildTree(declared(model), ({ path, spec: p }) => {
      const use = uses.get(path);
      const block = blockTypeOf(use, { matrices: type });
      return scope(() => {
        const w =
          use === 'shared'
            ? table(p.shape)
            : p.init.kind === 'normal'
              ? normal(random, p.shape, 0, 0, p.init.std)
              : fill(device, p.shape, p.init.value);
        return block ? quantise(w, block) : w;
      }).keep();
    }),
  );
  const tokenizer = tokenizerOf(s);
  const config = parseTrainConfig({
    ...{ name: basename(path), model: spec, data: { folder: path }, objective: 'causal', precision: 'bf16', steps: 1 },
  });
  await madeWhole(path, async (draft) => {
    const run = await RunFolder.create(draft, config as unknown as JsonObject);
    tokenizer.save(join(draft, 'tokenizer.json'));
    const state = { step: 0, tokens: 0, lossTokens: 0, elapsed: 0, skipsInARow: 0, seed: 1 };
    await saveCheckpoint(run, 0, {
      tensors: { model: flatten(params).map(({ path: name, tensor }) => tensorSource(name, tensor)) },
      state: { ...state, tokenizer: tokenizerHash(tokenizer) },
    });
  });
  disposeTree(params);
  random.tensor.dispose();
  return path;
}
