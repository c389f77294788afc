/** Special tokens for a tokenizer that has been trained already. */
import { AnsatzError } from '../../backend/errors.ts';
import { BYTE_SYMBOLS } from './byte-level.ts';
import type { JsonObject } from './json.ts';
import { Tokenizer } from './tokenizer.ts';

/**
 * The tokenizer with these special tokens: ids of those that it lacks follow its vocabulary, in order; no other id
 * changes. Text never encodes to a special token with `special: 'text'`, whatever it says, because no merge leads there.
 * @throws AnsatzError when a name already stands for text.
 */
export function reserveSpecials(tokenizer: Tokenizer, names: readonly string[]): Tokenizer {
  const missing = [...new Set(names)].filter((name) => !tokenizer.specialIds.has(name));
  if (missing.length === 0) return tokenizer;
  const taken = missing.find(
    (name) => name === '' || BYTE_SYMBOLS.includes(name) || tokenizer.tokenToId(name) !== undefined,
  );
  if (taken !== undefined)
    throw new AnsatzError(`'${taken}' cannot be a special token: the vocabulary has it as text`, {
      hint: 'train the tokenizer with the special tokens that you need',
    });
  const json = tokenizer.toJSON();
  const old = (json.added_tokens as JsonObject[] | null | undefined) ?? [];
  const added = missing.map((content, k) => ({
    id: tokenizer.vocabSize + k,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  return Tokenizer.fromJSON({ ...json, added_tokens: [...old, ...added] });
}
