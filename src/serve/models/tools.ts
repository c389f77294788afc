/** Functions that a model may call, described in words for templates that know nothing of them. */
import { type CallSyntax, callText } from '../../infer/text/calls.ts';
import type { Turn } from './chat-template.ts';

export interface Tool {
  readonly type: 'function';
  readonly function: {
    readonly name: string;
    readonly description?: string;
    /** A JSON schema of an object. */
    readonly parameters?: Readonly<Record<string, unknown>>;
    readonly strict?: boolean;
  };
}

/** What a tool is, for a template or a description: how strictly it is taken is no business of the model. */
export const described = ({ type, function: { name, description, parameters } }: Tool): object => ({
  type,
  function: { name, ...(description !== undefined && { description }), ...(parameters && { parameters }) },
});

function description(tools: readonly Tool[], syntax: CallSyntax): string {
  const form = callText(syntax, { name: '<function name>', arguments: '<arguments, a JSON object>' });
  return [
    'You can call these functions:',
    '<tools>',
    ...tools.map((t) => JSON.stringify(described(t))),
    '</tools>',
    `To call a function, write nothing but${syntax.between === null ? '' : ' one or more of'}:`,
    form,
  ].join('\n');
}

/** A dialogue in which tools are described by the system, calls are text, and their results are told. */
export function withTools(turns: readonly Turn[], tools: readonly Tool[], syntax: CallSyntax): Turn[] {
  const told = turns.map((turn): Turn => {
    const calls = (turn.calls ?? []).map((c) => callText(syntax, c));
    return { role: turn.role, text: [turn.text, ...calls].filter((s) => s !== '').join('\n') };
  });
  if (tools.length === 0) return told;
  const words = description(tools, syntax);
  const [first, ...rest] = told;
  return first?.role === 'system'
    ? [{ ...first, text: first.text === '' ? words : `${first.text}\n\n${words}` }, ...rest]
    : [{ role: 'system', text: words }, ...told];
}
