/** Tokens as the API names them, and the text that they make together. */
export interface Candidate {
  readonly text: string;
  /** UTF-8 bytes; null where the API gives text only. */
  readonly bytes: readonly number[] | null;
  readonly logprob: number;
}

export interface Token extends Candidate {
  /** The likeliest tokens at this place, likeliest first. */
  readonly top: readonly Candidate[];
  /** Put there by the user instead of what the model drew. */
  readonly forced?: boolean;
}

const encoder = new TextEncoder();
const bytesOf = (c: Candidate): Uint8Array => (c.bytes ? Uint8Array.from(c.bytes) : encoder.encode(c.text));

/** The text of each token; a character whose bytes lie in several tokens belongs to the last of them. */
export function texts(tokens: readonly Candidate[]): string[] {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  const out = tokens.map((t) => decoder.decode(bytesOf(t), { stream: true }));
  const rest = decoder.decode();
  if (rest && out.length > 0) out[out.length - 1] += rest;
  return out;
}

export const textOf = (tokens: readonly Candidate[]): string => texts(tokens).join('');

/** A token's text with blanks made visible, for lists. */
export function shown(c: Candidate): string {
  const text = texts([c])[0];
  if (text === '') return '∅';
  return text.replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/\r/g, '␍').replace(/ /g, '␣');
}

/** A token that ends or directs a text and is no part of it, such as <|endoftext|>. */
export const isControl = (c: Candidate): boolean => /^(<\|[^|]*\|>|<\/s>|<eos>)$/.test(c.text);

export const probability = (logprob: number): number => Math.exp(logprob);

/** "12%", "0.4%", "<0.1%". */
export function percent(p: number): string {
  if (p >= 0.0995) return `${Math.round(100 * p)}%`;
  if (p >= 0.001) return `${(100 * p).toFixed(1)}%`;
  return '<0.1%';
}

/** Six steps from certain (0) to surprising (5). */
export function surprise(logprob: number): number {
  const p = Math.exp(logprob);
  return p > 0.8 ? 0 : p > 0.5 ? 1 : p > 0.25 ? 2 : p > 0.1 ? 3 : p > 0.02 ? 4 : 5;
}
