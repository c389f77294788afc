/** Whole numbers of a range, digit by digit. */
import { alt, byteSet, empty, literal, type Node, never, repeat, seq } from './nodes.ts';

const ZERO = 0x30;
const digits = (lo: number, hi: number): Node => byteSet([ZERO + lo, ZERO + hi]);

/** Decimal strings of one length from a to b, digit by digit. */
function between(a: string, b: string): Node {
  if (a === '') return empty;
  const [x, y] = [Number(a[0]), Number(b[0])];
  const rest = a.length - 1;
  const any = repeat(digits(0, 9), rest, rest);
  if (x === y) return seq(digits(x, x), between(a.slice(1), b.slice(1)));
  const parts = [
    seq(digits(x, x), between(a.slice(1), '9'.repeat(rest))),
    seq(digits(y, y), between('0'.repeat(rest), b.slice(1))),
  ];
  return x + 1 <= y - 1 ? alt(parts[0], seq(digits(x + 1, y - 1), any), parts[1]) : alt(...parts);
}

/** Whole numbers have 15 digits at most, so that each is exact in a double. */
export const WHOLE_MOST = 10 ** 15 - 1;

/** Numbers from lo to hi, both at least 0. */
export function natural(lo: number, hi: number): Node {
  const parts: Node[] = [];
  for (let n = String(lo).length; n <= String(hi).length; n++) {
    const [a, b] = [Math.max(lo, n === 1 ? 0 : 10 ** (n - 1)), Math.min(hi, 10 ** n - 1)];
    if (a <= b) parts.push(between(String(a), String(b)));
  }
  return parts.length === 0 ? never : alt(...parts);
}

/** Whole numbers from min to max; either may be infinite: then 15 digits are the most. */
export function intRange(min: number, max: number): Node {
  const [lo, hi] = [Math.max(min, -WHOLE_MOST), Math.min(max, WHOLE_MOST)];
  const parts: Node[] = [];
  if (hi >= 0) parts.push(natural(Math.max(0, lo), hi));
  if (lo < 0) parts.push(seq(literal('-'), natural(Math.max(1, -Math.min(hi, -1)), -lo)));
  return alt(...parts);
}
