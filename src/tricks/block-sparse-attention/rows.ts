/**
 * The branches over rows of any sequences, for decoding (src/nn/rows.ts). Compressed blocks are made once, at the row of
 * their last token, and kept in cells of its page; chosen blocks and the window are read where the tokens' keys lie.
 */
import type { ForwardContext, ParamTree, RowPass } from '../../nn/index.ts';
import {
  type BlockRows,
  cellsOf,
  pagedAppend,
  pagedAttention,
  pagedBlockAttention,
  pagedBlockChoose,
  pagedBlockGather,
  pagedBlockRows,
  pagedBlockWrite,
  pagedWrite,
  reshape,
  type Tensor,
} from '../../tensor/index.ts';
import { type CompressSizes, compressBlocks } from './compress.ts';

export interface BranchSizes extends CompressSizes {
  readonly heads: number;
  readonly kvHeads: number;
  readonly size: number;
  readonly blocks: number;
  readonly initial: number;
  readonly local: number;
  readonly window: number;
  readonly scale: number;
}

/** Keys and values of a branch, [1, R, kvHeads, D]. */
type KeyValue = readonly [Tensor, Tensor];

/** Queries [1, R, heads, D], as they are and turned; keys are turned for the branches that want them so. */
export interface RowBranches {
  readonly q: Tensor;
  readonly turned: Tensor;
  readonly compressed: KeyValue;
  readonly selected: KeyValue;
  /** The selected branch's own where branches share keys and values. */
  readonly window: KeyValue;
}

/** What the compressed branch keeps of the rows, and the blocks that end at them. */
function fillCells(p: ParamTree, [key, value]: KeyValue, rows: RowPass, s: BranchSizes, c: ForwardContext): Tensor {
  const { kvHeads: heads, headWidth: width, length, stride } = s;
  const { index } = rows;
  const R = index.sequence.size;
  const picked: BlockRows = pagedBlockRows(index, heads, s);
  const made = [key, value].map((x, k) => {
    const pool = rows.vectors(heads * width);
    pagedWrite(pool, reshape(x, [R, heads * width]), index);
    const blocks = pagedBlockGather(pool, picked, index, { heads, length, out: c.activation });
    const flat = reshape(blocks, [R * heads, length * width]);
    return compressBlocks(p, k === 0 ? 'keyBlock' : 'valueBlock', flat, s, c, picked.offsets);
  });
  const cells = rows.vectors(2 * heads * width, cellsOf(index.page, stride));
  pagedBlockWrite(cells, made[0], made[1], picked, index, { heads, width, length, stride });
  return cells;
}

/** What the three branches read, [1, R, heads, D] each. */
export function branchesOfRows(
  p: ParamTree,
  b: RowBranches,
  rows: RowPass,
  s: BranchSizes,
  c: ForwardContext,
): [Tensor, Tensor, Tensor] {
  const { heads, kvHeads, headWidth: width, scale } = s;
  const { index, seen } = rows;
  const R = index.sequence.size;
  const flat = (x: Tensor, n: number): Tensor => reshape(x, [R, n, width]);
  const whole = (x: Tensor): Tensor => reshape(x, [1, R, heads, width]);
  const keep = ([k, v]: KeyValue) => {
    const { pool, format } = rows.keyValues(kvHeads, width);
    pagedAppend(pool, flat(k, kvHeads), flat(v, kvHeads), index, { heads: kvHeads, kvHeads, width, format });
    return { pool, format };
  };
  const cells = fillCells(p, b.compressed, rows, s, c);
  const chosen = pagedBlockChoose(flat(b.q, heads), cells, index, {
    ...{ kvHeads, length: s.length, stride: s.stride, size: s.size, n: s.blocks },
    ...{ initial: s.initial, local: s.local, scale, seen },
  });
  const turned = flat(b.turned, heads);
  const { pool, format } = keep(b.selected);
  const selected = pagedBlockAttention(turned, pool, chosen.index, index, { kvHeads, format, size: s.size, scale });
  const near = b.window === b.selected ? { pool, format } : keep(b.window);
  const windowed = pagedAttention(turned, near.pool, index, {
    ...{ heads, kvHeads, width, format, window: s.window, scale, seen: Math.min(seen, s.window) },
  });
  return [whole(chosen.out), whole(selected), whole(windowed)];
}
