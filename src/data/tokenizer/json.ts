/** JSON values, and the error for a tokenizer.json that cannot be used. */
import { AnsatzError } from '../../backend/errors.ts';

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type JsonObject = { [key: string]: Json };

export function bad(what: string): never {
  throw new AnsatzError(`tokenizer.json: ${what}`, {
    hint: 'use a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, or one made by `ansatz`) or a SentencePiece one (T5, Llama 2)',
  });
}

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Short form of a value for an error line. */
export function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing';
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
