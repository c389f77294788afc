/** How an imported model is talked to, from the files that came with it: its chat template, named tokens, what ends a text. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';

/** Files that say how a model is talked to; they are kept beside the run for whoever serves it. */
export const COMPANIONS = [
  ...['tokenizer_config.json', 'special_tokens_map.json', 'generation_config.json'],
  ...['chat_template.jinja', 'chat_template.json'],
];

export interface ChatFiles {
  /** Jinja programs by name; the one for ordinary dialogues is 'default'. */
  readonly templates: ReadonlyMap<string, string>;
  /** bos_token, eos_token and their like, with the text of the token. */
  readonly tokens: Readonly<Record<string, string>>;
  /** Tokens that end a text besides the tokenizer's own (generation_config.json). */
  readonly ends: readonly number[];
}

type Json = Record<string, unknown>;

function readObject(folder: string, name: string): Json {
  const path = join(folder, name);
  if (!existsSync(path)) return {};
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(path, 'utf8'));
  } catch (cause) {
    throw new AnsatzError(`${path}: is not valid JSON`, { hint: 'copy it again, or remove it', cause });
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new AnsatzError(`${path}: is not a JSON object`, { hint: 'copy it again, or remove it' });
  return json as Json;
}

/** A template is a text, or a list of named ones. */
function templatesIn(value: unknown): [string, string][] {
  if (typeof value === 'string') return [['default', value]];
  if (!Array.isArray(value)) return [];
  return value.flatMap(({ name, template }: Json): [string, string][] =>
    typeof name === 'string' && typeof template === 'string' ? [[name, template]] : [],
  );
}

/** "<s>", or {"content": "<s>"}. */
function tokensIn(json: Json): [string, string][] {
  return Object.entries(json).flatMap(([name, value]): [string, string][] => {
    const text = typeof value === 'object' && value !== null ? (value as Json).content : value;
    return name.endsWith('_token') && typeof text === 'string' ? [[name, text]] : [];
  });
}

/**
 * A file of the template's own goes before the tokenizer's.
 * @throws AnsatzError when a file is damaged.
 */
export function chatFiles(folder: string): ChatFiles {
  const config = readObject(folder, 'tokenizer_config.json');
  const own = join(folder, 'chat_template.jinja');
  const templates = [
    ...templatesIn(readObject(folder, 'chat_template.json').chat_template),
    ...templatesIn(config.chat_template),
    ...(existsSync(own) ? [['default', readFileSync(own, 'utf8')] as [string, string]] : []),
  ];
  const tokens = [...tokensIn(readObject(folder, 'special_tokens_map.json')), ...tokensIn(config)];
  const { eos_token_id: ends } = readObject(folder, 'generation_config.json');
  return {
    templates: new Map(templates),
    tokens: Object.fromEntries(tokens),
    ends: [ends].flat().filter((id): id is number => Number.isInteger(id)),
  };
}
