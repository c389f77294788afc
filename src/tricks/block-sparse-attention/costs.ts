/** What the layer costs, in closed form, and what decoding reads. */
import { chosenPairs, compressedBlocks, compressedPairs } from '../../tensor/index.ts';

export interface BlockSparseSizes {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headWidth: number;
  readonly length: number;
  readonly stride: number;
  readonly size: number;
  readonly blocks: number;
  readonly window: number;
  readonly compressHidden: number;
  readonly share: boolean;
}

/**
 * Keys (with their values) that one decoded token reads in a layer, for each key head: T/stride compressed ones, those of
 * the chosen blocks, and the window. The paper's table of memory access (section 5.2): 5632 of 65536.
 */
export function decodeLoad(tokens: number, o: Pick<BlockSparseSizes, 'stride' | 'size' | 'blocks' | 'window'>): number {
  const chosen = Math.min(tokens, o.blocks * o.size);
  return Math.floor(tokens / o.stride) + chosen + Math.min(tokens, o.window);
}

/** Keys and values that decoding keeps of `tokens`, in keys of full attention: all for the choice, few for the rest. */
export function keptKeys(tokens: number, o: BlockSparseSizes): number {
  const selected = tokens;
  const compressed = compressedBlocks(tokens, o.length, o.stride);
  // Tokens of the block that is not complete yet.
  const pending = Math.min(tokens, o.length);
  return selected + compressed + (o.share ? 0 : pending + Math.min(tokens, o.window));
}

export interface BlockSparseCosts {
  readonly parameters: number;
  /** Products of a forward pass over one row of `tokens`, those of the choice apart. */
  readonly flops: number;
  readonly choiceFlops: number;
}

export function blockSparseCosts(width: number, tokens: number, o: BlockSparseSizes): BlockSparseCosts {
  const { heads: H, kvHeads: K, headWidth: D, length: l, compressHidden: h } = o;
  const projections = width * D * (2 * H + (o.share ? 2 : 6) * K) + 3 * H * width;
  // Keys and values each have a position, two matrices and a bias.
  const compress = 2 * (l * D + h * l * D + h + D * h);
  const rows = compressedBlocks(tokens, l, o.stride) * K;
  let window = 0;
  for (let t = 0; t < tokens; t++) window += Math.min(t + 1, o.window);
  const compressed = compressedPairs(tokens, l, o.stride);
  const pairs = compressed + chosenPairs(tokens, o.size, o.blocks) + window;
  return {
    parameters: projections + 3 * H + compress,
    // The positions pass through the first matrix once.
    flops: 2 * tokens * projections + 2 * 2 * (rows * (l * D * h + h * D) + l * D * h) + 4 * H * D * pairs,
    choiceFlops: 2 * H * D * compressed,
  };
}
