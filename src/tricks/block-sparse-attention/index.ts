/** Native sparse attention (Yuan et al. 2025): compressed blocks, chosen blocks and a window, gated. See README.md. */
import { registerSlot } from '../../nn/index.ts';
import { registerTrick } from '../registry.ts';
import { blockSparseSchema, buildBlockSparse } from './layer.ts';

export { type BlockSparseCosts, type BlockSparseSizes, blockSparseCosts, decodeLoad, keptKeys } from './costs.ts';
export { type BlockSparseOptions, blockSparseSchema } from './layer.ts';

registerSlot({
  slot: 'attention',
  kind: 'block-sparse',
  summary: 'gated sum of attention to compressed blocks, to the blocks chosen by it, and to a window (NSA)',
  options: blockSparseSchema,
  rows: true,
  build: buildBlockSparse,
});

/** Sizes in proportion to the context: the published ones from 4096 tokens on. */
export function sizesFor(context: number): {
  size: number;
  length: number;
  stride: number;
  blocks: number;
  window: number;
} {
  const size = Math.min(64, Math.max(8, 2 ** Math.floor(Math.log2(Math.max(1, context / 16)))));
  const blocks = Math.min(16, Math.max(4, Math.floor(context / (4 * size))));
  return { size, length: size / 2, stride: size / 4, blocks, window: Math.min(512, Math.max(8, context >> 3)) };
}

registerTrick({
  name: 'block-sparse-attention',
  summary: 'a query reads compressed blocks, the few blocks that they point to, and a window, instead of all keys',
  hypothesis:
    'Trained from scratch at 8k tokens or more, held-out loss is that of full attention or lower, a training step is faster from 8k on, and decoding at 64k reads 11.6 times fewer keys.',
  confidence: 'high',
  tier: 'foundational',
  source: 'Yuan et al. 2025, Native Sparse Attention (arXiv 2502.11089)',
  patch: ({ heads, context }) => {
    const sharing = [4, 2, 1].find((n) => heads % n === 0)!;
    return { model: { attention: { kind: 'block-sparse', heads, kvHeads: heads / sharing, ...sizesFor(context) } } };
  },
});
