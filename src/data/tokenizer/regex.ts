/**
 * Oniguruma (Ruby) syntax, in which tokenizer.json writes its patterns, to a JavaScript RegExp with the `u` flag.
 *
 * What differs and occurs in tokenizers: `\s`, `\d`, `\h` have other meanings, `(?i:...)` is missing before Node 23,
 * possessive quantifiers and atomic groups are missing (written here as a lookahead and a back reference), `X{n,m}+` is a
 * repeated group and not possessive, `\A`, `\z`, `^`, `$` are anchors of text and lines.
 */
const ESCAPES: Readonly<Record<string, string>> = {
  s: '\\p{White_Space}',
  S: '\\P{White_Space}',
  d: '\\p{Nd}',
  D: '\\P{Nd}',
  w: '[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]',
  W: '[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]',
  h: '[0-9A-Fa-f]',
  H: '[^0-9A-Fa-f]',
  A: '(?<![^])',
  z: '(?![^])',
  a: '\\x07',
  e: '\\x1b',
};
const CLASS_ESCAPES: Readonly<Record<string, string>> = {
  s: ESCAPES.s,
  S: ESCAPES.S,
  d: ESCAPES.d,
  D: ESCAPES.D,
  w: '\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}',
  h: '0-9A-Fa-f',
  a: ESCAPES.a,
  e: ESCAPES.e,
};
// Characters whose simple case folding is an ASCII letter.
const FOLDS_TO: Readonly<Record<string, string>> = { s: '\u017f', k: '\u212a' };

const isLetter = (char: string) => char.toLowerCase() !== char.toUpperCase();
const bothCases = (char: string) => {
  const lower = char.toLowerCase();
  return [...new Set([char, lower, char.toUpperCase(), FOLDS_TO[lower] ?? ''])]
    .filter((c) => [...c].length === 1)
    .join('');
};

class Translator {
  private at = 0;
  private atomics = 0;
  private readonly source: string;

  constructor(source: string) {
    this.source = source;
  }

  translate(): string {
    const out = this.alternatives(false);
    if (this.at < this.source.length) throw new SyntaxError('unmatched )');
    return out;
  }

  private alternatives(ignoreCase: boolean): string {
    let out = '';
    while (this.at < this.source.length && this.source[this.at] !== ')') {
      if (this.source[this.at] === '|') {
        out += '|';
        this.at++;
      } else {
        out += this.quantified(this.atom(ignoreCase));
      }
    }
    return out;
  }

  private quantified(atom: string): string {
    for (;;) {
      const found = /^(?:([*+?])|\{(\d*)(,?)(\d*)\})/.exec(this.source.slice(this.at));
      if (!found || (!found[1] && !found[2] && !found[4])) return atom;
      this.at += found[0].length;
      const quantifier = found[1] ?? `{${found[2] || '0'}${found[3]}${found[4]}}`;
      const mode = this.source[this.at];
      if (mode === '?' && (found[1] || found[3])) {
        this.at++;
        atom = `(?:${atom}${quantifier}?)`;
      } else if (mode === '+' && found[1]) {
        this.at++;
        atom = this.atomic(`${atom}${quantifier}`);
      } else {
        const next = /^(?:[*+?]|\{\d*,?\d*\})/.test(this.source.slice(this.at));
        atom = next ? `(?:${atom}${quantifier})` : `${atom}${quantifier}`;
      }
    }
  }

  private atomic(inner: string): string {
    const name = `atomic${++this.atomics}`;
    return `(?:(?=(?<${name}>${inner}))\\k<${name}>)`;
  }

  private atom(ignoreCase: boolean): string {
    const char = String.fromCodePoint(this.source.codePointAt(this.at) as number);
    if (char === '(') return this.group(ignoreCase);
    if (char === '[') return this.characterClass(ignoreCase);
    if (char === '\\') return this.escape(ESCAPES);
    this.at += char.length;
    if (char === '.') return '[^\\n]';
    if (char === '^') return '(?<![^\\n])';
    if (char === '$') return '(?![^\\n])';
    if (ignoreCase && isLetter(char)) return `[${bothCases(char)}]`;
    return /[\]{}/]/.test(char) ? `\\${char}` : char;
  }

  private group(ignoreCase: boolean): string {
    const rest = this.source.slice(this.at);
    const open = /^\((?:\?(?:([imx]*)(?:-([imx]*))?:|<[=!]|[=!>]))?/.exec(rest) as RegExpExecArray;
    if (/^\(\?/.test(rest) && open[0] === '(') throw new SyntaxError(`unsupported group ${rest.slice(0, 4)}`);
    if (/[mx]/.test(open[1] ?? '')) throw new SyntaxError(`unsupported group ${open[0]}`);
    this.at += open[0].length;
    const fold = open[1]?.includes('i') ? true : open[2]?.includes('i') ? false : ignoreCase;
    const inner = this.alternatives(fold);
    if (this.source[this.at] !== ')') throw new SyntaxError('missing )');
    this.at++;
    if (open[0] === '(?>') return this.atomic(inner);
    const kind = /^\(\?(?:<[=!]|[=!])$/.test(open[0]) ? open[0] : '(?:';
    return `${kind}${inner})`;
  }

  private escape(table: Readonly<Record<string, string>>): string {
    const rest = this.source.slice(this.at);
    const long = /^\\(?:[pP]\{\^?[^}]*\}|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})/.exec(rest)?.[0];
    if (long) {
      this.at += long.length;
      if (long.startsWith('\\x{')) return `\\u{${long.slice(3)}`;
      if (long.startsWith('\\p{^')) return `\\P{${long.slice(4)}`;
      return long;
    }
    const char = rest[1];
    if (char === undefined) throw new SyntaxError('\\ at the end');
    this.at += 2;
    if (table[char] !== undefined) return table[char];
    if (/[tnrfv]/.test(char)) return `\\${char}`;
    if (/[A-Za-z0-9]/.test(char)) throw new SyntaxError(`unsupported escape \\${char}`);
    return /[\^$\\.*+?()[\]{}|/-]/.test(char) ? (char === '-' ? '\\x2d' : `\\${char}`) : char;
  }

  private characterClass(ignoreCase: boolean): string {
    this.at++;
    let out = '[';
    if (this.source[this.at] === '^') {
      out += '^';
      this.at++;
    }
    for (let first = true; ; first = false) {
      const char = this.source[this.at];
      if (char === undefined) throw new SyntaxError('missing ]');
      if (char === ']' && !first) break;
      if (char === '[' || this.source.startsWith('&&', this.at)) throw new SyntaxError('nested character class');
      out += this.classItem(ignoreCase);
    }
    this.at++;
    return `${out}]`;
  }

  private classItem(ignoreCase: boolean): string {
    if (this.source[this.at] === '\\') return this.escape(CLASS_ESCAPES);
    const char = String.fromCodePoint(this.source.codePointAt(this.at) as number);
    this.at += char.length;
    if (!ignoreCase || !isLetter(char)) return /[()[\]{}|/]/.test(char) ? `\\${char}` : char;
    const range = /^-(\p{L})/u.exec(this.source.slice(this.at));
    if (!range) return bothCases(char);
    this.at += range[0].length;
    const to = range[1];
    const folds = Object.entries(FOLDS_TO).filter(([c]) => c >= char.toLowerCase() && c <= to.toLowerCase());
    const ends = (change: (c: string) => string) => `${change(char)}-${change(to)}`;
    return ends((c) => c.toLowerCase()) + ends((c) => c.toUpperCase()) + folds.map(([, c]) => c).join('');
  }
}

/** @throws SyntaxError when the pattern uses syntax that has no equal in JavaScript. */
export function compileOniguruma(source: string): RegExp {
  return new RegExp(new Translator(source).translate(), 'gu');
}

export const escapeLiteral = (text: string): string =>
  text.replace(/[.*+?^${}()|[\]\\/-]/g, (c) => `\\x${c.charCodeAt(0).toString(16)}`);
