/** How a chat template writes calls, found out by letting it write some. */
import type { CallSyntax } from '../../infer/text/calls.ts';
import { ApiError } from '../http/errors.ts';
import type { Turn } from './chat-template.ts';
import type { JinjaProgram } from './jinja-program.ts';
import type { Tool } from './tools.ts';

const NAME = 'trial_function';
const OTHER = 'other_function';
const JSON_TEXT = /\{\s*"trial_key"\s*:\s*"trial_value"\s*\}/;
/** Some templates want ids of nine letters and digits. */
const IDS = ['trialid01', 'trialid02'];

const tool = (name: string): Tool => ({
  type: 'function',
  function: { name, description: name, parameters: { type: 'object', properties: { trial_key: { type: 'string' } } } },
});
const tools = [tool(NAME), tool(OTHER)];
const asked: Turn = { role: 'user', text: 'trial question' };

function rendered(program: JinjaProgram, turns: readonly Turn[], open = false): string | null {
  try {
    return program.run(turns, open, tools).text;
  } catch (error) {
    if (error instanceof ApiError) return null;
    throw error;
  }
}

const calling = (...names: string[]): Turn => ({
  role: 'assistant',
  text: '',
  calls: names.map((name, k) => ({ name, id: IDS[k], arguments: '{"trial_key": "trial_value"}' })),
});

/** Behind the longest beginning that two texts share. */
function apart(a: string, b: string): number {
  let n = 0;
  while (n < a.length && a[n] === b[n]) n++;
  return n;
}

/**
 * Null when a template does not describe tools, or writes calls otherwise than as a name followed by JSON.
 * @param before the text before the first control token
 */
export function syntaxOf(program: JinjaProgram, before: (text: string) => string): CallSyntax | null {
  const offered = rendered(program, [asked]);
  if (!offered?.includes(NAME)) return null;
  const told = rendered(program, [asked, { role: 'assistant', text: 'trial answer' }]);
  const one = rendered(program, [asked, calling(NAME)]);
  const results = rendered(program, [
    asked,
    calling(NAME),
    { role: 'tool', text: 'trial result', answers: { id: IDS[0] } },
  ]);
  if (told === null || one === null || !results?.includes('trial result')) return null;
  // What stands before every answer is no part of a call.
  const header = told.lastIndexOf('trial answer');
  const start = one.startsWith(told.slice(0, header)) ? header : apart(one, told);
  const segment = one.slice(start);
  const json = JSON_TEXT.exec(segment);
  const name = json ? segment.lastIndexOf(NAME, json.index) : -1;
  if (!json || name < 0) return null;
  const begin = segment.slice(0, name).trimStart();
  const middle = segment.slice(name + NAME.length, json.index);
  const end = before(segment.slice(json.index + json[0].length)).trimEnd();
  if (begin === '' || middle === '' || /^[\w-]/.test(middle) || segment.includes(IDS[0])) return null;
  const word = /^[^\s{"]+/.exec(begin)?.[0];
  return {
    ...{ trigger: word ?? begin, atStart: word === undefined },
    ...{ begin, middle, end, between: betweenOf(program, begin, end) },
  };
}

/** What stands between two calls of one answer; null when it is more than that. */
function betweenOf(program: JinjaProgram, begin: string, end: string): string | null {
  const two = rendered(program, [asked, calling(NAME, OTHER)]);
  const json = two === null ? null : JSON_TEXT.exec(two);
  const name = two === null ? -1 : two.lastIndexOf(OTHER);
  if (two === null || !json || name < 0) return null;
  const gap = two.slice(json.index + json[0].length, name);
  if (gap.length < begin.length + end.length || !gap.startsWith(end) || !gap.endsWith(begin)) return null;
  return gap.slice(end.length, gap.length - begin.length);
}
