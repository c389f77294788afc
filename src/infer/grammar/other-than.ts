/** Names of properties that a schema does not list: every string but some. Written without escapes, so that no name is spelled in two ways. */
import { PLAIN } from './json-text.ts';
import { alt, empty, type Node, never, repeat, seq } from './nodes.ts';
import { codePoints, minus } from './utf8.ts';

const plain = codePoints(...PLAIN);
const rest = repeat(plain, 0, Number.POSITIVE_INFINITY);

export function otherThan(names: readonly string[]): Node {
  return from(names.map((name) => [...name].map((c) => c.codePointAt(0)!)));
}

/** Strings that are none of `names`, whose beginnings have been read. */
function from(names: readonly (readonly number[])[]): Node {
  if (names.length === 0) return rest;
  const firsts = [...new Set(names.filter((n) => n.length > 0).map((n) => n[0]))];
  const other = codePoints(
    ...minus(
      PLAIN,
      firsts.map((c) => [c, c] as const),
    ),
  );
  const parts: Node[] = [seq(other, rest)];
  if (names.every((n) => n.length > 0)) parts.push(empty);
  for (const c of firsts) {
    // A name with characters that need escapes cannot be spelled here at all.
    if (!PLAIN.some(([a, b]) => a <= c && c <= b)) continue;
    parts.push(seq(codePoints([c, c]), from(names.filter((n) => n[0] === c).map((n) => n.slice(1)))));
  }
  return parts.length === 0 ? never : alt(...parts);
}
