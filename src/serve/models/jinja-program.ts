/** A chat template as a program: Jinja, as Hugging Face's libraries run it, with texts that cannot forge control tokens. */
import { Environment, Interpreter, Template } from '@huggingface/jinja';
import { AnsatzError } from '../../backend/errors.ts';
import type { AddedToken } from '../../data/tokenizer/format.ts';
import { tooDeep } from '../http/body.ts';
import { badRequest } from '../http/errors.ts';
import type { Turn } from './chat-template.ts';
import { Disguise, tellingCharacters } from './disguise.ts';
import { described, type Tool } from './tools.ts';

export interface Rendered {
  /** With what people said disguised, so that control tokens in it are the template's. */
  readonly text: string;
  readonly disguise: Disguise;
}

const MONTHS = 'January February March April May June July August September October November December'.split(' ');
const DAYS = 'Sunday Monday Tuesday Wednesday Thursday Friday Saturday'.split(' ');

/** Python's strftime in English, for what templates use of it; the machine's language must not change a prompt. */
export function strftime(now: Date, format: string): string {
  const two = (n: number): string => String(n).padStart(2, '0');
  const parts: Readonly<Record<string, () => string>> = {
    Y: () => String(now.getFullYear()),
    y: () => two(now.getFullYear() % 100),
    m: () => two(now.getMonth() + 1),
    d: () => two(now.getDate()),
    e: () => String(now.getDate()).padStart(2, ' '),
    B: () => MONTHS[now.getMonth()],
    b: () => MONTHS[now.getMonth()].slice(0, 3),
    A: () => DAYS[now.getDay()],
    a: () => DAYS[now.getDay()].slice(0, 3),
    H: () => two(now.getHours()),
    I: () => two(now.getHours() % 12 || 12),
    p: () => (now.getHours() < 12 ? 'AM' : 'PM'),
    M: () => two(now.getMinutes()),
    S: () => two(now.getSeconds()),
    '%': () => '%',
  };
  return format.replace(/%([a-zA-Z%])/g, (all, c: string) => parts[c]?.() ?? all);
}

/** Texts that a program compares with: its string literals. */
function literals(node: unknown, into = new Set<string>()): Set<string> {
  if (Array.isArray(node)) for (const item of node) literals(item, into);
  else if (node instanceof Map) for (const item of node) literals(item, into);
  else if (typeof node === 'object' && node !== null) {
    const { type, value } = node as { type?: unknown; value?: unknown };
    if (type === 'StringLiteral' && typeof value === 'string') into.add(value);
    for (const child of Object.values(node)) if (typeof child === 'object') literals(child, into);
  }
  return into;
}

export class JinjaProgram {
  private readonly source: string;
  private readonly template: Template;
  private readonly telling: ReadonlySet<string>;
  private readonly harmless: readonly string[];
  private readonly variables: Readonly<Record<string, unknown>>;

  /** @throws AnsatzError when it is no Jinja. */
  constructor(source: string, tokens: Readonly<Record<string, string>>, added: readonly AddedToken[]) {
    // As Jinja reads files.
    this.source = source.replace(/\r\n?/g, '\n');
    try {
      this.template = new Template(this.source);
    } catch (error) {
      throw new AnsatzError(`its chat template cannot be read: ${(error as Error).message}`);
    }
    this.telling = tellingCharacters(added);
    const control = added.filter((t) => t.special).map((t) => t.content);
    this.harmless = [...literals(this.template.parsed)].filter(
      (l) =>
        l.trim().length > 2 &&
        [...l].some((c) => this.telling.has(c)) &&
        !control.some((name) => name.includes(l) || l.includes(name)),
    );
    this.variables = tokens;
  }

  private execute(variables: Readonly<Record<string, unknown>>): string {
    const environment = new Environment();
    for (const [name, value] of Object.entries({ ...variables, ...GLOBALS })) environment.set(name, value);
    return (new Interpreter(environment).run(this.template.parsed) as { value: string }).value;
  }

  /** @throws ApiError 400 with the template's words when it refuses the messages. */
  run(turns: readonly Turn[], open: boolean, tools: readonly Tool[]): Rendered {
    const shown = tools.map(described);
    const disguise = new Disguise(this.telling, this.harmless, this.source + JSON.stringify([turns, shown]));
    const messages = turns.map((turn) => message(turn, disguise));
    try {
      const text = this.execute({
        ...this.variables,
        messages,
        // Where there are none, templates expect nothing rather than no variable.
        tools: tools.length > 0 ? disguise.hideAll(shown) : null,
        documents: null,
        add_generation_prompt: open,
      });
      return { text, disguise };
    } catch (error) {
      const why = disguise.show((error as Error).message).replace(/\.$/, '');
      throw badRequest(`The model's chat template refuses these messages: ${why}.`, 'messages');
    }
  }
}

/** range() as Python has it, not longer than a dialogue could need. */
function range(first: number, end?: number, step = 1): number[] {
  const [from, to] = end === undefined ? [0, first] : [first, end];
  const count = Math.max(0, Math.ceil((to - from) / step));
  if (!(count <= 100_000)) throw new Error(`range() of ${count} numbers`);
  return Array.from({ length: count }, (_, k) => from + k * step);
}

const GLOBALS: Readonly<Record<string, unknown>> = {
  ...{ true: true, True: true, false: false, False: false, none: null, None: null, range },
  raise_exception: (why: unknown) => {
    throw new Error(String(why));
  },
  strftime_now: (format: unknown) => strftime(new Date(), String(format)),
};

/** A message as templates know it: arguments are objects there, not text. */
function message({ role, text, calls, answers }: Turn, disguise: Disguise): object {
  const content = role === 'assistant' ? disguise.hideAnswer(text) : disguise.hide(text);
  const of = (json: string): unknown => {
    if (tooDeep(json)) return json;
    try {
      const value: unknown = JSON.parse(json);
      return typeof value === 'object' && value !== null ? value : json;
    } catch {
      return json;
    }
  };
  return {
    role,
    content,
    ...(calls &&
      calls.length > 0 && {
        tool_calls: calls.map((c) => ({
          ...(c.id !== undefined && { id: disguise.hide(c.id) }),
          type: 'function',
          function: { name: disguise.hide(c.name), arguments: disguise.hideAll(of(c.arguments)) },
        })),
      }),
    ...(answers?.id !== undefined && { tool_call_id: disguise.hide(answers.id) }),
    ...(answers?.name !== undefined && { name: disguise.hide(answers.name) }),
  };
}
