/** Requests that could never be served, refused when they come. */
import { AnsatzError } from '../../backend/errors.ts';
import { MAX_ROWS, type Passes } from './passes.ts';
import type { Request } from './sequence.ts';

export interface Limits {
  readonly passes: Passes;
  readonly context: number;
  readonly page: number;
  readonly pages: number;
}

/**
 * The tokens of a request that stand before its prompt, because an encoder has read them.
 * @throws AnsatzError when it does not fit.
 */
export function checked(
  request: Request,
  { passes, context, page, pages }: Limits,
  encodes: boolean,
): readonly number[] {
  const { prompt } = request;
  if (prompt.length === 0) throw new AnsatzError('a prompt needs at least one token');
  // What is picked last is read by nobody, so it needs no place.
  if (prompt.length >= context + (request.maxTokens > 1 ? 0 : 1))
    throw new AnsatzError(`a prompt of ${prompt.length} tokens leaves no room in a context of ${context}`, {
      hint: 'shorten the prompt',
    });
  const before = passes.model.encoder?.before ? (request.encoder ?? []) : [];
  const start = before.length + prompt.length;
  if (Math.ceil((start + 1) / page) > pages)
    throw new AnsatzError(`a prompt of ${start} tokens does not fit the cache`, {
      hint: 'give the cache more memory',
    });
  if (request.encoder && !encodes) throw new AnsatzError('this model has no encoder');
  if ((request.encoder?.length ?? 0) > context)
    throw new AnsatzError(`a text of ${request.encoder!.length} tokens for an encoder with a context of ${context}`);
  if ((request.ahead ?? 0) > MAX_ROWS)
    throw new AnsatzError(`${request.ahead} tokens that see each other are more than one pass takes (${MAX_ROWS})`);
  return before;
}
