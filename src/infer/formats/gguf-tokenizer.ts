/** A byte-level BPE tokenizer as GGUF's metadata. */
import { AnsatzError } from '../../backend/errors.ts';
import { parseTokenizer, type TokenizerTables } from '../../data/tokenizer/format.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import { usesPieces } from '../../data/tokenizer/pieces.ts';
import { nativeStages } from '../../data/tokenizer/stages.ts';
import type { GgufValue } from './gguf.ts';

/** llama.cpp's kinds of tokens. */
const TYPE = { normal: 1, control: 3, userDefined: 4, unused: 5 } as const;

const refuse = (what: string): never => {
  throw new AnsatzError(`this tokenizer cannot be written to GGUF: ${what}`, {
    hint: 'export the run --to hf instead',
  });
};

/**
 * GGUF names the rule that cuts text before merges; a reader knows the rule by its name. `llama-bpe` also takes whole
 * words from the vocabulary before it merges, `dbrx` has the same rule without that.
 */
function ruleOf(tables: TokenizerTables): string {
  const native = nativeStages(tables.stages);
  if (!native) return refuse('its rule for cutting text has no name there');
  const { pattern, prefix } = native;
  if (prefix !== 0) return refuse('it puts a space before texts');
  const { kind, maxDigits, ignoreCase } = pattern;
  const gpt2 = kind === 1;
  if (tables.ignoreMerges) return kind === 2 && ignoreCase && maxDigits === 3 ? 'llama-bpe' : refuse('ignore_merges');
  if (gpt2) return 'gpt-2';
  if (kind === 2 && ignoreCase && maxDigits === 3) return 'dbrx';
  if (kind === 2 && ignoreCase && maxDigits === 1) return 'qwen2';
  return refuse('its rule for cutting text has no name there');
}

export interface GgufTokenizer {
  readonly metadata: [string, GgufValue][];
  /** What a reader will do otherwise. */
  readonly notes: string[];
}

/**
 * @param vocab rows of the model's embedding: ids beyond the tokenizer's become unused tokens
 * @param begins whether texts begin with the end-of-text token where the tokenizer itself adds nothing
 */
export function ggufTokenizer(
  tokenizer: Tokenizer,
  o: { vocab: number; begins: boolean; chatTemplate?: string },
): GgufTokenizer {
  if (usesPieces(tokenizer.toJSON())) refuse('only byte-level BPE is written');
  const tables = parseTokenizer(tokenizer.toJSON());
  const { added, template } = tables;
  if (template.before.length > 1 || template.after.length > 0)
    refuse('it puts more around texts than one token before');
  const types = new Int32Array(o.vocab).fill(TYPE.unused);
  const tokens = Array.from({ length: o.vocab }, (_, id) => `[unused ${id}]`);
  const names: string[] = [];
  for (const [token, id] of tables.vocab) {
    [tokens[id], types[id]] = [token, TYPE.normal];
    names[id] = token;
  }
  for (const { id, content, special } of added)
    [tokens[id], types[id]] = [content, special ? TYPE.control : TYPE.userDefined];
  const merges: string[] = [];
  for (let k = 0; k < tables.merges.length; k += 3)
    merges.push(`${names[tables.merges[k]]} ${names[tables.merges[k + 1]]}`);
  const begins = template.before.length > 0 || o.begins;
  const key = (name: string): string => `tokenizer.ggml.${name}`;
  const metadata: [string, GgufValue][] = [
    [key('model'), { type: 'string', value: 'gpt2' }],
    [key('pre'), { type: 'string', value: ruleOf(tables) }],
    [key('tokens'), { type: 'strings', value: tokens }],
    [key('token_type'), { type: 'i32s', value: types }],
    [key('merges'), { type: 'strings', value: merges }],
    [key('bos_token_id'), { type: 'u32', value: template.before[0] ?? tokenizer.eot }],
    [key('eos_token_id'), { type: 'u32', value: tokenizer.eot }],
    [key('add_bos_token'), { type: 'bool', value: begins }],
  ];
  if (o.chatTemplate) metadata.push(['tokenizer.chat_template', { type: 'string', value: o.chatTemplate }]);
  const notes: string[] = [];
  if (tables.nfc) notes.push('GGUF readers do not normalise text to NFC, as this tokenizer does');
  if (added.some((t) => t.lstrip || t.rstrip || t.singleWord))
    notes.push('GGUF does not say which special tokens swallow the spaces beside them');
  return { metadata, notes };
}
