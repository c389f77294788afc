/**
 * The two shapes of Jaszczur et al. 2021, Table 1, dense and sparse, with random weights as decoding wants them. All blocks
 * of a model are copies of one: what decoding costs does not ask for values, only for where they lie.
 */
import type { CpuDevice } from '../src/backend/cpu/device.ts';
import { inBlocks } from '../src/infer/blocks.ts';
import { buildModel, type Model } from '../src/model/model.ts';
import type { ModelSpecInput } from '../src/model/spec.ts';
import { flatten, initialise, type ParamTree } from '../src/nn/index.ts';
import { type BlockType, Tensor } from '../src/tensor/index.ts';
import '../src/tricks/index.ts';

export interface SparseShape {
  readonly name: string;
  readonly width: number;
  readonly depth: number;
  readonly heads: number;
  /** F of the dense model, and of the sparse one (more, where the paper spends what sparse projections save). */
  readonly hidden: number;
  readonly sparseHidden: number;
  /** N: units of a block, of which one is used. */
  readonly block: number;
  readonly rank: number;
  /** S of the projections and of the output matrix. */
  readonly modules: number;
  readonly lossModules: number;
}

const VOCAB = 32000;
export const CONTEXT = 32;

/**
 * Depths. A token passes 24 decoder blocks in the 800M model. In the 17B one 11 blocks of this shape and two tables of
 * 32,000 rows make 17.7 billion weights.
 */
export const SPARSE_SHAPES: readonly SparseShape[] = [
  {
    ...{ name: '800M', width: 1024, depth: 24, heads: 16, hidden: 4096, sparseHidden: 6144 },
    ...{ block: 64, rank: 16, modules: 16, lossModules: 4 },
  },
  {
    ...{ name: '17B', width: 9216, depth: 11, heads: 96, hidden: 65536, sparseHidden: 65536 },
    ...{ block: 256, rank: 32, modules: 64, lossModules: 8 },
  },
];

export type Kind = 'dense' | 'sparse';

export const specOf = (s: SparseShape, kind: Kind): ModelSpecInput => ({
  ...{ vocab: VOCAB, context: CONTEXT, width: s.width, depth: s.depth, tied: false },
  ...(kind === 'dense'
    ? { attention: { kind: 'full', heads: s.heads }, ffn: { kind: 'mlp', hidden: s.hidden, activation: 'relu' } }
    : {
        attention: { kind: 'sparse-qkv', heads: s.heads, modules: s.modules },
        ffn: { kind: 'sparse-ffn', hidden: s.sparseHidden, block: s.block, rank: s.rank, usageDecay: 0 },
        head: { kind: 'factored', modules: s.lossModules },
      }),
});

/** Model and weights; the bytes of all weights, and of those that every token reads. */
export interface Built {
  readonly model: Model;
  readonly params: ParamTree;
  readonly parameters: number;
  readonly bytes: number;
  readonly always: number;
}

export function build(device: CpuDevice, s: SparseShape, kind: Kind, type: BlockType): Built {
  const model = buildModel(specOf(s, kind));
  const one = buildModel({ ...specOf(s, kind), depth: 1 });
  const full = initialise(one, device, 1);
  const sizes = flatten(full).map(({ path, tensor }) => ({ inBlock: path.startsWith('blocks.'), size: tensor.size }));
  const params = inBlocks(one, full, { matrices: type }, true) as Record<string, ParamTree>;
  const blocks = params.blocks as Record<string, ParamTree>;
  for (let k = 1; k < s.depth; k++) blocks[String(k)] = copyOf(device, blocks['0']);
  const bytesOf = (keep: (path: string) => boolean): number =>
    flatten(params).reduce((n, { path, tensor }) => n + (keep(path) ? tensor.storage.memory.bytes : 0), 0);
  return {
    ...{ model, params },
    parameters: sizes.reduce((n, { inBlock, size }) => n + size * (inBlock ? s.depth : 1), 0),
    bytes: bytesOf(() => true),
    always: bytesOf((path) => !path.startsWith('embed.') && !path.includes('.units_')),
  };
}

function copyOf(device: CpuDevice, tree: ParamTree): ParamTree {
  const copies = Object.entries(tree).map(([name, child]) => {
    if (!(child instanceof Tensor)) return [name, copyOf(device, child)];
    const copy = Tensor.empty(device, child.dtype, child.shape);
    copy.writeBits(child.bitsSync());
    return [name, copy.keep()];
  });
  return Object.fromEntries(copies);
}
