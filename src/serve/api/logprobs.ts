/** Log-probabilities as the two completion APIs give them. They are the model's own, before sampling changes them. */
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import type { ScoredToken } from '../models/token-log.ts';

/** JSON has no infinity: this is what OpenAI writes instead. */
const LEAST = -9999;
const finite = (x: number): number => (Number.isFinite(x) ? x : LEAST);

/** A token's text; one that is no whole text is spelled by its bytes, so that no two tokens look alike. */
export function spelled(tokenizer: Tokenizer, token: number): { text: string; bytes: number[] } {
  if (token >= tokenizer.vocabSize) return { text: `<${token}>`, bytes: [] };
  const bytes = tokenizer.decodeBytes([token]);
  try {
    return { text: new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes), bytes: [...bytes] };
  } catch {
    const hex = Array.from(bytes, (b) => `\\x${b.toString(16).padStart(2, '0')}`).join('');
    return { text: `bytes:${hex}`, bytes: [...bytes] };
  }
}

export interface ChatLogprobs {
  content: unknown[];
  refusal: null;
}

export function chatLogprobs(tokenizer: Tokenizer, tokens: readonly ScoredToken[]): ChatLogprobs {
  const entry = (token: number, logprob: number): { token: string; logprob: number; bytes: number[] } => {
    const { text, bytes } = spelled(tokenizer, token);
    return { token: text, logprob: finite(logprob), bytes };
  };
  const content = tokens.map(({ token, logprob, top }) => ({
    ...entry(token, logprob ?? LEAST),
    top_logprobs: top.map((t) => entry(t.token, t.logprob)),
  }));
  return { content, refusal: null };
}

export interface CompletionLogprobs {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  text_offset: number[];
}

export function completionLogprobs(tokenizer: Tokenizer, tokens: readonly ScoredToken[]): CompletionLogprobs {
  return {
    tokens: tokens.map((t) => spelled(tokenizer, t.token).text),
    token_logprobs: tokens.map((t) => (t.logprob === null ? null : finite(t.logprob))),
    top_logprobs: tokens.map(({ token, logprob, top }) => {
      if (logprob === null) return null;
      const map: Record<string, number> = {};
      for (const t of top) map[spelled(tokenizer, t.token).text] = finite(t.logprob);
      // The token itself is always among them.
      map[spelled(tokenizer, token).text] = finite(logprob);
      return map;
    }),
    text_offset: tokens.map((t) => t.offset),
  };
}
