/**
 * How a dialogue becomes tokens. Markers are the tokenizer's own special tokens where it has a known set of them, and
 * plain lines otherwise. What people write is encoded as text, so no message can forge a marker; each piece is encoded
 * on its own, so a dialogue has the same tokens in training and in use.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import { chatFiles } from '../../infer/formats/chat-files.ts';
import { type Call, type CallSyntax, HERMES } from '../../infer/text/calls.ts';
import { JinjaTemplate } from './jinja-template.ts';
import { type Tool, withTools } from './tools.ts';

export type Speaker = 'system' | 'user' | 'assistant' | 'tool';

export interface Turn {
  readonly role: Speaker;
  readonly text: string;
  /** What an assistant calls, with ids that answers name. */
  readonly calls?: readonly (Call & { readonly id?: string })[];
  /** The call that a tool answers, and the function's name. */
  readonly answers?: { readonly id?: string; readonly name?: string };
}

/** Tokens of a dialogue; those of answers are what a model is trained to say. */
export interface Part {
  readonly ids: readonly number[];
  readonly answer: boolean;
}

export interface ChatTemplate {
  readonly name: string;
  /**
   * Each turn as what is given and what is said. `open`: the next answer begins at the end.
   * @throws ApiError 400 when the template has no words for these turns.
   */
  render(turns: readonly Turn[], open: boolean, tools?: readonly Tool[]): Part[];
  /** Whether it writes everything itself, the token that begins a text included. */
  readonly whole: boolean;
  /** How calls are written. */
  readonly calls: CallSyntax;
  /** Tokens that end an answer. */
  readonly stop: readonly number[];
  /** Text that ends an answer of a model which never learned to stop. */
  readonly stopStrings: readonly string[];
}

interface Markers {
  readonly name: string;
  /** Special tokens, all of which the tokenizer must have. */
  readonly needs: readonly string[];
  /** Before a turn's text and after it; words that are special tokens stand for them. */
  before(role: Speaker): readonly string[];
  readonly after: string;
  /** Between turns. */
  readonly between: string;
}

const MARKERS: readonly Markers[] = [
  {
    name: 'chatml',
    needs: ['<|im_start|>', '<|im_end|>'],
    before: (role) => ['<|im_start|>', `${role}\n`],
    after: '<|im_end|>',
    between: '\n',
  },
  {
    name: 'headers',
    needs: ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'],
    before: (role) => ['<|start_header_id|>', role, '<|end_header_id|>', '\n\n'],
    after: '<|eot_id|>',
    between: '',
  },
  {
    name: 'roles',
    needs: ['<|system|>', '<|user|>', '<|assistant|>', '<|end|>'],
    before: (role) => [`<|${role === 'tool' ? 'user' : role}|>`, '\n'],
    after: '<|end|>',
    between: '\n',
  },
];

const TITLES: Readonly<Record<Speaker, string>> = {
  system: 'System',
  user: 'User',
  assistant: 'Assistant',
  tool: 'Tool',
};

/**
 * The template that came with a run's model, or one of our own.
 * @throws AnsatzError when the one that came cannot be used.
 */
export function chatTemplate(tokenizer: Tokenizer, run: string): ChatTemplate {
  try {
    const files = chatFiles(run);
    return files.templates.size > 0 ? new JinjaTemplate(tokenizer, files) : builtInTemplate(tokenizer);
  } catch (error) {
    if (!(error instanceof AnsatzError)) throw error;
    throw new AnsatzError(error.message.startsWith(run) ? error.message : `${run}: ${error.message}`, {
      hint: error.hint ?? `mend it in ${run} (chat_template.jinja or tokenizer_config.json), or remove it`,
      cause: error,
    });
  }
}

/** A template of our own. */
export function builtInTemplate(tokenizer: Tokenizer): ChatTemplate {
  const known = MARKERS.find((m) => m.needs.every((name) => tokenizer.specialIds.has(name)));
  const text = (s: string): number[] => (s === '' ? [] : [...tokenizer.encode(s, { special: 'text' })]);
  const word = (s: string): number[] => {
    const id = known?.needs.includes(s) ? tokenizer.specialIds.get(s) : undefined;
    return id === undefined ? text(s) : [id];
  };
  const { eot } = tokenizer;
  const end = known ? tokenizer.specialIds.get(known.after)! : eot;
  const before = (role: Speaker): number[] =>
    known ? known.before(role).flatMap(word) : text(`### ${TITLES[role]}\n`);
  const between = text(known ? known.between : '\n\n');
  return {
    name: known?.name ?? 'plain',
    stop: end === eot ? [] : [end],
    stopStrings: known ? [] : ['\n### User\n', '\n### Tool\n'],
    whole: false,
    calls: HERMES,
    render: (dialogue, open, tools = []) => {
      const turns = withTools(dialogue, tools, HERMES);
      const parts: Part[] = [];
      let given: number[] = [];
      const give = (): void => {
        if (given.length > 0) parts.push({ ids: given, answer: false });
        given = [];
      };
      turns.forEach(({ role, text: said }, k) => {
        if (k > 0) given.push(...between);
        given.push(...before(role));
        if (role === 'assistant') {
          give();
          parts.push({ ids: [...text(said), end], answer: true });
          // Plain lines have no token that ends a turn but that of an answer.
        } else given.push(...text(said), ...(known ? [end] : []));
      });
      if (open) given.push(...(turns.length > 0 ? between : []), ...before('assistant'));
      give();
      return parts;
    },
  };
}
