/**
 * Regular expressions of JSON Schema's `pattern`: the part without look-around, back-references and flags. As there, a
 * pattern may match anywhere unless it is anchored. Matches inside a JSON string, where quotes and backslashes are
 * escaped.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { PLAIN } from './json-text.ts';
import { alt, empty, literal, type Node, never, repeat, seq } from './nodes.ts';
import { codePoints, EVERYTHING, minus, type Range } from './utf8.ts';

const DIGITS: Range[] = [[0x30, 0x39]];
const WORD: Range[] = [...DIGITS, [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]];
const SPACE: Range[] = [
  [9, 13],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const CONTROL: Readonly<Record<string, number>> = { t: 9, n: 10, v: 11, f: 12, r: 13, '0': 0 };
const CLASSES: Readonly<Record<string, Range[]>> = {
  d: DIGITS,
  D: minus([EVERYTHING], DIGITS),
  w: WORD,
  W: minus([EVERYTHING], WORD),
  s: SPACE,
  S: minus([EVERYTHING], SPACE),
};
/** Repetitions beyond this make automata that nobody can use. */
const MOST = 1000;

/** Characters of some ranges as they are written in a JSON string. */
function inString(ranges: readonly Range[]): Node {
  const plain = PLAIN.flatMap(([a, b]) =>
    ranges.flatMap(([c, d]): Range[] => (Math.max(a, c) <= Math.min(b, d) ? [[Math.max(a, c), Math.min(b, d)]] : [])),
  );
  const parts: Node[] = plain.length > 0 ? [codePoints(...plain)] : [];
  const has = (c: number): boolean => ranges.some(([a, b]) => a <= c && c <= b);
  for (const c of [0x22, 0x5c, ...Array.from({ length: 32 }, (_, k) => k)])
    if (has(c)) parts.push(literal(JSON.stringify(String.fromCharCode(c)).slice(1, -1)));
  return parts.length === 0 ? never : alt(...parts);
}

class Parser {
  private readonly text: string[];
  private at = 0;

  constructor(pattern: string) {
    this.text = [...pattern];
  }

  parse(): Node {
    const anything = repeat(inString([EVERYTHING]), 0, Number.POSITIVE_INFINITY);
    const branches: Node[] = [];
    do {
      const start = this.eat('^');
      const body = this.sequence();
      const end = this.eat('$');
      branches.push(seq(...(start ? [] : [anything]), body, ...(end ? [] : [anything])));
    } while (this.eat('|'));
    if (this.at < this.text.length) throw this.wrong(`unexpected '${this.text[this.at]}'`);
    return alt(...branches);
  }

  private alternatives(): Node {
    const branches = [this.sequence()];
    while (this.eat('|')) branches.push(this.sequence());
    return alt(...branches);
  }

  private sequence(): Node {
    const items: Node[] = [];
    for (;;) {
      const c = this.text[this.at];
      if (c === undefined || c === '|' || c === ')' || (c === '$' && this.last())) break;
      items.push(this.repeated(this.atom()));
    }
    return items.length === 0 ? empty : seq(...items);
  }

  /** Whether the '$' here ends a branch at the top. */
  private last(): boolean {
    const next = this.text[this.at + 1];
    return next === undefined || next === '|';
  }

  private atom(): Node {
    const c = this.text[this.at++];
    switch (c) {
      case '(': {
        if (this.eat('?') && !this.eat(':')) throw this.wrong('look-around and named groups are not supported');
        const inner = this.alternatives();
        if (!this.eat(')')) throw this.wrong("')' is missing");
        return inner;
      }
      case '[':
        return inString(this.charClass());
      case '.':
        return inString(
          minus(
            [EVERYTHING],
            [
              [10, 10],
              [13, 13],
              [0x2028, 0x2029],
            ],
          ),
        );
      case '\\':
        return inString(this.escape());
      case '^':
      case '$':
        throw this.wrong(`'${c}' is supported at the ends of a pattern only`);
      case '*':
      case '+':
      case '?':
      case '{':
        throw this.wrong(`'${c}' repeats nothing`);
      default: {
        const code = c.codePointAt(0)!;
        return inString([[code, code]]);
      }
    }
  }

  private repeated(item: Node): Node {
    let [min, max] = [1, 1];
    if (this.eat('*')) [min, max] = [0, Infinity];
    else if (this.eat('+')) [min, max] = [1, Infinity];
    else if (this.eat('?')) [min, max] = [0, 1];
    else if (this.text[this.at] === '{') [min, max] = this.counts();
    else return item;
    this.eat('?'); // lazy: the same strings
    return repeat(item, min, max);
  }

  private counts(): [number, number] {
    const end = this.text.indexOf('}', this.at);
    const body = end < 0 ? '' : this.text.slice(this.at + 1, end).join('');
    const found = /^(\d+)(,(\d*))?$/.exec(body);
    if (!found) throw this.wrong(`'{${body}' is not a number of repetitions`);
    this.at = end + 1;
    const min = Number(found[1]);
    const max = found[2] === undefined ? min : found[3] === '' ? Infinity : Number(found[3]);
    if (min > MOST || (max !== Infinity && max > MOST) || min > max) throw this.wrong(`{${body}} is out of range`);
    return [min, max];
  }

  private charClass(): Range[] {
    const negated = this.eat('^');
    const ranges: Range[] = [];
    for (;;) {
      const c = this.text[this.at];
      if (c === undefined) throw this.wrong("']' is missing");
      if (c === ']') break;
      const from = this.member();
      if (this.text[this.at] === '-' && this.text[this.at + 1] !== ']' && this.text[this.at + 1] !== undefined) {
        this.at++;
        const to = this.member();
        if (from.length !== 1 || to.length !== 1 || from[0][0] !== from[0][1] || from[0][0] > to[0][1])
          throw this.wrong('a range in [] has no order');
        ranges.push([from[0][0], to[0][1]]);
      } else ranges.push(...from);
    }
    this.at++;
    return negated ? minus([EVERYTHING], ranges) : ranges;
  }

  private member(): Range[] {
    const c = this.text[this.at++];
    if (c === '\\') return this.eat('b') ? [[8, 8]] : this.escape();
    const code = c.codePointAt(0)!;
    return [[code, code]];
  }

  private escape(): Range[] {
    const c = this.text[this.at++];
    if (c === undefined) throw this.wrong('a backslash ends it');
    if (c in CLASSES) return CLASSES[c];
    if (c in CONTROL) return [[CONTROL[c], CONTROL[c]]];
    if (c === 'x' || c === 'u') {
      const length = c === 'x' ? 2 : 4;
      const digits = this.text.slice(this.at, this.at + length).join('');
      if (!/^[0-9a-fA-F]+$/.test(digits) || digits.length < length) throw this.wrong(`\\${c} wants ${length} digits`);
      this.at += length;
      const code = Number.parseInt(digits, 16);
      return [[code, code]];
    }
    if (/[a-zA-Z1-9]/.test(c)) throw this.wrong(`\\${c} is not supported`);
    const code = c.codePointAt(0)!;
    return [[code, code]];
  }

  private eat(c: string): boolean {
    if (this.text[this.at] !== c) return false;
    this.at++;
    return true;
  }

  private wrong(what: string): AnsatzError {
    return new AnsatzError(`pattern '${this.text.join('')}': ${what}`);
  }
}

/** The strings that a pattern matches, as they are written between the quotes of a JSON string. */
export const patternNode = (pattern: string): Node => new Parser(pattern).parse();
