/** Text with control tokens in it, cut at them: what a tokenizer's added tokens do, where only some text may hold them. */
import { type AddedToken, parseAdded } from '../../data/tokenizer/format.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';

export interface Cut {
  /** Text before the token, and the token; null at the end. */
  readonly text: string;
  readonly token: number | null;
  /** Where the cut ends in the text. */
  readonly end: number;
}

export const addedTokens = (tokenizer: Tokenizer): AddedToken[] =>
  parseAdded(tokenizer.toJSON().added_tokens, new Map());

export class MarkedText {
  private readonly starts = new Map<string, AddedToken[]>();

  constructor(added: readonly AddedToken[]) {
    for (const token of [...added].sort((a, b) => b.content.length - a.content.length)) {
      const first = token.content[0];
      this.starts.set(first, [...(this.starts.get(first) ?? []), token]);
    }
  }

  /** The longest token wins where several begin. */
  cut(text: string): Cut[] {
    const cuts: Cut[] = [];
    let from = 0;
    for (let at = 0; at < text.length; ) {
      const token = this.starts.get(text[at])?.find((t) => text.startsWith(t.content, at));
      if (!token) {
        at++;
        continue;
      }
      const before = text.slice(from, at);
      at += token.content.length;
      if (token.rstrip) while (at < text.length && /\s/.test(text[at])) at++;
      cuts.push({ text: token.lstrip ? before.trimEnd() : before, token: token.id, end: at });
      from = at;
    }
    cuts.push({ text: text.slice(from), token: null, end: text.length });
    return cuts;
  }
}
