import { Permutation } from './loader-permutation.ts';

/** Pieces of documents, grouped by row: row r holds pieces rowStarts[r] to rowStarts[r + 1] - 1. */
export interface PackedRows {
  readonly rowStarts: Int32Array;
  /** First token of every piece in the stream. */
  readonly starts: Float64Array;
  readonly counts: Int32Array;
}

/**
 * Best-fit-decreasing packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): documents longer than
 * a row are cut into rows and a rest; pieces, longest first, go into the fullest row that still has room. Rows are
 * found by their free space with a bit set over 1..T, so the cost is that of the sort plus a short scan a piece.
 */
export function packBestFit(docStarts: Float64Array, length: number, seed: number): PackedRows {
  const { starts, counts } = cutIntoPieces(docStarts, length);
  const order = longestFirst(counts, length, seed);
  const rowOf = new Int32Array(starts.length);
  const free = new FreeSpace(length);
  let rows = 0;
  for (const piece of order) {
    const size = counts[piece];
    let row = free.take(size);
    let space = length;
    if (row === undefined) row = rows++;
    else space = free.taken;
    rowOf[piece] = row;
    free.put(row, space - size);
  }
  return groupByRow(starts, counts, order, rowOf, rows);
}

function cutIntoPieces(docStarts: Float64Array, length: number): { starts: Float64Array; counts: Int32Array } {
  let pieces = 0;
  for (let d = 0; d + 1 < docStarts.length; d++) pieces += Math.ceil((docStarts[d + 1] - docStarts[d]) / length);
  const starts = new Float64Array(pieces);
  const counts = new Int32Array(pieces);
  let p = 0;
  for (let d = 0; d + 1 < docStarts.length; d++) {
    for (let at = docStarts[d]; at < docStarts[d + 1]; at += length, p++) {
      starts[p] = at;
      counts[p] = Math.min(length, docStarts[d + 1] - at);
    }
  }
  return { starts, counts };
}

/** Counting sort by size, descending; pieces of equal size in a seeded order, so that neighbours do not share rows. */
function longestFirst(counts: Int32Array, length: number, seed: number): Int32Array {
  const at = new Int32Array(length + 2);
  for (const size of counts) at[length - size + 1]++;
  for (let s = 1; s < at.length; s++) at[s] += at[s - 1];
  const order = new Int32Array(counts.length);
  const shuffle = new Permutation(counts.length, seed, 0, 0);
  for (let i = 0; i < counts.length; i++) {
    const piece = shuffle.at(i);
    order[at[length - counts[piece]]++] = piece;
  }
  return order;
}

/** Rows by free space: one stack for each amount, and a bit set of the amounts whose stack is not empty. */
class FreeSpace {
  /** Free space of the row that `take` returned last. */
  taken = 0;
  readonly #length: number;
  readonly #stacks: number[][];
  readonly #bits: Int32Array;

  constructor(length: number) {
    this.#length = length;
    this.#stacks = Array.from({ length: length + 1 }, () => []);
    this.#bits = new Int32Array((length >> 5) + 1);
  }

  /** A row with the least free space of at least `size`, or undefined. */
  take(size: number): number | undefined {
    let word = size >> 5;
    let bits = this.#bits[word] & (-1 << (size & 31));
    while (bits === 0) {
      if (++word >= this.#bits.length) return undefined;
      bits = this.#bits[word];
    }
    const space = (word << 5) + (31 - Math.clz32(bits & -bits));
    const stack = this.#stacks[space];
    const row = stack.pop();
    if (stack.length === 0) this.#bits[word] &= ~(1 << (space & 31));
    this.taken = space;
    return row;
  }

  put(row: number, space: number): void {
    if (space === 0 || space > this.#length) return;
    this.#stacks[space].push(row);
    this.#bits[space >> 5] |= 1 << (space & 31);
  }
}

function groupByRow(
  starts: Float64Array,
  counts: Int32Array,
  order: Int32Array,
  rowOf: Int32Array,
  rows: number,
): PackedRows {
  const rowStarts = new Int32Array(rows + 1);
  for (const row of rowOf) rowStarts[row + 1]++;
  for (let r = 0; r < rows; r++) rowStarts[r + 1] += rowStarts[r];
  const next = rowStarts.slice();
  const sortedStarts = new Float64Array(starts.length);
  const sortedCounts = new Int32Array(starts.length);
  for (const piece of order) {
    const at = next[rowOf[piece]]++;
    sortedStarts[at] = starts[piece];
    sortedCounts[at] = counts[piece];
  }
  return { rowStarts, starts: sortedStarts, counts: sortedCounts };
}
