/** A customer's examples: JSON lines, each a dialogue or a prompt with its completion, checked one by one. */
import { z } from 'zod';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import { ANSWER, ANSWERED, MARKS, READ } from '../../objectives/index.ts';
import { turnsOf } from '../api/asks.ts';
import { messageSchema, toolSchema } from '../api/schema.ts';
import { ApiError } from '../http/errors.ts';
import type { ChatTemplate, Part } from '../models/chat-template.ts';
import { withTools } from '../models/tools.ts';

const dialogue = z.object({
  messages: z.array(messageSchema.extend({ weight: z.union([z.literal(0), z.literal(1)]).nullish() })).min(1),
  /** What could be called. */
  tools: z.array(toolSchema).max(128).nullish(),
});
const pair = z.object({ prompt: z.string(), completion: z.string().min(1) });

export interface LineError {
  readonly line: number;
  readonly message: string;
}

/** An example as it is stored: tokens, with marks where answers begin and end (objectives/supervised.ts). */
export interface Example {
  /** The line that it was read from. */
  readonly text: Uint8Array;
  readonly ids: Int32Array;
  /** Tokens that are read, and those of them that are answers. */
  readonly tokens: number;
  readonly answers: number;
  /** Whether its end did not fit. */
  readonly cut: boolean;
}

export interface Dataset {
  readonly examples: readonly Example[];
  readonly errors: readonly LineError[];
}

export interface DatasetOptions {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
  /** Whether the model has an encoder, which reads what the system says. */
  readonly reads: boolean;
  /** Tokens of a row; longer examples lose their end. */
  readonly length: number;
  /** Tokens between the one that begins a text and the text itself. */
  readonly before: readonly number[];
}

/** Errors after which the rest of a file is not looked at. */
const MOST_ERRORS = 20;

/** Marks are ids that follow the vocabulary. */
export const marksOf = (tokenizer: Tokenizer): number => tokenizer.vocabSize;
export const storedVocab = (tokenizer: Tokenizer): number => tokenizer.vocabSize + MARKS;

export function readDataset(bytes: Uint8Array, o: DatasetOptions): Dataset {
  const examples: Example[] = [];
  const errors: LineError[] = [];
  let line = 0;
  for (let start = 0; start < bytes.length && errors.length < MOST_ERRORS; ) {
    const newline = bytes.indexOf(10, start);
    const end = newline < 0 ? bytes.length : newline;
    const text = bytes.subarray(start, end);
    start = end + 1;
    line++;
    try {
      const example = readLine(text, o);
      if (example) examples.push(example);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      errors.push({ line, message: error.message });
    }
  }
  return { examples, errors };
}

const wrong = (message: string): ApiError => new ApiError(400, message);

function readLine(bytes: Uint8Array, o: DatasetOptions): Example | null {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes).trim();
  } catch {
    throw wrong('is not valid UTF-8');
  }
  if (text === '') return null;
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw wrong(`is not valid JSON: ${(error as Error).message}`);
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw wrong('is not a JSON object');
  if ('messages' in json) return store(bytes, ...fromDialogue(json, o), o);
  if ('prompt' in json || 'completion' in json) return store(bytes, ...fromPair(json, o), o);
  throw wrong("has neither 'messages' nor 'prompt' and 'completion'");
}

function parsed<T>(schema: z.ZodType<T>, json: object): T {
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0];
  throw wrong(
    `${path.map((p, k) => (typeof p === 'number' ? `[${p}]` : k ? `.${String(p)}` : String(p))).join('')}: ${message}`,
  );
}

const encoded = ({ tokenizer }: DatasetOptions, text: string): number[] => [
  ...tokenizer.encode(text, { special: 'text' }),
];

/** What an encoder reads (null: there is none), and the parts of what follows. */
function fromDialogue(json: object, o: DatasetOptions): [number[] | null, Part[]] {
  const { messages, tools } = parsed(dialogue, json);
  const weights = messages.filter((m) => m.role === 'assistant').map((m) => m.weight ?? 1);
  if (!weights.includes(1)) throw wrong("has no message of role 'assistant' to learn from");
  const turns = turnsOf(messages);
  let at = 0;
  const learned = (parts: readonly Part[]): Part[] =>
    parts.map((part) => ({ ids: part.ids, answer: part.answer && weights[at++] === 1 }));
  if (!o.reads) return [null, learned(o.template.render(turns, false, tools ?? []))];
  const told = withTools(turns, tools ?? [], o.template.calls);
  const system = told.filter((t) => t.role === 'system').map((t) => t.text);
  const said = told.filter((t) => t.role !== 'system');
  return [encoded(o, system.join('\n\n')), learned(o.template.render(said, false))];
}

function fromPair(json: object, o: DatasetOptions): [number[] | null, Part[]] {
  const { prompt, completion } = parsed(pair, json);
  const given = encoded(o, prompt);
  const answer = { ids: [...encoded(o, completion), o.tokenizer.eot], answer: true };
  return o.reads ? [given, [answer]] : [null, [{ ids: given, answer: false }, answer]];
}

function store(text: Uint8Array, encoder: number[] | null, parts: readonly Part[], o: DatasetOptions): Example {
  const marks = marksOf(o.tokenizer);
  // What ends the document in the stored text takes a place too.
  const room = o.length - 1;
  const ids: number[] = encoder ? [...encoder.slice(0, room >> 1), marks + READ] : [...o.before];
  let answers = 0;
  let cut = encoder !== null && encoder.length > room >> 1;
  for (const part of parts) {
    const around = part.answer ? 2 : 0;
    const fits = part.ids.slice(0, Math.max(0, room - ids.length - around));
    cut ||= fits.length < part.ids.length;
    if (!part.answer) ids.push(...fits);
    else if (fits.length > 0) {
      ids.push(marks + ANSWER, ...fits, marks + ANSWERED);
      answers += fits.length;
    }
    if (cut) break;
  }
  if (answers === 0) throw wrong(`what comes before its answer leaves no room in ${o.length} tokens`);
  const tokens = ids.filter((id) => id < marks).length;
  return { text, ids: Int32Array.from(ids), tokens, answers, cut };
}
