/**
 * What people say inside a program that writes control tokens. Before a template runs, one character of every control
 * token is replaced in their texts by a private-use character that nobody uses; afterwards it is put back. So a control
 * token in what was rendered can only come from the template, whatever it does to the texts (trim, split, replace).
 */
import type { AddedToken } from '../../data/tokenizer/format.ts';
import { ApiError } from '../http/errors.ts';

const PRIVATE = /[\ue000-\uf8ff]/g;
/** Punctuation: a template hardly looks for it, and JSON leaves it as it is. */
const TELLING = /[^\p{L}\p{N}\s"\\]/u;

/** A character of each token that cannot be spelled without it. */
export function tellingCharacters(tokens: readonly AddedToken[]): ReadonlySet<string> {
  const punctuation = tokens.flatMap(({ content, special }) => {
    const found = TELLING.exec(content)?.[0];
    return found !== undefined ? [found] : special ? [content[0]] : [];
  });
  return new Set(punctuation);
}

export class Disguise {
  private readonly masks: ReadonlyMap<string, string>;
  private readonly faces: ReadonlyMap<string, string>;
  private readonly harmless: readonly string[];

  /**
   * @param telling characters to replace
   * @param harmless texts that templates look for in what an assistant has said (`</think>`): they stay as they are there
   * @param said everything that will be disguised and the template itself: none of its characters may be a mask
   */
  constructor(telling: ReadonlySet<string>, harmless: readonly string[], said: string) {
    const used = new Set(said.match(PRIVATE) ?? []);
    const masks = new Map<string, string>();
    let code = 0xe000;
    for (const c of telling) {
      while (used.has(String.fromCharCode(code))) code++;
      if (code > 0xf8ff) throw new ApiError(400, 'The messages use every private-use character there is.');
      masks.set(c, String.fromCharCode(code++));
    }
    this.masks = masks;
    this.faces = new Map([...masks].map(([c, mask]) => [mask, c]));
    this.harmless = harmless;
  }

  /** A text of anybody's. */
  hide(text: string): string {
    let out = '';
    for (const c of text) out += this.masks.get(c) ?? c;
    return out;
  }

  /** A text that an assistant has said: what templates look for can be found in it. */
  hideAnswer(text: string): string {
    const found = this.harmless.filter((h) => text.includes(h));
    if (found.length === 0) return this.hide(text);
    let out = '';
    for (let at = 0; at < text.length; ) {
      const here = found.find((h) => text.startsWith(h, at));
      const part = here ?? String.fromCodePoint(text.codePointAt(at)!);
      out += here ?? this.hide(part);
      at += part.length;
    }
    return out;
  }

  /** Every text in a value of JSON, names of members included. */
  hideAll(value: unknown): unknown {
    if (typeof value === 'string') return this.hide(value);
    if (Array.isArray(value)) return value.map((v) => this.hideAll(v));
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [this.hide(k), this.hideAll(v)]));
  }

  /** The text as it was meant. */
  show(text: string): string {
    let out = '';
    for (const c of text) out += this.faces.get(c) ?? c;
    return out;
  }
}
