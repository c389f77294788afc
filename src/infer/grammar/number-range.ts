/** Decimal numbers of a range, digit by digit; written without exponents. */
import { natural, WHOLE_MOST } from './int-range.ts';
import { alt, byte, byteSet, empty, literal, type Node, never, repeat, seq } from './nodes.ts';

/** Digits behind the point. With 6 before it, numbers that are written differently are different doubles. */
const PLACES = 9;
const EXCLUSIVE_MOST = 1e6;

const digits = (lo: number, hi: number): Node => (lo > hi ? never : byteSet([0x30 + lo, 0x30 + hi]));
const any = digits(0, 9);

/** A bound that is not negative: whole part and digits behind the point, the last of which is not 0. */
interface Bound {
  readonly whole: number;
  readonly places: string;
  /** The bound itself is outside. */
  readonly open: boolean;
}

/** Digits behind a point that make at least (`open`: more than) 0.`d`: between `least` and `n` of them. */
function from(d: string, open: boolean, n: number, least = 0): Node {
  if (d === '' && !open) return repeat(any, least, n);
  if (n === 0) return never;
  const first = Number(d[0] ?? 0);
  return alt(
    seq(digits(first + 1, 9), repeat(any, 0, n - 1)),
    seq(digits(first, first), from(d.slice(1), open, n - 1)),
  );
}

/** The same for at most (`open`: less than) 0.`d`. */
function upTo(d: string, open: boolean, n: number, least = 0): Node {
  if (d === '') return open ? never : repeat(digits(0, 0), least, n);
  if (n === 0) return empty;
  const first = Number(d[0]);
  return alt(
    ...(least === 0 ? [empty] : []),
    seq(digits(0, first - 1), repeat(any, 0, n - 1)),
    seq(digits(first, first), upTo(d.slice(1), open, n - 1)),
  );
}

/** Both at once. */
function between(a: Bound, b: Bound, n: number, least = 0): Node {
  if (a.places === '' && !a.open) return upTo(b.places, b.open, n, least);
  if (b.places === '' || n === 0) return never;
  const [x, y] = [Number(a.places[0] ?? 0), Number(b.places[0])];
  const rest = (bound: Bound): Bound => ({ ...bound, places: bound.places.slice(1) });
  if (x > y) return never;
  if (x === y) return seq(digits(x, x), between(rest(a), rest(b), n - 1));
  return alt(
    seq(digits(x, x), from(a.places.slice(1), a.open, n - 1)),
    seq(digits(x + 1, y - 1), repeat(any, 0, n - 1)),
    seq(digits(y, y), upTo(b.places.slice(1), b.open, n - 1)),
  );
}

/** A point with these digits behind it; or, where 0 behind it will do, neither. */
const behindPoint = (places: Node, none: boolean): Node => alt(...(none ? [empty] : []), seq(byte(0x2e), places));

/** Numbers from a to b, or without an end. */
function magnitudes(a: Bound, b: Bound | null): Node {
  const begins = a.places === '' && !a.open;
  const parts = [seq(natural(a.whole + 1, b ? b.whole - 1 : WHOLE_MOST), behindPoint(repeat(any, 1, PLACES), true))];
  if (b && b.whole === a.whole) {
    const none = begins && !(b.places === '' && b.open);
    parts.push(seq(literal(String(a.whole)), behindPoint(between(a, b, PLACES, 1), none)));
  } else if (!b || b.whole > a.whole) {
    parts.push(seq(literal(String(a.whole)), behindPoint(from(a.places, a.open, PLACES, 1), begins)));
    if (b)
      parts.push(
        seq(literal(String(b.whole)), behindPoint(upTo(b.places, b.open, PLACES, 1), !(b.places === '' && b.open))),
      );
  }
  return alt(...parts);
}

/** Null when it has more digits than can be told apart. */
function boundOf(x: number, open: boolean): Bound | null {
  const [, whole, places = ''] = /^(\d+)(?:\.(\d+))?$/.exec(String(x)) ?? [];
  if (whole === undefined || x > WHOLE_MOST || places.length > PLACES || (open && x > EXCLUSIVE_MOST)) return null;
  return { whole: Number(whole), places, open };
}

export interface Limit {
  readonly at: number;
  readonly open: boolean;
}

/** Numbers between two limits, which may be infinite; null when one of them has too many digits. */
export function numberRange(lo: Limit, hi: Limit): Node | null {
  const parts: Node[] = [];
  const put = (a: Limit, b: Limit, sign: Node): boolean => {
    const [from, to] = [boundOf(a.at, a.open), b.at === Number.POSITIVE_INFINITY ? null : boundOf(b.at, b.open)];
    if (!from || (!to && b.at !== Number.POSITIVE_INFINITY)) return false;
    parts.push(seq(sign, magnitudes(from, to)));
    return true;
  };
  const zero: Limit = { at: 0, open: false };
  if (hi.at >= 0 && !put(lo.at > 0 || (lo.at === 0 && lo.open) ? lo : zero, hi, empty)) return null;
  const minus = (l: Limit): Limit => ({ at: -l.at, open: l.open });
  if (lo.at < 0 && !put(hi.at < 0 || (hi.at === 0 && hi.open) ? minus(hi) : zero, minus(lo), byte(0x2d))) return null;
  return alt(...parts);
}
