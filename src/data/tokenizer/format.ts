/**
 * Reading Hugging Face's `tokenizer.json`: byte-level BPE in, checked tables out. Whatever else the format can express
 * is refused with one line, because half a tokenizer would encode wrongly without saying so.
 */
import { BYTE_SYMBOLS } from './byte-level.ts';
import { bad, isObject, type JsonObject, show } from './json.ts';
import { parseStages, type Stage } from './stages.ts';
import { parseTemplate, type Template } from './template.ts';

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  normalized: boolean;
  singleWord: boolean;
  lstrip: boolean;
  rstrip: boolean;
}

export interface TokenizerTables {
  /** Entries of the model's vocabulary, in the byte alphabet. */
  vocab: Map<string, number>;
  added: AddedToken[];
  /** (left, right, product) in order of rank. */
  merges: Uint32Array;
  byteIds: Uint32Array;
  ignoreMerges: boolean;
  nfc: boolean;
  stages: Stage[];
  template: Template;
}

// An id beyond this is a damaged file, not a vocabulary: tables are arrays indexed by id.
const MAX_ID = 1 << 24;

function parseId(value: unknown, owner: string): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > MAX_ID)
    bad(`the id of ${owner} is ${show(value)}, not an integer from 0 to ${MAX_ID}`);
  return value;
}

export function parseVocab(vocab: unknown): Map<string, number> {
  if (!isObject(vocab)) bad('model.vocab is not an object of token -> id');
  const ids = new Map<string, number>();
  const owners = new Map<number, string>();
  for (const [token, value] of Object.entries(vocab)) {
    const id = parseId(value, `the token ${show(token)}`);
    const owner = owners.get(id);
    if (owner !== undefined) bad(`the tokens ${show(owner)} and ${show(token)} share the id ${id}`);
    owners.set(id, token);
    ids.set(token, id);
  }
  return ids;
}

export function parseAdded(list: unknown, vocab: Map<string, number>): AddedToken[] {
  if (list === undefined || list === null) return [];
  if (!Array.isArray(list)) bad('added_tokens is not a list');
  const owners = new Map<number, string>([...vocab].map(([token, id]) => [id, token]));
  const added = new Map<string, AddedToken>();
  list.forEach((entry: unknown, k) => {
    if (!isObject(entry) || typeof entry.content !== 'string') bad(`added_tokens[${k}] has no content`);
    const { content } = entry;
    if (content === '') return;
    const id = parseId(entry.id, `the added token ${show(content)}`);
    const owner = owners.get(id);
    if (owner !== undefined && owner !== content)
      bad(`the added token ${show(content)} has the id ${id} of ${show(owner)}`);
    const other = vocab.get(content) ?? added.get(content)?.id;
    if (other !== undefined && other !== id) bad(`the token ${show(content)} has two ids, ${other} and ${id}`);
    owners.set(id, content);
    const special = entry.special === true;
    added.set(content, {
      id,
      content,
      special,
      normalized: typeof entry.normalized === 'boolean' ? entry.normalized : !special,
      singleWord: entry.single_word === true,
      lstrip: entry.lstrip === true,
      rstrip: entry.rstrip === true,
    });
  });
  return [...added.values()];
}

function parseMerges(list: unknown, vocab: Map<string, number>, specialIds: Set<number>): Uint32Array {
  if (!Array.isArray(list)) bad('model.merges is not a list');
  const triples = new Uint32Array(list.length * 3);
  let used = 0;
  list.forEach((merge: unknown, k) => {
    const pair: unknown = typeof merge === 'string' ? merge.split(' ') : merge;
    if (!Array.isArray(pair) || pair.length !== 2) bad(`merge ${k} is ${show(merge)}, not a pair of tokens`);
    const ids = [pair[0], pair[1], `${pair[0]}${pair[1]}`].map((token) => {
      const id = vocab.get(token);
      return id ?? bad(`merge ${k}, ${show(merge)}, needs the token ${show(token)}, which is not in the vocabulary`);
    });
    // Text must never become a control token. Nothing is lost: where the token is matched, its text is gone before
    // merges happen.
    if (specialIds.has(ids[2])) return;
    triples.set(ids, 3 * used++);
  });
  return triples.slice(0, 3 * used);
}

function checkModel(model: JsonObject): void {
  const type = model.type ?? (isObject(model.vocab) && Array.isArray(model.merges) ? 'BPE' : undefined);
  if (type !== 'BPE') bad(`the model is ${show(type)}; only byte-level BPE is supported`);
  if (model.byte_fallback === true)
    bad('byte_fallback BPE (SentencePiece style) is not supported, only byte-level BPE');
  if (model.dropout) bad(`merge dropout (${show(model.dropout)}) makes encoding random and is not supported`);
  for (const key of ['continuing_subword_prefix', 'end_of_word_suffix'])
    if (model[key]) bad(`${key} ${show(model[key])} is not supported, only byte-level BPE`);
}

function parseNormalizer(normalizer: unknown): boolean {
  if (normalizer === undefined || normalizer === null) return false;
  if (!isObject(normalizer)) bad('normalizer is not an object');
  if (normalizer.type === 'NFC') return true;
  if (normalizer.type === 'Sequence' && Array.isArray(normalizer.normalizers))
    return normalizer.normalizers.map(parseNormalizer).includes(true);
  return bad(`the normalizer ${show(normalizer.type)} is not supported, only NFC or none`);
}

function checkDecoder(decoder: unknown): void {
  if (decoder === undefined || decoder === null) return;
  const steps = isObject(decoder) && Array.isArray(decoder.decoders) ? decoder.decoders : [decoder];
  for (const step of steps)
    if (!isObject(step) || step.type !== 'ByteLevel')
      bad(`the decoder ${show(isObject(step) ? step.type : step)} is not supported, only ByteLevel`);
}

export function parseTokenizer(json: unknown): TokenizerTables {
  if (!isObject(json)) bad(`the file holds ${show(json)}, not an object`);
  if (!isObject(json.model)) bad('there is no model');
  const { model } = json;
  checkModel(model);
  const vocab = parseVocab(model.vocab);
  const added = parseAdded(json.added_tokens, vocab);
  const specialIds = new Set(added.filter((token) => token.special).map((token) => token.id));
  const byteIds = Uint32Array.from(BYTE_SYMBOLS, (symbol, byte) => {
    const id = vocab.get(symbol);
    return id ?? bad(`the vocabulary lacks ${show(symbol)}, the symbol of byte ${byte}`);
  });
  const nfc = parseNormalizer(json.normalizer);
  checkDecoder(json.decoder);
  return {
    vocab,
    added,
    merges: parseMerges(model.merges, vocab, specialIds),
    byteIds,
    ignoreMerges: model.ignore_merges === true,
    nfc,
    stages: parseStages(json.pre_tokenizer),
    template: parseTemplate(json.post_processor, vocab, added),
  };
}
