/** Tokens of a text with their log-probabilities, let out as the text that they begin in is. */
import { StreamDecoder, type Tokenizer } from '../../data/tokenizer/index.ts';
import type { Pick } from '../../infer/engine/index.ts';

export interface ScoredToken {
  readonly token: number;
  /** Null for a token that nothing comes before. */
  readonly logprob: number | null;
  readonly top: readonly { readonly token: number; readonly logprob: number }[];
  /** Where it begins in the text, in characters (code points). */
  readonly offset: number;
}

export const characters = (text: string): number => {
  let n = text.length;
  // The second half of a surrogate pair is no character of its own.
  for (let k = 0; k < text.length; k++) if ((text.charCodeAt(k) & 0xfc00) === 0xdc00) n--;
  return n;
};

export class TokenLog {
  private readonly decoder: StreamDecoder;
  private readonly waiting: ScoredToken[] = [];
  private at: number;
  private released: number;

  constructor(tokenizer: Tokenizer, offset = 0) {
    this.decoder = new StreamDecoder(tokenizer);
    this.at = this.released = offset;
  }

  /** A token has come; the bytes of a character that is not whole yet begin where the character does. */
  push({ token, logprob, top = [] }: Pick): void {
    this.waiting.push({ token, logprob, top, offset: this.at });
    this.at += characters(this.decoder.push(token));
  }

  /** This text goes out: the tokens that begin in it. */
  release(text: string): ScoredToken[] {
    this.released += characters(text);
    const count = this.waiting.findIndex((t) => t.offset >= this.released);
    return this.waiting.splice(0, count < 0 ? this.waiting.length : count);
  }

  /** The text has ended: what is left, which is nothing when a stop string cut it. */
  end(cut: boolean): ScoredToken[] {
    return cut ? [] : this.waiting.splice(0);
  }
}
