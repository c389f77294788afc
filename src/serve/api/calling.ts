/** Which functions a request lets a model call, and whether it must. */
import { badRequest } from '../http/errors.ts';
import type { Tool } from '../models/tools.ts';
import type { ChatRequest } from './schema.ts';

export interface Calling {
  /** What the model is told of. */
  readonly tools: readonly Tool[];
  /** What it may call: all of them, or the one that was named. */
  readonly callable: readonly Tool[];
  /** Whether the answer must be a call. */
  readonly must: boolean;
  readonly several: boolean;
}

/**
 * Null when nothing can be called.
 * @throws ApiError 400 when what is asked for cannot be.
 */
export function callingOf({
  tools = [],
  tool_choice: choice,
  parallel_tool_calls: parallel,
}: ChatRequest): Calling | null {
  const names = tools.map((t) => t.function.name);
  const twice = names.findIndex((name, k) => names.indexOf(name) < k);
  if (twice >= 0) throw badRequest(`there are two functions '${names[twice]}'`, `tools[${twice}].function.name`);
  if (tools.length === 0) {
    if (choice !== undefined && choice !== 'none') throw badRequest("'tool_choice' needs 'tools'", 'tool_choice');
    if (parallel !== undefined) throw badRequest("'parallel_tool_calls' needs 'tools'", 'parallel_tool_calls');
    return null;
  }
  if (choice === 'none') return null;
  if (typeof choice !== 'object')
    return { tools, callable: tools, must: choice === 'required', several: parallel ?? true };
  const { name } = choice.function;
  const named = tools.filter((t) => t.function.name === name);
  if (named.length === 0) throw badRequest(`'tools' has no function '${name}'`, 'tool_choice');
  return { tools, callable: named, must: true, several: false };
}
