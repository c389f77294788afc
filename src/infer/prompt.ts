/** A prompt as a model's objective puts it. */
import { AnsatzError } from '../backend/errors.ts';
import type { Tokenizer } from '../data/tokenizer/index.ts';
import type { Objective, Prompt, PromptOptions, Vocabulary } from '../objectives/index.ts';

export interface PromptText {
  /** Text that is given: an encoder reads it, or it comes before the prompt. The prompt is then what follows so far. */
  readonly context?: string;
  /** Mode of a model that was trained with a mixture of denoisers. */
  readonly mode?: string;
  /** Names of special tokens in prompt and context stand for those tokens (holes, control tokens), not for text. */
  readonly specials?: boolean;
}

/** The tokens of a prompt; what an encoder of `window` tokens has no room for goes first. */
export function putPrompt(
  tokenizer: Tokenizer,
  vocabulary: Vocabulary,
  objective: Objective | undefined,
  window: number,
  prompt: string,
  { mode, context, specials }: PromptText,
): Prompt & { decoder: number[] } {
  const special = specials ? 'token' : 'text';
  const encode = (text: string): number[] => [...tokenizer.encode(text, { special })];
  const before = context === undefined ? undefined : encode(context);
  return putTokens(tokenizer, vocabulary, objective, window, encode(prompt), { mode, context: before });
}

/** The same for text that is tokens already. */
export function putTokens(
  tokenizer: Tokenizer,
  vocabulary: Vocabulary,
  objective: Objective | undefined,
  window: number,
  text: readonly number[],
  { mode, context: before }: PromptOptions,
): Prompt & { decoder: number[] } {
  if (mode !== undefined && !objective?.modes?.includes(mode))
    throw objective?.modes
      ? new AnsatzError(`no mode '${mode}'`, { hint: `choose from ${objective.modes.join(', ')}` })
      : new AnsatzError(`the model has no modes, so none can be '${mode}'`, { hint: 'leave the mode out' });
  const put = (own: readonly number[], given: readonly number[] | undefined): Prompt => {
    const options: PromptOptions = { mode, context: given };
    const plain = { decoder: [...startOf(tokenizer), ...(given ?? []), ...own], stop: [] };
    return objective?.prompt?.(vocabulary, own, options) ?? plain;
  };
  let made = put(text, before);
  const excess = (made.encoder?.length ?? 0) - window;
  if (excess > 0) made = before ? put(text, before.slice(excess)) : put(text.slice(excess), undefined);
  return { ...made, decoder: [...made.decoder] };
}

/** Ids that a model has and its tokenizer does not: rows that round a vocabulary up. They stand for nothing. */
export const unusedOf = ({ vocabSize }: Tokenizer, vocab: number): number[] =>
  Array.from({ length: Math.max(0, vocab - vocabSize) }, (_, k) => vocabSize + k);

/** What stands before a text: what the tokenizer itself puts there (models of others), or what ends the document before. */
export function startOf({ template, eot }: Tokenizer): readonly number[] {
  return template.before.length > 0 ? template.before : [eot];
}
