import type { Document } from './types.ts';

/** Shorter lines (braces, "return x;") are shared by unrelated texts. */
const MIN_LINE_BYTES = 16;
/** A line found in more documents than this is boilerplate, such as a licence header. */
const MAX_SHARING = 16;
/** Two documents are near-duplicates if they share this part of the smaller one's lines, and at least MIN_SHARED. */
const MIN_SHARE = 0.4;
const MIN_SHARED = 4;

/** Calls `visit` with a 32-bit FNV-1a hash and the length of every line, white space at both ends removed. */
export function forEachLine(text: Uint8Array, visit: (hash: number, bytes: number) => void): void {
  let hash = 0x811c9dc5;
  let bytes = 0;
  let pendingSpaces = 0;
  for (let i = 0; i <= text.length; i++) {
    const b = i < text.length ? text[i] : 10;
    if (b === 10) {
      if (bytes >= MIN_LINE_BYTES) visit(hash >>> 0, bytes);
      hash = 0x811c9dc5;
      bytes = 0;
      pendingSpaces = 0;
    } else if (b === 32 || b === 9 || b === 13) {
      if (bytes > 0) pendingSpaces++;
    } else {
      // Runs of white space count as one space: the same code indented or wrapped in tabs stays the same line.
      if (pendingSpaces > 0) {
        hash = Math.imul(hash ^ 32, 0x01000193);
        bytes++;
        pendingSpaces = 0;
      }
      hash = Math.imul(hash ^ b, 0x01000193);
      bytes++;
    }
  }
}

/**
 * Groups near-duplicates (a source file and its compiled copy, two versions of a page) by the lines they share.
 * A held-out file whose twin is trained on would measure memory, not generalisation; so a group stays on one side.
 * Returns the group of every document, named by its first member. Prose without line breaks only groups if identical.
 */
export function clusterByLines(documents: readonly Document[]): Int32Array {
  const n = documents.length;
  // Hash and document packed into one exact double, so that one numeric sort brings equal lines together.
  const stride = 2 ** Math.ceil(Math.log2(Math.max(n, 2)));
  const hashBits = Math.min(32, 53 - Math.log2(stride));
  const shift = 32 - hashBits;
  const keys: number[] = [];
  for (let d = 0; d < n; d++) {
    const seen = new Set<number>();
    forEachLine(documents[d].text, (hash) => {
      const key = hash >>> shift;
      if (seen.has(key)) return;
      seen.add(key);
      keys.push(key * stride + d);
    });
  }
  const sorted = Float64Array.from(keys).sort();
  const lines = new Int32Array(n);
  const shared = new Map<number, number>();
  for (let i = 0; i < sorted.length; ) {
    const hash = Math.floor(sorted[i] / stride);
    let end = i + 1;
    while (end < sorted.length && Math.floor(sorted[end] / stride) === hash) end++;
    if (end - i <= MAX_SHARING) {
      for (let a = i; a < end; a++) {
        const docA = sorted[a] - hash * stride;
        lines[docA]++;
        for (let b = a + 1; b < end; b++) {
          const pair = docA * stride + (sorted[b] - hash * stride);
          shared.set(pair, (shared.get(pair) ?? 0) + 1);
        }
      }
    }
    i = end;
  }
  const parent = Int32Array.from({ length: n }, (_, d) => d);
  for (const [pair, count] of shared) {
    const a = Math.floor(pair / stride);
    const b = pair - a * stride;
    if (count >= MIN_SHARED && count >= MIN_SHARE * Math.min(lines[a], lines[b])) union(parent, a, b);
  }
  return parent.map((_, d) => find(parent, d));
}

function find(parent: Int32Array, d: number): number {
  while (parent[d] !== d) {
    parent[d] = parent[parent[d]];
    d = parent[d];
  }
  return d;
}

function union(parent: Int32Array, a: number, b: number): void {
  const rootA = find(parent, a);
  const rootB = find(parent, b);
  // The smaller index stays the root: the result does not depend on the order of the pairs.
  if (rootA !== rootB) parent[Math.max(rootA, rootB)] = Math.min(rootA, rootB);
}

/** Share of the held-out text (in bytes of lines) that occurs line for line in the training text. */
export function lineOverlap(train: readonly Document[], heldOut: readonly Document[]): number {
  const wanted = new Set<number>();
  for (const document of heldOut) forEachLine(document.text, (hash) => wanted.add(hash));
  const found = new Set<number>();
  for (const document of train) {
    forEachLine(document.text, (hash) => {
      if (wanted.has(hash)) found.add(hash);
    });
  }
  let total = 0;
  let overlapping = 0;
  for (const document of heldOut) {
    forEachLine(document.text, (hash, bytes) => {
      total += bytes;
      if (found.has(hash)) overlapping += bytes;
    });
  }
  return total === 0 ? 0 : overlapping / total;
}
