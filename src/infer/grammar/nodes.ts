/**
 * Grammars over bytes, as data. A node stands for a set of byte strings.
 *
 * Text is UTF-8, so a character beyond ASCII is a sequence of byte classes (utf8.ts).
 */

export type Node =
  /** One byte of a set: 256 bits in eight words. */
  | { readonly kind: 'byte'; readonly set: Uint32Array }
  | { readonly kind: 'seq'; readonly items: readonly Node[] }
  | { readonly kind: 'alt'; readonly items: readonly Node[] }
  /** Between min and max times; max may be Infinity. */
  | { readonly kind: 'repeat'; readonly item: Node; readonly min: number; readonly max: number }
  /** A node that is made later: recursion. */
  | { readonly kind: 'ref'; readonly name: string; target: Node | null };

export const seq = (...items: Node[]): Node => (items.length === 1 ? items[0] : { kind: 'seq', items });
export const alt = (...items: Node[]): Node => (items.length === 1 ? items[0] : { kind: 'alt', items });
export const empty: Node = { kind: 'seq', items: [] };
export const repeat = (item: Node, min: number, max: number): Node => ({ kind: 'repeat', item, min, max });
export const optional = (item: Node): Node => alt(empty, item);
/** Matches nothing at all. */
export const never: Node = { kind: 'alt', items: [] };

/** Bytes of inclusive ranges. */
export function byteSet(...ranges: readonly (readonly [number, number])[]): Node {
  const set = new Uint32Array(8);
  for (const [lo, hi] of ranges) for (let b = lo; b <= hi; b++) set[b >> 5] |= 1 << (b & 31);
  return { kind: 'byte', set };
}

export const byte = (b: number): Node => byteSet([b, b]);

/** Exactly a text. */
export const literal = (text: string): Node => seq(...[...Buffer.from(text, 'utf8')].map(byte));
