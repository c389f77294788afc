/** JSON's own grammar (RFC 8259), as nodes. Strings are UTF-8 without lone surrogates; white space is kept short. */
import { alt, byte, byteSet, empty, literal, type Node, optional, repeat, seq } from './nodes.ts';
import { codePoints, EVERYTHING, minus, type Range } from './utf8.ts';

/** Characters that stand for themselves in a string. */
export const PLAIN: readonly Range[] = minus(
  [EVERYTHING],
  [
    [0, 0x1f],
    [0x22, 0x22],
    [0x5c, 0x5c],
  ],
);

const hex = byteSet([0x30, 0x39], [0x41, 0x46], [0x61, 0x66]);
const hexWithout = (...ranges: (readonly [number, number])[]): Node => byteSet(...ranges);
const D = hexWithout([0x44, 0x44], [0x64, 0x64]);
const notD = byteSet([0x30, 0x39], [0x41, 0x43], [0x45, 0x46], [0x61, 0x63], [0x65, 0x66]);
const to7 = byteSet([0x30, 0x37]);
const from8toB = byteSet([0x38, 0x39], [0x41, 0x42], [0x61, 0x62]);
const fromC = byteSet([0x43, 0x46], [0x63, 0x66]);
/** \uXXXX: a character of the basic plane, or two surrogates that belong together. */
const unicodeEscape = alt(
  seq(literal('\\u'), notD, hex, hex, hex),
  seq(literal('\\u'), D, to7, hex, hex),
  seq(literal('\\u'), D, from8toB, hex, hex, literal('\\u'), D, fromC, hex, hex),
);
const shortEscape = seq(byte(0x5c), byteSet(...[...'"\\/bfnrt'].map((c): Range => [c.charCodeAt(0), c.charCodeAt(0)])));

/** One character of a string, however it is written. */
export const character = alt(codePoints(...PLAIN), shortEscape, unicodeEscape);

/** White space between parts: none, a space, or a new line and its indentation. */
export const space = alt(empty, byte(0x20), seq(byte(0x0a), repeat(byteSet([0x20, 0x20], [0x09, 0x09]), 0, 20)));

export const quoted = (body: Node): Node => seq(byte(0x22), body, byte(0x22));
export const string = (min = 0, max = Number.POSITIVE_INFINITY): Node => quoted(repeat(character, min, max));

const digit = byteSet([0x30, 0x39]);
const natural = alt(byte(0x30), seq(byteSet([0x31, 0x39]), repeat(digit, 0, 14)));
/** At most 15 digits, so that every value is exact in a double. */
export const integer = alt(natural, seq(byte(0x2d), byteSet([0x31, 0x39]), repeat(digit, 0, 14)));
export const number = seq(
  optional(byte(0x2d)),
  natural,
  optional(seq(byte(0x2e), repeat(digit, 1, 15))),
  optional(
    seq(byteSet([0x45, 0x45], [0x65, 0x65]), optional(byteSet([0x2b, 0x2b], [0x2d, 0x2d])), repeat(digit, 1, 2)),
  ),
);

const comma = seq(byte(0x2c), space);

/** [ items ] with between min and max of them. */
export function list(item: Node, min = 0, max = Number.POSITIVE_INFINITY): Node {
  const more = (lo: number, hi: number): Node =>
    seq(item, space, repeat(seq(comma, item, space), Math.max(0, lo - 1), hi - 1));
  const body = max === 0 ? empty : min === 0 ? optional(more(1, max)) : more(min, max);
  return seq(byte(0x5b), space, body, byte(0x5d));
}

/** "name": value. */
export const member = (key: Node, value: Node): Node => seq(key, space, byte(0x3a), space, value, space);
export const object = (members: Node): Node => seq(byte(0x7b), space, members, byte(0x7d));
export const separated = (first: Node, more: Node): Node => seq(first, repeat(seq(comma, more), 0, Infinity));
export const after = (item: Node): Node => seq(comma, item);

/** Any JSON value, nested at will. */
export function anyValue(): Node {
  const ref: Node = { kind: 'ref', name: 'any value', target: null };
  const pair = member(string(), ref);
  ref.target = alt(
    object(optional(separated(pair, pair))),
    list(ref),
    string(),
    number,
    literal('true'),
    literal('false'),
    literal('null'),
  );
  return ref;
}
