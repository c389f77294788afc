/** Ranges of code points as sequences of byte ranges (Cox 2007: the ranges of one length are cut where bytes carry). */
import { alt, byteSet, type Node, never, seq } from './nodes.ts';

export type Range = readonly [number, number];

const SURROGATES: Range = [0xd800, 0xdfff];
const LENGTHS: readonly Range[] = [
  [0, 0x7f],
  [0x80, 0x7ff],
  [0x800, 0xffff],
  [0x10000, 0x10ffff],
];

const encode = (c: number): number[] => [...Buffer.from(String.fromCodePoint(c), 'utf8')];

/** Code points of inclusive ranges; surrogates, which UTF-8 does not have, are left out. */
export function codePoints(...ranges: readonly Range[]): Node {
  const parts: Node[] = [];
  for (const range of withoutSurrogates(ranges))
    for (const [lo, hi] of LENGTHS) {
      const [a, b] = [Math.max(lo, range[0]), Math.min(hi, range[1])];
      if (a <= b) parts.push(...split(encode(a), encode(b)));
    }
  return parts.length === 0 ? never : alt(...parts);
}

function withoutSurrogates(ranges: readonly Range[]): Range[] {
  return ranges.flatMap(([a, b]): Range[] => {
    const out: Range[] = [];
    if (a < SURROGATES[0]) out.push([a, Math.min(b, SURROGATES[0] - 1)]);
    if (b > SURROGATES[1]) out.push([Math.max(a, SURROGATES[1] + 1), b]);
    return out;
  });
}

/** Sequences of byte ranges for the encodings from a to b, which have the same length. */
function split(a: readonly number[], b: readonly number[]): Node[] {
  if (a.length === 1) return [byteSet([a[0], b[0]])];
  const [restA, restB] = [a.slice(1), b.slice(1)];
  const [low, high] = [restA.map(() => 0x80), restA.map(() => 0xbf)];
  const after = (first: Range, from: readonly number[], to: readonly number[]): Node =>
    seq(byteSet(first), alt(...split(from, to)));
  if (a[0] === b[0]) return [after([a[0], a[0]], restA, restB)];
  const parts: Node[] = [];
  let [first, last] = [a[0], b[0]];
  if (restA.some((x, k) => x !== low[k])) parts.push(after([first, first++], restA, high));
  const top = restB.some((x, k) => x !== high[k]) ? after([last, last--], low, restB) : null;
  if (first <= last) parts.push(after([first, last], low, high));
  return top ? [...parts, top] : parts;
}

/** Ranges without some others. */
export function minus(ranges: readonly Range[], others: readonly Range[]): Range[] {
  let left = [...ranges];
  for (const [lo, hi] of others)
    left = left.flatMap(([a, b]): Range[] => {
      if (hi < a || lo > b) return [[a, b]];
      const out: Range[] = [];
      if (a < lo) out.push([a, lo - 1]);
      if (b > hi) out.push([hi + 1, b]);
      return out;
    });
  return left;
}

export const EVERYTHING: Range = [0, 0x10ffff];
